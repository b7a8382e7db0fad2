"""The update inside the backward pass: the same codes, no gradients, and what it cannot do."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lowprec_plugin import memory, optim
from lowprec_plugin.optim import NonFiniteGradientError, StepSettings
from lowprec_plugin.telemetry.storage_table import describe
from tests.test_memory import Transformer


class Tied(nn.Module):
    """An embedding that is the head too, a part whose activations are computed again, and one that is frozen."""

    def __init__(self, reentrant: bool = False) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.embedding = nn.Embedding(80, 64)
        self.within = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 64))
        self.frozen = nn.Linear(64, 64)
        self.head = nn.Linear(64, 80)
        self.head.weight = self.embedding.weight
        self.frozen.requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embedding(ids)
        hidden = self.frozen(hidden + checkpoint(self._inner, hidden, use_reentrant=self.reentrant))
        return self.head(hidden)

    def _inner(self, hidden: Tensor) -> Tensor:
        return self.within(hidden) @ self.embedding.weight.t() @ self.embedding.weight / 32


def made(released: bool, seed: int = 0, reentrant: bool = False, **options: Any) -> Tied:
    torch.manual_seed(0)
    module = Tied(reentrant)
    kept = options.pop("gradient_word_length", "release" if released else None)
    optim.quantize_(module, seed=seed, gradient_word_length=kept, **options)
    return module


def backward(module: nn.Module, step: int) -> None:
    ids = torch.randint(80, (8, 9), generator=torch.Generator().manual_seed(step))
    nn.functional.cross_entropy(module(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: range, scheduler: Any = None) -> None:
    for step in steps:
        backward(module, step)
        optimizer.step()
        optimizer.zero_grad()
        if scheduler is not None:
            scheduler.step()


def held(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Every plane of the parameters and of their state, and their floats."""
    found: list[Tensor] = []
    for param in module.parameters():
        for value in [param, *optimizer.state[param].values()] if param in optimizer.state else [param]:
            found += value.blocks.planes if hasattr(value, "blocks") else [value.detach()]
    return [each.clone() for each in found]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


Make = Callable[[Any], torch.optim.Optimizer]
MAKERS: dict[str, Make] = {
    "sgd": lambda params: optim.SGD(params, 0.01, weight_decay=0.1),
    "momentum": lambda params: optim.SGD(params, 0.01, momentum=0.9, nesterov=True),
    "adam": lambda params: optim.Adam(params, 0.01, weight_decay=0.1),
    "adamw 16/8": lambda params: optim.AdamW(params, 0.01, state_word_length=8),
    "lion": lambda params: optim.Lion(params, 0.001, weight_decay=0.1),
    "rmsprop": lambda params: optim.RMSprop(params, 0.001),
    "amsgrad": lambda params: optim.Adam(params, 0.01, amsgrad=True),
    "adopted": lambda params: optim.adopt(torch.optim.AdamW(params, 0.01)),
    "generic": lambda params: optim.adopt(torch.optim.NAdam(params, 0.001)),
}


@pytest.mark.parametrize("name", MAKERS)
def test_codes_are_those_of_a_run_that_keeps_gradients(name: str) -> None:
    """Bit for bit, with a learning rate that changes, groups of their own rates, and an average of the weights."""
    ends = []
    for released in (False, True):
        module = made(released, keep_float=["within.0.bias"])
        params = [param for param in module.parameters() if param is not module.within[2].weight]
        optimizer = MAKERS[name]([{"params": params}, {"params": [module.within[2].weight], "lr": 0.002}])
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 15)
        average = torch.optim.swa_utils.AveragedModel(module, multi_avg_fn=None)
        for step in range(20):
            train(module, optimizer, range(step, step + 1), scheduler)
            average.update_parameters(module)
        ends.append([*held(module, optimizer), *held(average.module, optimizer)])
    assert same(*ends)


def test_another_seed_is_another_run() -> None:
    """The control of the test above."""
    ends = []
    for seed in (0, 1):
        module = made(True, seed)
        optimizer = optim.AdamW(module.parameters(), 0.01)
        train(module, optimizer, range(5))
        ends.append(held(module, optimizer))
    assert not same(*ends)


