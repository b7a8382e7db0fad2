"""What an update counts, against float64 in NumPy; every backend alike, and without changing a code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lowprec_plugin import FixedPointFormat
from lowprec_plugin.arithmetic import ops
from lowprec_plugin.arithmetic.formulas import ALGORITHMS, SGD, Algorithm, Hyper
from lowprec_plugin.arithmetic.native import library as native
from lowprec_plugin.arithmetic.update_counts import UpdateCounts
from tests import cases
from tests.algorithms import HYPERS, stored_as

BACKENDS = [
    "reference",
    *([f"native {name}" for name in ("baseline", "avx2", "avx512")] if native.available()[0] else []),
]
FORMATS = ["fixed8", "fixed12", "fixed16", "fixed20", "<4,12>", "<3,5>", "<3,9>", "<6,14>"]
SHAPES = [(), (7,), (300,), (0, 5), (5, 1), (9, 3), (13, 37), (3, 256), (4, 300), (1, 1000), (2, 3, 5, 5)]


def updated(
    backend: str,
    algorithm: Algorithm,
    grads: list[Tensor],
    stores: list[list[ops.Stored]],
    hyper: Hyper,
    counting: bool = True,
    **options: object,
) -> tuple[list[list[ops.Stored]], list[UpdateCounts]]:
    """The stores after an update of copies of them, and what it counted."""
    name, *instruction_set = backend.split()
    copies = [[ops.Stored(blocks.map(torch.clone), format) for blocks, format in each] for each in stores]
    before = native.instruction_set() if instruction_set else ""
    try:
        for each in instruction_set:
            native.select_instruction_set(each)
        with ops.use_backend(name):
            done = ops.update_(algorithm, grads, copies, [hyper] * len(grads), counting=counting, **options)  # type: ignore[arg-type]
    except ValueError as error:
        pytest.skip(str(error))
    finally:
        if instruction_set:
            native.select_instruction_set(before)
    assert done.refused is None
    assert done.saturated == sum(each.saturated for each in done.counts) or not counting
    return copies, done.counts


def numbers(stored: ops.Stored) -> tuple[np.ndarray, np.ndarray]:
    """The numbers behind codes, or the roots of a squared format, and the size of a code at each, float64."""
    (codes, low, exponents), format = stored
    code = codes.numpy().astype(np.int64)
    if low is not None:
        code = (code * 256 + low.numpy()) >> (24 - format.word_length)
    if exponents is None:
        size = np.full(code.shape, 2.0**-format.fraction_length)  # type: ignore[operator]
    else:
        length = code.size // max(1, exponents.shape[0])
        block = np.arange(length) // format.block_size
        size = (2.0 ** exponents.numpy().astype(np.float64))[:, block].reshape(code.shape)
    return code * size, size


def expected(
    algorithm: Algorithm,
    grad: Tensor,
    before: list[ops.Stored],
    after: list[ops.Stored],
    hyper: Hyper,
) -> UpdateCounts:
    """By the definitions of :class:`UpdateCounts`; the formula itself is the package's, in float32."""
    given = [torch.from_numpy(np.asarray(numbers(stored)[0], dtype=np.float32)) for stored in before]
    results = algorithm.apply(given[0], grad.float(), given[1:], hyper)
    saturated = 0
    for (_, format), result in zip(before, results, strict=True):
        if not format.dynamic:  # what a dynamic format cannot hold does not come up here
            x = result.numpy().astype(np.float64) * 2.0**format.fraction_length  # type: ignore[operator]
            saturated += int(((x < format.min_code) | (x > format.max_code)).sum())
    old, (stored, size) = numbers(before[0])[0], numbers(after[0])
    new = results[0].numpy().astype(np.float64)
    update, error = new - old, stored - new
    return UpdateCounts(
        elements=update.size,
        moved=np.count_nonzero(update),
        lost=np.count_nonzero((update != 0) & (np.abs(update) < 0.5 * size)),
        unchanged=np.count_nonzero((update != 0) & (stored == old)),
        saturated=saturated,
        update_squares=float((update * update).sum()),
        error_squares=float((error * error).sum()),
    )


def same_codes(one: list[list[ops.Stored]], other: list[list[ops.Stored]]) -> bool:
    planes = [
        [plane for each in stores for stored in each for plane in stored.blocks.planes] for stores in (one, other)
    ]
    return all(torch.equal(a, b) for a, b in zip(*planes, strict=True))


def assert_agree(found: UpdateCounts, wanted: UpdateCounts) -> None:
    assert found[:5] == wanted[:5]
    assert found[5:] == pytest.approx(wanted[5:], rel=1e-12, abs=0)


