"""The HLS header: its types against two independent implementations of ap_fixed.

``quantizers`` (PyPI) models the modes in NumPy; hls4ml (PyPI) carries AMD's own open-source ``ap_fixed.h``, which the
header is compiled with.
"""

from __future__ import annotations

import importlib.util
import re
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from lowprec_plugin import FixedPointFormat, FixedPointTensor, optim
from lowprec_plugin.arithmetic import ops
from lowprec_plugin.arithmetic.blocks import from_planes
from lowprec_plugin.export import to_hls
from lowprec_plugin.export.hls import ap_fixed
from tests.export import nets


def folder_of(package: str) -> Path:
    """Where a package is, without importing it: both import machine learning frameworks that nobody needs here."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0])


def quantizers() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "quantizers_np", folder_of("quantizers") / "fixed_point" / "fixed_point_ops_np.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


QUANTIZERS = quantizers()
GPP = ["g++", "-std=c++14", "-O0", "-w", "-isystem", str(folder_of("hls4ml") / "templates/vivado/ap_types")]
W_I_Q_O = re.compile(r"ap_fixed<(\d+), (-?\d+), AP_(\w+), AP_(\w+)>")


def by_quantizers(x: np.ndarray, type: str) -> np.ndarray:
    """Codes that assigning ``x`` to the type would give, by the package's model of it."""
    match = W_I_Q_O.fullmatch(type)
    assert match is not None
    width, integer = int(match[1]), int(match[2])
    quantizer = QUANTIZERS.get_fixed_quantizer_np(match[3], match[4])
    fraction = width - integer
    number = quantizer(x.astype(np.float64), np.float64(1), np.float64(integer - 1), np.float64(fraction))
    return np.asarray(number * 2.0**fraction).astype(np.int64)


def by_lowprec(x: np.ndarray, format: FixedPointFormat) -> np.ndarray:
    blocks, _ = ops.quantize(torch.tensor(x, dtype=torch.float32), format, rounding="nearest")
    return from_planes(blocks, format).numpy()


FORMATS = st.builds(lambda word, fraction: FixedPointFormat(word, fraction), st.integers(2, 24), st.integers(-30, 60))


@settings(max_examples=200)
@given(format=FORMATS, halves=st.lists(st.integers(-(2**24) + 1, 2**24 - 1), min_size=1), data=st.data())
def test_nearest_is_what_the_type_says(format: FixedPointFormat, halves: list[int], data: st.DataObject) -> None:
    """Numbers on halves of a code (every other one a tie), within the word and beyond it, and any others."""
    ties = np.array(halves, dtype=np.float32) * np.float32(2.0 ** (format.static_exponent - 1))
    edges = np.array(
        [format.max_code, format.max_code + 0.5, format.min_code, format.min_code - 0.5, format.min_code - 1]
    )
    others = data.draw(st.lists(st.floats(-1e6, 1e6, width=32)))
    x = np.concatenate([ties, (edges * 2.0**format.static_exponent).astype(np.float32), np.array(others, np.float32)])
    assert np.array_equal(by_lowprec(x, format), by_quantizers(x, ap_fixed(format)))


@pytest.mark.parametrize("fraction", [-1, 0, 3, 7])
def test_every_tie_of_a_byte(fraction: int) -> None:
    """Exhaustive for eight bits in eighths of a code, saturated ends included; other modes differ."""
    format = FixedPointFormat(8, fraction)
    x = np.arange(-1200, 1200).astype(np.float32) / 8 * np.float32(2.0**-fraction)
    ours = by_lowprec(x, format)
    assert np.array_equal(ours, by_quantizers(x, ap_fixed(format)))
    for rounding, overflow in (("RND", "SAT"), ("RND_MIN_INF", "SAT"), ("TRN", "SAT"), ("RND_CONV", "WRAP")):
        other = f"ap_fixed<8, {8 - fraction}, AP_{rounding}, AP_{overflow}>"
        assert not np.array_equal(ours, by_quantizers(x, other)), other


