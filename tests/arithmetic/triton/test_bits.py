"""The Triton kernels do what the reference does, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lowprec_plugin import FixedPointFormat
from lowprec_plugin.arithmetic import ops
from lowprec_plugin.arithmetic.backends import BACKENDS
from lowprec_plugin.arithmetic.blocks import Blocks
from lowprec_plugin.arithmetic.formulas import ADAM, ALGORITHMS, LION, MOMENTUM, Algorithm
from lowprec_plugin.arithmetic.random_bits import key_of, padded_row
from lowprec_plugin.formats import rows_of
from tests import cases
from tests.algorithms import HYPERS, stored_as
from tests.arithmetic.triton.conftest import DEVICE, INTERPRETED

pytestmark = [] if INTERPRETED else [pytest.mark.gpu]
# A process of its own interprets these, see test_modes.py.

HARD_FORMATS = ["fixed3", "fixed8^2", "fixed16", "fixed24:64", "<4,12>"]


def both(x: Tensor, format: FixedPointFormat, **arguments: object) -> tuple[list[Tensor], list[Tensor]]:
    """What the reference and the kernels make of ``x``: planes, floats, the number of saturated elements."""
    results = []
    for backend, device in (("reference", "cpu"), ("triton", DEVICE)):
        on_device = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in arguments.items()}
        with ops.use_backend(backend):
            blocks, saturated = ops.quantize(x.to(device), format, **on_device)  # type: ignore[arg-type]
            dtype = torch.float32 if arguments.get("rounding") == "stochastic" else torch.bfloat16
            floats = ops.dequantize(blocks, format, dtype)
        results.append([tensor.cpu() for tensor in (*blocks.planes, floats)] + [torch.tensor(saturated)])
    return results[0], results[1]


def equal(expected: Sequence[Tensor], found: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize(
    ("rounding", "word_length"),
    [("stochastic", bits) for bits in range(2, 25)] + [("nearest", bits) for bits in (2, 8, 9, 16, 17, 23, 24)],
)
def test_word_lengths(rounding: str, word_length: int) -> None:
    for format in cases.formats((word_length,), block_size=16)[:3]:
        x = cases.floats((40, 37), squared=format.squared)
        assert equal(*both(x, format, rounding=rounding, key=key_of(3, 4), first_row=5)), format


@pytest.mark.parametrize("shape", cases.SHAPES, ids=str)
def test_shapes(shape: tuple[int, ...]) -> None:
    for index, format in enumerate(map(FixedPointFormat.parse, HARD_FORMATS)):
        x = cases.floats(shape, squared=format.squared)
        assert equal(*both(x, format, rounding=ops.ROUNDINGS[index % 2], key=2**63 + 1)), format


@pytest.mark.parametrize("block_size", [16, 1024])
@pytest.mark.parametrize("row_length", [15, 16, 1000, 1024, 2048])
def test_block_sizes(block_size: int, row_length: int) -> None:
    format = FixedPointFormat(16, block_size=block_size)
    assert equal(*both(cases.floats((3, row_length)), format, rounding="stochastic", key=1, first_row=1))


@pytest.mark.parametrize("name", HARD_FORMATS)
def test_given_bits(name: str) -> None:
    format = FixedPointFormat.parse(name)
    for shape in ((), (300,), (7, 9), (3, 512)):
        x = cases.floats(shape, squared=format.squared)
        for bits in (
            torch.randint(65536, rows_of(shape)),
            torch.zeros(rows_of(shape)),
            torch.full(rows_of(shape), 65535),
        ):
            assert equal(*both(x, format, rounding="stochastic", bits=bits.int())), (format, shape)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("fixed16", torch.float32), ("<4,12>", torch.float32), ("<4,20>", torch.float32)]
    + [(name, torch.float64) for name in ("<1,1>", "<4,12>", "<20,4>")],
)
def test_roundings_that_are_not_stored(name: str, dtype: torch.dtype) -> None:
    format = FixedPointFormat.parse(name)
    for index, shape in enumerate([(), (300,), (40, 37), (3, 700)]):
        for rounding in ops.ROUNDINGS:
            given: Tensor | None = torch.randint(65536, rows_of(shape)).int()
            x, bits = cases.unusual(shape, dtype), given if index % 2 else None
            assert equal(*cases.rounded_by_both(x, format, rounding, bits, "triton", DEVICE)), (shape, rounding)


@pytest.mark.parametrize("row_length", [1, 37, 256])
@pytest.mark.parametrize("first_row", [0, 3, 2**31, 2**45])
def test_a_shard_is_a_slice_of_the_whole(first_row: int, row_length: int) -> None:
    x, format = cases.floats((12, row_length)), FixedPointFormat(12, block_size=64)
    results = []
    with ops.use_backend("triton"):
        for rows in (slice(0, 12), slice(5, 12)):
            blocks, _ = ops.quantize(
                x[rows].to(DEVICE), format, rounding="stochastic", key=9, first_row=first_row + rows.start
            )
            results.append([plane[-7:] for plane in blocks.planes])
    assert equal(*results)


@pytest.mark.parametrize("row_length", [1, 40, 256, 1000])
def test_counters_beyond_32_bits(row_length: int) -> None:
    # The 2**32nd random word lies within the tensor, and for some of these rows within a block.
    first_row = 2**32 // (padded_row(row_length) // 2) - 2
    x = cases.floats((5, row_length))
    assert equal(*both(x, FixedPointFormat(8), rounding="stochastic", key=2**40 + 3, first_row=first_row))


SHAPES = [(300,), (7, 9), (2, 256), (3, 700)]
FORMATS = [("fixed16", "fixed8"), ("fixed24", "fixed16"), ("fixed8", "fixed20"), ("<4,12>", "fixed3")]
#: Adam in all formats, all others in one: interpreted, each costs seconds.
UPDATES = [(ADAM, formats, "stochastic") for formats in FORMATS]
UPDATES += [(each, FORMATS[each.number % len(FORMATS)], ops.ROUNDINGS[each.number % 2]) for each in ALGORITHMS]


def stores(shape: tuple[int, ...], names: Sequence[str], device: str) -> list[ops.Stored]:
    """Tensors of every format in ``names``, the same whatever the device."""
    generator = torch.Generator().manual_seed(1)
    with ops.use_backend("reference"):
        made = []
        for format in map(FixedPointFormat.parse, names):
            blocks, _ = ops.quantize(torch.rand(shape, generator=generator), format)
            made.append(ops.Stored(blocks.map(lambda plane: plane.to(device)), format))
    return made


def planes(parameters: list[list[ops.Stored]]) -> list[Tensor]:
    return [plane.cpu() for tensors in parameters for stored in tensors for plane in stored.blocks.planes]


@pytest.mark.parametrize(("algorithm", "formats", "rounding"), UPDATES, ids=str)
def test_updates(algorithm: Algorithm, formats: tuple[str, str], rounding: str) -> None:
    weight, state = formats
    names = stored_as(algorithm, weight, state)
    generator = torch.Generator().manual_seed(2)
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    grads = [torch.randn(shape, generator=generator).to(dtypes[i % 3]) for i, shape in enumerate(SHAPES)]
    hypers = [tuple(number * (1 + index) for number in HYPERS[algorithm][index]) for index in range(len(SHAPES))]
    results = []
    for backend, device in (("reference", "cpu"), ("triton", DEVICE)):
        parameters = [stores(shape, names, device) for shape in SHAPES]
        with ops.use_backend(backend):
            outcome = ops.update_(
                algorithm,
                [grad.to(device) for grad in grads],
                parameters,
                hypers,
                rounding=rounding,
                keys=[key_of(key, 0) for key in range(len(SHAPES))],
                first_rows=range(len(SHAPES)),
            )
        results.append([torch.tensor(outcome[0]), *planes(parameters)])
        assert outcome[1] is None
    assert equal(*results)


def test_updates_saturate_and_count() -> None:
    results = []
    for backend, device in (("reference", "cpu"), ("triton", DEVICE)):
        parameters = [stores(shape, ["<2,6>", "fixed16"], device) for shape in SHAPES]
        grads = [torch.full(shape, -3e38, device=device) for shape in SHAPES]
        with ops.use_backend(backend):  # the buffer overflows float32, the weights their format
            outcome = ops.update_(MOMENTUM, grads, parameters, [(1.0, 0.0, 1.0, 1.0, 10.0, 0.0, 1.0)] * len(SHAPES))
        results.append([torch.tensor(outcome[0]), *planes(parameters)])
        assert outcome[0] >= sum(grad.numel() for grad in grads)
        assert outcome[1] is None
    assert equal(*results)


def test_a_nan_is_refused_and_its_block_left_alone() -> None:
    parameters = [stores(shape, ["fixed16", "fixed8"], DEVICE) for shape in SHAPES]
    before = planes(parameters)
    grads = [torch.zeros(shape, device=DEVICE) for shape in SHAPES]
    grads[1][3, 5] = grads[3][0, 0] = 3e38
    infinity_times_zero = (1.0, 0.0, 0.0, 1.0, 10.0, 1.0, 1.0)
    with ops.use_backend("triton"):
        outcome = ops.update_(MOMENTUM, grads, parameters, [infinity_times_zero] * len(SHAPES), rounding="nearest")
    assert outcome == (0, 1, [])
    # With a gradient of zero and a factor of one nothing else changes either.
    assert equal(before, planes(parameters))


def test_planes_off_128_bit_boundaries() -> None:
    def shifted(plane: Tensor) -> Tensor:
        moved = torch.empty(plane.numel() + 1, dtype=plane.dtype, device=plane.device)[1:].view(plane.shape)
        return moved.copy_(plane)

    results = []
    for move in (lambda plane: plane, shifted):
        parameters = [
            [ops.Stored(blocks.map(move), format) for blocks, format in stores((4, 512), ["fixed16"] * 2, DEVICE)]
        ]
        assert isinstance(parameters[0][0].blocks, Blocks)
        grads = [move(torch.ones(4, 512, device=DEVICE))]
        with ops.use_backend("triton"):
            ops.update_(LION, grads, parameters, HYPERS[LION][:1])
            values = move(torch.linspace(-1, 1, 2048, device=DEVICE).view(4, 512))
            blocks, _ = ops.quantize(values, FixedPointFormat(16), rounding="stochastic")
        results.append([*planes(parameters), *blocks.planes])
    assert equal(*results)


@pytest.mark.skipif(INTERPRETED, reason="2**31 elements are for a GPU")
def test_more_elements_than_32_bits_count() -> None:
    if torch.cuda.get_device_properties(0).total_memory < 24 * 2**30:
        pytest.skip("needs 24 GiB")
    format, rows = FixedPointFormat(8), 2**23 + 5
    x = torch.empty(rows, 257, device=DEVICE).uniform_(-1, 1)
    whole, _ = ops.quantize(x, format, rounding="stochastic", key=5)
    tail, _ = ops.quantize(x[-9:], format, rounding="stochastic", key=5, first_row=rows - 9)
    assert equal([plane[-9:] for plane in whole.planes], tail.planes)
    assert torch.equal(ops.dequantize(whole, format)[-9:], ops.dequantize(tail, format))


def test_available_says_what_runs() -> None:
    able, reason = BACKENDS["triton"].available()
    assert able
    assert ("interpreted" in reason) == INTERPRETED