def stores_of(shape: tuple[int, ...], names: list[str], seed: int, block_size: int = 256) -> list[ops.Stored]:
    made = []
    for role, name in enumerate(names):
        format = FixedPointFormat.parse(name)
        format = FixedPointFormat(format.word_length, format.fraction_length, block_size, format.squared)
        values = cases.floats(shape, seed + role, squared=True).clamp(1e-6, 3)
        made.append(ops.Stored(ops.quantize(values if format.squared else values - 1, format)[0], format))
    return made


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=60)
@given(
    algorithm=st.sampled_from(ALGORITHMS),
    weights=st.sampled_from(FORMATS),
    state=st.sampled_from(["fixed8", "fixed16", "fixed12"]),
    shapes=st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3),
    block_size=st.sampled_from([16, 256]),
    rounding=st.sampled_from(ops.ROUNDINGS),
    first_row=st.sampled_from([0, 3, 2**31]),
    size=st.integers(-14, 4),
    seed=st.integers(0, 1000),
)
def test_counts_are_those_of_float64(
    backend: str,
    algorithm: Algorithm,
    weights: str,
    state: str,
    shapes: list[tuple[int, ...]],
    block_size: int,
    rounding: str,
    first_row: int,
    size: int,
    seed: int,
) -> None:
    names = stored_as(algorithm, weights, state)
    stores = [stores_of(shape, names, seed + 10 * index, block_size) for index, shape in enumerate(shapes)]
    types = (torch.float32, torch.bfloat16)
    grads = [
        (cases.floats(shape, seed + 5) * 2.0**size).clamp(-100, 100).to(types[index % 2])
        for index, shape in enumerate(shapes)
    ]
    rates = [name in ("lr", "step_size") for name in algorithm.hypers]
    chosen = HYPERS[algorithm][seed % len(HYPERS[algorithm])]
    hyper = [value * 2.0**size if rate else value for value, rate in zip(chosen, rates, strict=True)]
    options = {"rounding": rounding, "keys": [7] * len(grads), "first_rows": [first_row] * len(grads)}
    after, counts = updated(backend, algorithm, grads, stores, hyper, **options)
    for index, grad in enumerate(grads):
        assert_agree(counts[index], expected(algorithm, grad, stores[index], after[index], hyper))
    uncounted, none = updated(backend, algorithm, grads, stores, hyper, counting=False, **options)
    assert none == []
    assert same_codes(after, uncounted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weights", FORMATS)
def test_updates_at_the_very_bounds(backend: str, weights: str) -> None:
    """By so many codes exactly: none, one that is lost, one of half a code, which is not, and more."""
    format = FixedPointFormat.parse(weights)
    top = 2 ** (format.word_length - 2)  # keeps a block's exponent where it is
    codes = torch.tensor([[top, 1, -1, 3, 5, 0, 0, 2]])
    value = codes * 2.0**-5
    stored = ops.Stored(ops.quantize(value, format)[0], format)
    size = numbers(stored)[1]
    below = float(np.nextafter(np.float32(0.5), np.float32(0)))
    steps = [0.0, 0.5, -0.5, 0.25, 1.0, below, -below, 2.0]
    grad = torch.tensor([steps]) * torch.from_numpy(size).float()
    after, (counts,) = updated(backend, SGD, [grad], [[stored]], (-1.0, 0.0, 1.0), rounding="nearest")
    assert counts[:3] == (8, 7, 3)
    assert_agree(counts, expected(SGD, grad, [stored], after[0], (-1.0, 0.0, 1.0)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_overflows_and_what_is_refused(backend: str) -> None:
    stored = stores_of((3, 300), ["fixed16"], 0)
    overflowing = torch.full((3, 300), -3e38)
    _, (counts,) = updated(backend, SGD, [overflowing], [stored], (1.0, 0.0, 10.0))
    largest = torch.finfo(torch.float32).max
    assert counts.update_squares == pytest.approx(900 * largest**2, rel=1e-6)  # finite, as what is stored is
    assert counts.moved == counts.elements == 900
    assert 0 < counts.error_squares < counts.update_squares
    name = backend.split()[0]
    with ops.use_backend(name):
        zeros = torch.zeros(3, 300)
        done = ops.update_(
            SGD, [zeros, overflowing], [stored, stored], [(1.0, 0.0, 1.0), (1.0, 0.0, float("inf"))],
            counting=True,
        )  # fmt: skip
        assert done.refused is None
        done = ops.update_(SGD, [zeros], [stored], [(1.0, 0.0, float("inf"))], counting=True)
    assert done.refused == 0
    assert done.counts == [UpdateCounts()]


@pytest.mark.skipif(not native.available()[0], reason=native.available()[1])
def test_threads_do_not_matter() -> None:
    before, found = torch.get_num_threads(), []
    stored, grad = stores_of((300, 2000), ["fixed12"], 1), torch.randn(300, 2000) * 1e-3
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found += updated("native", SGD, [grad], [stored], (1.0, 0.0, 1.0))[1]
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert_agree(other, found[0])
    assert 0 < found[0].lost < found[0].moved
