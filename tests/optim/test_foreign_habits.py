"""Optimizers with other people's habits train what they train in float32, or are refused by name."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowprec_plugin import FixedPointTensor, memory, optim
from lowprec_plugin.optim import laid_out
from lowprec_plugin.tensor.dtensor import fixed_part
from tests.optim import habits
from tests.optim.habits import HABITS

#: Refused at adoption or in the first step, with a message that matches.
REFUSED: dict[type[torch.optim.Optimizer], str] = {
    habits.BuffersByAddress: "asks for the address of .* keep_float",
    habits.LaysOut: "holds memory that parameter '0' had as floats .* keep_float",
    habits.LaysOutLate: "holds memory that parameter '0' had as floats .* keep_float",
}
SHAPES = ((8, 40), (2, 3, 16), (12,))
#: How far from float32's weights, as a share of float32's way: 24 bits round by 1e-7 of a block's largest.
NEAR = 1e-3
#: A half's own rounding makes another of these of it, once its momentum differs in one bit.
HALVES = {habits.StateInBfloat16: 2e-2, habits.StateInFloat16: 4e-3}


def parameters(format: str | None) -> nn.ParameterList:
    generator = torch.Generator().manual_seed(3)
    net = nn.ParameterList([nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES])
    if format is not None:
        optim.quantize_(net, format)
    return net


def train(net: nn.ParameterList, optimizer: torch.optim.Optimizer, steps: int = 20) -> list[float]:
    """Towards random numbers, some elements a hundred times as steeply as others."""
    generator = torch.Generator().manual_seed(4)
    goals = [torch.randn(shape, generator=generator) for shape in SHAPES]
    slopes = [torch.logspace(-2, 0, goal.numel()).reshape(goal.shape) for goal in goals]
    losses = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        parts = [(s * (p - g).square()).sum() for p, g, s in zip(net, goals, slopes, strict=True)]
        loss = torch.stack(parts).sum() / 10
        loss.backward()
        losses.append(float(loss.detach()))
        return loss.detach()

    for _ in range(steps):
        optimizer.step(closure)  # type: ignore[arg-type]
    optimizer.zero_grad()
    return losses


def values(net: nn.ParameterList) -> Tensor:
    return torch.cat([(param.detach() + 0).flatten() for param in net])


def share(fixed: Tensor, floats: Tensor, start: Tensor) -> float:
    """How far apart two ends are, as a share of the way of the second."""
    return float((fixed - floats).norm() / (floats - start).norm())


def adopted_or_refused(kind: Any, make: Callable[[], Any], step: Callable[[Any], None]) -> Any:
    """What ``make`` gives, adopted, after ``step``; ``None`` if the kind is one of those that are to be refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # such as of what a step may compute across parameters
        if kind not in REFUSED:
            optimizer = optim.adopt(make())
            step(optimizer)
            return optimizer
        with pytest.raises(ValueError, match=REFUSED[kind]) as refused:
            step(optim.adopt(make()))
    assert kind.__name__ in str(refused.value)
    return None


@pytest.mark.parametrize("kind", HABITS)
def test_trains_what_it_trains_in_float32(kind: Any) -> None:
    """At 24 bits: the same weights, and the same losses at every call of the closure."""
    floats, fixed = parameters(None), parameters("fixed24")
    start = values(floats)
    expected = train(floats, kind(list(floats)))
    found: list[float] = []
    held = [(id(param), param.label) for param in fixed]  # type: ignore[attr-defined]
    adopted = adopted_or_refused(
        kind, lambda: kind(list(fixed)), lambda optimizer: found.extend(train(fixed, optimizer))
    )
    if adopted is None:
        assert share(values(fixed), start, torch.zeros_like(start)) < NEAR
        return
    assert share(values(fixed), values(floats), start) < HALVES.get(kind, NEAR)
    assert len(found) == len(expected)
    assert max(abs(one / other - 1) for one, other in zip(found, expected, strict=True)) < HALVES.get(kind, NEAR)
    assert [(id(param), param.label) for param in fixed] == held  # type: ignore[attr-defined]
    assert all(isinstance(param, FixedPointTensor) for param in fixed)


