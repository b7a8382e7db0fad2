"""ONNX files in onnxruntime: the weights bit for bit, and what the network puts out."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from lowprec_plugin import FixedPointFormat, FixedPointTensor, optim
from lowprec_plugin.export import onnx_file, to_onnx
from lowprec_plugin.export.integers import split
from lowprec_plugin.tasks import Classifier
from tests.export import nets


def session(model: Any) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    # By default onnxruntime multiplies int8 weights with activations that it rounds to int8 by itself.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def decoded(model: Any, names: list[str]) -> dict[str, np.ndarray]:
    """What the runtime computes for tensors inside the graph."""
    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    del asked.graph.output[:]
    asked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    shape = [max(1, dim.dim_value) for dim in model.graph.input[0].type.tensor_type.shape.dim]
    answer = session(asked).run(names, {"input": np.zeros(shape, np.float32)})
    return dict(zip(names, answer, strict=True))


def bits(x: Any) -> np.ndarray:
    return np.ascontiguousarray(x).view(np.int32)


class Network(nn.Module):
    """Not an nn.Sequential: two branches, a normalisation and an attention."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 40, 3, padding=1)
        self.wide = nn.Conv2d(40, 8, 3)  # 360 numbers a row
        self.norm = nn.BatchNorm2d(8)
        self.mix = nn.Linear(6, 6, bias=False)
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.wide(torch.relu(self.conv(x))))
        return (self.scale * x + self.mix(x)).mean((2, 3))


@pytest.mark.parametrize("format", ["fixed16", "fixed8:16"])
def test_weights_bit_for_bit_and_outputs(format: str, tmp_path: Path) -> None:
    net = Network().eval()
    optim.quantize_(net, format, keep_float=["norm.*"])
    to_onnx(net, tmp_path / "net.onnx", input_shape=(3, 8, 8))
    model = onnx.load(tmp_path / "net.onnx")
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 21)]
    params = {name: param for name, param in net.named_parameters() if isinstance(param, FixedPointTensor)}
    for name, value in decoded(model, list(params)).items():
        assert np.array_equal(bits(value), bits(params[name].dequantize().numpy())), name
    # No float copy of them is left in the file.
    floats = sum(len(each.raw_data) for each in model.graph.initializer if each.data_type == onnx.TensorProto.FLOAT)
    assert floats < sum(param.numel() for param in params.values())
    # Both sum in float32 in orders of their own, 360 products at most: 360 * 2**-24 of the largest, were all to add up.
    x = torch.rand(5, 3, 8, 8)
    (out,) = session(model).run(["output"], {"input": x.numpy()})
    with torch.no_grad():
        expected = net(x)
    assert np.abs(out - expected.numpy()).max() <= 360 * 2.0**-24 * expected.abs().max()
    with torch.no_grad():
        net.wide.weight.add_(0.01)
    assert np.abs(out - net(x).detach().numpy()).max() > 360 * 2.0**-24 * expected.abs().max()  # and it would be seen


@pytest.mark.parametrize("format", ["fixed16:16", "fixed3:32", "<4,12>", "<-94,110>", "<4,2>"])
@pytest.mark.parametrize("shape", [(), (5,), (3, 7), (3, 33), (2, 3, 5, 5), (1, 1024)])
def test_decoders(format: str, shape: tuple[int, ...]) -> None:
    """Any shape and format, the smallest and largest exponents in it, by the nodes that the export writes."""
    parsed = FixedPointFormat.parse(format)
    x = torch.randn(shape) * 2.0 ** (torch.randint(-100, 100, shape) if parsed.dynamic else parsed.static_exponent)
    stored = FixedPointTensor.quantize(x, parsed)
    graph = onnx.GraphProto(name="decoders")
    graph.input.append(onnx.helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, [1]))
    graph.node.extend(onnx_file._decoder(onnx, graph, "x", split({"x": stored})[0]["x"]))
    graph.output.append(onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    assert np.array_equal(bits(decoded(model, ["x"])["x"]), bits(stored.dequantize().numpy()))


@pytest.mark.parametrize("activations", ["<5,3>", "<8,8>"])
def test_activations(activations: str, tmp_path: Path) -> None:
    """The rounded network is the emulated one: integer for integer where float32 holds every sum, else nearly always.

    Sums of products of up to 14 bits fit in float32's 24. With 30 bits they are rounded in float32 first, which can tip
    a number that lies between two codes to the other of them.
    """
    _, _, images, _ = nets.digits()
    images = 2 * images - 1
    short = activations == "<5,3>"
    classifier = Classifier(nets.trained("<4,4>" if short else "<3,13>"))
    to_onnx(classifier, tmp_path / "net.onnx", network="network", input_shape=(1, 8, 8), activations=activations)
    model = onnx.load(tmp_path / "net.onnx")
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("QuantizeLinear") == 3
    (out,) = session(model).run(["output"], {"input": images.numpy()})
    expected = nets.emulated(classifier.network, images, activations).numpy()
    off = np.abs(out - expected) * 2.0 ** FixedPointFormat.parse(activations).fraction_length  # type: ignore[operator]
    assert off.max() <= (0 if short else 1)
    assert (off > 0).mean() < 0.001
    if short:  # some of the numbers saturate to a byte
        assert expected.max() == 127 / 8


def test_layers_that_come_twice(tmp_path: Path) -> None:
    """A module under two names, and a parameter of two modules."""
    layer, tied = nn.Linear(4, 4), nn.Linear(4, 4)
    net = nn.Sequential(layer, nn.ReLU(), tied, layer)
    tied.weight = layer.weight
    optim.quantize_(net, "<4,4>")
    activations, x = {"0": "<5,3>", "2": "<6,2>"}, 3 * torch.randn(50, 4)
    to_onnx(net, tmp_path / "net.onnx", input_shape=(4,), activations=activations)
    (out,) = session(onnx.load(tmp_path / "net.onnx")).run(["output"], {"input": x.numpy()})
    assert np.array_equal(out, nets.emulated(net, x, activations).numpy())


def test_refused(tmp_path: Path) -> None:
    def linear(format: str = "<4,12>") -> nn.Sequential:
        net = nn.Sequential(nn.Linear(4, 2))
        optim.quantize_(net, format)
        return net

    class Forgetful(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    def refused(module: nn.Module, message: str, **options: Any) -> None:
        with pytest.raises(ValueError, match=message):
            to_onnx(module, tmp_path / "net.onnx", **{"input_shape": (4,), **options})
        assert list(tmp_path.iterdir()) == []

    refused(nn.Linear(4, 2), "none of the 2 entries is in fixed-point")
    refused(linear(), r"layer '0': QuantizeLinear rounds to 16 bits at most, and <9,8> has 17", activations="<9,8>")
    refused(linear("fixed20"), r"'0.weight' is in fixed20, and ONNX quantises to 16 bits at most")
    refused(linear("fixed16"), r"'0.weight' is in fixed16, a radix point per block", activations="<4,12>")
    refused(linear(), r"torch.onnx cannot export Sequential for an input of \(5,\)", input_shape=(5,))
    named = linear()
    named.register_buffer("input", torch.ones(1))
    refused(named, "'input' is what the graph's own input is called: rename")
    keyword = nn.Sequential(OrderedDict({"lambda": linear()}))
    refused(keyword, "cannot export Sequential .*: rename module 'lambda', for Python's keywords are no names to it")
    forgetful = Forgetful(nn.Linear(4, 2))
    optim.quantize_(forgetful)
    refused(forgetful, r"'0.weight' is not in torch.onnx's graph under its name")
