"""The native kernels do what the reference does, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from lowprec_plugin import FixedPointFormat, native, ops
from lowprec_plugin.formats import rows_of
from lowprec_plugin.random_bits import key_of
from lowprec_plugin.updates import Algorithm
from tests import cases

able, reason = native.available()
pytestmark = pytest.mark.skipif(not able, reason=reason)

HYPERS = {
    Algorithm.SGD: (1.0, 0.01, 0.1),
    Algorithm.MOMENTUM: (-1.0, 0.01, 0.1, 0.9, 0.8, 1.0, 0.9),
    Algorithm.ADAM: (1.0, 0.01, 0.1, 0.001, 0.1, 0.999, 0.001, 3.0, 1e-8),
    Algorithm.LION: (1.0, 0.1, 0.01, 0.1, 0.01),
}


@pytest.fixture(params=["baseline", "avx2", "avx512"])
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    before = native.instruction_set()
    try:
        native.select_instruction_set(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    native.select_instruction_set(before)


@pytest.mark.parametrize("rounding", ops.ROUNDINGS)
@pytest.mark.parametrize("shape", cases.SHAPES, ids=str)
def test_conversions(instruction_set: str, shape: tuple[int, ...], rounding: str) -> None:
    for format in cases.formats():
        x = cases.floats(shape, squared=format.squared)
        given = torch.randint(
            65536, (shape[0] if shape else 1, x.numel() // (shape[0] if shape else 1)), dtype=torch.int32
        )
        for bits in (None, given):
            found, expected = [], []
            for backend, results in (("reference", expected), ("native", found)):
                with ops.use_backend(backend):
                    blocks, saturated = ops.quantize(
                        x, format, rounding=rounding, key=key_of(3, 4), bits=bits, first_row=5
                    )
                    floats = [ops.dequantize(blocks, format, dtype) for dtype in (torch.float32, torch.bfloat16)]
                    results += [*blocks.planes, *floats, torch.tensor(saturated)]
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), format


@pytest.mark.parametrize("rounding", ops.ROUNDINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_roundings_that_are_not_stored(instruction_set: str, dtype: torch.dtype, rounding: str) -> None:
    formats = [format for format in cases.formats() if not format.squared]
    for shape in cases.SHAPES:
        x = cases.unusual(shape, dtype)
        given = torch.randint(65536, rows_of(shape), dtype=torch.int32)
        for index, format in enumerate(formats):
            if dtype == torch.float64 and format.dynamic:
                continue
            found, expected = cases.rounded_by_both(x, format, rounding, given if index % 2 else None, "native")
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), (shape, format)


@pytest.mark.parametrize("rounding", ops.ROUNDINGS)
@pytest.mark.parametrize("algorithm", Algorithm)
def test_updates(instruction_set: str, algorithm: Algorithm, rounding: str) -> None:
    for weights, state in (
        ("fixed16", 16),
        ("fixed16", 8),
        ("fixed8", 8),
        ("fixed24", 12),
        ("<4,12>", 16),
        ("fixed2", 3),
    ):
        formats = [
            FixedPointFormat.parse(weights), FixedPointFormat(state), FixedPointFormat(state, squared=True)
        ][: 1 + algorithm.states]  # fmt: skip
        for shape in cases.SHAPES:
            planes = {
                backend: _train(backend, algorithm, shape, formats, rounding) for backend in ("reference", "native")
            }
            assert all(torch.equal(a, b) for a, b in zip(*planes.values(), strict=True)), (weights, state, shape)


def _train(
    backend: str, algorithm: Algorithm, shape: tuple[int, ...], formats: list[FixedPointFormat], rounding: str
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    with ops.use_backend(backend):
        stored = [
            ops.Stored(ops.quantize(torch.rand(shape, generator=generator), format)[0], format) for format in formats
        ]
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            grad = torch.randn(shape, generator=generator).to(dtype)
            ops.update_(algorithm, [grad], [stored], [HYPERS[algorithm]], rounding=rounding, keys=[key_of(3, 4)])
    return [plane for each in stored for plane in each.blocks.planes]


def test_threads_do_not_matter() -> None:
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            format = FixedPointFormat(16)
            results.append(
                _train("native", Algorithm.ADAM, (300, 700), [format, format, format.as_squared()], "stochastic")
            )
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_overflow_saturates_and_nan_is_refused() -> None:
    format = FixedPointFormat(16)
    for backend in ("reference", "native"):
        with ops.use_backend(backend):
            stored = [ops.Stored(ops.quantize(torch.ones(2, 300), format)[0], format) for _ in range(2)]
            huge = torch.full((2, 300), 3e38)
            refused = ops.update_(Algorithm.MOMENTUM, [huge], [stored], [(1.0, 0.0, 10.0, 0.9, 10.0, 0.0, 1.0)]).refused
            assert refused is None
            assert ops.dequantize(stored[0].blocks, format).min() < -3.3e38
            before = [plane.clone() for each in stored for plane in each.blocks.planes]
            zero_times_infinity = (1.0, 0.0, 0.0, 10.0, 10.0, 0.0, 1.0)
            refused = ops.update_(Algorithm.MOMENTUM, [huge], [stored], [zero_times_infinity]).refused
            assert refused == 0
            after = [plane for each in stored for plane in each.blocks.planes]
            assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_first_nonfinite() -> None:
    tensors = [torch.randn(10, 1000), torch.randn(7), torch.zeros(3), torch.randn(5000)]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        given = [tensor.to(dtype) for tensor in tensors]
        assert ops.first_nonfinite(given) is None
        for bad in (torch.inf, -torch.inf, torch.nan):
            given[3][4999] = bad
            assert ops.first_nonfinite(given) == 3
            given[1][0] = bad
            assert ops.first_nonfinite(given) == 1
            given[1][0] = given[3][4999] = 0.0