@pytest.mark.parametrize("kind", [kind for kind in HABITS if kind not in (*REFUSED, habits.KeepsData)])
def test_one_that_has_made_steps_is_adopted(kind: Any) -> None:
    """Its state becomes codes, but for what it refers to elsewhere, too."""
    nets = [parameters(None) for _ in range(2)]
    one, other = (kind(list(net)) for net in nets)
    train(nets[0], one, 5)
    train(nets[1], other, 5)
    optim.quantize_(nets[1], "fixed24")
    adopted_or_refused(kind, lambda: other, lambda optimizer: train(nets[1], optimizer, 10))
    train(nets[0], one, 10)
    assert share(values(nets[1]), values(nets[0]), values(parameters(None))) < HALVES.get(kind, NEAR)


@pytest.mark.parametrize("kind", [kind for kind in HABITS if kind not in REFUSED])
def test_at_16_bits_the_loss_falls_as_far(kind: Any) -> None:
    floats, fixed = parameters(None), parameters("fixed16")
    expected = train(floats, kind(list(floats)), 40)
    found: list[float] = []
    adopted_or_refused(kind, lambda: kind(list(fixed)), lambda optimizer: found.extend(train(fixed, optimizer, 40)))
    start = values(parameters(None))
    assert expected[-1] < 0.9 * expected[0]
    assert abs(found[-1] - expected[-1]) < 0.01 * (expected[0] - expected[-1])
    assert share(values(fixed), values(floats), start) < 0.05


def test_state_is_not_held_in_the_weights_own_format() -> None:
    """Momenta of small gradients, which ``<4,12>`` holds next to nothing of."""
    net = parameters("<4,12>")
    optimizer = optim.adopt(habits.RoomOnADevice(list(net)))
    for param in net:
        param.grad = torch.full_like(param, 1e-5)
    optimizer.step()
    for param in net:
        momentum = optimizer.state[param]["momentum"]
        assert torch.allclose(momentum, torch.full_like(momentum, 1e-5), rtol=1e-3)


def float_bytes() -> int:
    return sum(size for size, (dtype, _) in memory.live_storages().values() if dtype.is_floating_point)


def test_none_holds_more_floats_with_every_step() -> None:
    """Of all that lives in the process; the second measurement is of each that the first finds amiss together."""
    trained = []
    for kind in HABITS:
        if kind not in REFUSED:
            net = parameters("fixed16")
            optimizer = adopted_or_refused(kind, lambda k=kind, n=net: k(list(n)), lambda o, n=net: train(n, o, 6))
            trained.append((net, optimizer))
    before = float_bytes()
    for net, optimizer in trained:
        train(net, optimizer, 10)
    if float_bytes() > before:
        grew = {}
        for net, optimizer in trained:
            before = float_bytes()
            train(net, optimizer, 10)
            grew[type(optimizer).__name__] = float_bytes() - before
        assert {name: more for name, more in grew.items() if more > 0} == {}


class _Slotted:
    __slots__ = ("extra",)


def bases() -> list[Any]:
    """Classes of every layout in front of torch's, and behind it."""
    import abc
    import typing

    T = typing.TypeVar("T")

    class Slotless:
        __slots__ = ()

    class Meta(type):
        pass

    class OfMeta(metaclass=Meta):
        pass

    class Abstract(abc.ABC, torch.optim.SGD):
        pass

    class AbstractOwn(abc.ABC, habits.OneNorm):
        pass

    class Typed(typing.Generic[T], torch.optim.SGD):
        pass

    class Slots(_Slotted, torch.optim.SGD):
        def __init__(self, *args: Any) -> None:
            self.extra = 1
            super().__init__(*args)

    class NoSlots(Slotless, torch.optim.NAdam):
        pass

    class OwnSlots(torch.optim.SGD):
        __slots__ = ("extra",)

    class WithMeta(OfMeta, torch.optim.SGD):
        pass

    class Behind(torch.optim.SGD, abc.ABC):
        pass

    class Final(Abstract):
        def __init_subclass__(cls, **kwargs: Any) -> None:
            raise TypeError("not to be derived from")

    class Named(torch.optim.SGD):
        def __init_subclass__(cls, *, name: str, **kwargs: Any) -> None:
            super().__init_subclass__(**kwargs)

    return [Abstract, AbstractOwn, Typed, Slots, NoSlots, OwnSlots, WithMeta, Behind, Final, Named]


