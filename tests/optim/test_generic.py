"""Every other optimizer: its own step, on the same parameters."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from lowprec_plugin import FixedPointTensor, optim
from lowprec_plugin.optim.lion import FloatLion
from lowprec_plugin.optim.lost_updates import evidence_of
from lowprec_plugin.optim.step import steps_each_by_itself
from lowprec_plugin.tensor.opening import Opening
from tests.optim.habits import CallsTwice

GENERIC: list[tuple[Any, dict[str, Any]]] = [
    (torch.optim.Adagrad, {"lr": 0.01}),
    (torch.optim.RMSprop, {"lr": 0.001, "momentum": 0.5, "centered": True}),
    (torch.optim.NAdam, {"lr": 0.01}),
    (torch.optim.RAdam, {"lr": 0.01}),
    (torch.optim.Adamax, {"lr": 0.01}),
    (torch.optim.Adadelta, {"lr": 1.0}),
    (torch.optim.ASGD, {"lr": 0.01}),
    (torch.optim.Rprop, {"lr": 0.001}),
    (torch.optim.Adafactor, {"lr": 0.01}),
    (torch.optim.Adam, {"lr": 0.01, "amsgrad": True}),
    (torch.optim.AdamW, {"lr": 0.01, "amsgrad": True}),
]
if hasattr(torch.optim, "Muon"):
    GENERIC.append((torch.optim.Muon, {"lr": 0.01}))


@pytest.mark.parametrize(("kind", "options"), GENERIC, ids=lambda value: getattr(value, "__name__", ""))
def test_follows_the_float_run(kind: Any, options: dict[str, Any]) -> None:
    """At 24 bits; and state that has the parameter's shape is stored, whatever its name."""
    start = torch.randn(8, 40)
    floats = nn.Parameter(start.clone())
    fixed = nn.Parameter(FixedPointTensor.quantize(start, "fixed24", rounding="nearest"))
    one, other = kind([floats], **options), optim.adopt(kind([fixed], **options))
    for _ in range(20):
        floats.grad = 2 * floats.detach() + 1
        fixed.grad = 2 * fixed.dequantize() + 1
        one.step()
        other.step()
    assert isinstance(fixed, FixedPointTensor)
    torch.testing.assert_close(fixed.dequantize(), floats.detach(), rtol=1e-3, atol=1e-4)
    for name, value in other.state[fixed].items():
        if isinstance(value, torch.Tensor) and value.shape == fixed.shape:
            assert isinstance(value, FixedPointTensor), name
            torch.testing.assert_close(value.dequantize(), one.state[floats][name], rtol=2e-3, atol=3e-3)


class NormedSGD(torch.optim.Optimizer):
    """Divides by the norm of all gradients, which no parameter by itself has."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 1.0})

    def step(self, closure: Any = None) -> None:
        params = [param for group in self.param_groups for param in group["params"]]
        norm = torch.cat([param.grad.flatten() for param in params]).norm()
        for param in params:
            param.data.sub_(param.grad / norm)


def test_a_step_that_looks_across_parameters() -> None:
    params = [nn.Parameter(FixedPointTensor.quantize(torch.zeros(1, 4), "fixed16")) for _ in range(2)]
    optimizer = optim.adopt(NormedSGD(params))
    for param in params:
        param.grad = torch.ones(1, 4)
    optimizer.step()
    for param in params:
        torch.testing.assert_close(param.dequantize(), torch.full((1, 4), -(8**-0.5)), rtol=1e-3, atol=0)


class NamedAsTorchs(torch.optim.NAdam):
    """Its step bears the name of torch's, and counts."""

    steps = 0

    @functools.wraps(torch.optim.NAdam.step)
    def step(self, closure: Any = None) -> Any:
        self.steps += 1
        return super().step(closure)


class Inherits(torch.optim.NAdam):
    """Its step is torch's."""


