"""Fused updates against torch.optim, in float64, and what rounding does to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowprec_plugin import FixedPointTensor, optim
from lowprec_plugin.arithmetic.formulas import ALGORITHMS
from lowprec_plugin.optim.fused import FUSED, SQUARED_STATES, fused_update, named_algorithms
from tests.algorithms import CLASSES, NAMED, fused_options, options_of

#: Every class with no option, with each, and with each two.
CASES = [(ours, options) for ours in CLASSES for options in options_of(ours.float_class, most=2)]
CASES += [(ours, {"lr": torch.tensor(0.01)}) for ours in (optim.Adam, optim.AdamW)]


def trajectory(make: Callable[[Any], torch.optim.Optimizer], params: list[nn.Parameter], steps: int) -> None:
    optimizer = make(params)
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        for param in params:
            grad = torch.randn(param.shape, generator=generator, dtype=torch.float32)
            param.grad = grad.to(param.dtype)
        optimizer.step()


def starts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(shape, generator=generator) for shape in ((6, 300), (17,), (), (4, 3, 3))]


@pytest.mark.parametrize(("ours", "options"), CASES, ids=[f"{ours.__name__}-{options}" for ours, options in CASES])
def test_follows_torch_in_float64(ours: Any, options: dict[str, Any]) -> None:
    """At 24 bits the only error left is of float32's order: the formula is torch's."""
    options = {"lr": 0.01} | options
    oracle = [nn.Parameter(start.double()) for start in starts()]
    trajectory(lambda params: ours.float_class(params, **options), oracle, 10)
    fixed = [nn.Parameter(FixedPointTensor.quantize(start, "fixed24", rounding="nearest")) for start in starts()]
    trajectory(lambda params: ours(params, **options), fixed, 10)
    for exact, found in zip(oracle, fixed, strict=True):
        assert isinstance(found, FixedPointTensor)
        torch.testing.assert_close(found.dequantize().double(), exact.detach(), rtol=1e-5, atol=1e-5)


def test_first_momentum_step_takes_the_whole_gradient() -> None:
    """torch's rule: dampening applies from the second step on."""
    param = nn.Parameter(FixedPointTensor.quantize(torch.zeros(4, 16), "fixed16"))
    param.grad = torch.ones(4, 16)
    optimizer = optim.SGD([param], lr=1.0, momentum=0.9, dampening=0.5)
    optimizer.step()
    assert param.dequantize().eq(-1).all()
    optimizer.step()
    assert (param.dequantize() + 1 + 0.9 + 0.5).abs().max() < 1e-4


@pytest.mark.parametrize("buffer", [True, False], ids=["with momentum", "with None"])
def test_state_of_torchs_sgd_is_taken_up_in_the_middle(buffer: bool) -> None:
    """It counts no steps; dampening applies from the first step if there is a momentum already, and only then."""
    options = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}
    oracle = nn.Parameter(torch.randn(4, 40, dtype=torch.float64))
    theirs = torch.optim.SGD([oracle], **options)
    for _ in range(3):
        oracle.grad = 2 * oracle.detach() + 1
        theirs.step()
    if not buffer:
        theirs.state[oracle]["momentum_buffer"] = None
    assert "step" not in theirs.state[oracle]
    fixed = nn.Parameter(FixedPointTensor.quantize(oracle.detach().float(), "fixed24", rounding="nearest"))
    ours = optim.SGD([fixed], **options)
    ours.load_state_dict(theirs.state_dict())
    for _ in range(3):
        oracle.grad = 2 * oracle.detach() + 1
        fixed.grad = 2 * fixed.dequantize() + 1
        theirs.step()
        ours.step()
        torch.testing.assert_close(fixed.dequantize().double(), oracle.detach(), rtol=1e-5, atol=1e-5)


