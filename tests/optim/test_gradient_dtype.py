"""Gradients in bfloat16 and float16: what is held, how it is rounded, and that steps take it up."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowprec_plugin import memory, optim
from lowprec_plugin.optim import NonFiniteGradientError
from lowprec_plugin.telemetry.storage_table import describe
from tests.cases import planes


def network(gradient_dtype: Any = None, **options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 300), nn.Tanh(), nn.Linear(300, 1))
    optim.quantize_(module, gradient_dtype=gradient_dtype, **options)
    return module


def backward(module: nn.Module, step: int) -> None:
    x = torch.randn(32, 8, generator=torch.Generator().manual_seed(step))
    (module(x) - x.sum(1, keepdim=True)).square().mean().backward()


def gradients(module: nn.Module) -> list[Tensor]:
    return [param.grad for param in module.parameters() if param.grad is not None]


class Own(torch.optim.Optimizer):
    """Adam's moments in a step of its own, in which dtypes have to be alike."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.01})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for param in self.param_groups[0]["params"]:
            moment = self.state[param].setdefault("moment", torch.zeros_like(param))
            moment.lerp_(param.grad, 0.1)
            param.add_(moment, alpha=-0.01)
        return loss


MAKERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda params: optim.SGD(params, 0.01),
    "adamw 16/8": lambda params: optim.AdamW(params, 0.01, state_word_length=8),
    "lion": lambda params: optim.Lion(params, 0.001),
    "rmsprop": lambda params: optim.RMSprop(params, 0.001),
    "generic": lambda params: optim.adopt(torch.optim.NAdam(params, 0.001)),
    "own step": lambda params: optim.adopt(Own(params)),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_step_takes_the_nearest_numbers(name: str, dtype: torch.dtype) -> None:
    """The codes are those of a run in which float gradients were rounded by hand, and not those without."""
    ends = {}
    for kind in ("held", "by hand", "float"):
        module = network(dtype if kind == "held" else None)
        optimizer = MAKERS[name](module.parameters())
        for step in range(10):
            backward(module, step)
            assert {grad.dtype for grad in gradients(module)} == {dtype if kind == "held" else torch.float32}
            if kind == "by hand":
                for grad in gradients(module):
                    grad.copy_(grad.to(dtype))
            optimizer.step()
            optimizer.zero_grad()
        ends[kind] = planes(module, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(ends["held"], ends["by hand"], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(ends["held"], ends["float"], strict=True))


def test_the_gradient_is_in_its_dtype_again_after_a_step_that_wants_floats() -> None:
    module = network(torch.bfloat16)
    optimizer = MAKERS["own step"](module.parameters())
    optimizer.step(lambda: backward(module, 0))
    assert {grad.dtype for grad in gradients(module)} == {torch.bfloat16}


def test_each_micro_batch_is_added_in_float32_and_rounded_once() -> None:
    module, exact = network(torch.bfloat16), network()
    sums = [torch.zeros_like(param) for param in exact.parameters()]
    for step in range(4):
        exact.zero_grad()
        backward(exact, step)
        backward(module, step)
        sums = [(each + grad).bfloat16().float() for each, grad in zip(sums, gradients(exact), strict=True)]
    assert all(torch.equal(a, b.float()) for a, b in zip(sums, gradients(module), strict=True))


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
def test_a_gradient_with_a_graph_of_its_own_stays_as_it_is() -> None:
    module = network(torch.bfloat16)
    module(torch.ones(2, 8)).square().sum().backward(create_graph=True)
    assert all(grad.dtype == torch.float32 and grad.requires_grad for grad in gradients(module))
    module.zero_grad()


def test_clipping_is_torchs_own() -> None:
    module = network(torch.bfloat16)
    optim.AdamW(module.parameters())
    backward(module, 0)
    plain = [nn.Parameter(torch.zeros(grad.shape)) for grad in gradients(module)]
    for param, grad in zip(plain, gradients(module), strict=True):
        param.grad_dtype = None
        param.grad = grad.clone()
    norm = nn.utils.clip_grad_norm_(module.parameters(), 0.1)
    assert torch.equal(norm, nn.utils.clip_grad_norm_(plain, 0.1))
    assert all(torch.equal(a, b.grad) for a, b in zip(gradients(module), plain, strict=True))


def test_bytes() -> None:
    module = network("bfloat16", keep_float=["2.bias"])
    optimizer = optim.AdamW(module.parameters())
    backward(module, 0)
    elements = sum(param.numel() for param in module.parameters())
    assert memory.report(module, optimizer).gradients == 2 * (elements - 1) + 4
    rows = {row.gradients: row.elements for row in describe(module, [optimizer])}
    assert rows == {"bfloat16": elements - 1, "float32": 1}


@pytest.mark.parametrize(("dtype", "fits", "overflows"), [("bfloat16", 3.3e38, 3.4e38), ("float16", 65519.0, 65520.0)])
def test_what_overflows_is_refused(dtype: Any, fits: float, overflows: float) -> None:
    module = nn.Linear(4, 1, bias=False)
    optim.quantize_(module, gradient_dtype=dtype)
    optimizer = optim.SGD(module.parameters(), 1e-39)
    (module(torch.ones(1, 4)) * fits).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    (module(torch.ones(1, 4)) * overflows).sum().backward()
    with pytest.raises(NonFiniteGradientError, match="'weight' holds a NaN or an infinity"):
        optimizer.step()


def test_a_grad_scaler_takes_bfloat16() -> None:
    ends = []
    for scaled in (False, True):
        module = network(torch.bfloat16)
        optimizer, scaler = optim.AdamW(module.parameters(), 0.01), torch.amp.GradScaler("cpu", 1024.0, enabled=scaled)
        x = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
        scaler.scale(module(x).square().mean()).backward()
        scaler.step(optimizer)
        ends.append(planes(module, optimizer))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))  # the scale is a power of two


