"""A state dict that does not belong together is refused, where torch would begin state anew without a word."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lowprec_plugin import FixedPointTensor, optim


def stepped() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 1))
    optim.quantize_(network)
    optimizer = optim.AdamW(network.parameters(), lr=1e-2)
    network(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    return network, optimizer


def renamed(state: Any) -> None:
    state["state"][0]["exp_avf"] = state["state"][0].pop("exp_avg")


def of_another_number(state: Any) -> None:
    state["state"][64] = state["state"].pop(0)


def listed_twice(state: Any) -> None:
    state["param_groups"][0]["params"] = [0, 0, 2, 3]


def listed_otherwise(state: Any) -> None:
    state["param_groups"][0]["params"] = [0, 5, 2, 3]


def without_one(state: Any) -> None:
    del state["state"][0]["exp_avg_sq"]


def with_none(state: Any) -> None:
    state["state"][0]["exp_avg"] = None


def without_any(state: Any) -> None:
    del state["state"][0]["exp_avg"], state["state"][0]["exp_avg_sq"]


def steps_of(step: Any) -> Callable[[Any], None]:
    return lambda state: state["state"][0].update(step=step)


def of_another_shape(state: Any) -> None:
    state["state"][0]["exp_avg"] = FixedPointTensor.quantize(torch.ones(3, 5), "fixed16")


def floats_of_another_shape(state: Any) -> None:
    state["state"][0]["exp_avg"] = torch.ones(4)


def a_window_of_its_shape(state: Any) -> None:
    state["state"][0]["exp_avg"] = FixedPointTensor.quantize(torch.ones(8, 4), "fixed16").t()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (renamed, "the state of parameter 0 has 'exp_avf' and no 'exp_avg'"),
        (without_one, "the state of parameter 0 has 'exp_avg' and no 'exp_avg_sq', which would begin anew"),
        (with_none, "the state of parameter 0 has 'exp_avg_sq' and no 'exp_avg', which would begin anew"),
        (without_any, "the state of parameter 0 has 'a count of steps' and no 'exp_avg', which would begin anew"),
        (steps_of(torch.tensor(float("nan"))), "parameter 0 has made nan steps"),
        (steps_of(torch.tensor(-1.0)), "parameter 0 has made -1.0 steps"),
        (steps_of(float("inf")), "parameter 0 has made inf steps"),
        (steps_of("x"), "parameter 0 has made 'x' steps"),
        (steps_of(torch.ones(2)), r"parameter 0 has made tensor\(\[1., 1.\]\) steps"),
        (of_another_number, "holds state of parameter 64, which no group lists"),
        (listed_twice, "lists parameter 0 2 times"),
        (listed_otherwise, "holds state of parameter 1, which no group lists"),
        (of_another_shape, r"'exp_avg' of parameter 0 has shape \(3, 5\) .*, and the parameter \(4, 8\)"),
        (floats_of_another_shape, r"'exp_avg' of parameter 0 has shape \(4,\), and the parameter \(4, 8\)"),
        (a_window_of_its_shape, r"'exp_avg' of parameter 0 has shape \(4, 8\) \(codes of shape \(8, 4\)\)"),
    ],
)
def test_it_is_refused_and_the_optimizer_stays(change: Callable[[Any], None], said: str) -> None:
    _, optimizer = stepped()
    given = copy.deepcopy(optimizer.state_dict())
    change(given)
    before = str(optimizer.state_dict())
    with pytest.raises(ValueError, match=said):
        optimizer.load_state_dict(given)
    assert str(optimizer.state_dict()) == before


def test_what_belongs_together_is_loaded() -> None:
    """Of parameters without state too, of an optimizer without, and of a float one."""
    network, optimizer = stepped()
    given = copy.deepcopy(optimizer.state_dict())
    del given["state"][2]
    optimizer.load_state_dict(given)
    assert optimizer.state[list(network.parameters())[2]] == {}
    optimizer.load_state_dict({"state": {}, "param_groups": given["param_groups"]})
    floats = [nn.Parameter(torch.ones(4, 8))]
    plain = torch.optim.SGD(floats, 0.1)
    floats[0].grad = torch.ones(4, 8)
    plain.step()
    sgd = optim.SGD([next(network.parameters())], 0.1, momentum=0.9)
    sgd.load_state_dict(plain.state_dict())  # made without momentum, or before it was turned on
