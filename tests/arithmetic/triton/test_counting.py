"""The Triton kernels count what the reference counts, and round what they round without counting."""

from __future__ import annotations

import pytest
import torch

from lowprec_plugin.arithmetic import ops
from lowprec_plugin.arithmetic.formulas import ADAM, ALGORITHMS, MOMENTUM, Algorithm
from lowprec_plugin.arithmetic.update_counts import UpdateCounts
from tests.algorithms import HYPERS, stored_as
from tests.arithmetic.test_update import assert_agree, stores_of
from tests.arithmetic.triton.conftest import DEVICE, INTERPRETED

pytestmark = [] if INTERPRETED else [pytest.mark.gpu]
# A process of its own interprets these, see test_modes.py.

SHAPES = [(40,), (3, 37), (2, 256), (1, 300)]
FORMATS = [("fixed16", "fixed8"), ("<3,5>", "fixed8"), ("fixed12", "fixed8"), ("fixed8", "fixed12")]
CASES = [(ADAM, "fixed20", "fixed16", "nearest")]
CASES += [(each, *FORMATS[each.number % len(FORMATS)], ops.ROUNDINGS[each.number % 2]) for each in ALGORITHMS]


@pytest.mark.parametrize(("algorithm", "weights", "state", "rounding"), CASES, ids=str)
def test_counts(algorithm: Algorithm, weights: str, state: str, rounding: str) -> None:
    names = stored_as(algorithm, weights, state)
    generator = torch.Generator().manual_seed(3)
    grads = [torch.randn(shape, generator=generator) * 0.01 for shape in SHAPES]
    results = []
    for backend, device, counting in (("reference", "cpu", True), ("triton", DEVICE, True), ("triton", DEVICE, False)):
        stores = [
            [ops.Stored(blocks.map(lambda plane: plane.to(device)), format) for blocks, format in made]  # noqa: B023
            for made in (stores_of(shape, names, index) for index, shape in enumerate(SHAPES))
        ]
        with ops.use_backend(backend):
            done = ops.update_(
                algorithm,
                [grad.to(device) for grad in grads],
                stores,
                HYPERS[algorithm][:1] * len(SHAPES),
                rounding=rounding,
                keys=range(len(SHAPES)),
                first_rows=range(len(SHAPES)),
                counting=counting,
            )
        results.append((done, [plane.cpu() for each in stores for stored in each for plane in stored.blocks.planes]))
    (wanted, expected), (found, counted), (without, uncounted) = results
    assert without.counts == []
    assert without.saturated == found.saturated == wanted.saturated
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(expected, counted, uncounted, strict=True))
    assert len(found.counts) == len(SHAPES)
    for one, other in zip(found.counts, wanted.counts, strict=True):
        assert_agree(one, other)
    assert all(each.moved > 0 for each in found.counts)


def test_what_overflows_and_what_is_refused() -> None:
    grads = [torch.full((2, 300), -3e38, device=DEVICE), torch.zeros(3, 256, device=DEVICE)]
    grads[1][1] = 3e38
    stores = [
        [
            ops.Stored(blocks.map(lambda plane: plane.to(DEVICE)), format)
            for blocks, format in stores_of(shape, names, 0)
        ]
        for shape, names in (((2, 300), ["<2,6>", "fixed16"]), ((3, 256), ["fixed12", "fixed8"]))
    ]
    overflowing, infinity_times_zero = (1.0, 0.0, 1.0, 1.0, 10.0, 0.0, 1.0), (1.0, 0.0, 0.0, 1.0, 10.0, 1.0, 1.0)
    with ops.use_backend("triton"):
        done = ops.update_(
            MOMENTUM, grads, stores, [overflowing, infinity_times_zero], rounding="nearest", counting=True
        )
    assert done.refused == 1
    first, second = done.counts
    assert first.saturated == done.saturated >= 600
    assert first.moved == first.elements == 600
    largest = torch.finfo(torch.float32).max
    assert first.update_squares == pytest.approx(600 * largest**2, rel=1e-6)
    assert second == UpdateCounts(elements=2 * 256)  # not the row that was refused