def test_the_paper_sends_ties_down() -> None:
    """Gupta et al. 2015 round up only above half a step: AP_RND_MIN_INF."""
    x = np.arange(-600, 600) / 16
    down = [int(min(127, max(-128, -((-Fraction(value) + Fraction(1, 2)) // 1)))) for value in x]
    assert np.array_equal(by_quantizers(x, "ap_fixed<8, 8, AP_RND_MIN_INF, AP_SAT>"), down)


def test_compiled_with_the_real_types(tmp_path: Path) -> None:
    """The trained network in C++: arrays to ap_fixed, sums in the accumulators, one rounding each."""
    net = nets.trained("<3,13>")
    _, _, images, _ = nets.digits()
    images = images[:30]
    to_hls(net, tmp_path / "net.h", input_shape=(1, 8, 8), activations="<6,6>")
    program = """
    #include <stdio.h>
    #include "net.h"
    template <typename OUT, typename SUM, typename W, typename B, typename X>
    void linear(const int16_t *weight, const int16_t *bias, const X *x, OUT *y, int inputs, int outputs)
    {
        for (int o = 0; o < outputs; ++o) {
            SUM sum = net_number<B>(bias[o]);
            for (int i = 0; i < inputs; ++i)
                sum += net_number<W>(weight[o * inputs + i]) * x[i];
            y[o] = sum; // the one rounding
        }
    }
    int main()
    {
        static double given[64];
        static net_input_t x[64];
        static net_1_out_t h[32];
        static net_3_out_t y[10];
        while (fread(given, sizeof given, 1, stdin) == 1) {
            for (int i = 0; i < 64; ++i)
                x[i] = given[i];
            linear<net_1_out_t, net_1_sum_t, net_1_weight_t, net_1_bias_t>(
                net_1_weight_codes, net_1_bias_codes, x, h, 64, 32);
            for (int i = 0; i < 32; ++i)
                if (h[i] < 0) h[i] = 0;
            linear<net_3_out_t, net_3_sum_t, net_3_weight_t, net_3_bias_t>(
                net_3_weight_codes, net_3_bias_codes, h, y, 32, 10);
            for (int i = 0; i < 10; ++i) {
                const double number = y[i].to_double();
                fwrite(&number, sizeof number, 1, stdout);
            }
        }
        return 0;
    }"""
    binary = nets.compiled(GPP, tmp_path, program, "main.cpp")
    in_hls = nets.run(binary, images.double().flatten(1), (30, 10), np.float64)
    assert torch.equal(in_hls.float(), nets.emulated(net, images, "<6,6>"))


def test_arrays_and_rounding_in_the_real_types(tmp_path: Path) -> None:
    """Codes become the stored numbers, and doubles on ties and beyond the ends the codes that lowprec gives them."""
    formats = ("<4,12>", "<2,0>", "<-2,10>", "<14,-4>", "<4,20>")
    stored, given, expected = {}, [], []
    for index, format in enumerate(formats):
        parsed = FixedPointFormat.parse(format)
        x = torch.randn(50) * 2.0 ** (parsed.word_length - 3 + parsed.static_exponent)
        stored[f"x{index}"] = FixedPointTensor.quantize(x, format)
        around = torch.arange(-41, 41)
        halves = torch.cat([around, 2 * parsed.max_code + around, 2 * parsed.min_code + around])
        given.append(halves * 2.0 ** (parsed.static_exponent - 1))
        rounded = FixedPointTensor.quantize(given[-1], format, rounding="nearest")
        expected.append(torch.cat([stored[f"x{index}"].dequantize(), rounded.dequantize()]))
    to_hls(stored, tmp_path / "net.h")
    calls = "".join(f"answer<net_x{index}_t>(net_x{index}_codes);" for index in range(len(formats)))
    program = f"""
    #include <stdio.h>
    #include "net.h"
    void put(double number) {{ fwrite(&number, sizeof number, 1, stdout); }}
    template <typename T, typename C> void answer(const C *codes)
    {{
        double given;
        for (int i = 0; i < 50; ++i)
            put(net_number<T>(codes[i]).to_double());
        for (int i = 0; i < {len(given[0])} && fread(&given, sizeof given, 1, stdin) == 1; ++i)
            put(T(given).to_double());
    }}
    int main() {{ {calls} return 0; }}"""
    binary = nets.compiled(GPP, tmp_path, program, "main.cpp")
    answer = nets.run(binary, torch.cat(given).double(), (len(formats), 50 + len(given[0])), np.float64)
    assert torch.equal(answer.float(), torch.stack(expected))


def test_a_layer_that_comes_twice(tmp_path: Path) -> None:
    """It has one type for its sums: of one format of what goes in."""
    layer = nn.Linear(4, 4)
    net = nn.Sequential(layer, nn.Linear(4, 4), layer)
    optim.quantize_(net, "<4,12>")
    with pytest.raises(ValueError, match="layer '0' comes twice, and what goes into it has two formats"):
        to_hls(net, tmp_path / "net.h", input_shape=(4,), activations={"0": "<5,7>", "1": "<8,10>"})
    to_hls(net, tmp_path / "net.h", input_shape=(4,), activations="<6,6>")
    assert (tmp_path / "net.h").read_text().count(" net_0_sum_t;") == 1


def test_a_tensor_named_as_a_type_is_refused(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 2))
    net.register_parameter("input", nn.Parameter(torch.ones(2)))
    optim.quantize_(net, "<4,12>")
    with pytest.raises(ValueError, match="'net_input_t' would be defined 2 times"):
        to_hls(net, tmp_path / "net.h", input_shape=(4,), activations="<4,12>")


def test_refused(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 2))
    optim.quantize_(net, "fixed16")
    with pytest.raises(ValueError, match=r"'0.weight': fixed16 has a radix point per block, and ap_fixed has one"):
        to_hls(net, tmp_path / "net.h")
    optim.quantize_(net, "<4,12>")
    with pytest.raises(ValueError, match=r"need a module, input_shape=\(4,\) and activations=None"):
        to_hls(net, tmp_path / "net.h", input_shape=(4,))
    assert list(tmp_path.iterdir()) == []


def test_modes_are_always_written_out(tmp_path: Path) -> None:
    to_hls(nets.trained("<3,13>"), tmp_path / "net.h", input_shape=(1, 8, 8), activations="<6,6>")
    text = (tmp_path / "net.h").read_text()
    types = re.findall(r"typedef (.*?>) (\w+);", text)
    assert len(types) == 4 + 1 + 2 * 2
    assert all(W_I_Q_O.fullmatch(type) for type, _ in types)
    assert {type for type, name in types if name.endswith(("weight_t", "bias_t"))} == {
        "ap_fixed<16, 3, AP_RND_CONV, AP_SAT>"
    }
