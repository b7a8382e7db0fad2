"""The C header, compiled and run: integer for integer what the emulation gives."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lowprec_plugin import Emulation, FixedPointTensor, emulate, optim
from lowprec_plugin.export import to_c
from lowprec_plugin.tasks import CNN, MNISTDataModule
from tests.activations.emulation import integers
from tests.export import nets

STRICT = ["gcc", "-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror"]
CHECKED = [*STRICT, "-O1", "-fsanitize=undefined,address", "-fno-sanitize-recover"]
MAIN = """
#include <stdio.h>
#include "net.h"

int main(void)
{
    static int32_t input[NET_INPUT_SIZE], output[NET_OUTPUT_SIZE], work[NET_WORK_SIZE];
    while (fread(input, sizeof input, 1, stdin) == 1) {
        net_run(input, output, work);
        fwrite(output, sizeof output, 1, stdout);
    }
    return 0;
}
"""


def c_and_emulation(
    net: nn.Module, x: Tensor, folder: Path, activations: str | dict[str, str] = nets.ACTIVATIONS, formats: str = ""
) -> tuple[Tensor, Tensor]:
    """Codes that the compiled network puts out, and those of the emulation."""
    first, _, last = (formats or f"{activations} {activations}").partition(" ")
    to_c(net, folder / "net.h", input_shape=x.shape[1:], activations=activations)
    binary = nets.compiled(CHECKED, folder, MAIN, "main.c")
    expected = nets.as_codes(nets.emulated(net, x, activations), last)
    return nets.run(binary, nets.rounded_codes(x, first), tuple(expected.shape)), expected


def test_digits(tmp_path: Path) -> None:
    _, _, images, labels = nets.digits()
    in_c, emulated = c_and_emulation(nets.trained("<3,13>"), images, tmp_path)
    assert torch.equal(in_c, emulated)
    accuracy = (in_c.argmax(-1) == labels).float().mean()
    assert accuracy > 0.93


def test_another_rounding_is_noticed(tmp_path: Path) -> None:
    """The negative control: ties that go up instead of to even, as a first draft of a kernel would do it."""
    _, _, images, _ = nets.digits()
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8))
    optim.quantize_(net, "<2,6>")  # few bits are dropped, and half of a code is common
    to_c(net, tmp_path / "net.h", input_shape=(1, 8, 8), activations="<6,2>")
    expected = nets.as_codes(nets.emulated(net, images, "<6,2>"), "<6,2>")
    header = (tmp_path / "net.h").read_text()
    results = []
    for draft in (header, header.replace("rest == one / 2 && sum % 2 != 0", "rest == one / 2")):
        (tmp_path / "net.h").write_text(draft)
        binary = nets.compiled(CHECKED, tmp_path, MAIN, "main.c")
        results.append(nets.run(binary, nets.rounded_codes(images, "<6,2>"), tuple(expected.shape)))
    assert torch.equal(results[0], expected)
    assert not torch.equal(results[1], expected)


def test_mnist(tmp_path: Path, mnist_root: Path) -> None:
    data = MNISTDataModule(str(mnist_root))
    data.setup("test")
    net = CNN()
    optim.quantize_(net, "<1,15>")
    in_c, emulated = c_and_emulation(net, data.test.tensors[0][:20], tmp_path, "<6,10>")
    assert torch.equal(in_c, emulated)


def test_every_rounding_of_small_sums(tmp_path: Path) -> None:
    """The function that rounds, exhaustively, against Python's integers; where bits are added too."""
    to_c(nets.trained("<3,13>"), tmp_path / "net.h", input_shape=(1, 8, 8), activations="<8,8>")
    program = """
    #include <stdio.h>
    #include "net.h"
    int main(void)
    {
        for (int drop = -3; drop < 10; ++drop)
            for (int word_length = 2; word_length < 10; word_length += 3)
                for (int sum = -700; sum < 700; ++sum) {
                    const int32_t rounded = net_round(sum, drop, word_length);
                    fwrite(&rounded, sizeof rounded, 1, stdout);
                }
        (void)net_run;
        return 0;
    }"""
    binary = nets.compiled(CHECKED, tmp_path, program, "main.c")
    sums = np.arange(-700, 700).astype(object)
    expected = [
        [integers.rounded(sums * 8, drop + 3, word_length).astype(np.int32) for word_length in (2, 5, 8)]
        for drop in range(-3, 10)
    ]
    assert np.array_equal(nets.run(binary, torch.empty(0), (13, 3, 1400)).numpy(), np.array(expected))


