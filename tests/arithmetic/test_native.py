"""The native kernels do what the reference does, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle

import pytest
import torch

from lowprec_plugin import FixedPointFormat
from lowprec_plugin.arithmetic import ops
from lowprec_plugin.arithmetic.formulas import ADAM, ALGORITHMS, MOMENTUM, SGD, Algorithm, Hyper
from lowprec_plugin.arithmetic.native import library as native
from lowprec_plugin.arithmetic.random_bits import Draw, key_of
from lowprec_plugin.formats import rows_of
from tests import cases
from tests.algorithms import HYPERS, stored_as

able, reason = native.available()
pytestmark = pytest.mark.skipif(not able, reason=reason)


@pytest.fixture(params=["baseline", "avx2", "avx512"])
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.config.getoption("--instruction-set") not in (None, request.param):
        pytest.skip("another instruction set was asked for")
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
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
def test_updates(instruction_set: str, algorithm: Algorithm, rounding: str) -> None:
    drawn = cycle(HYPERS[algorithm])
    for weights, state in (
        ("fixed16", "fixed16"),
        ("fixed16", "fixed8"),
        ("fixed8", "fixed8"),
        ("fixed24", "fixed12"),
        ("<4,12>", "fixed16"),
        ("fixed2", "fixed3"),
    ):
        formats = [FixedPointFormat.parse(name) for name in stored_as(algorithm, weights, state)]
        for shape in cases.SHAPES:
            hypers = [next(drawn) for _ in range(3)]
            planes = {
                backend: _train(backend, algorithm, shape, formats, rounding, hypers)
                for backend in ("reference", "native")
            }
            assert all(torch.equal(a, b) for a, b in zip(*planes.values(), strict=True)), (weights, state, shape)


def _train(
    backend: str,
    algorithm: Algorithm,
    shape: tuple[int, ...],
    formats: list[FixedPointFormat],
    rounding: str,
    hypers: Sequence[Hyper],
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    with ops.use_backend(backend):
        stored = [
            ops.Stored(ops.quantize(torch.rand(shape, generator=generator), format)[0], format) for format in formats
        ]
        for dtype, hyper in zip((torch.float32, torch.bfloat16, torch.float16), hypers, strict=True):
            grad = torch.randn(shape, generator=generator).to(dtype)
            ops.update_(algorithm, [grad], [stored], [hyper], rounding=rounding, keys=[key_of(3, 4)])
    return [plane for each in stored for plane in each.blocks.planes]


def test_threads_do_not_matter() -> None:
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            format = FixedPointFormat(16)
            formats = [format, format, format.as_squared()]
            results.append(_train("native", ADAM, (300, 700), formats, "stochastic", HYPERS[ADAM][:3]))
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
            refused = ops.update_(MOMENTUM, [huge], [stored], [(1.0, 0.0, 10.0, 0.9, 10.0, 0.0, 1.0)]).refused
            assert refused is None
            assert ops.dequantize(stored[0].blocks, format).min() < -3.3e38
            before = [plane.clone() for each in stored for plane in each.blocks.planes]
            zero_times_infinity = (1.0, 0.0, 0.0, 10.0, 10.0, 0.0, 1.0)
            refused = ops.update_(MOMENTUM, [huge], [stored], [zero_times_infinity]).refused
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


@pytest.mark.parametrize(
    ("bits", "said"),
    [
        (torch.zeros(5, 3, dtype=torch.int64), r"bits are torch.int64 of shape \(5, 3\).*int32 of shape \(5, 3\)"),
        (torch.zeros(15, dtype=torch.int32), r"bits are torch.int32 of shape \(15,\).*int32 of shape \(5, 3\)"),
        (torch.zeros(5, 3, dtype=torch.int32, device="meta"), "on meta.*on cpu"),
        (torch.full((5, 3), -1, dtype=torch.int32), "bits are -1 to -1: give 16 bits, 0 to 65535"),
        (torch.full((5, 3), 65536, dtype=torch.int32), "bits are 65536 to 65536"),
    ],
)
def test_bits_of_another_kind_are_refused(bits: torch.Tensor, said: str) -> None:
    """Kernels read them from an address on, as many as ``x`` has elements."""
    x, format = torch.ones(5, 3), FixedPointFormat(8)
    for backend in ("reference", "native"):
        with ops.use_backend(backend):
            with pytest.raises(ValueError, match=said):
                ops.quantize(x, format, rounding="stochastic", bits=bits)
            with pytest.raises(ValueError, match=said):
                ops.rounded(x, format, rounding="stochastic", bits=bits)


def _unusual_in_memory() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Tensors whose memory is not what they look like, and what they look like."""
    file = bytearray(1) + bytearray(torch.arange(1, 25).float().numpy().tobytes())
    expanded = torch.tensor([3.0]).expand(2, 12)
    return {
        "negative by a flag": (torch._neg_view(torch.ones(2, 12)), -torch.ones(2, 12)),
        "imaginary part": (torch.tensor([1 + 2j]).conj().imag, torch.tensor([-2.0])),
        "between bytes": (
            torch.frombuffer(file, dtype=torch.float32, offset=1).view(2, 12),
            torch.arange(1, 25).float().view(2, 12),
        ),
        "expanded": (expanded, expanded.clone()),
        "transposed": (torch.arange(24.0).view(12, 2).t(), torch.arange(24.0).view(12, 2).t().contiguous()),
    }


