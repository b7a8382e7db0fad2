"""Training with gradients in codes: the hook, accumulation, clipping, steps of every kind of optimizer, and memory."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lowprec_plugin import memory, optim
from lowprec_plugin.optim.finite import NonFiniteGradientError
from lowprec_plugin.tensor.dtensor import stored_part
from lowprec_plugin.tensor.gradient import FixedPointGradient
from tests.algorithms import CLASSES
from tests.test_memory import Transformer, step

LOSS = nn.functional.cross_entropy


def network(bits: int | None = 8, **options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 96), nn.ReLU(), nn.Linear(96, 10))
    optim.quantize_(module, "fixed16", gradient_word_length=bits, **options)
    return module


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.randn(32, 64, generator=torch.Generator().manual_seed(seed))
    return x, x[:, :10].argmax(1)


def backward(module: nn.Module, seed: int = 0, share: float = 1.0) -> None:
    x, y = batch(seed)
    (LOSS(module(x), y) * share).backward()


def grads(module: nn.Module) -> list[Tensor]:
    return [param.grad for param in module.parameters() if param.grad is not None]


def weights(module: nn.Module) -> list[Tensor]:
    return [plane for param in module.parameters() for plane in stored_part(param).blocks.planes]


def alike(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


def test_large_gradients_are_codes_and_small_ones_floats() -> None:
    module = network()
    backward(module)
    kinds = [type(param.grad) for param in module.parameters()]
    assert kinds == [FixedPointGradient, Tensor, FixedPointGradient, Tensor, Tensor, Tensor]
    floats = network(None)
    backward(floats)
    for found, wanted in zip(grads(module), grads(floats), strict=True):
        assert float((found.float() - wanted).abs().max()) <= float(wanted.abs().max()) / 64


def test_it_may_be_turned_on_and_off() -> None:
    module = network(None)
    optim.quantize_(module, "fixed16", gradient_word_length=16)
    backward(module)
    assert type(module[0].weight.grad) is FixedPointGradient
    module.zero_grad()
    optim.quantize_(module, "fixed16")
    backward(module)
    assert type(module[0].weight.grad) is Tensor


def test_float_gradients_of_two_parameters_do_not_exist_together() -> None:
    module = network()
    large = [param for param in module.parameters() if param.numel() >= 4096]
    most = {}

    def count(param: Tensor) -> None:
        most[param.numel()] = [float_gradients(large, param.numel() * 4), [type(each.grad) for each in large]]

    def float_gradients(params: list[Tensor], nbytes: int) -> int:
        held = [each.grad for each in params]  # what only C++ holds, nobody can count
        found = memory.live_storages().values()
        del held
        return sum(size == nbytes and dtype == torch.float32 for size, (dtype, _) in found)

    for param in large:
        param.register_post_accumulate_grad_hook(count)  # type: ignore[no-untyped-call]
    backward(module)
    assert len(most) == 2
    assert all(kinds[-1] is FixedPointGradient for _, kinds in most.values())
    assert all(number == 0 for number, _ in most.values())


def give_as_floats(module: nn.Module, twin: nn.Module) -> None:
    """The gradients of ``module`` to ``twin``, as the floats that they stand for."""
    for param, same in zip(module.parameters(), twin.parameters(), strict=True):
        assert param.grad is not None
        fixed = isinstance(param.grad, FixedPointGradient)
        same.grad = param.grad.dequantize() if fixed else param.grad.clone()


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("clip", [None, 0.1])
def test_a_fused_step_is_that_by_the_floats_that_the_codes_stand_for(kind: Any, clip: float | None) -> None:
    module, twin = network(), network(None)
    optimizer, other = kind(module.parameters(), lr=1e-2), kind(twin.parameters(), lr=1e-2)
    for seed in range(3):
        backward(module, seed)
        if clip is not None:
            nn.utils.clip_grad_norm_(module.parameters(), clip)
        give_as_floats(module, twin)
        optimizer.step()
        other.step()
        assert alike(module, twin)
        module.zero_grad()


@pytest.mark.parametrize("make", [torch.optim.NAdam, torch.optim.Adagrad, torch.optim.Adafactor, torch.optim.Rprop])
def test_an_optimizer_without_a_fused_step_reads_them_as_floats(make: Callable[..., torch.optim.Optimizer]) -> None:
    module, twin = network(), network(None)
    optimizer, other = (optim.adopt(make(each.parameters(), lr=1e-2)) for each in (module, twin))
    for seed in range(3):
        backward(module, seed)
        give_as_floats(module, twin)
        optimizer.step()
        other.step()
        assert alike(module, twin)
        assert type(module[0].weight.grad) is FixedPointGradient
        module.zero_grad()


class Own(torch.optim.Optimizer):
    """Writes to its gradients, and keeps copies of them."""

    def __init__(self, params: Any, lr: float = 1e-2) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for param in group["params"]:
                grad = param.grad
                grad.add_(param, alpha=1e-4).mul_(0.9)
                state = self.state[param]
                if "mean" not in state:
                    state["mean"] = torch.clone(grad).detach()
                state["mean"].lerp_(grad, 0.1)
                param.add_(state["mean"], alpha=-group["lr"])


def test_an_optimizer_that_writes_to_gradients() -> None:
    module, floats = network(), network(None)
    optimizer, other = optim.adopt(Own(module.parameters())), optim.adopt(Own(floats.parameters()))
    for seed in range(5):
        for each, its in ((module, optimizer), (floats, other)):
            backward(each, seed)
            its.step()
            its.zero_grad()
    for param, same in zip(module.parameters(), floats.parameters(), strict=True):
        torch.testing.assert_close(param.detach().dequantize(), same.detach().dequantize(), rtol=0, atol=2e-3)
        mean = optimizer.state[param]["mean"]
        assert type(mean) is not FixedPointGradient
        assert str(stored_part(mean).format) == "fixed16"


@pytest.mark.parametrize("bits", [16, 8])
def test_micro_batches_add_up(bits: int) -> None:
    module, floats = network(bits), network(None)
    for seed in range(4):
        backward(module, seed, 0.25)
        backward(floats, seed, 0.25)
    for found, wanted in zip(grads(module), grads(floats), strict=True):
        limit = 4 * float(wanted.abs().max()) * 2.0 ** -(bits - 2)
        assert float((found.float() - wanted).abs().max()) <= limit
    first = module[0].weight.grad
    assert isinstance(first, FixedPointGradient)
    assert first.roundings % (1 << 20) == 4


def test_every_step_and_micro_batch_draws_other_random_bits() -> None:
    module = network()
    optimizer = optim.SGD(module.parameters(), lr=0.0)
    found = []
    for _ in range(2):
        backward(module)
        first = module[0].weight.grad
        assert first is not None
        found.append(first.clone())
        backward(module)  # adds the same once more
        found.append(first.clone() - found[-1])
        optimizer.step()
        module.zero_grad()
    assert not any(torch.equal(found[0], other) for other in found[1:])
    again = network()
    backward(again)
    first = again[0].weight.grad
    assert first is not None
    assert torch.equal(first.clone(), found[0])


def test_twenty_steps_are_ten_a_checkpoint_and_ten_in_the_middle_of_a_window() -> None:
    def make() -> tuple[nn.Sequential, torch.optim.Optimizer]:
        module = network()
        return module, optim.AdamW(module.parameters(), lr=1e-2, state_word_length=8)

    def run(module: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
        for seed in range(first, last):
            backward(module, seed, 1 / 3)
            if seed % 3 == 2:
                nn.utils.clip_grad_norm_(module.parameters(), 0.1)
                optimizer.step()
                optimizer.zero_grad()

    whole, its = make()
    run(whole, its, 0, 60)
    module, optimizer = make()
    run(module, optimizer, 0, 31)  # two micro-batches are still to come
    file = io.BytesIO()
    gradients = {name: param.grad for name, param in module.named_parameters()}
    torch.save([module.state_dict(), optimizer.state_dict(), gradients], file)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    module, optimizer = make()
    module.load_state_dict(states[0])
    optimizer.load_state_dict(states[1])
    for name, param in module.named_parameters():
        param.grad = states[2][name]
    run(module, optimizer, 31, 60)
    assert alike(whole, module)


@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
def test_gradients_that_are_not_finite_are_refused_as_ever(nonfinite: str) -> None:
    module = network()
    optimizer = optim.AdamW(module.parameters(), lr=1e-2, nonfinite=nonfinite)
    before = [plane.clone() for plane in weights(module)]
    backward(module)
    backward(module, share=torch.inf)
    if nonfinite == "skip":
        optimizer.step()
        assert optimizer.fixed_point.skipped_steps == 1
    else:
        with pytest.raises(NonFiniteGradientError, match=r"0\.weight"):
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(weights(module), before, strict=True))
    module.zero_grad()
    backward(module)
    optimizer.step()


def test_a_norm_that_is_not_finite_refuses_the_step_and_names_a_parameter() -> None:
    module = network()
    optimizer = optim.AdamW(module.parameters(), lr=1e-2)
    backward(module)
    nn.utils.clip_grad_norm_([module[0].weight], torch.nan)
    with pytest.raises(NonFiniteGradientError, match=r"0\.weight"):
        optimizer.step()


def test_zero_grad_that_keeps_the_tensors() -> None:
    module = network()
    backward(module)
    kept = module[0].weight.grad
    module.zero_grad(set_to_none=False)
    assert module[0].weight.grad is kept
    assert float(kept.abs().max()) == 0  # type: ignore[union-attr]
    backward(module)
    assert type(module[0].weight.grad) is FixedPointGradient


def test_frozen_and_thawed() -> None:
    module = network()
    module[0].requires_grad_(False)
    backward(module)
    assert module[0].weight.grad is None
    module[0].requires_grad_(True)
    backward(module)
    assert type(module[0].weight.grad) is FixedPointGradient
    frozen = nn.Linear(64, 128)
    frozen.weight.requires_grad_(False)
    optim.quantize_(frozen, "fixed16", gradient_word_length=8)
    assert not frozen.weight.requires_grad
    frozen.weight.requires_grad_(True)
    frozen(batch()[0]).sum().backward()
    assert type(frozen.weight.grad) is FixedPointGradient


def test_tied_weights_have_one_gradient() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.relu(self.first(x)))

    module = Tied()
    optim.quantize_(module, "fixed16", gradient_word_length=16)
    module(batch()[0]).square().mean().backward()
    codes = module.first.weight.grad
    assert isinstance(codes, FixedPointGradient)
    assert codes.roundings % (1 << 20) == 1


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant: bool) -> None:
    module, plain = network(16), network(16)
    x, y = batch()
    x.requires_grad_(True)
    LOSS(module[4](checkpoint(module[:4], x, use_reentrant=reentrant)), y).backward()
    LOSS(plain(x), y).backward()
    for found, wanted in zip(grads(module), grads(plain), strict=True):
        torch.testing.assert_close(found.float(), wanted.float(), rtol=0, atol=1e-5)


def test_compiled_modules() -> None:
    module, plain = network(16), network(16)
    compiled = torch.compile(module, backend="aot_eager")
    for seed in range(2):
        x, y = batch(seed)
        LOSS(compiled(x), y).backward()
        backward(plain, seed)
    assert type(module[0].weight.grad) is FixedPointGradient
    for found, wanted in zip(grads(module), grads(plain), strict=True):
        torch.testing.assert_close(found.float(), wanted.float(), rtol=0, atol=1e-4)


def test_two_optimizers_in_turn() -> None:
    """As of a GAN: what the one's backward pass leaves in the other's parameters is dropped."""
    one, two = network(), network()
    first, second = optim.Adam(one.parameters(), 1e-3), optim.Adam(two.parameters(), 1e-3)
    x, y = batch()
    for _ in range(2):
        LOSS(two(torch.cat([one(x)] * 7, dim=1)[:, :64]), y).backward()
        first.step()
        first.zero_grad()
        second.zero_grad()
        backward(two)
        second.step()
        second.zero_grad()
    assert all(part.roundings == 2 for part in map(stored_part, [*one.parameters(), *two.parameters()]))


def test_bfloat16_gradients_become_codes() -> None:
    module = network(8, dtype=torch.bfloat16)
    x, y = batch()
    LOSS(module(x.bfloat16()), y).backward()
    codes = module[0].weight.grad
    assert isinstance(codes, FixedPointGradient)
    assert codes.dtype == torch.bfloat16
    optim.AdamW(module.parameters(), 1e-3).step()


@pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph=True")
def test_a_gradient_with_a_graph_of_its_own_stays() -> None:
    module = network()
    x, y = batch()
    LOSS(module(x), y).backward(create_graph=True)
    first = module[0].weight.grad
    assert type(first) is Tensor
    penalty = torch.autograd.grad(first.square().sum(), module[0].weight)[0]
    assert float(penalty.abs().max()) > 0
    optim.AdamW(module.parameters(), 1e-3).step()


def test_a_copy_of_a_module_makes_codes_once_an_optimizer_has_it() -> None:
    module = network()
    twin = copy.deepcopy(module)
    optim.AdamW(twin.parameters(), 1e-3)
    backward(twin)
    assert type(twin[0].weight.grad) is FixedPointGradient
    adopted = copy.deepcopy(module)
    optim.adopt(torch.optim.NAdam(adopted.parameters(), 1e-3))
    backward(adopted)
    assert type(adopted[0].weight.grad) is FixedPointGradient


def test_modules_that_become_floats_have_float_gradients() -> None:
    module = network()
    backward(module)
    optim.to_float_(module)
    assert all(type(grad) is Tensor for grad in grads(module))
    module.zero_grad()
    backward(module)
    assert all(type(grad) is Tensor for grad in grads(module))


def test_a_module_moves_with_its_gradients() -> None:
    module = network()
    backward(module)
    nn.utils.clip_grad_norm_(module.parameters(), 0.1)
    before = [grad.clone() for grad in grads(module)]
    module.to(torch.device("cpu"))
    assert type(module[0].weight.grad) is FixedPointGradient
    assert all(torch.equal(a.clone(), b) for a, b in zip(grads(module), before, strict=True))


@pytest.mark.parametrize("value", [1, 25, 8.0, "8", True])
def test_word_lengths_that_there_are_not(value: Any) -> None:
    with pytest.raises(ValueError, match="gradient_word_length"):
        optim.quantize_(nn.Linear(64, 64), "fixed16", gradient_word_length=value)


@pytest.mark.parametrize(
    ("weights", "state", "bits", "limit"),
    [("fixed16", None, 16, 8.1), ("fixed16", 8, 8, 5.1), ("fixed16", None, 8, 7.1)],
)
def test_bytes_held_between_backward_and_step(weights: str, state: int | None, bits: int, limit: float) -> None:
    """All live storages, gradients included, of a transformer of ten million parameters."""
    assert _held(weights, state, bits) <= limit


def test_float_gradients_are_found() -> None:
    assert 8.0 < _held("fixed16", 8, None) < 8.1
    assert _held("fixed16", 8, 8, hide=True) > 8.5


def _held(weights: str, state: int | None, bits: int | None, hide: bool = False) -> float:
    before = set(memory.live_storages())
    module = Transformer()
    optim.quantize_(module, weights, gradient_word_length=bits)
    optimizer = optim.AdamW(module.parameters(), 1e-3, state_word_length=state)
    hidden: list[Tensor] = []
    step(module, optimizer)
    if hide:
        for param in module.parameters():
            param.register_hook(hidden.append)
    ids = torch.randint(256, (2, 17), generator=torch.Generator().manual_seed(0))
    LOSS(module(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
    kept = [param.grad for param in module.parameters()]  # of what only C++ holds, nothing would be found
    after = memory.live_storages()
    assert len(kept) > 70
    held = sum(nbytes for address, (nbytes, _) in after.items() if address not in before)
    return held / sum(param.numel() for param in module.parameters())