@pytest.mark.parametrize("name", ["momentum", "adamw 16/8", "generic"])
def test_resume_is_bit_for_bit(name: str) -> None:
    """20 steps are 10, a save through ``weights_only`` files, and 10 more."""
    straight = made(True)
    optimizer = MAKERS[name](straight.parameters())
    train(straight, optimizer, range(20))
    expected = held(straight, optimizer)

    first = made(True)
    optimizer = MAKERS[name](first.parameters())
    train(first, optimizer, range(10))
    file = io.BytesIO()
    torch.save({"module": first.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    second = made(True)
    optimizer = MAKERS[name](second.parameters())
    second.load_state_dict(saved["module"])
    optimizer.load_state_dict(saved["optimizer"])
    train(second, optimizer, range(10, 20))
    assert same(held(second, optimizer), expected)


def test_no_gradient_of_a_stored_parameter_is_left_after_backward() -> None:
    module = made(True, keep_float=["head.bias"])
    optimizer = optim.AdamW(module.parameters(), 0.01)
    backward(module, 0)
    with_gradients = {name for name, param in module.named_parameters() if param.grad is not None}
    assert with_gradients == {"within.0.bias", "within.2.bias", "head.bias"}  # of fewer elements than it is worth
    steps = {name: optimizer.state[param].get("step") for name, param in module.named_parameters()}
    assert {name for name, step in steps.items() if step is not None} == {
        "embedding.weight", "within.0.weight", "within.2.weight"
    }  # fmt: skip
    optimizer.step()
    assert all(optimizer.state[param]["step"] == 1 for param in module.parameters() if param.requires_grad)


def test_rows_say_so() -> None:
    module = made(True, keep_float=["head.bias"])
    gradients = {row.gradients for row in describe(module, [optim.AdamW(module.parameters())])}
    assert gradients == {"released", "float32", "-"}


def held_between_backward_and_step(kept_as: str | None = "release", hidden: bool = False) -> float:
    """Bytes per parameter of all that training holds there."""
    before = set(memory.live_storages())
    module = Transformer(288, 4)
    optim.quantize_(module, gradient_word_length=kept_as)
    kept: list[Tensor] = []
    if hidden:
        for param in module.parameters():
            param.register_post_accumulate_grad_hook(lambda each: kept.append(each.grad.clone()))
    optimizer = optim.AdamW(module.parameters(), 1e-3, state_word_length=8)
    train(module, optimizer, range(1))
    kept.clear()
    backward(module, 1)
    _grads = [param.grad for param in module.parameters()]  # now Python objects: those that C++ alone has do not show
    after = memory.live_storages()
    elements = sum(param.numel() for param in module.parameters())
    assert elements > 3_000_000
    return sum(nbytes for address, (nbytes, _) in after.items() if address not in before) / elements


def test_bytes_between_backward_and_step() -> None:
    """Weights in 16 bits and two moments in 8: AdamW in float32 holds 16 bytes there."""
    assert held_between_backward_and_step() < 4.1


def test_a_gradient_would_show() -> None:
    """The controls of the test above: hidden ones, and those that parameters have."""
    assert held_between_backward_and_step(hidden=True) > 8
    assert held_between_backward_and_step(None) > 8


def test_only_one_gradient_is_there_at_a_time() -> None:
    module = made(True)
    most = 0

    def look(_: Tensor) -> None:
        nonlocal most
        most = max(most, sum(param.grad is not None and param.numel() > 4000 for param in module.parameters()))

    for param in module.parameters():
        if param.requires_grad:
            param.register_post_accumulate_grad_hook(look)
    train(module, optim.AdamW(module.parameters(), 0.01), range(1))
    assert most == 1


class TestRefusals:
    def test_a_second_backward_pass(self) -> None:
        module = made(True)
        optimizer = optim.AdamW(module.parameters(), 0.01)
        backward(module, 0)
        with pytest.raises(RuntimeError, match=r"got a gradient again before optimizer\.step.*gradient_word_length=8"):
            backward(module, 1)
        assert all("step" not in state or state["step"] == 1 for state in optimizer.state.values())

    def test_reentrant_checkpointing_that_comes_twice(self) -> None:
        module = made(True, reentrant=True)
        optimizer = optim.SGD(module.parameters(), 0.01)
        with pytest.raises(RuntimeError, match=r"'embedding\.weight' got a gradient again.*use_reentrant=True"):
            backward(module, 0)
        with pytest.raises(ValueError, match="a part of a step"):
            optimizer.state_dict()

    def test_a_gradient_that_is_put_there_after_the_update(self) -> None:
        """As DistributedDataParallel does, of one process too."""
        module = made(True)
        optimizer = optim.AdamW(module.parameters(), 0.01)
        backward(module, 0)
        module.head.weight.grad = torch.zeros(80, 64)
        with pytest.raises(RuntimeError, match=r"'embedding\.weight' has been updated in the backward.*Distributed"):
            optimizer.step()

    def test_clipping(self) -> None:
        """What is kept would be clipped, and what is not would not."""
        for change in (
            lambda params: nn.utils.clip_grad_norm_(params, 1e9),
            lambda params: nn.utils.clip_grad_value_(params, 1e9),
            lambda params: [setattr(param, "grad", param.grad.clone()) for param in params if param.grad is not None],
        ):
            module = made(True)
            optimizer = optim.AdamW(module.parameters(), 0.01)
            train(module, optimizer, range(1))
            backward(module, 1)
            change(list(module.parameters()))
            with pytest.raises(RuntimeError, match=r"'within\.0\.bias' has been changed since the backward"):
                optimizer.step()

    def test_a_weight_whose_former_value_the_backward_pass_still_needs(self) -> None:
        """torch sees that it has been updated."""
        module = nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 64)])
        optim.quantize_(module, gradient_word_length="release")
        optimizer = optim.SGD(module.parameters(), 0.1)
        hidden = nn.functional.linear(module[0](torch.ones(2, 64)), module[1].weight.detach())
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            module[1](hidden).square().mean().backward()
        with pytest.raises(ValueError, match="go back to a checkpoint"):
            optimizer.state_dict()

    def test_steps_that_skip(self) -> None:
        module = made(True)
        for make in (
            lambda: optim.AdamW(module.parameters(), nonfinite="skip"),
            lambda: optim.adopt(torch.optim.AdamW(module.parameters()), StepSettings(nonfinite="skip")),
            lambda: optim.adopt(optim.AdamW(module.parameters()), StepSettings(nonfinite="skip")),
        ):
            with pytest.raises(ValueError, match=r"nonfinite='skip': parameter 'embedding.weight' is updated in the"):
                make()

    def test_an_optimizer_with_a_step_of_its_own(self) -> None:
        class Own(torch.optim.SGD):
            def step(self, closure: Any = None) -> Any:  # type: ignore[override]
                return super().step(closure)

        module = made(True)
        optimizer = Own(module.parameters(), 0.01)
        with pytest.raises(ValueError, match="Own runs its own step over all parameters at once"):
            optim.adopt(optimizer)
        assert type(optimizer) is Own

    def test_two_optimizers_of_one_parameter(self) -> None:
        module = made(True)
        first = optim.AdamW(module.parameters(), 0.01)
        second = optim.AdamW([module.head.weight], 0.01)
        backward(module, 0)
        second.step()
        with pytest.raises(ValueError, match=r"'embedding\.weight' belongs to another optimizer too \(AdamW\)"):
            first.step()

    def test_an_optimizer_that_is_gone_leaves_its_parameters_to_the_next(self) -> None:
        module = made(True)
        first = optim.AdamW(module.parameters(), 0.01)
        del first
        gc.collect()
        backward(module, 0)
        assert module.head.weight.grad is not None  # nobody updates
        module.zero_grad()
        second = optim.SGD(module.parameters(), 0.01)
        backward(module, 0)
        assert module.head.weight.grad is None
        second.step()

    def test_a_grad_scaler(self) -> None:
        module = made(True)
        optimizer, scaler = optim.AdamW(module.parameters(), 0.01), torch.amp.GradScaler("cpu")
        ids = torch.randint(80, (8, 9))
        loss = nn.functional.cross_entropy(module(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        scaler.scale(loss).backward()
        with pytest.raises(RuntimeError, match="a GradScaler has scaled the loss, and 3 parameters have been updated"):
            scaler.step(optimizer)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        scaler.step(optimizer)  # which scales nothing

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
    def test_a_gradient_that_is_not_finite(self, bad: float) -> None:
        """The parameter is named, what has been updated said, and a half step neither saved nor gone on from."""
        module = made(True)
        optimizer = optim.AdamW(module.parameters(), 0.01)
        train(module, optimizer, range(2))
        saved = copy.deepcopy({"module": module.state_dict(), "optimizer": optimizer.state_dict()})
        before = held(module, optimizer)
        hook = module.within[0].weight.register_hook(lambda grad: torch.full_like(grad, bad))
        with pytest.raises(
            NonFiniteGradientError, match=r"'within\.0\.weight' holds a NaN.* 1 parameters have been updated"
        ):
            backward(module, 2)
        hook.remove()
        assert not same(held(module, optimizer), before)
        with pytest.raises(ValueError, match=r"a part of a step.*go back to a checkpoint"):
            optimizer.state_dict()
        with pytest.raises(RuntimeError, match="got a gradient again"):
            backward(module, 2)
        module.load_state_dict(saved["module"])
        optimizer.load_state_dict(saved["optimizer"])
        optimizer.zero_grad()
        assert same(held(module, optimizer), before)
        train(module, optimizer, range(2, 4))
        optimizer.state_dict()

    def test_sparse_gradients(self) -> None:
        module = nn.Embedding(1000, 8, sparse=True)
        optim.quantize_(module, gradient_word_length="release")
        optimizer = optim.SGD(module.parameters(), 0.1)
        with pytest.raises(ValueError, match="use sparse=False"):
            module(torch.tensor([1, 2])).sum().backward()
        assert not optimizer.state

    @pytest.mark.parametrize("value", ["released", "8", 1, 25, True])
    def test_other_values(self, value: Any) -> None:
        with pytest.raises(ValueError, match=f"gradient_word_length={value!r} is"):
            made(True, gradient_word_length=value)


def test_copies_train_alike() -> None:
    """A deep copy comes without hooks: its first step updates, and from then on the backward pass does."""
    module = made(True)
    optimizer = optim.AdamW(module.parameters(), 0.01)
    train(module, optimizer, range(2))
    other_module, other = copy.deepcopy((module, optimizer))
    train(module, optimizer, range(2, 5))
    train(other_module, other, range(2, 4))
    backward(other_module, 4)
    assert other_module.head.weight.grad is None
    other.step()
    assert same(held(module, optimizer), held(other_module, other))


def test_counts_are_those_of_a_run_that_keeps_gradients() -> None:
    counts = []
    for released in (False, True):
        module = made(released)
        optimizer = optim.AdamW(module.parameters(), 0.01)
        train(module, optimizer, range(2))
        optimizer.fixed_point.counting = True
        train(module, optimizer, range(2, 4))
        counts.append(optimizer.fixed_point.counts)
    assert counts[0].keys() == counts[1].keys()
    assert counts[0] == counts[1]


def test_a_step_with_a_closure() -> None:
    ends = []
    for released in (False, True):
        module = made(released)
        optimizer = optim.AdamW(module.parameters(), 0.01)
        for step in range(3):
            optimizer.step(lambda module=module, step=step: backward(module, step))
            optimizer.zero_grad()
        ends.append(held(module, optimizer))
    assert same(*ends)


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
def test_a_gradient_with_a_graph_of_its_own_stays_until_the_step() -> None:
    """As a penalty on gradients needs it, which adds to them."""
    ends = []
    for released in (False, True):
        torch.manual_seed(0)
        module = nn.Linear(80, 64)
        optim.quantize_(module, gradient_word_length="release" if released else None)
        optimizer = optim.AdamW(module.parameters(), 0.01)
        for step in range(3):
            x = torch.randn(4, 80, generator=torch.Generator().manual_seed(step))
            module(x).square().mean().backward(create_graph=True)
            assert module.weight.grad is not None
            module.weight.grad.square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append(held(module, optimizer))
    assert same(*ends)


def test_a_group_that_joins_later() -> None:
    ends = []
    for released in (False, True):
        module = made(released)
        optimizer = optim.AdamW(module.within.parameters(), 0.01)
        train(module, optimizer, range(1))
        module.zero_grad()
        optimizer.add_param_group({"params": [module.embedding.weight]})
        backward(module, 1)
        assert (module.embedding.weight.grad is None) == released
        assert module.head.bias.grad is not None  # of no optimizer
        optimizer.step()
        ends.append(held(module, optimizer))
    assert same(*ends)


def test_nothing_outlives_module_and_optimizer() -> None:
    module = made(True)
    optimizer = optim.AdamW(module.parameters(), 0.01)
    train(module, optimizer, range(2))
    alive = [weakref.ref(each) for each in (module.embedding.weight, module.head.bias, optimizer)]
    del module, optimizer
    gc.collect()
    assert [each() for each in alive] == [None] * 3


def test_integers_beside() -> None:
    module = made(True)
    module.count = nn.Parameter(torch.zeros(3, dtype=torch.int64), requires_grad=False)
    train(module, optim.SGD(module.parameters(), 0.1), range(2))


def test_floats_again() -> None:
    """Nothing is left on parameters and optimizer by which either would be updated in the backward pass."""
    module = made(True)
    optimizer = optim.adopt(torch.optim.AdamW(module.parameters(), 0.01))
    train(module, optimizer, range(2))
    optim.to_float_(module, optimizer)
    before = [param.detach().clone() for param in module.parameters()]
    backward(module, 2)
    assert all(param.grad is not None for param in module.parameters() if param.requires_grad)
    assert same([param.detach() for param in module.parameters()], before)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))
    scaler.step(optimizer)
    assert not same([param.detach() for param in module.parameters()], before)
    assert not any(param._post_accumulate_grad_hooks for param in module.parameters())


def test_gradients_are_kept_again() -> None:
    """``quantize_`` once more says otherwise."""
    module = made(True)
    optimizer = optim.AdamW(module.parameters(), 0.01)
    train(module, optimizer, range(1))
    optim.quantize_(module)
    before = held(module, optimizer)
    backward(module, 1)
    assert module.head.weight.grad is not None
    assert same(held(module, optimizer), before)
    optimizer.step()
    assert not same(held(module, optimizer), before)
