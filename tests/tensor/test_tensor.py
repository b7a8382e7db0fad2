"""A FixedPointTensor is codes, and everything torch does to a tensor works on it."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowprec_plugin import FixedPointTensor, optim
from lowprec_plugin.tensor.casting import casts_share_codes


def stored(*shape: int, format: str = "fixed16", **options: Any) -> FixedPointTensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    return FixedPointTensor.quantize(x, format, **options)


def test_it_is_codes_and_says_so() -> None:
    x = stored(4, 300)
    assert x.codes.dtype == torch.int16
    assert x.exponents is not None
    assert x.exponents.shape == (4, 2)
    assert x.nbytes == 4 * (600 + 2)
    assert (x.shape, x.dtype, x.device.type, x.requires_grad) == ((4, 300), torch.float32, "cpu", False)
    assert "format=fixed16, nbytes=2408" in repr(x)
    assert repr(nn.Parameter(x)).startswith("Parameter(")
    assert x.tolist() == x.dequantize().tolist()
    assert (x.numpy() == x.dequantize().numpy()).all()


def test_nothing_of_its_size_is_float() -> None:
    x = stored(64, 256)
    held = [value for value in vars(x).values() if isinstance(value, Tensor)]
    assert sum(tensor.nbytes for tensor in held) == x.nbytes
    assert not any(tensor.is_floating_point() for tensor in held)


OPERATIONS: dict[str, Callable[[Tensor], Any]] = {
    "add": lambda w: w + 1,
    "matmul": lambda w: torch.ones(2, 8) @ w,
    "linear": lambda w: F.linear(torch.ones(3, 12), w),
    "t": lambda w: w.t().contiguous(),
    "einsum": lambda w: torch.einsum("ij,kj->ik", w, w),
    "index": lambda w: w[2:5, ::3],
    "fancy index": lambda w: w[torch.tensor([0, 0, 3])],
    "cat": lambda w: torch.cat([w, w]),
    "split": lambda w: list(w.split(3)),
    "view": lambda w: w.view(4, 24),
    "permute": lambda w: w.permute(1, 0).reshape(-1),
    "expand": lambda w: w[:1].expand(5, 12) * 2,
    "norm": lambda w: torch.linalg.vector_norm(w),
    "softmax": lambda w: w.softmax(-1),
    "embedding": lambda w: F.embedding(torch.tensor([[1, 2], [7, 0]]), w),
    "double": lambda w: w.double().sum(),
    "where": lambda w: torch.where(w > 0, w, 0),
    "foreach": lambda w: torch._foreach_norm([w, w]),
    "zeros_like": torch.zeros_like,
    "item": lambda w: w[1, 1].item(),
    "complex": lambda w: torch.view_as_complex(w.view(8, 6, 2)),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("inference", [False, True], ids=["eager", "inference"])
def test_operations_see_the_floats(name: str, inference: bool) -> None:
    x = stored(8, 12)
    with torch.inference_mode(inference):
        found, expected = OPERATIONS[name](x), OPERATIONS[name](x.dequantize())

    def floats(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [floats(each) for each in value]
        return value.dequantize() if isinstance(value, FixedPointTensor) else value

    torch.testing.assert_close(floats(found), expected, rtol=0, atol=0)


MODULES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (lambda: nn.Linear(12, 8), lambda: torch.randn(4, 12)),
    "conv": (lambda: nn.Conv2d(3, 8, 3, padding=1), lambda: torch.randn(2, 3, 6, 6)),
    "conv1d": (lambda: nn.Conv1d(3, 8, 3, groups=1), lambda: torch.randn(2, 3, 9)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 8, 2), lambda: torch.randn(2, 3, 6, 6)),
    "batch norm": (lambda: nn.BatchNorm1d(12), lambda: torch.randn(4, 12)),
    "layer norm": (lambda: nn.LayerNorm(12), lambda: torch.randn(4, 12)),
    "attention": (
        lambda: nn.TransformerEncoderLayer(12, 2, 16, dropout=0, batch_first=True),
        lambda: torch.randn(2, 5, 12),
    ),
    "lstm": (lambda: _First(nn.LSTM(12, 8, batch_first=True)), lambda: torch.randn(2, 5, 12)),
    "prelu": (lambda: nn.PReLU(), lambda: torch.randn(4, 12)),
    "bilinear": (lambda: _Twice(nn.Bilinear(12, 12, 3)), lambda: torch.randn(4, 12)),
}


class _First(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)[0]


class _Twice(_First):
    def forward(self, x: Tensor) -> Tensor:
        return self.module(x, x)


@pytest.mark.parametrize("name", MODULES)
def test_modules_forward_and_backward(name: str) -> None:
    """Outputs and gradients are those of a float module with the same values, to the last bit."""
    make, data = MODULES[name]
    fixed, x = make(), data()
    optim.quantize_(fixed)
    floats = make()
    floats.load_state_dict(optim.float_state_dict(fixed))
    outputs = [module(x) for module in (fixed, floats)]
    assert torch.equal(*outputs)
    for output in outputs:
        output.square().sum().backward()
    for one, other in zip(fixed.parameters(), floats.parameters(), strict=True):
        assert isinstance(one, FixedPointTensor)
        assert type(one.grad) is Tensor
        assert torch.equal(one.grad, other.grad)


def test_gradients_of_numbers_seen_as_complex() -> None:
    x = stored(8, 2).requires_grad_()
    floats = x.dequantize().requires_grad_()
    for pairs in (x, floats):
        torch.view_as_complex(pairs).square().abs().sum().backward()
    assert torch.equal(x.grad, floats.grad)


def test_autograd_saves_codes() -> None:
    module = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    optim.quantize_(module)
    saved: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        module(torch.randn(2, 64)).sum().backward()
    weights = [tensor for tensor in saved if tensor.numel() == 64 * 64]
    assert weights
    assert all(isinstance(tensor, FixedPointTensor) for tensor in weights)


class TestWriting:
    def test_writes_round_into_the_codes(self) -> None:
        x = stored(8, 12)
        before = x.dequantize()
        assert x.mul_(0.5) is x
        torch.testing.assert_close(x.dequantize(), before * 0.5, rtol=0, atol=1e-4)

    def test_writes_through_views(self) -> None:
        x = stored(8, 12)
        before = x.dequantize()
        x[3].zero_()
        x.t()[5].fill_(0.25)
        x.view(-1)[0] = 7.0
        before[3], before[:, 5], before[0, 0] = 0, 0.25, 7
        torch.testing.assert_close(x.dequantize(), before, rtol=0, atol=4e-4)

    def test_data_is_the_tensor(self) -> None:
        param = nn.Parameter(stored(8, 12))
        param.data.clamp_(-0.1, 0.1)
        assert param.dequantize().abs().max() <= 0.1001

    def test_data_takes_what_is_assigned(self) -> None:
        param = nn.Parameter(stored(8, 12))
        param.data = torch.full((8, 12), 0.5)
        assert torch.equal(param.dequantize(), torch.full((8, 12), 0.5))
        param.data = torch.ones(3, 4)
        assert param.shape == param.codes.shape == (3, 4)
        assert torch.equal(param * 2, torch.full((3, 4), 2.0))
        param.data = stored(5, 7, format="fixed8")
        assert str(param.format) == "fixed8"
        assert torch.equal(param.dequantize(), stored(5, 7, format="fixed8").dequantize())
        with pytest.raises(ValueError, match=r"cannot hold torch.int64|only floating-point"):
            param.data = torch.ones(5, 7, dtype=torch.int64)
        torch.nn.utils.vector_to_parameters(torch.zeros(35), [param])
        assert not param.dequantize().any()

    @pytest.mark.parametrize(
        "window", [lambda p: p.data, lambda p: p.detach(), lambda p: p[:], lambda p: p.view(-1)], ids=range(4)
    )
    def test_small_steps_through_windows_are_kept(self, window: Callable[[Tensor], Tensor]) -> None:
        """Every rounding draws bits of its own, whichever window it goes through."""
        x = FixedPointTensor.quantize(torch.ones(1000), "fixed16")
        for _ in range(1000):
            window(x).add_(2.0**-20)
        moved = x.dequantize() - 1
        assert float(moved.mean()) == pytest.approx(1000 * 2.0**-20, rel=0.05)
        assert float(moved.std()) < 4e-4

    def test_small_steps_are_kept_where_operations_see_bfloat16(self) -> None:
        x = FixedPointTensor.quantize(torch.ones(1000), "fixed16", dtype=torch.bfloat16)
        for _ in range(100):
            x.add_(torch.full((1000,), 1e-4, dtype=torch.bfloat16))
        assert float(x.dequantize(torch.float32).mean()) == pytest.approx(1.01, abs=1e-4)

    def test_a_fixed_point_tensor_can_be_quantised_again(self) -> None:
        x = stored(8, 300)
        again = FixedPointTensor.quantize(x, "fixed8", rounding="nearest")
        assert torch.equal(
            again.dequantize(), FixedPointTensor.quantize(x.dequantize(), "fixed8", rounding="nearest").dequantize()
        )

    def test_a_fixed_point_tensor_as_gradient(self) -> None:
        param = nn.Parameter(stored(8, 300))
        before = param.dequantize()
        param.grad = param.detach().clone()
        optim.SGD([param], lr=0.5).step()
        torch.testing.assert_close(param.dequantize(), before / 2, rtol=0, atol=1e-3)

    def test_copies_for_others(self) -> None:
        x = stored(8, 12)
        assert torch.equal(torch.from_dlpack(x), x.dequantize())
        assert f"{x[0, 0]:.3f}" == f"{x[0, 0].item():.3f}"

    def test_copy_from_floats_and_back_is_exact(self) -> None:
        x, y = stored(8, 300), stored(8, 300).zero_()
        y.copy_(x.dequantize())
        assert torch.equal(y.codes, x.codes)
        assert torch.equal(y.exponents, x.exponents)

    def test_copy_into_floats(self) -> None:
        assert torch.equal(torch.zeros(8, 12).copy_(stored(8, 12)), stored(8, 12).dequantize())

    def test_lerp_keeps_small_steps(self) -> None:
        """An average moves by hundredths of a code each time, and arrives."""
        average = FixedPointTensor.quantize(torch.zeros(64, 256), "fixed16")
        average[:, 0] = 1.0  # a code is 2**-14
        target = torch.full((64, 256), 0.01)
        for _ in range(100):
            average.lerp_(target, 0.001)
        expected = 0.01 * (1 - 0.999**100)
        assert average[:, 1:].mean().item() == pytest.approx(expected, rel=0.01)

    def test_lerp_to_nearest_does_not(self) -> None:
        average = FixedPointTensor.quantize(torch.zeros(64, 256), "fixed16", rounding="nearest")
        average[:, 0] = 1.0
        for _ in range(100):
            average.lerp_(torch.full((64, 256), 0.01), 0.001)
        assert average[:, 1:].abs().max() == 0

    def test_foreach(self) -> None:
        ones, others = [stored(4, 8), stored(3, 300)], [torch.ones(4, 8), torch.ones(3, 300)]
        expected = [torch.lerp(x.dequantize(), y, 0.5) for x, y in zip(ones, others, strict=True)]
        torch._foreach_lerp_(ones, others, 0.5)
        for found, value in zip(ones, expected, strict=True):
            assert isinstance(found, FixedPointTensor)
            torch.testing.assert_close(found.dequantize(), value, rtol=0, atol=2e-4)

    def test_a_nonfinite_write_is_refused_whole(self) -> None:
        x = stored(4, 8)
        before = x.codes.clone()
        with pytest.raises(ValueError, match="cannot be quantised"):
            x.div_(0.0)
        assert torch.equal(x.codes, before)
        with pytest.raises(ValueError, match="tensor 'w' is left as it was"):
            stored(4, 8, label="w").div_(0.0)

    @pytest.mark.parametrize(
        "change",
        [
            lambda x: x.t_(),
            lambda x: x.unsqueeze_(0),
            lambda x: x.resize_(2, 4),
            lambda x: x.set_(torch.ones(3)),
            lambda x: x[1:].t_(),
        ],
    )
    def test_a_shape_cannot_be_changed_in_place(self, change: Callable[[Tensor], Any]) -> None:
        x = stored(4, 8)
        before = x.codes.clone()
        with pytest.raises(ValueError, match="in place, which its codes cannot follow"):
            change(x)
        assert torch.equal(x.codes, before)
        assert x.shape == (4, 8)

    def test_operands_of_float64(self) -> None:
        x = stored(4, 8, dtype=torch.float64)
        x.index_copy_(0, torch.tensor([1]), torch.ones(1, 8, dtype=torch.float64))
        assert bool((x[1] == 1).all())


def identical(one: Any, other: Any) -> bool:
    assert isinstance(one, FixedPointTensor)
    assert isinstance(other, FixedPointTensor)
    same = all(torch.equal(a, b) for a, b in zip(one.blocks.planes, other.blocks.planes, strict=True))
    return same and (one.format, one.dtype, one.stream, one.label) == (
        other.format,
        other.dtype,
        other.stream,
        other.label,
    )


@pytest.mark.parametrize("format", ["fixed16", "fixed8", "fixed20", "<4,12>", "fixed8^2"])
class TestKeeping:
    def make(self, format: str) -> FixedPointTensor:
        x = torch.randn(4, 300)
        return FixedPointTensor.quantize(x.abs() if "^" in format else x, format, label="w", seed=3)

    def test_saves_and_loads_under_weights_only(self, format: str) -> None:
        file, x = io.BytesIO(), self.make(format)
        torch.save({"x": x, "p": nn.Parameter(x)}, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=True)
        assert identical(loaded["x"], x)
        assert identical(loaded["p"], x)
        assert isinstance(loaded["p"], nn.Parameter)
        assert loaded["p"].requires_grad
        assert len(file.getvalue()) < 2 * x.nbytes + 8000

    def test_pickles_and_copies(self, format: str) -> None:
        x = self.make(format)
        assert identical(pickle.loads(pickle.dumps(x)), x)
        twin = copy.deepcopy(x)
        assert identical(twin, x)
        assert copy.deepcopy(x.detach().requires_grad_()).requires_grad
        twin.zero_()
        assert not identical(twin, x)

    def test_what_is_hung_on_a_parameter_is_pickled_with_it(self, format: str) -> None:
        """As torch does with its own, also under ``weights_only``; but nothing that the tensor holds of itself."""
        param: Any = nn.Parameter(self.make(format))
        param.lr_mul, param.before = 0.5, torch.ones(3)
        file = io.BytesIO()
        torch.save(param, file)
        for read in (pickle.loads(pickle.dumps(param)), torch.load(io.BytesIO(file.getvalue()), weights_only=True)):
            assert identical(read, param)
            assert read.lr_mul == 0.5
            assert torch.equal(read.before, torch.ones(3))
        function, arguments = param.__reduce_ex__(2)
        forged = function(*arguments[:-1], {"lr_mul": 2.0, "label": "other", "_codes": torch.zeros(1)})
        assert (forged.lr_mul, forged.label) == (2.0, param.label)
        assert identical(forged, param)

    def test_a_view_pickles_as_what_it_shows(self, format: str) -> None:
        view = self.make(format).t()
        assert torch.equal(pickle.loads(pickle.dumps(view)).dequantize(), view.dequantize())


class TestModules:
    def test_state_dict_round_trip(self) -> None:
        one, other = nn.Linear(12, 8), nn.Linear(12, 8)
        optim.quantize_(one)
        optim.quantize_(other)
        other.load_state_dict(one.state_dict())
        assert torch.equal(other.weight.codes, one.weight.codes)
        plain = nn.Linear(12, 8)
        plain.load_state_dict(one.state_dict())
        assert torch.equal(plain.weight, one.weight.dequantize())

    def test_deepcopy_keeps_ties(self) -> None:
        module = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        module[1].weight = module[0].weight
        optim.quantize_(module)
        assert module[1].weight is module[0].weight
        twin = copy.deepcopy(module)
        assert twin[1].weight is twin[0].weight
        assert twin[1].weight is not module[0].weight

    def test_deepcopy_leaves_gradients_behind(self) -> None:
        """As torch does: what is accumulated in a copy starts from nothing."""
        module = nn.Linear(12, 8)
        optim.quantize_(module)
        module(torch.ones(1, 12)).sum().backward()
        assert copy.deepcopy(module).weight.grad is None

    def test_moving_keeps_codes(self) -> None:
        module = nn.Linear(12, 8)
        optim.quantize_(module)
        codes = module.weight.codes.clone()
        module.to("cpu").requires_grad_(False)
        assert torch.equal(module.weight.codes, codes)
        assert not module.weight.requires_grad
        module.double()
        assert isinstance(module.weight, FixedPointTensor)
        assert module.weight.dtype == torch.float64
        assert module(torch.randn(2, 12, dtype=torch.float64)).dtype == torch.float64

    def test_to_meta(self) -> None:
        module = nn.Linear(12, 8)
        optim.quantize_(module)
        module.to("meta")
        assert module.weight.codes.device.type == "meta"
        assert module(torch.randn(2, 12, device="meta")).shape == (2, 8)

    def test_on_meta_there_is_nothing_to_round(self) -> None:
        stored = FixedPointTensor.quantize(torch.ones(2, 3), "fixed16").to("meta")
        optimizer = optim.SGD([nn.Parameter(stored)], lr=0.1)
        optimizer.param_groups[0]["params"][0].grad = torch.ones(2, 3, device="meta")
        for call in (
            lambda: FixedPointTensor.quantize(torch.ones(2, 3, device="meta"), "fixed16"),
            lambda: stored.add_(1),
            lambda: stored.copy_(torch.ones(2, 3)),
            optimizer.step,
        ):
            with pytest.raises(ValueError, match=r"meta device holds no numbers.*make it on another device first"):
                call()


def test_casts_copy_unless_told_to_share() -> None:
    x = stored(4, 8)
    copied = x.to(torch.bfloat16)
    with casts_share_codes():
        shared = x.to(torch.bfloat16)
    assert isinstance(copied, FixedPointTensor)
    assert isinstance(shared, FixedPointTensor)
    x.zero_()
    assert copied.abs().max() > 0
    assert shared.abs().max() == 0


def test_compile_rounds_as_eager_does() -> None:
    """The codes after three steps on given gradients, and the outputs on given codes."""
    codes = []
    for compiled in (False, True):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(12, 300), nn.Tanh(), nn.Linear(300, 1))
        optim.quantize_(module)
        run = torch.compile(module, fullgraph=True) if compiled else module
        optimizer = optim.AdamW(module.parameters(), 0.01)
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            output = run(torch.randn(8, 12, generator=generator)).sum()
            output.backward()
            for param in module.parameters():
                param.grad = torch.randn(param.shape, generator=generator)
            optimizer.step()
        codes.append([plane for param in module.parameters() for plane in param.blocks.planes] + [output.detach()])
    for one, other in zip(codes[0][:-1], codes[1][:-1], strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(codes[0][-1], codes[1][-1])


def test_random_bits_do_not_depend_on_sharding() -> None:
    x = torch.randn(10, 300)
    whole = FixedPointTensor.quantize(x, "fixed16", label="w")
    shard = FixedPointTensor.quantize(x[4:7], "fixed16", label="w", first_row=4)
    assert torch.equal(shard.codes, whole.codes[4:7])


@pytest.mark.parametrize("bad", [torch.tensor([1, 2]), torch.tensor([1j]), torch.tensor([float("nan")])])
def test_what_cannot_be_stored(bad: Tensor) -> None:
    with pytest.raises(ValueError, match="quantised"):
        FixedPointTensor.quantize(bad, "fixed16")


def test_negative_numbers_have_no_root() -> None:
    with pytest.raises(ValueError, match="negative elements"):
        FixedPointTensor.quantize(torch.tensor([-1.0]), "fixed8^2")


def test_batch_norm_of_bfloat16() -> None:
    """Its statistics are bfloat16 too, and are written: its weights must not be read as float32 for that."""
    module = nn.BatchNorm1d(12)
    x = torch.randn(4, 12).bfloat16()
    plain = copy.deepcopy(module).bfloat16()
    optim.quantize_(module, dtype=torch.bfloat16)
    module.to(torch.bfloat16)
    assert torch.equal(module(x), plain(x))
    assert torch.equal(module.running_mean, plain.running_mean)
