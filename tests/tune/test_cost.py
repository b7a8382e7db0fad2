"""Bits that are worked out before a run against what a run holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lowprec_plugin import memory, optim
from lowprec_plugin.tensor import FixedPointTensor
from lowprec_plugin.tune.cost import Costs, Network, network_of
from tests.tune.test_space import space_of


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 300))


def stepped(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    module(torch.randn(2, 3, 3, 3)).square().mean().backward()
    optimizer.step()


def counted(space: Any, **more: Any) -> Costs:
    module = network()
    optimizer = torch.optim.AdamW(module.parameters())
    stepped(module, optimizer)
    return Costs(space, network_of(module, [optimizer]), more.pop("base", {}), more)


@pytest.mark.parametrize("setting", [("fixed12", "fixed8"), ("<2,10>", "fixed16"), ("fixed16", "fixed4")])
@pytest.mark.parametrize("keep_float", [[], ["2.*", "*.bias"]])
def test_bits_and_bytes_are_those_held(setting: tuple[str, str], keep_float: list[str]) -> None:
    weights, state = setting
    space = space_of(weights=[weights], state=[int(state.removeprefix("fixed"))])
    bits = counted(space, base={"keep_float": keep_float}).of(
        {"weights": weights, "state": state, "rounding": "nearest"}
    )
    module = network()
    optim.quantize_(module, weights, keep_float=keep_float)
    optimizer = optim.AdamW(module.parameters(), state_word_length=int(state.removeprefix("fixed")))
    stepped(module, optimizer)
    elements = sum(param.numel() for param in module.parameters())
    held = [*module.parameters(), *(x for each in optimizer.state.values() for x in each.values())]
    held = [x for x in held if isinstance(x, torch.Tensor) and x.dim()]
    assert bits.bytes_per_parameter * elements == pytest.approx(sum(x.nbytes for x in held))
    report = memory.report(module, optimizer)
    assert bits.bytes_per_parameter == pytest.approx(report.per_parameter, rel=0.03)  # scalars, such as Adam's step

    def codes(x: torch.Tensor) -> int:
        if not isinstance(x, FixedPointTensor):
            return 32 * x.numel()
        exponents = 0 if x.exponents is None else x.exponents.numel()
        return x.format.word_length * x.numel() + 8 * exponents

    assert bits.per_parameter * elements == pytest.approx(sum(map(codes, held)))


def test_state_with_one_radix_point_has_no_exponents() -> None:
    space = space_of(weights=["<2,10>"], state=[8])
    setting = space.at(0.0, "nearest")
    network = Network({"weight": (4, 256)}, {"weight": 1}, {})
    bits = Costs(space, network, {"state_fraction_length": 6}, {}).of(setting)
    assert (bits.per_parameter, bits.bytes_per_parameter) == (20, 3)


def test_float32_costs_one() -> None:
    bits = counted(space_of(weights=[8], state=[8], errors=[8], wire=[8])).of(None)
    assert (bits.per_parameter, bits.bytes_per_parameter, bits.per_activation, bits.wire, bits.cost) == (
        96,
        12,
        32,
        32,
        1,
    )


def test_the_cost_is_the_mean_of_what_is_tuned() -> None:
    space = space_of(weights=["<2,10>"], activations=[8], errors=[12], wire=[4])
    setting = space.at(0.0, "stochastic")
    costs = counted(space)
    bits = costs.of(setting)
    assert bits.per_activation == 10
    assert bits.cost == pytest.approx((bits.per_parameter / 96 + 10 / 32 + 4 / 32) / 3)
    only_wire = Costs(space, costs.network, {}, {"parameters": 0, "activations": 0})
    assert only_wire.of(setting).cost == 4 / 32
    held = Costs(space, costs.network, {}, {"activations": 0, "wire": 0}, "bytes")
    assert held.of(setting).cost == pytest.approx(bits.bytes_per_parameter / 12)


def test_layers_weigh_by_their_numbers() -> None:
    space = space_of(("head",), errors=[8, 16])
    layers = {"errors": {"head": 100, "body": 300}}
    costs = Costs(space, Network({"head.weight": (3,)}, {"head.weight": 0}, layers), {}, {})
    setting = {**space.at(0.0, "stochastic"), "errors@head": "fixed16"}
    assert costs.of(setting).per_activation == (100 * 16 + 300 * 8) / 400


@pytest.mark.parametrize(
    ("importance", "message"),
    [({"weights": 1.0}, "'weights'"), ({"wire": -1.0}, "-1.0"), ({"parameters": 0.0}, "nothing that is tuned counts")],
)
def test_bad_importance(importance: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        counted(space_of(weights=[8]), **importance)