@pytest.mark.parametrize(
    ("weights", "activations", "formats"),
    [
        ("<4,4>", "<6,2>", ""),  # one byte, and ties are common
        ("<2,14>", "<2,10>", ""),  # saturates
        ("<3,17>", "<6,14>", ""),  # codes of three bytes
        ("<2,10>", {"0": "<6,6>", "last*": "<10,14>", "*": "<5,9>"}, "<6,6> <10,14>"),  # a format per layer
        ("<10,-2>", "<20,2>", ""),  # a radix point to the right of the words
    ],
)
def test_every_layer(weights: str, activations: str | dict[str, str], formats: str, tmp_path: Path) -> None:
    """Strides, padding, dilation, groups and uneven windows; a ReLU that comes twice; no bias."""
    relu = nn.ReLU()
    net = nn.Sequential(
        nn.Conv2d(2, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2), relu,
        nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.Conv2d(6, 4, 1, bias=False), relu, nn.MaxPool2d((1, 3))), nn.Identity(),
    )  # fmt: skip
    net.add_module("flatten", nn.Flatten())
    net.add_module("last", nn.Linear(4 * 3 * 1, 7))
    scale = 2.0 ** max(0, int(weights.split(",")[0][1:]) - 8)
    with torch.no_grad():
        for param in net.parameters():
            param.mul_(3 * scale)
    optim.quantize_(net, weights)
    in_c, emulated = c_and_emulation(net, 16 * torch.randn(40, 2, 11, 12), tmp_path, activations, formats)
    assert torch.equal(in_c, emulated)
    assert emulated.unique().numel() > 3