class TestSmallUpdates:
    """The paper's point: an update of a hundredth of a code is lost by nearest rounding, and kept by stochastic."""

    def drift(self, rounding: str) -> float:
        param = nn.Parameter(FixedPointTensor.quantize(torch.ones(64, 256), "fixed16", rounding="nearest"))
        code = 2.0**-14
        optimizer = optim.SGD([param], lr=0.01 * code, rounding=rounding)
        for _ in range(200):
            param.grad = torch.ones(64, 256)
            optimizer.step()
        return float((1 - param.dequantize()).mean() / code)

    def test_stochastic_keeps_them(self) -> None:
        assert self.drift("stochastic") == pytest.approx(2.0, rel=0.05)

    def test_nearest_loses_them(self) -> None:
        assert self.drift("nearest") == 0


def test_state_has_its_own_word_length_and_holds_the_root() -> None:
    param = nn.Parameter(FixedPointTensor.quantize(torch.randn(4, 512), "fixed16"))
    param.grad = torch.randn(4, 512)
    optimizer = optim.AdamW([param], state_word_length=8)
    optimizer.step()
    state = optimizer.state[param]
    assert str(state["exp_avg"].format) == "fixed8"
    assert str(state["exp_avg_sq"].format) == "fixed8^2"
    expected = 0.001 * param.grad**2
    found = state["exp_avg_sq"].dequantize()
    step = 2.0 ** state["exp_avg_sq"].exponents.float().repeat_interleave(256, 1)
    assert ((found.sqrt() - expected.sqrt()).abs() <= step * 1.001).all()


def test_one_call_per_group(monkeypatch: pytest.MonkeyPatch) -> None:
    from lowprec_plugin.arithmetic import ops

    calls: list[int] = []
    update = ops.update_
    monkeypatch.setattr(
        ops, "update_", lambda *args, **kwargs: (calls.append(len(args[1])), update(*args, **kwargs))[1]
    )
    params = [nn.Parameter(FixedPointTensor.quantize(torch.randn(5, 5), "fixed16")) for _ in range(6)]
    optimizer = optim.AdamW([{"params": params[:2]}, {"params": params[2:], "lr": 1.0}])
    for param in params:
        param.grad = torch.ones(5, 5)
    optimizer.step()
    assert calls == [2, 4]


def test_unfit_groups_say_why() -> None:
    update, reason = fused_update(torch.optim.Adam, {"amsgrad": True})
    assert update is None
    assert reason == "Adam with amsgrad=True has no fused update"
    update, reason = fused_update(torch.optim.NAdam, {})
    assert update is None
    assert reason == "NAdam has no fused update"


@pytest.mark.parametrize("ours", CLASSES)
def test_states_are_those_of_the_float_class(ours: Any) -> None:
    """Its names, and whether it counts steps: a state dict of one loads in the other, and the plan counts both."""
    for algorithm in FUSED[ours.float_class].algorithms.values():
        options = {"lr": 0.01} | fused_options(ours.float_class, algorithm)[-1]
        param, fixed = nn.Parameter(torch.ones(4, 40)), FixedPointTensor.quantize(torch.ones(4, 40), "fixed16")
        theirs, own = ours.float_class([param], **options), ours([nn.Parameter(fixed)], **options)
        for optimizer in (theirs, own):
            for each in optimizer.param_groups[0]["params"]:
                each.grad = torch.ones(4, 40)
            optimizer.step()
        names = [name for name in theirs.state[param] if name != "step"]
        assert sorted(names) == sorted(algorithm.states)
        assert ("step" in theirs.state[param]) == algorithm.counts_steps
        (state,) = own.state.values()
        assert {name: state[name].format.squared for name in names} == {
            name: name in algorithm.squared for name in names
        }
        own.load_state_dict(theirs.state_dict())


def test_the_table_is_whole() -> None:
    assert set(FUSED) == {ours.float_class for ours in CLASSES}
    assert set(named_algorithms().values()) == set(ALGORITHMS)
    assert list(NAMED) == list(named_algorithms())
    assert all(name in SQUARED_STATES for algorithm in ALGORITHMS for name in algorithm.squared)
    assert all(issubclass(getattr(optim, ours.__name__), ours) and ours.__name__ in optim.__all__ for ours in CLASSES)