def test_whose_step_it_is() -> None:
    params = [nn.Parameter(FixedPointTensor.quantize(torch.ones(1, 4), "fixed16")) for _ in range(3)]
    optimizer: Any = optim.adopt(NamedAsTorchs(params))
    for param in params:
        param.grad = torch.ones(1, 4)
    optimizer.step()
    assert optimizer.steps == 1
    Inherits(params)
    for kind in (torch.optim.SGD, torch.optim.NAdam, Inherits, torch.optim.Adafactor, FloatLion):
        assert steps_each_by_itself(kind)
    assert not any(steps_each_by_itself(kind) for kind in (NormedSGD, NamedAsTorchs))


def test_groups_and_hooks_stay_the_optimizers_own() -> None:
    param = nn.Parameter(FixedPointTensor.quantize(torch.randn(4, 4), "fixed16"))
    optimizer = optim.adopt(torch.optim.NAdam([param], lr=0.01))
    called = []
    optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    optimizer.register_step_post_hook(lambda *_: called.append("after"))
    param.grad = torch.ones(4, 4)
    optimizer.step()
    assert called == ["before", "after"]
    assert optimizer.param_groups[0]["params"][0] is param


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, torch.optim.SparseAdam])
def test_those_that_cannot_work_say_why(kind: Any) -> None:
    module = nn.Linear(2, 2)
    optim.quantize_(module, keep_float="bias")
    optimizer = kind(module.parameters())
    message = f"torch.optim.{kind.__name__} cannot update fixed-point parameters, such as parameter 'weight': .*keep_f"
    with pytest.raises(ValueError, match=message):
        optim.adopt(optimizer)
    assert type(optimizer) is kind


def test_lbfgs_on_floats_trains_as_ever() -> None:
    found = []
    for adopted in (True, False):
        param = nn.Parameter(torch.tensor([3.0, -2.0]))
        optimizer = torch.optim.LBFGS([param], max_iter=5)
        if adopted:
            assert optim.adopt(optimizer) is optimizer

        def closure(optimizer: Any = optimizer, param: Any = param) -> torch.Tensor:
            optimizer.zero_grad()
            loss = (param - 1).pow(4).sum()
            loss.backward()
            return loss

        first = optimizer.step(closure)
        assert optimizer.step(closure) < 0.1 * first
        found.append(param.detach())
    assert torch.equal(*found)


def test_sparse_adam_on_floats_trains() -> None:
    table = nn.Embedding(4, 2, sparse=True)
    before = table.weight.detach().clone()
    optimizer = optim.adopt(torch.optim.SparseAdam(table.parameters(), 0.1))
    table(torch.tensor([1])).sum().backward()
    optimizer.step()
    assert (table.weight != before).any(1).tolist() == [False, True, False, False]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_of_an_adopted_optimizer_step_as_it_does(duplicate: Any) -> None:
    torch.manual_seed(0)
    module = nn.Linear(300, 3)
    optim.quantize_(module)
    for make in (torch.optim.AdamW, torch.optim.NAdam):
        optimizer = optim.adopt(make(module.parameters(), lr=1e-2), optim.StepSettings(8))
        module(torch.ones(1, 300)).sum().backward()
        optimizer.step()
        other_module, other = duplicate((module, optimizer))
        assert other.fixed_point.state_word_length == 8
        assert other_module.weight.grad is None
        for one, stepped in ((module, optimizer), (other_module, other)):
            one.zero_grad()
            one(torch.ones(1, 300)).sum().backward()
            stepped.step()
        assert torch.equal(module.weight.codes, other_module.weight.codes)  # type: ignore[operator,arg-type]


def test_another_of_the_class_of_an_adopted_optimizer_is_not_adopted() -> None:
    param = nn.Parameter(FixedPointTensor.quantize(torch.ones(4, 4), "fixed16"))
    for kind in (torch.optim.AdamW, torch.optim.NAdam, NormedSGD):
        other = type(optim.adopt(kind([param])))([param])
        assert type(other) is kind
        assert not hasattr(other, "fixed_point")
        optim.adopt(other)


