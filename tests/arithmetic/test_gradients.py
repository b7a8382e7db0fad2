"""Gradients in codes: the law in torch, and the native kernels beside it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowprec_plugin import FixedPointFormat
from lowprec_plugin.arithmetic import ops
from lowprec_plugin.arithmetic.blocks import unwritten_blocks
from lowprec_plugin.arithmetic.formulas import ALGORITHMS, Algorithm
from lowprec_plugin.arithmetic.native import library as native
from lowprec_plugin.arithmetic.random_bits import key_of
from lowprec_plugin.formats import NOT_FINITE
from tests import cases
from tests.arithmetic.gathering import gathered, same, spoiled, updated
from tests.arithmetic.test_native import instruction_set as instruction_set

needs_native = pytest.mark.skipif(not native.available()[0], reason=native.available()[1])
WORD_LENGTHS = (2, 4, 8, 9, 12, 16, 17, 24)


@needs_native
@pytest.mark.parametrize("shape", cases.SHAPES, ids=str)
def test_native_kernels_do_what_the_reference_does(instruction_set: str, shape: tuple[int, ...]) -> None:
    for bits in WORD_LENGTHS:
        for block_size in (64, 256):
            format = FixedPointFormat(bits, block_size=block_size)
            for rounding in ops.ROUNDINGS:
                for spoil in (False, True):
                    expected = gathered("reference", shape, format, rounding, spoil=spoil)
                    assert same(expected, gathered("native", shape, format, rounding, spoil=spoil)), format


@needs_native
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
def test_native_updates_by_codes(instruction_set: str, algorithm: Algorithm) -> None:
    for shape in ((40, 37), (3, 700), (2, 256), (300,)):
        for gradient in map(FixedPointFormat.parse, ("fixed4", "fixed8", "fixed16", "fixed24")):
            for factor in (None, 0.37):
                expected = updated("reference", algorithm, shape, gradient, factor)
                found = updated("native", algorithm, shape, gradient, factor)
                assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True)), (shape, str(gradient))


@needs_native
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
def test_a_step_by_codes_is_one_by_the_floats_that_they_stand_for(algorithm: Algorithm) -> None:
    for factor in (None, 0.37):
        by_codes = updated("native", algorithm, (40, 300), FixedPointFormat(8), factor)
        by_floats = updated("native", algorithm, (40, 300), FixedPointFormat(8), factor, by_floats=True)
        assert all(torch.equal(a, b) for a, b in zip(by_codes, by_floats, strict=True))


@pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=needs_native)])
def test_a_block_that_is_not_finite_is_marked_and_the_others_are_not(backend: str) -> None:
    format, x = FixedPointFormat(8), torch.randn(4, 600)
    x[1, 300], x[2, 0], x[3, 599] = torch.nan, torch.inf, -torch.inf
    with ops.use_backend(backend):
        blocks = unwritten_blocks((4, 600), format, None)
        ops.gather_(x, blocks, format, fresh=True)
        assert blocks.exponents is not None
        marked = blocks.exponents == NOT_FINITE
        assert marked.nonzero().tolist() == [[1, 1], [2, 0], [3, 2]]
        floats = ops.dequantize(blocks, format)
        assert torch.equal(floats.isnan(), marked.repeat_interleave(256, 1)[:, :600])
        assert ops.squares(blocks, format).isnan()
        ops.gather_(torch.ones(4, 600), blocks, format)  # what is NaN stays so
        assert torch.equal(blocks.exponents == NOT_FINITE, marked)
        big = torch.full((4, 600), 3e38)
        ops.gather_(big, blocks, format, fresh=True)
        assert ops.first_nonfinite([ops.StoredGradient(blocks, format, None)]) is None
        ops.gather_(big, blocks, format)  # a sum that overflows is infinite, as of floats
        assert bool((blocks.exponents == NOT_FINITE).all())


def test_a_factor_that_is_not_finite_is_found() -> None:
    format = FixedPointFormat(8)
    blocks, _ = ops.quantize(torch.randn(3, 5), format)
    finite, factor = ops.StoredGradient(blocks, format, torch.tensor(0.5)), torch.tensor(torch.nan)
    spoilt = ops.StoredGradient(blocks, format, factor)
    assert ops.first_nonfinite([torch.ones(3), finite, finite, spoilt]) == 3
    assert ops.first_nonfinite([finite, finite, spoiled(torch.ones(3)), spoilt]) == 2
    assert ops.first_nonfinite([finite, torch.ones(3)]) is None
    assert ops.first_nonfinite([]) is None


@settings(max_examples=60)
@given(
    st.integers(1, 5), st.integers(1, 600), st.sampled_from(WORD_LENGTHS), st.sampled_from((16, 256)),
    st.floats(-4, 4, width=32), st.integers(0, 2**31),
)  # fmt: skip
def test_the_law(rows: int, length: int, bits: int, block_size: int, factor: float, seed: int) -> None:
    """What is stored is the sum, made in float32 and rounded once by the law of all numbers."""
    format = FixedPointFormat(bits, block_size=block_size)
    first, second = (cases.floats((rows, length), seed=seed + k).clamp(-1e6, 1e6) for k in range(2))
    blocks, _ = ops.quantize(first, format, rounding="stochastic", key=1, first_row=2)
    wanted = ops.dequantize(blocks, format) * torch.tensor(factor) + second
    expected, _ = ops.quantize(wanted, format, rounding="stochastic", key=7, first_row=2)
    ops.gather_(second, blocks, format, factor=torch.tensor(factor), key=7, first_row=2)
    assert all(torch.equal(a, b) for a, b in zip(blocks.planes, expected.planes, strict=True))


@settings(max_examples=40)
@given(st.integers(1, 4), st.integers(1, 700), st.sampled_from(WORD_LENGTHS), st.integers(0, 2**31))
def test_squares_are_those_of_float64(rows: int, length: int, bits: int, seed: int) -> None:
    format = FixedPointFormat(bits, block_size=64)
    blocks, _ = ops.quantize(cases.floats((rows, length), seed=seed).clamp(-1e18, 1e18), format)
    wanted = ops.dequantize(blocks, format).double().square().sum()
    torch.testing.assert_close(ops.squares(blocks, format), wanted, rtol=1e-12, atol=0)


def test_many_small_gradients_add_up() -> None:
    """A thousand gradients of a tenth of a code each: to nearest none of them would be kept."""
    format, rows = FixedPointFormat(8), 64
    grad = torch.full((rows, 256), 0.01)
    grad[:, 0] = 127.0  # one code is one
    once = torch.full((rows, 256), 0.01)
    once[:, 0] = 0.0
    sums = {}
    for rounding in ops.ROUNDINGS:
        blocks = unwritten_blocks((rows, 256), format, None)
        ops.gather_(grad, blocks, format, fresh=True, rounding=rounding, key=key_of(1, 0))
        for step in range(1, 1000):
            ops.gather_(once, blocks, format, rounding=rounding, key=key_of(1, step))
        sums[rounding] = ops.dequantize(blocks, format)[:, 1:].double()
    assert float(sums["nearest"].abs().max()) == 0
    error = float(sums["stochastic"].std()) / (rows * 255) ** 0.5
    assert abs(float(sums["stochastic"].mean()) - 10.0) < 4 * error + 0.01


def test_planes_that_do_not_fit_are_refused_before_anything_is_written() -> None:
    format = FixedPointFormat(8)
    blocks, _ = ops.quantize(torch.randn(3, 300), format)
    wrong = blocks._replace(exponents=torch.zeros(3, 1, dtype=torch.int8))
    before = wrong.codes.clone()
    with pytest.raises(ValueError, match="exponents"):
        ops.gather_(torch.ones(3, 300), wrong, format)
    assert torch.equal(wrong.codes, before)
    weights, _ = ops.quantize(torch.randn(3, 300), FixedPointFormat(16))
    with pytest.raises(ValueError, match="exponents"):
        ops.update_(
            ALGORITHMS[0], [ops.StoredGradient(wrong, format, None)], [[ops.Stored(weights, FixedPointFormat(16))]],
            [ALGORITHMS[0].hyper(sign=1, l2=0, lr=1)],
        )  # fmt: skip
