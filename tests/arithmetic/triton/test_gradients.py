"""Gradients in codes by the Triton kernels: what the reference does, bit for bit."""

from __future__ import annotations

import pytest
import torch

from lowprec_plugin import FixedPointFormat
from lowprec_plugin.arithmetic import ops
from lowprec_plugin.arithmetic.formulas import ALGORITHMS, Algorithm
from tests import cases
from tests.arithmetic.gathering import gathered, same, updated
from tests.arithmetic.triton.conftest import DEVICE, INTERPRETED

pytestmark = [] if INTERPRETED else [pytest.mark.gpu]


@pytest.mark.parametrize("shape", cases.SHAPES, ids=str)
def test_gathering(shape: tuple[int, ...]) -> None:
    for index, name in enumerate(("fixed2", "fixed8", "fixed16:64", "fixed24")):
        format, spoil = FixedPointFormat.parse(name), index % 2 == 0
        for rounding in ops.ROUNDINGS[index % 2 :]:
            expected = gathered("reference", shape, format, rounding, spoil=spoil)
            assert same(expected, gathered("triton", shape, format, rounding, spoil=spoil, device=DEVICE)), name


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
def test_updates_by_codes(algorithm: Algorithm) -> None:
    for shape, name, factor in (((40, 37), "fixed8", None), ((3, 700), "fixed16", 0.37), ((300,), "fixed24", 0.37)):
        gradient = FixedPointFormat.parse(name)
        expected = updated("reference", algorithm, shape, gradient, factor)
        found = updated("triton", algorithm, shape, gradient, factor, device=DEVICE)
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True)), (shape, name)
