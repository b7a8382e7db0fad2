"""What a step counts: known cases, every path, its names, and that it writes what an uncounted step writes."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from lowprec_plugin import FixedPointTensor, optim
from lowprec_plugin.optim import NonFiniteGradientError
from lowprec_plugin.optim.lost_updates import evidence_of
from tests.cases import planes
from tests.optim.test_step import MAKERS, network, same, train

CODE = 2.0**-8  # of <4,8>


def param(rows: int = 64, format: str = "<4,8>", label: str = "") -> nn.Parameter:
    return nn.Parameter(FixedPointTensor.quantize(torch.randn(rows, 300), format, label=label))


class SteppedSGD(torch.optim.SGD):
    """SGD with a step of its own, which no fused update knows."""

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for each in group["params"]:
                each.data.sub_(each.grad, alpha=group["lr"])


def sgd(rounding: str, generic: bool, params: list[nn.Parameter]) -> Any:
    if not generic:
        return optim.SGD(params, lr=1.0, rounding=rounding)
    return optim.adopt(SteppedSGD(params, lr=1.0), optim.StepSettings(rounding=rounding))


@pytest.mark.parametrize("generic", [False, True], ids=["fused", "generic"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_a_quarter_of_a_code(rounding: str, generic: bool) -> None:
    """SGD by a quarter of a code: all of it is lost to nearest; stochastic rounding moves one in four, by a whole."""
    weight = param()
    weight.grad = torch.full(weight.shape, 0.25 * CODE)
    weight.grad[:4] = 0.0  # these do not move
    optimizer = sgd(rounding, generic, [weight])
    optimizer.fixed_point.counting = True
    optimizer.step()
    assert list(optimizer.fixed_point.counts) == ["parameter 0"]
    counts = optimizer.fixed_point.counts["parameter 0"]
    moved = 60 * 300
    assert counts[:3] == (64 * 300, moved, moved)
    assert counts.update_squares == moved * (0.25 * CODE) ** 2
    if rounding == "nearest":
        assert counts.unchanged == moved
        assert counts.error_squares == counts.update_squares
        assert counts.noise_to_update == 1.0
    else:
        assert abs(counts.unchanged - 0.75 * moved) < 5 * math.sqrt(moved * 0.25 * 0.75)
        assert counts.noise_to_update == pytest.approx(math.sqrt(3), rel=0.05)
        ups = moved - counts.unchanged
        errors = CODE**2 * (ups * 0.75**2 + counts.unchanged * 0.25**2)
        assert counts.error_squares == pytest.approx(errors, rel=1e-12)


def test_larger_updates_are_not_lost() -> None:
    weight = param()
    weight.grad = torch.full(weight.shape, 4 * CODE)
    optimizer = optim.SGD([weight], lr=1.0)
    optimizer.fixed_point.counting = True
    optimizer.step()
    size = weight.numel()
    assert optimizer.fixed_point.counts["parameter 0"] == (size, size, 0, 0, 0, size * (4 * CODE) ** 2, 0.0)


@pytest.mark.parametrize("name", MAKERS)
def test_a_counted_step_writes_what_an_uncounted_one_does(name: str) -> None:
    modules = [network(), network()]
    optimizers: list[Any] = [MAKERS[name](module.parameters()) for module in modules]
    optimizers[1].fixed_point.counting = True
    for module, optimizer in zip(modules, optimizers, strict=True):
        train(module, optimizer, range(3))
    assert same(planes(modules[0], optimizers[0]), planes(modules[1], optimizers[1]))
    assert optimizers[0].fixed_point.counts == {}
    counts = optimizers[1].fixed_point.counts
    assert {label: each.elements for label, each in counts.items()} == {
        label: each.numel() for label, each in modules[1].named_parameters()
    }
    assert all(each.moved > 0 for each in counts.values())


@pytest.mark.parametrize("name", MAKERS)
def test_counts_are_of_the_last_counted_step(name: str) -> None:
    module = network()
    optimizer: Any = MAKERS[name](module.parameters())
    train(module, optimizer, range(2))
    before = {label: each.dequantize() for label, each in module.named_parameters()}
    optimizer.fixed_point.counting = True
    train(module, optimizer, range(2, 3))
    counted = optimizer.fixed_point.counts
    for label, each in module.named_parameters():
        changed = int((each.dequantize() != before[label]).sum())
        assert counted[label].moved - counted[label].unchanged <= changed  # a number may change that should not move
        assert counted[label].moved >= changed - counted[label].elements // 100
    optimizer.fixed_point.counting = False
    train(module, optimizer, range(3, 4))
    assert optimizer.fixed_point.counts is counted
    optimizer.fixed_point.counting = True
    kept = dict(counted)
    train(module, optimizer, range(4, 5))
    assert counted == kept != optimizer.fixed_point.counts


def test_a_skipped_or_refused_step_leaves_none() -> None:
    for nonfinite in ("skip", "raise"):
        module = network()
        optimizer = optim.AdamW(module.parameters(), 0.01, nonfinite=nonfinite)
        optimizer.fixed_point.counting = True
        train(module, optimizer, range(1))
        assert len(optimizer.fixed_point.counts) == 4
        module[2].weight.grad[0, 17] = torch.nan
        if nonfinite == "skip":
            optimizer.step()
        else:
            with pytest.raises(NonFiniteGradientError):
                optimizer.step()
        assert optimizer.fixed_point.counts == {}
    optimizer.param_groups[0]["lr"] = torch.nan
    module[2].weight.grad[0, 17] = 0.0
    with pytest.raises(NonFiniteGradientError, match="came to NaN"):
        optimizer.step()
    assert optimizer.fixed_point.counts == {}


def test_names() -> None:
    """By label; by place for those without one, and for the second of two; floats are not counted."""
    params = [param(2, label="weight"), nn.Parameter(torch.ones(2)), param(3), param(4, label="weight"), param(5)]
    optimizer = optim.SGD([{"params": params[:2]}, {"params": params[2:], "lr": 0.1}], lr=1.0)
    optimizer.fixed_point.counting = True
    for each in params[:4]:
        each.grad = torch.ones(each.shape)
    optimizer.step()
    counts = optimizer.fixed_point.counts
    assert {label: each.elements for label, each in counts.items()} == {
        "weight": 600, "parameter 2": 900, "parameter 3": 1200,
    }  # fmt: skip


@pytest.mark.parametrize("generic", [False, True], ids=["fused", "generic"])
def test_saturation(generic: bool) -> None:
    weight = param()
    weight.grad = torch.full(weight.shape, -20.0)  # beyond the largest number, nearly 8
    optimizer = sgd("stochastic", generic, [weight])
    optimizer.fixed_point.counting = True
    optimizer.step()
    assert optimizer.fixed_point.counts["parameter 0"].saturated == weight.numel() == optimizer.fixed_point.saturated
    optimizer.fixed_point.counting = False
    optimizer.step()
    assert optimizer.fixed_point.saturated == 2 * weight.numel()


AGREEING: dict[str, Any] = {
    "AdamW": lambda params: optim.AdamW(params, lr=3e-3),
    "AdamW nearest": lambda params: optim.AdamW(params, lr=3e-3, rounding="nearest"),
    "SGD": lambda params: optim.SGD(params, lr=1e-4, momentum=0.9),
    "Lion": lambda params: optim.Lion(params, lr=1e-4),
    "RMSprop": lambda params: optim.adopt(torch.optim.RMSprop(params, lr=1e-3, momentum=0.5)),
}


@pytest.mark.parametrize("format", ["<4,8>", "fixed12"])
@pytest.mark.parametrize("name", AGREEING)
def test_it_agrees_with_the_evidence_taken_before(name: str, format: str) -> None:
    """Evidence takes the codes before the step and expects a rounding error; the counts are of what came to pass.

    It also takes the update from torch's own formula, whose last bit may differ from that of the fused one. In a
    dynamic format a block whose largest number crosses a power of two has other codes afterwards: here few do.
    """
    torch.manual_seed(0)
    weight = param(200, format)
    optimizer = AGREEING[name]([weight])
    for _ in range(3):
        weight.grad = torch.randn(weight.shape) * torch.logspace(-3, 3, 300)
        optimizer.step()
    evidence = evidence_of(optimizer)
    assert evidence is not None
    optimizer.fixed_point.counting = True
    optimizer.step()
    counts = optimizer.fixed_point.counts["parameter 0"]
    assert evidence.lost > 0.05
    assert counts.lost_share == pytest.approx(evidence.lost, abs=1e-3)
    assert counts.noise_to_update == pytest.approx(evidence.noise, rel=1e-3 if "nearest" in name else 0.02)


def test_what_is_lost_is_lost_to_the_codes_afterwards() -> None:
    """Where it differs from the evidence: one number outgrows its block, whose codes are then twice the size."""
    values = torch.zeros(1, 256)
    values[0, 0] = 2047 / 2048
    weight = nn.Parameter(FixedPointTensor.quantize(values, "fixed12"))
    weight.grad = torch.full(weight.shape, -0.75 / 2048)
    optimizer = optim.SGD([weight], lr=1.0, rounding="nearest")
    optimizer.fixed_point.counting = True
    evidence = evidence_of(optimizer)
    assert evidence is not None
    assert evidence.lost == 0
    optimizer.step()
    counts = optimizer.fixed_point.counts["parameter 0"]
    assert weight.exponents.item() == -10  # type: ignore[union-attr, operator]
    assert counts.lost == counts.moved == 256


def test_a_copy_counts_for_itself() -> None:
    module = network()
    optimizer = optim.AdamW(module.parameters(), 0.01)
    optimizer.fixed_point.counting = True
    train(module, optimizer, range(1))
    other_module, other = copy.deepcopy((module, optimizer))
    before = dict(optimizer.fixed_point.counts)
    assert other.fixed_point.counts == before
    train(other_module, other, range(1, 2))
    assert optimizer.fixed_point.counts == before != other.fixed_point.counts


@pytest.mark.parametrize("kind", [torch.optim.NAdam, SteppedSGD])
def test_parameters_without_a_name_go_by_their_place(kind: Any) -> None:
    """Each by its own, whether the step takes them one by one or together."""
    weights = [param(), param(label="named"), param(), param(label="named")]
    optimizer: Any = optim.adopt(kind(weights, lr=0.1))
    for each in weights:
        each.grad = torch.ones(each.shape)
    optimizer.fixed_point.counting = True
    optimizer.step()
    counts = optimizer.fixed_point.counts
    assert list(counts) == ["parameter 0", "named", "parameter 2", "parameter 3"]
    assert {each.elements for each in counts.values()} == {64 * 300}