@pytest.mark.parametrize("name", _unusual_in_memory())
def test_numbers_are_what_they_look_like_wherever_they_lie(instruction_set: str, name: str) -> None:
    given, plain = _unusual_in_memory()[name]
    format = FixedPointFormat(16)
    assert torch.equal(ops.dequantize(ops.quantize(given, format)[0], format), plain)
    assert torch.equal(ops.rounded(given, format), plain)
    weights = []
    for grad in (given, plain):
        stored = [ops.Stored(ops.quantize(torch.ones(grad.shape), format)[0], format)]
        ops.update_(SGD, [grad], [stored], HYPERS[SGD][:1], rounding="nearest")
        weights.append(ops.dequantize(stored[0].blocks, format))
    assert torch.equal(*weights)
    if given.shape == (2, 12):
        bits = given.abs().to(torch.int32)
        for view in (bits, bits.t().contiguous().t()):
            found = ops.quantize(plain, FixedPointFormat(4), rounding="stochastic", bits=view)[0].codes
            with ops.use_backend("reference"):
                expected = ops.quantize(plain, FixedPointFormat(4), rounding="stochastic", bits=bits)[0].codes
            assert torch.equal(found, expected)


def test_expanded_bits_are_not_read_past_their_end() -> None:
    x, format = torch.linspace(0, 1, 50).view(50, 1), FixedPointFormat(4)
    one = torch.full((1, 1), 40000, dtype=torch.int32)
    found = [
        ops.quantize(x, format, rounding="stochastic", bits=bits)[0] for bits in (one.expand(50, 1), one.repeat(50, 1))
    ]
    assert all(torch.equal(a, b) for a, b in zip(found[0].planes, found[1].planes, strict=True))


def test_a_gradient_on_another_device_is_refused() -> None:
    """An address of another device's memory would end the process."""
    format = FixedPointFormat(16)
    stored = [ops.Stored(ops.quantize(torch.ones(2, 300), format)[0], format) for _ in range(2)]
    blocks, _ = stored[1]
    stored[1] = ops.Stored(blocks.map(lambda plane: plane.to("meta")), format)
    before = [plane.clone() for plane in stored[0].blocks.planes]
    with pytest.raises(ValueError, match="a gradient on cpu cannot update codes on meta: move the optimizer's state"):
        ops.update_(MOMENTUM, [torch.ones(2, 300)], [stored], HYPERS[MOMENTUM][:1])
    assert all(torch.equal(a, b) for a, b in zip(before, stored[0].blocks.planes, strict=True))


@pytest.mark.parametrize(
    "out",
    [torch.empty(3, 100, dtype=torch.float16), torch.empty(3, 99), torch.empty(100, 3).t()],
    ids=["dtype", "size", "order"],
)
def test_a_result_of_another_kind_gets_no_address(out: torch.Tensor) -> None:
    format = FixedPointFormat(16)
    blocks, _ = ops.quantize(torch.ones(3, 100), format)
    with pytest.raises(AssertionError, match=r"\(dtype, elements, contiguous\)"):
        native.dequantize(blocks, format, out)
    with pytest.raises(AssertionError, match=r"\(dtype, elements, contiguous\)"):
        native.rounded(torch.ones(3, 100), format, out, Draw(stochastic=False))


@pytest.mark.parametrize("first_row", [-1, 2**63, 2**70])
def test_a_row_that_ctypes_would_cut_is_not_passed_on(first_row: int) -> None:
    with pytest.raises(AssertionError, match=str(first_row)):
        ops.quantize(torch.ones(2, 3), FixedPointFormat(8), rounding="stochastic", first_row=first_row)


@pytest.mark.parametrize("rounding", ops.ROUNDINGS)
def test_counters_of_random_bits_wrap(instruction_set: str, rounding: str) -> None:
    """The reference's 64-bit integers wrap too."""
    x = cases.floats((7, 300))
    for first_row in (2**32 // 152 - 3, 2**62):
        for format in (FixedPointFormat(16), FixedPointFormat(20), FixedPointFormat(8, 4)):
            found = []
            for backend in ("reference", "native"):
                with ops.use_backend(backend):
                    blocks, _ = ops.quantize(x, format, rounding=rounding, key=key_of(3, 4), first_row=first_row)
                    found.append(blocks)
            assert all(torch.equal(a, b) for a, b in zip(found[0].planes, found[1].planes, strict=True))