@pytest.mark.parametrize("format", ["<4,12>", "<2,6>", "<-3,20>", "fixed16:16", "fixed8:32", "fixed20"])
@pytest.mark.parametrize("shape", [(3, 5, 2, 7), (9,), ()])
def test_arrays(format: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    """A program in C that decodes the arrays as the header's comments say gives the floats, bit for bit."""
    x = FixedPointTensor.quantize(torch.randn(shape) * 0.02, format, label="x")
    to_c({"layer.x": x}, tmp_path / "net.h")
    if x.format.dynamic:
        value = (
            "ldexp(net_layer_x[i], net_layer_x_exponents[i / NET_LAYER_X_ROW * NET_LAYER_X_ROW_BLOCKS"
            " + i % NET_LAYER_X_ROW / NET_LAYER_X_BLOCK])"
        )
    else:
        value = "ldexp(net_layer_x[i], -(NET_LAYER_X_FL))"
    program = f"""
        #include <math.h>
        #include <stdio.h>
        #include "net.h"
        int main(void)
        {{
            for (size_t i = 0; i < sizeof net_layer_x / sizeof *net_layer_x; ++i) {{
                const float value = (float){value};
                fwrite(&value, sizeof value, 1, stdout);
            }}
            return 0;
        }}"""
    decoded = nets.run(nets.compiled([*STRICT, "-lm"], tmp_path, program, "main.c"), torch.empty(0), shape, np.float32)
    assert torch.equal(decoded.view(torch.int32), x.dequantize().view(torch.int32))


def bad(module: nn.Module, format: str = "<4,12>") -> nn.Module:
    optim.quantize_(module, format)
    return module


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (nn.Linear(4, 2), {}, r"none of the 2 entries is in fixed-point \(weight, bias\)"),
        (bad(nn.Linear(4, 2)), {"activations": None}, r"needs a module, input_shape=\(4,\) and activations=None"),
        (bad(nn.Linear(4, 2)), {"network": "net"}, r"network='net' is no submodule of Linear; there are \[\]"),
        (bad(nn.Linear(4, 2)), {}, r"network='' is Linear, and an nn.Sequential is needed.* has none"),
        (nn.Sequential(bad(nn.Linear(4, 2)), nn.GELU()), {}, r"layer '1' is GELU, and Linear, Conv2d.* are covered"),
        (nn.Sequential(bad(nn.Linear(4, 2), "fixed16")), {}, r"'0.weight' is in fixed16, a radix point per block"),
        (nn.Sequential(bad(nn.Linear(4, 2)), nn.ReLU()), {"input_shape": (2, 4)}, r"layer '0', Linear, takes 1 dim"),
        (nn.Sequential(bad(nn.Linear(4, 2))), {"input_shape": (5,)}, r"layer '0', Linear, does not take \(5,\)"),
        (nn.Sequential(bad(nn.Linear(4, 2)), nn.ReLU()), {"activations": {"1": "<4,4>"}}, r"no format for layer '0'"),
        (
            nn.Sequential(bad(nn.Linear(4, 2))),
            {"activations": {"1": "<4,4>", "*": "<4,12>"}},
            r"activations=\{'1': ...\} matches no module; there are 0",
        ),
        (nn.Sequential(bad(nn.Linear(4, 2))), {"activations": "fixed16"}, r"has a radix point per block"),
        (
            nn.Sequential(bad(nn.Linear(4, 2))),
            {"activations": "<-80,100>"},
            r"layer '0': sums of .* need \d+ bits, and 64 are",
        ),
        (nn.Sequential(bad(nn.Linear(4, 2))), {"activations": "<20,-6>"}, "its bias in <4,12> has more bits"),
        (nn.Sequential(bad(nn.Conv2d(1, 2, 3, padding="same"))), {"input_shape": (1, 4, 4)}, r"padding='same'"),
        (nn.Sequential(bad(nn.Conv2d(1, 2, 1)), nn.MaxPool2d(2, ceil_mode=True)), {"input_shape": (1, 4, 4)}, "ceil"),
        (nn.Sequential(bad(nn.Linear(4, 2)), nn.BatchNorm1d(2)), {}, r"'1.weight' is torch.float32 and a C header"),
        (nn.Sequential(bad(nn.Linear(4, 2))), {"leave_out": "*bias"}, r"leave_out names '0.bias', which the network"),
        (nn.Sequential(bad(nn.Linear(4, 2))), {"leave_out": ["1.*"]}, r"leave_out='1.\*' matches nothing"),
    ],
)
def test_refused(module: nn.Module, options: dict[str, object], message: str, tmp_path: Path) -> None:
    options = {"input_shape": (4,), "activations": "<4,12>", **options}
    with pytest.raises(ValueError, match=message):
        to_c(module, tmp_path / "net.h", **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


class Residual(nn.Sequential):
    """Of what it holds, and its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def test_what_a_sequence_does_besides_is_refused(tmp_path: Path) -> None:
    """A subclass with a forward of its own, and hooks: the layers alone would give other numbers."""
    options: dict[str, Any] = {"input_shape": (4,), "activations": "<4,12>"}
    inside = bad(nn.Sequential(Residual(nn.Linear(4, 4), nn.ReLU())))
    with pytest.raises(ValueError, match=r"layer '0' is Residual, and Linear, .* are covered"):
        to_c(inside, tmp_path / "net.h", **options)
    with pytest.raises(ValueError, match=r"network='0' is Residual, and an nn.Sequential is needed.* has \[''\]"):
        to_c(inside, tmp_path / "net.h", network="0", **options)
    hooked = bad(nn.Sequential(nn.Linear(4, 4)))
    handle = hooked[0].register_forward_hook(lambda module, args, output: 2 * output)
    with pytest.raises(ValueError, match="module '0' has forward hooks"):
        to_c(hooked, tmp_path / "net.h", **options)
    handle.remove()
    to_c(hooked, tmp_path / "net.h", **options)


def test_layers_that_another_network_shares(tmp_path: Path) -> None:
    """The emulation knows them by their first name in all of the module, the file by that in the network."""
    net = nn.Module()
    net.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    net.head = nn.Sequential(net.body[0], nn.ReLU())
    optim.quantize_(net, "<2,10>")
    x = torch.randn(30, 4)
    activations = {"body.0": "<4,6>", "*": "<8,8>"}
    to_c(net, tmp_path / "net.h", network="head", input_shape=(4,), activations=activations)
    assert "static const int16_t net_head_0_weight[16]" in (tmp_path / "net.h").read_text()
    binary = nets.compiled(CHECKED, tmp_path, MAIN, "main.c")
    settings = Emulation(activations, None, rounding="nearest", accumulate="exact")
    with torch.no_grad(), emulate(net, settings, training=False):
        expected = nets.as_codes(net.head(x), "<4,6>")
    assert torch.equal(nets.run(binary, nets.rounded_codes(x, "<4,6>"), (30, 4)), expected)


def test_layers_of_any_name(tmp_path: Path) -> None:
    """Keywords, and what would end a comment or is not ASCII: no identifier is made of a layer that has no tensors."""
    net = nn.Sequential(OrderedDict({"int": nn.Linear(4, 5), "*/é": nn.ReLU(), "for-each": nn.Linear(5, 3)}))
    in_c, emulated = c_and_emulation(bad(net), torch.randn(9, 4), tmp_path)
    assert torch.equal(in_c, emulated)


@pytest.mark.parametrize(("name", "taken"), [("run", "net_run"), ("input", "NET_INPUT_IL"), ("layer_0", "net_layer_0")])
def test_a_tensor_named_as_a_function_or_its_constants_is_refused(name: str, taken: str, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 2))
    net.register_parameter(name, nn.Parameter(torch.ones(2)))
    optim.quantize_(net, "<4,12>")
    options: dict[str, Any] = {"input_shape": (4,), "activations": "<4,12>"}
    with pytest.raises(ValueError, match=f"'{taken}' would be defined 2 times"):
        to_c(net, tmp_path / "net.h", **options)
    to_c(net, tmp_path / "net.h", leave_out=name, **options)


def test_names_refused(tmp_path: Path) -> None:
    x = FixedPointTensor.quantize(torch.ones(2), "<4,4>")
    with pytest.raises(ValueError, match=r"'a.b' and 'a_b' are both 'net_a_b' in C"):
        to_c({"a.b": x, "a_b": x}, tmp_path / "net.h")
    with pytest.raises(ValueError, match=r"'a' and 'A' are both 'net_a' in C, where constants are in capitals"):
        to_c({"a": FixedPointTensor.quantize(torch.ones(2), "<2,6>"), "A": x}, tmp_path / "net.h")
    dynamic = FixedPointTensor.quantize(torch.ones(2), "fixed8")
    with pytest.raises(ValueError, match=r"'net_a_exponents' would be defined 2 times"):
        to_c({"a": dynamic, "a.exponents": x}, tmp_path / "net.h")
    with pytest.raises(ValueError, match=r"'a\*/' is not of letters"):
        to_c({"a*/": x}, tmp_path / "net.h")
    with pytest.raises(ValueError, match=r"'1' is no C identifier"):
        to_c({"a": x}, tmp_path / "1.h")
    with pytest.raises(ValueError, match=r"'a' has no elements"):
        to_c({"a": FixedPointTensor.quantize(torch.ones(0, 2), "<4,4>")}, tmp_path / "net.h")