class Counts(torch.optim.Optimizer):
    """Corrects a momentum's bias by the number of its steps, which it keeps in its groups and in itself."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1, "steps": 0})
        self.steps = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.steps += 1
        for group in self.param_groups:
            group["steps"] += 1
            for param in group["params"]:
                moment = self.state[param].setdefault("moment", torch.zeros_like(param)).lerp_(param.grad, 0.1)
                correction = 2 - 0.9**self.steps - 0.9 ** group["steps"]
                param.sub_(moment, alpha=group["lr"] / correction)


def test_what_an_optimizer_counts_goes_on_by_one_per_step() -> None:
    fixed = [nn.Parameter(FixedPointTensor.quantize(torch.ones(4, 4), "fixed24")) for _ in range(3)]
    floats = nn.Parameter(torch.ones(4, 4))
    alone = nn.Parameter(torch.ones(4, 4))
    one = Counts([alone])
    other = optim.adopt(Counts([{"params": [*fixed[:2], floats]}, {"params": fixed[2:]}]))
    for _ in range(5):
        for param in (*fixed, floats, alone):
            param.grad = torch.full((4, 4), 0.5)
        one.step()
        other.step()
    assert other.steps == 5
    assert [group["steps"] for group in other.param_groups] == [5, 5]
    for param in (*fixed, floats):
        torch.testing.assert_close(param.detach() + 0, alone.detach(), rtol=1e-5, atol=1e-5)


class CountsInPlace(torch.optim.SGD):
    """Counts in tensors, its own and its groups', and reads its learning rate from one."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, torch.tensor(0.25))
        self.steps = torch.zeros(1)
        for group in self.param_groups:
            group["steps"] = torch.zeros((), dtype=torch.int64)

    def step(self, closure: Any = None) -> Any:
        self.steps += 1
        for group in self.param_groups:
            group["steps"] += 1
        return super().step(closure)


def test_tensors_that_count_steps_in_place_count_each_once() -> None:
    fixed = [nn.Parameter(FixedPointTensor.quantize(torch.ones(4, 4), "fixed16")) for _ in range(3)]
    optimizer = optim.adopt(CountsInPlace([{"params": [*fixed, nn.Parameter(torch.ones(4, 4))]}]))
    (group,) = optimizer.param_groups
    held = optimizer.steps, group["steps"], group["lr"]
    for param in group["params"]:
        param.grad = torch.full((4, 4), 0.5)
    evidence_of(optimizer)  # counts nothing
    for _ in range(5):
        optimizer.step()
    assert (int(optimizer.steps), int(group["steps"])) == (5, 5)
    assert all(one is other for one, other in zip((optimizer.steps, group["steps"], group["lr"]), held, strict=True))


class NotesOfMatrices(torch.optim.SGD):
    """Notes of some parameters alone: a norm, in a tensor that is new each time, and how many there were, in place."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, 0.25)
        self.norm = torch.zeros(())
        self.param_groups[0]["matrices"] = torch.zeros(())

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for param in group["params"]:
                if param.ndim == 2:
                    self.norm = param.grad.norm()
                    group["matrices"] += 1
        return super().step(closure)


def test_what_is_noted_of_one_parameter_is_not_undone_by_the_next() -> None:
    fixed = [nn.Parameter(FixedPointTensor.quantize(torch.ones(size), "fixed16")) for size in ((4, 4), (4,))]
    optimizer: Any = optim.adopt(NotesOfMatrices([*fixed, nn.Parameter(torch.ones(4))]))
    for param in optimizer.param_groups[0]["params"]:
        param.grad = torch.ones(param.shape)
    for _ in range(2):
        optimizer.step()
    assert (float(optimizer.norm), float(optimizer.param_groups[0]["matrices"])) == (4, 2)


def test_the_gradient_of_a_learning_rate() -> None:
    """Of parameters that are kept in float, as torch's own differentiable steps give it."""
    rate, param = torch.tensor(0.25, requires_grad=True), torch.ones(3, requires_grad=True).clone()
    optimizer = optim.adopt(torch.optim.SGD([param], rate, differentiable=True))
    param.grad = torch.full((3,), 2.0)
    optimizer.step()
    param.sum().backward()
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.grad == -6


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.NAdam])
def test_differentiable_steps_as_ever(kind: Any) -> None:
    params = [nn.Parameter(FixedPointTensor.quantize(torch.ones(4, 4), "fixed16")) for _ in range(2)]
    for param, differentiable in zip(params, (False, True), strict=True):
        param.grad = torch.ones(4, 4)
        optim.adopt(kind([param], lr=0.1, differentiable=differentiable)).step()
    torch.testing.assert_close(params[1].dequantize(), params[0].dequantize(), rtol=1e-3, atol=1e-3)
    assert params[1].requires_grad


