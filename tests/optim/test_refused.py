"""State that is refused changes nothing: neither when an optimizer is adopted nor when it loads a state dict."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from lowprec_plugin import FixedPointTensor, optim
from lowprec_plugin.optim.step import FixedPointStep
from tests.cases import planes
from tests.optim import habits


def trained(make: Any, steps: int = 2) -> tuple[nn.Module, torch.optim.Optimizer]:
    module = nn.Linear(40, 4)
    optim.quantize_(module)
    optimizer = make(module.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.randn(2, 40)).square().sum().backward()
        optimizer.step()
    return module, optimizer


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_an_optimizer_with_bad_state_is_not_adopted() -> None:
    module = nn.Linear(40, 4)
    optimizer = torch.optim.AdamW(module.parameters())
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    module(torch.randn(2, 40)).sum().backward()
    optimizer.step()
    optimizer.state[module.bias]["exp_avg"][0] = torch.nan
    optim.quantize_(module)
    step, before = optimizer.step, copy.deepcopy(dict(optimizer.state[module.weight]))
    with pytest.raises(ValueError, match=r"state 'exp_avg' of parameter 'bias': a NaN or an infinity"):
        optim.adopt(optimizer)
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.step is step
    assert not hasattr(optimizer, "fixed_point")
    for name, value in optimizer.state[module.weight].items():
        assert type(value) is torch.Tensor
        assert torch.equal(value, before[name])
    optimizer.state[module.bias]["exp_avg"][0] = 0
    optim.adopt(optimizer).step()
    schedule.step()
    assert isinstance(optimizer.state[module.weight]["exp_avg"], FixedPointTensor)


def test_other_settings_that_are_refused() -> None:
    module, optimizer = trained(lambda params: optim.AdamW(params, state_word_length=12))
    settings, before = optimizer.fixed_point, [plane.clone() for plane in planes(module, optimizer)]
    with pytest.raises(ValueError, match="state_fraction_length=10: exp_avg_sq is a mean of squares"):
        optim.adopt(optimizer, optim.StepSettings(8, state_fraction_length=10))
    assert optimizer.fixed_point is settings
    assert same(planes(module, optimizer), before)


@pytest.mark.parametrize("adopted", [False, True])
def test_all_that_an_optimizer_holds_or_none(adopted: bool) -> None:
    """Settings go to the optimizers that it holds too; if one is refused, none is changed."""
    module = nn.Linear(40, 4)
    optim.quantize_(module)
    optimizer: Any = habits.Inner(module.parameters())
    if adopted:
        optim.adopt(optimizer)
    for param in module.parameters():
        param.grad = torch.ones(param.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer.step()
    state, settings = optimizer.inner.state[module.weight], optim.StepSettings(12)
    before = state["momentum_buffer"]
    optimizer.state[module.bias]["bad"] = torch.full((4,), torch.inf)
    with pytest.raises(ValueError, match="state 'bad' of parameter 'bias': a NaN or an infinity"):
        optim.adopt(optimizer, settings)
    assert state["momentum_buffer"] is before
    assert isinstance(optimizer, FixedPointStep) == isinstance(optimizer.inner, FixedPointStep) == adopted
    del optimizer.state[module.bias]["bad"]
    optim.adopt(optimizer, settings)
    assert optimizer.fixed_point is optimizer.inner.fixed_point is settings
    assert state["momentum_buffer"].format.word_length == 12


def test_a_state_dict_that_is_refused() -> None:
    _, wide = trained(lambda params: optim.AdamW(params, 0.5, state_word_length=16))
    module, optimizer = trained(lambda params: optim.AdamW(params, 0.1, state_word_length=8), 3)
    before = [plane.clone() for plane in planes(module, optimizer)]
    with pytest.raises(ValueError, match="Resume with state_word_length=16"):
        optimizer.load_state_dict(wide.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert int(optimizer.state[module.weight]["step"]) == 3
    assert same(planes(module, optimizer), before)
    given = optimizer.state_dict()
    given["param_groups"] = given["param_groups"] * 2
    with pytest.raises(ValueError, match="different number of parameter groups"):  # torch's own
        optimizer.load_state_dict(given)


class LoadsItself(habits.OwnList):
    """In a form of its own."""

    def state_dict(self) -> dict[str, Any]:
        return {"inside": super().state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict["inside"])


def test_a_state_dict_in_a_form_of_its_own_that_is_refused() -> None:
    def make(bits: int) -> Any:
        return lambda params: optim.adopt(LoadsItself(params), optim.StepSettings(bits))

    _, wide = trained(make(16))
    module, optimizer = trained(make(8), 3)
    before = [plane.clone() for plane in planes(module, optimizer)]
    with pytest.raises(ValueError, match="Resume with state_word_length=16"):
        optimizer.load_state_dict(wide.state_dict())
    assert same(planes(module, optimizer), before)
    _, other = trained(make(8))
    optimizer.load_state_dict(other.state_dict())
    assert same(planes(nn.Module(), optimizer), planes(nn.Module(), other))
    optimizer.step()


@pytest.mark.parametrize("form", [lambda state: state, optim.plain_optimizer_state])
def test_what_a_hook_makes_of_a_state_dict_is_loaded(form: Any) -> None:
    module, optimizer = trained(optim.AdamW)
    other = optim.AdamW(module.parameters())

    def doubled(_: Any, given: dict[str, Any]) -> dict[str, Any]:
        state = {key: {**each, "exp_avg": 2 * each["exp_avg"]} for key, each in given["state"].items()}
        return {**given, "state": state}

    other.register_load_state_dict_pre_hook(doubled)
    other.load_state_dict(form(optimizer.state_dict()))
    for param, state in other.state.items():
        expected = 2 * optimizer.state[param]["exp_avg"].dequantize()
        assert torch.equal(state["exp_avg"].dequantize(), expected)
    assert len(other._optimizer_load_state_dict_pre_hooks) == 1


def test_a_wrapper_that_is_no_optimizer() -> None:
    class Wrapper:
        def step(self) -> None:
            pass

    with pytest.raises(ValueError, match=r"optimizer=Wrapper is no torch.optim.Optimizer: .* before it is wrapped"):
        optim.adopt(Wrapper())  # type: ignore[arg-type]