@pytest.mark.parametrize("kind", bases(), ids=lambda kind: kind.__name__)
def test_any_layout_of_class_is_adopted(kind: Any) -> None:
    nets = [parameters(None), parameters("fixed24")]
    start = values(nets[0])
    one = kind(list(nets[0])) if kind.__name__ == "AbstractOwn" else kind(list(nets[0]), 0.01)
    train(nets[0], one)
    made = kind(list(nets[1])) if kind.__name__ == "AbstractOwn" else kind(list(nets[1]), 0.01)
    if kind.__name__ in ("Final", "Named"):
        with pytest.raises(ValueError, match=f"{kind.__name__} lets no class be derived from it"):
            optim.adopt(made)
        assert type(made) is kind
        return
    other = adopted_or_refused(kind, lambda: made, lambda optimizer: train(nets[1], optimizer))
    assert other is made
    assert isinstance(made, kind)
    assert share(values(nets[1]), values(nets[0]), start) < NEAR


@pytest.mark.parametrize("kind", [kind for kind in HABITS if kind not in REFUSED])
def test_words_become_wider_between_steps(kind: Any) -> None:
    nets = [parameters(None), parameters("fixed12")]
    one, other = kind(list(nets[0])), kind(list(nets[1]))
    train(nets[0], one)
    adopted_or_refused(kind, lambda: other, lambda optimizer: train(nets[1], optimizer, 4))
    optim.widen_(nets[1], other, 24)
    train(nets[1], other, 16)
    assert all(param.format.word_length == 24 for param in nets[1])  # type: ignore[attr-defined]
    assert share(values(nets[1]), values(nets[0]), values(parameters(None))) < 0.05


def test_data_that_an_optimizer_keeps_is_the_parameters_or_refused() -> None:
    """If they were in fixed-point when it was made they are, also when they are widened or turned into floats."""
    ends = []
    for format in (None, "fixed16"):
        net = parameters(format)
        optimizer = habits.KeepsData(list(net))
        if format:
            optim.adopt(optimizer)
        train(net, optimizer, 5)
        held = net[0].data
        if format:
            optim.widen_(net, optimizer, 24)
            with pytest.raises(ValueError, match=r"from before it was widened to 24 bits: .*anew"):
                held.zero_()
            held = net[0].data
        train(net, optimizer, 5)
        if format:
            optim.to_float_(net, optimizer)
            with pytest.raises(ValueError, match=r"from before it was turned into floats: .*anew"):
                held.copy_(torch.ones(SHAPES[0]))
        train(net, optimizer, 5)
        ends.append(values(net))
    assert share(ends[1], ends[0], values(parameters(None))) < 1e-2
    optim.quantize_(net)
    with pytest.raises(ValueError, match=r"KeepsData holds memory that parameter '0' had as floats .* after quantize_"):
        optim.adopt(optimizer)
    assert type(optimizer) is habits.KeepsData