def test_hooks_of_every_optimizer_run_once_a_step() -> None:
    stepped: list[torch.optim.Optimizer] = []
    params = [nn.Parameter(FixedPointTensor.quantize(torch.ones(4), "fixed16")) for _ in range(3)]
    optimizer = optim.adopt(torch.optim.NAdam(params))
    for param in params:
        param.grad = torch.ones(4)
    handle = register_optimizer_step_post_hook(lambda stepping, args, kwargs: stepped.append(stepping))
    try:
        optimizer.step()
    finally:
        handle.remove()
    assert stepped == [optimizer]


def test_a_step_that_comes_to_nan_is_refused_whole() -> None:
    param = nn.Parameter(FixedPointTensor.quantize(torch.ones(4, 40), "fixed16", label="w"))
    optimizer = optim.adopt(torch.optim.NAdam([param]))
    param.grad = torch.ones(4, 40)
    optimizer.step()
    weights, state = param.dequantize(), copy.deepcopy(optimizer.state[param])
    optimizer.param_groups[0]["lr"] = torch.nan
    with pytest.raises(optim.NonFiniteGradientError, match=r"parameter .w. came to NaN .*rate, nan, finite"):
        optimizer.step()
    assert torch.equal(param.dequantize(), weights)
    for name, value in optimizer.state[param].items():
        assert torch.equal(value, state[name]), name


def test_what_overflows_saturates() -> None:
    param = nn.Parameter(FixedPointTensor.quantize(torch.ones(4, 40), "fixed16"))
    optimizer = optim.adopt(torch.optim.RMSprop([param], lr=0.1, momentum=0.5))
    param.grad = torch.full((4, 40), 1e30)  # whose square is infinite
    optimizer.step()
    assert optimizer.state[param]["square_avg"].dequantize().isfinite().all()


