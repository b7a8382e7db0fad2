"""A gradient in codes does what a float gradient does, to whoever looks at it."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lowprec_plugin import FixedPointTensor
from lowprec_plugin.formats import NOT_FINITE
from lowprec_plugin.tensor.gradient import FixedPointGradient


def param(rows: int = 40, length: int = 300) -> FixedPointTensor:
    return FixedPointTensor.quantize(
        torch.randn(rows, length, generator=torch.Generator().manual_seed(1)), "fixed16", label="weight"
    )


def gradient(bits: int = 16, seed: int = 0, scale: float = 1.0, **options: int) -> tuple[FixedPointGradient, Tensor]:
    """A gradient, and the floats that it stands for."""
    weights = param(**options)
    grad = scale * torch.randn(weights.shape, generator=torch.Generator().manual_seed(seed))
    codes = FixedPointGradient.of(grad, weights, bits)
    return codes, codes.dequantize()


def test_it_holds_codes_and_nothing_else() -> None:
    grad = torch.randn(40, 300)
    codes = FixedPointGradient.of(grad, param(), 8)
    assert codes.nbytes == 40 * 300 + 40 * 2
    assert (codes.shape, codes.dtype, codes.label) == (grad.shape, grad.dtype, "weight.grad")
    assert isinstance(codes, FixedPointTensor)
    assert float((codes.dequantize() - grad).abs().max()) <= float(grad.abs().max()) / 64


@pytest.mark.parametrize(
    "multiply",
    [
        lambda g: g.mul_(0.3),
        lambda g: g.mul_(torch.tensor(0.3)),
        lambda g: g.mul_(torch.tensor(0.3, dtype=torch.float64)),
        lambda g: g.div_(1 / 0.3),
        lambda g: torch._foreach_mul_([g], 0.3),
        lambda g: torch._foreach_mul_([g], torch.tensor(0.3)),
        lambda g: torch._foreach_mul_([g], [0.3]),
        lambda g: torch._foreach_div_([g], 1 / 0.3),
        lambda g: g.detach().mul_(0.3),
        lambda g: g.data.mul_(0.3),
    ],
)
def test_a_number_multiplies_no_code(multiply: Callable[[Tensor], object]) -> None:
    codes, floats = gradient()
    before = [plane.clone() for plane in codes.blocks.planes]
    multiply(codes)
    assert all(torch.equal(a, b) for a, b in zip(codes.blocks.planes, before, strict=True))
    torch.testing.assert_close(codes.dequantize(), floats * 0.3, rtol=1e-6, atol=0)
    multiply(codes)
    torch.testing.assert_close(codes.dequantize(), floats * 0.3 * 0.3, rtol=1e-6, atol=0)


def test_a_number_that_changes_in_between_is_another() -> None:
    codes, floats = gradient()
    other, same = gradient(seed=1)
    number = torch.tensor(0.5)
    codes.mul_(number)
    number.fill_(2.0)
    other.mul_(number)
    assert torch.equal(codes.dequantize(), floats * 0.5)
    assert torch.equal(other.dequantize(), same * 2)


def test_what_is_no_number_is_rounded() -> None:
    codes, floats = gradient()
    codes.mul_(torch.full((300,), 0.5))
    torch.testing.assert_close(codes.dequantize(), floats * 0.5, rtol=0, atol=1e-4)
    assert codes.factor is None


@pytest.mark.parametrize(
    "rows", [lambda g: g[:3], lambda g: g.narrow(0, 0, 3), lambda g: g.split(3)[0], lambda g: g.split([3, 37])[0]]
)
def test_rows_that_are_written_to_after_clipping_leave_the_others_clipped(rows: Callable[[Tensor], Tensor]) -> None:
    codes, floats = gradient()
    codes.mul_(0.25)
    rows(codes).zero_()
    wanted = floats * 0.25
    wanted[:3] = 0
    torch.testing.assert_close(codes.dequantize(), wanted, rtol=0, atol=1e-4)


def test_dividing_by_zero_is_not_finite() -> None:
    codes, _ = gradient()
    codes.div_(0)
    assert not codes.isfinite().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_micro_batches_add_up_in_float32_and_are_rounded_once(dtype: torch.dtype) -> None:
    codes, floats = gradient()
    codes.mul_(0.25)
    more = torch.randn(40, 300).to(dtype)
    roundings = codes.roundings
    codes += more
    assert codes.roundings == roundings + 1
    assert codes.factor is None
    expected = FixedPointTensor.quantize(floats * 0.25 + more.float(), "fixed16", rounding="nearest").dequantize()
    step = 2.0 ** (codes.exponents.float().max())  # type: ignore[union-attr]
    assert float((codes.dequantize() - expected).abs().max()) <= float(step)


def test_norms_come_from_the_codes() -> None:
    codes, floats = gradient(bits=8)
    codes.mul_(-0.37)
    wanted = (floats * -0.37).double().norm()
    for found in (
        codes.norm(), codes.norm(2), codes.data.norm(2), torch.linalg.vector_norm(codes), torch.norm(codes, 2.0),
        torch._foreach_norm([codes], 2)[0], nn.utils.get_total_norm([codes]),
    ):  # fmt: skip
        torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=0)
    torch.testing.assert_close(codes.norm(torch.inf), (floats * -0.37).abs().max())
    torch.testing.assert_close(codes.norm(1), (floats * -0.37).norm(1))
    torch.testing.assert_close(codes.norm(dim=1), (floats * -0.37).norm(dim=1))


@pytest.mark.parametrize("foreach", [None, False, True])
def test_clipping_by_norm_touches_no_code(foreach: bool | None) -> None:
    codes, floats = gradient(bits=8)
    weight, bias = nn.Parameter(param()), nn.Parameter(torch.zeros(40))
    weight.grad, bias.grad = codes, torch.ones(40)
    before = codes.blocks.codes.clone()
    wanted = torch.cat([floats.flatten(), torch.ones(40)]).double().norm()
    found = nn.utils.clip_grad_norm_([weight, bias], 1.0, foreach=foreach)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=0)
    assert torch.equal(codes.blocks.codes, before)
    clipped = torch.cat([codes.dequantize().flatten(), bias.grad]).double().norm()
    torch.testing.assert_close(clipped, torch.tensor(1.0).double(), rtol=1e-5, atol=0)


def test_clipping_by_value() -> None:
    codes, floats = gradient()
    weight = nn.Parameter(param())
    weight.grad = codes
    nn.utils.clip_grad_value_([weight], 0.5)
    torch.testing.assert_close(codes.dequantize(), floats.clamp(-0.5, 0.5), rtol=0, atol=1e-4)
    assert float(codes.abs().max()) <= 0.5


def test_a_grad_scaler_unscales_it() -> None:
    weight = nn.Parameter(param())
    optimizer = torch.optim.SGD([weight], 1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for bad in (False, True):
        grad = torch.randn(40, 300) * 1024
        if bad:
            grad[3, 3] = torch.inf
        scaler.scale(torch.ones(()))  # as of a loss, which makes the scale
        weight.grad = FixedPointGradient.of(grad, weight, 16)
        scaler.unscale_(optimizer)
        found = scaler._found_inf_per_device(optimizer)
        assert bool(next(iter(found.values()))) == bad
        if not bad:
            torch.testing.assert_close(weight.grad.dequantize(), grad / 1024, rtol=0, atol=1e-3)
        scaler.update()


def test_what_is_not_finite_reads_as_nan_and_may_be_mended() -> None:
    grad = torch.randn(40, 300)
    grad[7, 8] = torch.inf
    codes = FixedPointGradient.of(grad, param(), 8)
    assert codes.exponents is not None
    assert int((codes.exponents == NOT_FINITE).sum()) == 1
    assert int(codes.isnan().sum()) == 256
    assert codes.norm().isnan()
    codes.nan_to_num_()
    assert codes.isfinite().all()
    codes.fill_(torch.nan)
    assert codes.isnan().all()
    codes.zero_()
    assert float(codes.abs().max()) == 0


def test_copies_and_files() -> None:
    codes, _ = gradient(bits=8)
    codes.mul_(0.5)
    cloned = codes.clone()
    assert type(cloned) is Tensor
    assert torch.equal(cloned, codes.dequantize())
    copied = copy.deepcopy(codes)
    file = io.BytesIO()
    torch.save(codes, file)
    file.seek(0)
    read = torch.load(file, weights_only=True)
    for other in (copied, read):
        assert isinstance(other, FixedPointGradient)
        assert torch.equal(other.dequantize(), codes.dequantize())
        assert other.nbytes == codes.nbytes
        other += torch.ones(40, 300)
    codes += torch.ones(40, 300)
    assert torch.equal(copied.codes, codes.codes)
    assert torch.equal(read.codes, codes.codes)


def test_it_moves_with_its_factor() -> None:
    codes, _ = gradient(bits=8)
    codes.mul_(0.5)
    moved = codes.to("meta")
    assert moved.device.type == "meta"
    copied = torch.zeros(40, 300).copy_(codes)
    assert torch.equal(copied, codes.dequantize())
    other, _ = gradient(bits=8, seed=3)
    other.copy_(codes)
    assert torch.equal(other.dequantize(), codes.dequantize())
    plain = FixedPointTensor.quantize(torch.zeros(40, 300), codes.format)
    plain.copy_(codes)
    torch.testing.assert_close(plain.dequantize(), codes.dequantize(), rtol=0, atol=0.05)


def test_gradients_of_other_shapes_of_parameter() -> None:
    for shape in ((8, 3, 3, 3), (5000,), (3, 1), (40, 17)):
        weights = FixedPointTensor.quantize(torch.randn(shape), "fixed16", label="w")
        grad = torch.randn(shape)
        codes = FixedPointGradient.of(grad, weights, 16)
        torch.testing.assert_close(codes.dequantize(), grad, rtol=0, atol=1e-3)
    weights = FixedPointTensor.quantize(torch.randn(8, 16, 3, 3), "fixed16", label="w")
    grad = torch.randn(8, 16, 3, 3).to(memory_format=torch.channels_last)
    torch.testing.assert_close(FixedPointGradient.of(grad, weights, 16).dequantize(), grad, rtol=0, atol=1e-3)


def test_of_a_damaged_file() -> None:
    codes, _ = gradient(bits=8)
    rebuild, arguments = codes.__reduce_ex__(2)
    planes = list(arguments)
    assert isinstance(planes[3], Tensor)
    planes[3] = planes[3].clone().fill_(120)  # exponents beyond any number's
    with pytest.raises(ValueError, match="damaged"):
        rebuild(*planes)