def test_a_step_looks_at_memory_only_while_somebody_holds_some(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[object] = []
    monkeypatch.setattr(laid_out, "fixed_part", lambda param: looked.append(param) or fixed_part(param))
    gc.collect()
    net = parameters("fixed16")
    optimizer = optim.adopt(habits.StateInBfloat16(net.parameters()))
    train(net, optimizer, 2)
    assert not looked
    floats = nn.ParameterList([nn.Parameter(torch.randn(8, 40))])
    held = floats[0].data
    optim.quantize_(floats)
    train(net, optimizer, 2)
    assert len(looked) == 2 * len(SHAPES)
    del held
    train(net, optimizer, 2)
    assert len(looked) == 2 * len(SHAPES)


SQUARES = ("v", "exp_avg_var", "grad_sum_sq", "second_moments", "s")


class OwnAdam(torch.optim.Optimizer):
    """Adam, Adagrad and Adamax with a denominator of the user's name, in a place of the user's."""

    def __init__(self, params: Any, name: str, formula: str = "mean", nested: str = "") -> None:
        super().__init__(params, {})
        self.name, self.formula, self.nested = name, formula, nested

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state[param]
                if not state:
                    state["t"] = 0
                    held = state.setdefault(self.nested, {}) if self.nested else state
                    held["m"], held[self.name] = torch.zeros_like(param), torch.zeros_like(param)
                state["t"] += 1
                t, held = state["t"], state[self.nested] if self.nested else state
                m, v = held["m"].lerp_(param.grad, 0.1) / (1 - 0.9**t), held[self.name]
                if self.formula == "mean":
                    denominator = (v.lerp_(param.grad.square(), 0.01) / (1 - 0.99**t)).sqrt()
                elif self.formula == "cube root of a sum":
                    denominator = v.add_(param.grad.square()).pow(1 / 3)
                elif self.formula == "greatest":
                    denominator = v.copy_(torch.maximum(0.99 * v, param.grad.abs()))
                else:  # a mean of roots
                    denominator = v.lerp_(param.grad.abs(), 0.01) / (1 - 0.99**t)
                param.sub_(0.01 * m / (denominator + 1e-8))


def steps_of(optimizer: torch.optim.Optimizer, param: Any, steps: int = 24) -> Tensor:
    """The largest of each column's weights on the way, which gradients of one size per column, and one sign, move."""
    generator = torch.Generator().manual_seed(9)
    size = torch.logspace(0, -4, param.shape[1])
    furthest = torch.zeros(param.shape[1])
    for _ in range(steps):
        param.grad = (1 + 0.1 * torch.randn(param.shape, generator=generator)) * size
        optimizer.step()
        furthest = furthest.maximum((param.detach() + 0).abs().amax(0))
    return furthest


@pytest.mark.filterwarnings("ignore:OwnAdam steps fixed-point")
@pytest.mark.parametrize(
    ("name", "formula", "nested", "word_length"),
    [
        *((name, "mean", "", bits) for name in SQUARES for bits in (8, 12, 16)),
        *(("v", "mean", "adam", bits) for bits in (8, 12, 16)),
        *(("grad_sum_sq", "cube root of a sum", "", bits) for bits in (8, 12, 16)),
        ("exp_inf", "greatest", "", 16),  # no squares: with fewer bits the momentum's own rounding outweighs them
        ("r", "mean of sizes", "", 16),
    ],
)
def test_a_denominator_is_one_whatever_it_is_called(name: str, formula: str, nested: str, word_length: int) -> None:
    """Small ones do not become zero, which would make of an update its numerator by eps.

    Elements of one block have gradients of 1 to 1e-4. Float32's furthest weight is the measure: momenta are noisy where
    gradients are small, hence the factor.
    """
    param = nn.Parameter(torch.zeros(3, 256))
    floats = steps_of(OwnAdam([param], name, formula, nested), param)
    net = nn.ParameterList([nn.Parameter(torch.zeros(3, 256))])
    optim.quantize_(net)
    adopted = optim.adopt(OwnAdam(net.parameters(), name, formula, nested), optim.StepSettings(word_length))
    fixed = steps_of(adopted, net[0])
    assert (fixed <= 2.5 * floats.max()).all()
    if word_length == 16:
        assert share(net[0].detach() + 0, param.detach(), torch.zeros(3, 256)) < 0.1


def test_squares_that_grow_from_nothing_and_momenta_that_turn_are_told_apart() -> None:
    """Values decide, and may change: a momentum of one sign at first is one when it has two."""
    net = nn.ParameterList([nn.Parameter(torch.zeros(2, 256))])
    optim.quantize_(net, "fixed16")
    optimizer: Any = adopted_or_refused(
        habits.TurningMomentum, lambda: habits.TurningMomentum(net.parameters()), lambda _: None
    )
    gradient = torch.linspace(-1, 1, 512).reshape(2, 256)
    expected = torch.zeros(2, 256)
    for k in range(8):
        net[0].grad = gradient.clone()
        optimizer.step()
        expected.lerp_(gradient.abs() if k < 5 else -gradient.abs(), 0.4)
        torch.testing.assert_close(optimizer.state[net[0]]["m"] + 0, expected, rtol=0, atol=1e-3)


def test_an_adopted_optimizer_within_another_steps_as_ever() -> None:
    nets = [parameters(None), parameters("fixed24")]
    start = values(nets[0])
    train(nets[0], habits.Around(list(nets[0])))
    around = habits.Around(list(nets[1]))
    optim.adopt(around.inner)
    train(nets[1], around)
    assert share(values(nets[1]), values(nets[0]), start) < NEAR


def test_sharp_steps_that_the_user_calls_himself() -> None:
    """``first_step`` and ``second_step``, which no ``step`` surrounds: they climb and come back, or are refused."""
    ends = []
    for format in (None, "fixed24"):
        net = parameters(format)
        optimizer: Any = habits.SharpInTwoCalls(list(net))
        if format:
            optimizer = adopted_or_refused(habits.SharpInTwoCalls, lambda made=optimizer: made, lambda _: None)
            if optimizer is None:
                return
        for _ in range(5):
            for step in (optimizer.first_step, optimizer.second_step):
                optimizer.zero_grad()
                torch.stack([(param - 1).square().sum() for param in net]).sum().backward()
                step()
        ends.append(values(net))
    assert share(ends[1], ends[0], values(parameters(None))) < NEAR


def test_what_an_optimizer_returns_and_its_own_arguments_go_through() -> None:
    class Told(habits.OneNorm):
        def step(self, closure: Any = None, *, scale: float = 1.0) -> Any:
            self.lr = 0.05 * scale
            super().step(closure)
            return "stepped", scale

    ends = []
    for format in (None, "fixed24"):
        net = parameters(format)
        optimizer: Any = Told(list(net))
        if format:
            optimizer = adopted_or_refused(Told, lambda made=optimizer: made, lambda _: None)
        for param in net:
            param.grad = torch.ones(param.shape)
        assert optimizer.step(scale=3.0) == ("stepped", 3.0)
        ends.append(values(net))
    assert share(ends[1], ends[0], values(parameters(None))) < NEAR


# ---- GradScaler ----


class TakesTheScale(torch.optim.Optimizer):
    """A user's optimizer that divides by the scale itself, as ``fused=True`` has it, and skips what is not finite."""

    _step_supports_amp_scaling = True

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        scale, found = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        if found is not None and bool(found):
            return
        for param in self.param_groups[0]["params"]:
            param.sub_(0.1 * param.grad / (1 if scale is None else scale))


FUSED: dict[str, Callable[[Any], Any]] = {
    "SGD": lambda params: optim.SGD(params, 0.1, fused=True),
    "adopted SGD": lambda params: optim.adopt(torch.optim.SGD(params, 0.1, fused=True)),
    "not fused": lambda params: optim.adopt(torch.optim.SGD(params, 0.1)),
    "Adam": lambda params: optim.Adam(params, 0.3, eps=0.5, fused=True),
    "adopted AdamW": lambda params: optim.adopt(torch.optim.AdamW(params, 0.3, eps=0.5, weight_decay=0.0, fused=True)),
    "adopted Adagrad": lambda params: optim.adopt(torch.optim.Adagrad(params, 0.3, eps=0.5, fused=True)),
    "a user's": lambda params: optim.adopt(TakesTheScale(params)),
}
#: 3 - 0.1 * 1.5, and 3 - 0.3 * 1.5 / (1.5 + 0.5) of Adam's first step and Adagrad's.
AFTER = {"SGD": 2.85, "adopted SGD": 2.85, "not fused": 2.85, "a user's": 2.85}


@pytest.mark.filterwarnings("ignore:TakesTheScale steps fixed-point")
@pytest.mark.parametrize("unscaled", [False, True], ids=["", "unscaled before, to clip"])
@pytest.mark.parametrize("name", FUSED)
def test_a_gradient_scaler_divides_once_and_skips(name: str, unscaled: bool) -> None:
    net = nn.ParameterList([nn.Parameter(torch.full((2, 300), 3.0)), nn.Parameter(torch.full((4,), 3.0))])
    optim.quantize_(net, keep_float=["1"])  # and a parameter that is left in float beside it
    optimizer, scaler = FUSED[name](net.parameters()), torch.amp.GradScaler("cpu", init_scale=2.0**14)

    def step(slope: float) -> None:
        optimizer.zero_grad()
        scaler.scale(slope * (net[0].sum() + net[1].sum())).backward()
        if unscaled:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()

    step(1.5)
    expected = AFTER.get(name, 2.775)
    for param in net:
        torch.testing.assert_close(param + 0, torch.full(param.shape, expected), rtol=1e-3, atol=1e-3)
    before = values(net)
    for slope in (torch.inf, torch.nan):
        step(slope)
        assert torch.equal(values(net), before)
    assert scaler.get_scale() == 2.0**12
    step(1.5)
    assert (values(net) < before - 0.05).all()


@pytest.mark.parametrize("name", ["adopted SGD", "Adam"])
def test_without_a_scaler_an_infinite_gradient_is_refused_as_ever(name: str) -> None:
    net = nn.ParameterList([nn.Parameter(torch.ones(2, 3))])
    optim.quantize_(net)
    optimizer = FUSED[name](net.parameters())
    net[0].grad = torch.full((2, 3), torch.inf)
    with pytest.raises(optim.NonFiniteGradientError):
        optimizer.step()