class OwnAdam(torch.optim.Optimizer):
    """Adam in a loop over its parameters, or in operations on lists of them."""

    def __init__(self, params: Any, lists: bool = False) -> None:
        super().__init__(params, {"foreach": lists})
        self.mean: dict[Any, torch.Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        params = [param for group in self.param_groups for param in group["params"]]
        for param in params:
            if not self.state[param]:
                self.state[param].update(m=torch.zeros_like(param), v=torch.zeros_like(param))
        if self.defaults["foreach"]:
            moments = [self.state[param]["m"] for param in params]
            torch._foreach_lerp_(moments, [param.grad for param in params], 0.1)
            torch._foreach_add_(params, moments, alpha=-0.01)
            return
        for param in params:
            moment = self.state[param]["m"].lerp_(param.grad, 0.1)
            square = self.state[param]["v"].mul_(0.99).addcmul_(param.grad, param.grad, value=0.01)
            param.sub_(0.01 * moment / (square.sqrt() + 1e-8))


class ClonesState(torch.optim.Optimizer):
    """Adam with slow weights, whose state is made of copies of its parameters: by its first step, or before it."""

    def __init__(self, params: Any, early: bool) -> None:
        super().__init__(params, {})
        if early:
            self.begin()

    @torch.no_grad()
    def begin(self) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                self.state[param].update(
                    m=param.clone().zero_(), v=param.detach().clone().fill_(0.0), slow=param.detach().clone()
                )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        if not self.state:
            self.begin()
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state[param]
                moment = state["m"].lerp_(param.grad, 0.1)
                square = state["v"].mul_(0.99).addcmul_(param.grad, param.grad, value=0.01)
                param.sub_(0.01 * moment / (square.sqrt() + 1e-8))
                param.copy_(state["slow"].lerp_(param, 0.5))


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("bits", [15, 16])
def test_state_made_of_a_copy_of_the_parameter_is_stored_as_what_it_has_become(early: bool, bits: int) -> None:
    """A copy that has become a mean of squares keeps its small values; slow weights stay a copy."""
    start, small = torch.randn(4, 64), 10.0 ** -torch.linspace(0, 3, 64)
    floats = nn.Parameter(start.clone())
    fixed = nn.Parameter(FixedPointTensor.quantize(start, "fixed16", label="w"))
    one, other = ClonesState([floats], early), optim.adopt(ClonesState([fixed], early), optim.StepSettings(bits))
    for _ in range(30):
        floats.grad = fixed.grad = torch.randn(4, 64) * small
        one.step()
        other.step()
    assert {name: (value.format.word_length, value.format.squared) for name, value in other.state[fixed].items()} == {
        "m": (bits, False), "v": (bits, True), "slow": (16, False),
    }  # fmt: skip
    torch.testing.assert_close(fixed.dequantize(), floats.detach(), rtol=0, atol=0.1)


def test_a_copy_of_a_parameter_is_one_by_its_name_and_in_a_file_too() -> None:
    weight = nn.Parameter(FixedPointTensor.quantize(torch.randn(4, 64), "fixed16", label="w"))
    optimizer = optim.adopt(ClonesState([weight], early=False), optim.StepSettings(8))
    weight.grad = torch.randn(4, 64)
    optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    assert b"w.slow (a copy)" in file.getvalue()  # as earlier versions wrote it
    file.seek(0)
    read = torch.load(file, weights_only=True)
    again = optim.adopt(ClonesState([weight], early=False), optim.StepSettings(8))
    again.load_state_dict(read)
    for state in (optimizer.state[weight], read["state"][0], again.state[weight]):
        labels = {name: (value.label, value.is_copy, value.format.word_length) for name, value in state.items()}
        assert labels == {"m": ("w.m", False, 8), "v": ("w.v", False, 8), "slow": ("w.slow", True, 16)}


@pytest.fixture
def openings(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    made: list[Any] = []
    original = Opening.__init__
    monkeypatch.setattr(Opening, "__init__", lambda self, *args: (made.append(self), original(self, *args))[1])
    return made


def test_floats_of_one_parameter_at_a_time(openings: list[Any]) -> None:
    """With its state: three tensors of it. At the first step, when state comes up as floats, no more."""
    params = [nn.Parameter(FixedPointTensor.quantize(torch.randn(20, 30), "fixed16")) for _ in range(5)]
    optimizer = optim.adopt(OwnAdam(params))
    for _ in range(3):
        for param in params:
            param.grad = torch.randn(20, 30)
        optimizer.step()
    assert [each.together for each in openings] == [1, 1, 1]
    assert [each.most for each in openings] == [2400, 7200, 7200]
    assert all(isinstance(value, FixedPointTensor) for param in params for value in optimizer.state[param].values())


def test_what_it_holds_in_floats_is_said_once(openings: list[Any]) -> None:
    params = [nn.Parameter(FixedPointTensor.quantize(torch.randn(20, 30), "fixed16")) for _ in range(5)]
    optimizer: Any = optim.adopt(OwnAdam(params, lists=True))
    optimizer.mean = {0: torch.zeros(1000)}
    said = r"OwnAdam writes to 5 parameters at once, and has 12,000 bytes .*foreach=False.*, and holds 4,000 bytes"
    for step in range(3):
        for param in params:
            param.grad = torch.randn(20, 30)
        if step:
            optimizer.step()
            continue
        with pytest.warns(UserWarning, match=said):
            optimizer.step()
    assert [each.together for each in openings] == [5, 5, 5]


@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
@pytest.mark.parametrize("at", [1, 2])
def test_a_gradient_that_is_not_finite_in_one_call_of_the_closure(at: int, nonfinite: str) -> None:
    """At the first nothing has been written. At a further one a parameter in float has, which nothing brings back."""
    fixed = nn.Parameter(FixedPointTensor.quantize(torch.ones(4, 4), "fixed16", label="w"))
    floats = nn.Parameter(torch.ones(4))
    optimizer = optim.adopt(CallsTwice([fixed, floats]), optim.StepSettings(nonfinite=nonfinite))
    calls = 0

    def closure() -> float:
        nonlocal calls
        calls += 1
        fixed.grad, floats.grad = torch.full((4, 4), torch.nan if calls == at else 1.0), torch.ones(4)
        return 2.0

    if at == 1 and nonfinite == "skip":
        assert optimizer.step(closure) == 2.0  # type: ignore[arg-type]
        assert (optimizer.fixed_point.skipped_steps, calls) == (1, 1)  # type: ignore[attr-defined]
    else:
        said = "nothing was written" if at == 1 else "further call of CallsTwice's closure .*go back to a checkpoint"
        with pytest.raises(optim.NonFiniteGradientError, match=said):
            optimizer.step(closure)  # type: ignore[arg-type]
    if at == 1:
        assert torch.equal(fixed.dequantize(), torch.ones(4, 4))
        assert torch.equal(floats, torch.ones(4))


class TakesARate(torch.optim.Optimizer):
    """Its closure is not the first of its step's arguments."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, rate: float = 0.5, closure: Any = None) -> Any:  # type: ignore[override]
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            for param in group["params"]:
                param.sub_(rate * param.grad)
        return loss


@pytest.mark.parametrize(
    ("call", "left"),
    [
        (lambda step, closure: step(0.25, closure), 0.75),
        (lambda step, closure: step(closure=closure), 0.5),
        (lambda step, closure: step(closure=closure, rate=0.25), 0.75),
        (lambda step, closure: (closure(), step(0.25)), 0.75),
        (lambda step, closure: (closure(), step(rate=0.25)), 0.75),
        (lambda step, closure: (closure(), step()), 0.5),
    ],
)
def test_a_steps_own_arguments_come_as_they_were_given(call: Any, left: float) -> None:
    param = nn.Parameter(FixedPointTensor.quantize(torch.ones(2, 3), "fixed16"))
    optimizer = optim.adopt(TakesARate([param]), optim.StepSettings(nonfinite="skip"))
    for grad in (torch.ones(2, 3), torch.full((2, 3), torch.inf)):
        assert call(optimizer.step, lambda grad=grad: [setattr(param, "grad", grad), 2.0][1]) in (2.0, (2.0, None))
        assert torch.equal(param.dequantize(), torch.full((2, 3), left))
    assert optimizer.fixed_point.skipped_steps == 1  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:Profiler function")
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.NAdam, NormedSGD])
def test_a_compiled_step_does_what_it_does(kind: Any) -> None:
    codes = []
    for compiled in (False, True):
        param = nn.Parameter(FixedPointTensor.quantize(torch.ones(4, 4), "fixed16", label="w"))
        optimizer = optim.adopt(kind([param]))
        step: Any = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        for _ in range(3):
            param.grad = param.dequantize()
            step()
        codes.append(param.codes)  # type: ignore[attr-defined]
    assert torch.equal(*codes)


class SendsItself(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                dist.all_reduce(param.data)


def test_one_that_sends_parameters_itself_is_refused() -> None:
    param = nn.Parameter(FixedPointTensor.quantize(torch.ones(2, 3), "fixed16"))
    optimizer = optim.adopt(SendsItself([param], 0.1))
    param.grad = torch.ones(2, 3)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="SendsItself sends fixed-point parameters between processes"):
            optimizer.step()
    finally:
        dist.destroy_process_group()
