"""What a backend makes of gradients in codes, for tests that compare it with the reference."""

from __future__ import annotations

import torch
from torch import Tensor

from lowprec_plugin import FixedPointFormat
from lowprec_plugin.arithmetic import ops
from lowprec_plugin.arithmetic.blocks import unwritten_blocks
from lowprec_plugin.arithmetic.formulas import Algorithm
from lowprec_plugin.arithmetic.random_bits import key_of
from tests import cases
from tests.algorithms import HYPERS, stored_as

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def spoiled(x: Tensor) -> Tensor:
    """``x`` with a NaN and an infinity, where there is room."""
    x = x.clone()
    if x.numel() > 2:
        x.view(-1)[1], x.view(-1)[-1] = torch.nan, -torch.inf
    return x


def gathered(
    backend: str, shape: tuple[int, ...], format: FixedPointFormat, rounding: str, *, spoil: bool, device: str = "cpu"
) -> list[Tensor]:
    """Three gradients added up, with a factor before the second: planes, numbers, what is not finite, squares."""
    with ops.use_backend(backend):
        blocks = unwritten_blocks(shape, format, torch.device(device))
        for index, dtype in enumerate(DTYPES):
            grad = cases.floats(shape, seed=index).clamp(-1e4, 1e4)
            grad = (spoiled(grad) if spoil and index == 0 else grad).to(device, dtype)
            factor = torch.tensor(0.37, device=device) if index == 1 else None
            ops.gather_(
                grad, blocks, format, factor=factor, fresh=index == 0, rounding=rounding, key=key_of(3, index),
                first_row=5,
            )  # fmt: skip
        floats = [ops.dequantize(blocks, format, dtype) for dtype in (torch.float32, torch.bfloat16)]
        found = ops.first_nonfinite([ops.StoredGradient(blocks, format, None)])
        squares = ops.squares(blocks, format)
    bits = [torch.where(each.isnan(), torch.nan, each.float()).view(torch.int32) for each in floats]
    return [*(t.cpu() for t in (*blocks.planes, *bits)), torch.tensor(-1 if found is None else found), squares.cpu()]


def same(expected: list[Tensor], found: list[Tensor]) -> bool:
    """Whether two lists of :func:`gathered` are alike: bit for bit, but for the sum of squares, which is in float64."""
    *before, wanted = expected
    *after, squares = found
    torch.testing.assert_close(squares, wanted, rtol=1e-13, atol=0, equal_nan=True)
    return all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def updated(
    backend: str, algorithm: Algorithm, shape: tuple[int, ...], format: FixedPointFormat, factor: float | None,
    device: str = "cpu", by_floats: bool = False,
) -> list[Tensor]:  # fmt: skip
    """The planes of a parameter and its state after a step by a gradient in codes, or by the floats they stand for."""
    formats = [FixedPointFormat.parse(name) for name in stored_as(algorithm, "fixed16", "fixed8")]
    with ops.use_backend(backend):
        values = [cases.floats(shape, seed=9 + k, squared=f.squared).clamp(-1e4, 1e4) for k, f in enumerate(formats)]
        stores = [ops.Stored(ops.quantize(v.to(device), f)[0], f) for v, f in zip(values, formats, strict=True)]
        grad = cases.floats(shape, seed=5).clamp(-1e4, 1e4).to(device)
        blocks = unwritten_blocks(shape, format, grad.device)
        ops.gather_(grad, blocks, format, fresh=True, key=key_of(1, 1))
        number = None if factor is None else torch.tensor(factor, device=device)
        gradient: Tensor | ops.StoredGradient = ops.StoredGradient(blocks, format, number)
        if by_floats:
            gradient = ops.dequantize(blocks, format) * (1.0 if number is None else number)
        ops.update_(
            algorithm, [gradient], [stores], HYPERS[algorithm][:1], keys=[key_of(5, 6)], first_rows=[3]
        )  # fmt: skip
    return [plane.cpu() for store in stores for plane in store.blocks.planes]