def test_resume_is_bit_for_bit() -> None:
    def run(module: nn.Module, optimizer: Any, steps: range) -> None:
        for step in steps:
            backward(module, step)
            optimizer.step()
            optimizer.zero_grad()

    straight = network(torch.bfloat16)
    optimizer = optim.AdamW(straight.parameters(), 0.01)
    run(straight, optimizer, range(20))
    first = network(torch.bfloat16)
    before = optim.AdamW(first.parameters(), 0.01)
    run(first, before, range(10))
    file = io.BytesIO()
    torch.save({"module": first.state_dict(), "optimizer": before.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second = network(torch.bfloat16)
    after = optim.AdamW(second.parameters(), 0.01)
    second.load_state_dict(saved["module"])
    after.load_state_dict(saved["optimizer"])
    run(second, after, range(10, 20))
    ends = planes(straight, optimizer), planes(second, after)
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_copies_and_frozen_parameters_hold_it_once_an_optimizer_has_them() -> None:
    module = network(torch.bfloat16)
    module[0].weight.requires_grad_(False)
    other = copy.deepcopy(module)
    optim.SGD(other.parameters(), 0.1)
    other[0].weight.requires_grad_(True)
    backward(other, 0)
    assert {grad.dtype for grad in gradients(other)} == {torch.bfloat16}
    assert len(gradients(other)) == 4


@pytest.mark.parametrize("again", ["to_float_", "quantize_"])
def test_floats_again(again: str) -> None:
    module = network(torch.bfloat16)
    backward(module, 0)
    before = [grad.float() for grad in gradients(module)]
    optim.to_float_(module) if again == "to_float_" else optim.quantize_(module)
    assert all(torch.equal(a, b) for a, b in zip(before, gradients(module), strict=True))
    module.zero_grad()
    backward(module, 0)
    assert {grad.dtype for grad in gradients(module)} == {torch.float32}
    assert {param.grad_dtype for param in module.parameters()} == {torch.float32}


def test_the_same_again() -> None:
    """As a second fit asks for it."""
    module = network(torch.bfloat16)
    optimizer = optim.AdamW(module.parameters())
    backward(module, 0)
    optim.quantize_(module, gradient_dtype=torch.float16)
    backward(module, 1)
    assert {grad.dtype for grad in gradients(module)} == {torch.float16}
    optimizer.step()


def test_beside_a_compute_dtype_of_the_same_name_nothing_is_to_do() -> None:
    module = network(torch.bfloat16, dtype=torch.bfloat16)
    assert module[0].weight.gradient_dtype is None
    module(torch.randn(2, 8).bfloat16()).sum().backward()
    assert {grad.dtype for grad in gradients(module)} == {torch.bfloat16}


@pytest.mark.parametrize("value", [torch.float32, torch.float64, torch.int8, "float32", "bf16", 16])
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=f"gradient_dtype={value!r} is not one of bfloat16, float16"):
        network(value)


@pytest.mark.parametrize("value", [8, "release"])
def test_it_is_refused_beside_codes_and_release(value: Any) -> None:
    with pytest.raises(ValueError, match=f"gradient_dtype=torch.bfloat16 beside gradient_word_length={value!r}"):
        network(torch.bfloat16, gradient_word_length=value)
