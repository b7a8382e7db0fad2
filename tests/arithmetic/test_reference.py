"""The rounding laws, against definitions that share no code with the implementation."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowprec_plugin import FixedPointFormat
from lowprec_plugin.arithmetic.blocks import from_planes
from lowprec_plugin.arithmetic.random_bits import key_of, random_bits
from lowprec_plugin.arithmetic.reference import rounding as reference
from lowprec_plugin.formats import MIN_EXPONENT
from tests import cases


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 0.25, -0.25, 3.5, 1 / 3, -1 / 3, 1000.7, -1000.7, 2**-17, -(2**-30)])
def test_share_of_round_ups_is_the_discarded_fraction(value: float) -> None:
    """Exhaustive: over all 65,536 random values the round-ups count the fraction, to half of 2**-16."""
    codes = reference.round_to_code(torch.full((65536,), value, dtype=torch.float64), torch.arange(65536))
    low = math.floor(value)
    assert set(codes.tolist()) <= {low, low + 1}
    share = Fraction(int((codes - low).sum()), 65536)
    assert abs(share - (Fraction(value) - low)) <= Fraction(1, 2**17)


@given(st.integers(-(2**23), 2**23 - 1))
def test_integers_never_move(code: int) -> None:
    codes = reference.round_to_code(torch.full((65536,), float(code), dtype=torch.float64), torch.arange(65536))
    assert bool((codes == code).all())


def test_nearest_breaks_ties_to_even() -> None:
    halves = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 2.500001], dtype=torch.float64)
    assert reference.round_to_code(halves, None).tolist() == [-2, -2, 0, 0, 2, 2, 3]


@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False, width=32), st.integers(2, 24))
def test_exponent_is_the_smallest_that_holds(magnitude: float, word_length: int) -> None:
    format = FixedPointFormat(word_length)
    exponent = int(reference.block_exponents(torch.tensor(magnitude), format))
    held = Fraction(magnitude) <= format.max_code * Fraction(2) ** exponent
    assert held or exponent == format.max_exponent
    assert format.max_code * Fraction(2) ** format.max_exponent < Fraction(2) ** 128
    if exponent > MIN_EXPONENT:
        assert Fraction(magnitude) > format.max_code * Fraction(2) ** (exponent - 1)


@pytest.mark.parametrize("format", cases.formats(), ids=str)
@pytest.mark.parametrize("stochastic", [False, True])
def test_error_bound_and_identity(format: FixedPointFormat, stochastic: bool) -> None:
    """Within one code (half of one to nearest); what is stored, read and stored again is the same codes."""
    x = cases.floats((40, 37), squared=format.squared)
    bits = random_bits(key_of(1, 2), 40, 37) if stochastic else None
    blocks, saturated = reference.quantize(x, format, bits)
    value = reference.dequantize(blocks, format)
    again, _ = reference.quantize(value, format, None)
    for plane, other in zip(blocks.planes, again.planes, strict=True):
        assert torch.equal(plane, other)

    root = torch.sqrt(x.double()) if format.squared else x.double()
    if format.dynamic:  # the step is that of the exponent before rounding: see quantize
        largest = torch.stack([part.abs().amax(1) for part in root.split(format.block_size, 1)], 1)
        exponents = reference.block_exponents(largest.float(), format)
        step = (2.0 ** exponents.double()).repeat_interleave(format.block_size, 1)[:, :37]
    else:
        step = torch.full_like(root, 2.0**format.static_exponent)
    inside = (root >= format.min_code * step) & (root <= format.max_code * step)
    assert saturated == int((~inside).sum())
    found = torch.sqrt(value.double()) if format.squared else value.double()
    # never below one code: a square moves up by as much; and float32 rounds the square itself
    limit = step * (1 if stochastic or format.squared else 0.5) + root.abs() * 2**-24 * format.squared
    assert bool(((root - found).abs() <= limit * (1 + 2**-15))[inside].all())
    assert bool((value[x == 0] == 0).all())


def test_squares_other_than_zero_are_never_stored_as_zero() -> None:
    format = FixedPointFormat(8, squared=True)
    x = torch.tensor([[1.0, 1e-12, 0.0, 1e-30]])
    blocks, _ = reference.quantize(x, format, None)
    assert from_planes(blocks, format).tolist() == [[64, 1, 0, 1]]


def test_static_formats_saturate_at_both_ends() -> None:
    format = FixedPointFormat.parse("<4,12>")
    blocks, saturated = reference.quantize(torch.tensor([7.999, 8.0, 1e9, -8.0, -8.1]), format, None)
    assert blocks.codes.tolist() == [32764, 32767, 32767, -32768, -32768]
    assert saturated == 3


@settings(max_examples=25)
@given(st.integers(2, 16), st.integers(0, 2**30))
def test_stochastic_rounding_is_unbiased(word_length: int, seed: int) -> None:
    """The mean over 4,096 roundings is within five standard errors of the value."""
    format = FixedPointFormat(word_length, None, 16)
    x = torch.randn(1, 16, generator=torch.Generator().manual_seed(seed))
    total = torch.zeros(1, 16, dtype=torch.float64)
    bits = torch.randint(65536, (4096, 16), generator=torch.Generator().manual_seed(seed + 1), dtype=torch.int32)
    blocks, _ = reference.quantize(x.expand(4096, 16).contiguous(), format, bits)
    total = reference.dequantize(blocks, format).double()
    step = 2.0 ** float(reference.quantize(x, format, None)[0].exponents.max())  # type: ignore[union-attr]
    error = (total.mean(0) - x[0].double()).abs()
    assert bool((error <= 5 * (0.5 * step) / math.sqrt(4096) + step * 2**-16).all())


def test_rounding_to_nearest_is_not_unbiased() -> None:
    """The control of the test above."""
    format = FixedPointFormat(8, None, 16)
    x = torch.full((1, 16), 1.0)
    x[0, 0] = 0.001
    value = reference.dequantize(reference.quantize(x, format, None)[0], format)
    assert value[0, 0] == 0


def test_blocks_do_not_depend_on_sharding() -> None:
    x = cases.floats((40, 700))
    format = FixedPointFormat(16)
    bits = random_bits(5, 40, 700)
    whole, _ = reference.quantize(x, format, bits)
    for first, last in ((0, 13), (13, 40)):
        part, _ = reference.quantize(x[first:last], format, random_bits(5, last - first, 700, first_row=first))
        assert all(torch.equal(a, b[first:last]) for a, b in zip(part.planes, whole.planes, strict=True))
