"""Averages that other packages keep go float32's way: torch_ema, ema_pytorch, timm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowprec_plugin import FixedPointTensor
from tests.tensor.test_averages import DECAY, averaged, check, modules, twins

#: Whatever keeps an average that begins as the first module, of the second: its update, and where it is kept.
Keeper = Callable[[nn.Module, nn.Module], tuple[Callable[[], Any], Callable[[], Tensor]]]


def torch_ema(start: nn.Module, net: nn.Module) -> tuple[Callable[[], Any], Callable[[], Tensor]]:
    package = pytest.importorskip("torch_ema")
    kept = package.ExponentialMovingAverage(start.parameters(), DECAY, use_num_updates=False)
    return lambda: kept.update(net.parameters()), lambda: kept.shadow_params[0]


def torch_ema_by_its_state(start: nn.Module, net: nn.Module) -> tuple[Callable[[], Any], Callable[[], Tensor]]:
    package = pytest.importorskip("torch_ema")
    kept = package.ExponentialMovingAverage(start.parameters(), DECAY, use_num_updates=False)

    def update() -> None:
        kept.update(net.parameters())
        with kept.average_parameters(net.parameters()):  # stores, copies and restores the net's
            pass
        kept.load_state_dict(kept.state_dict())

    return update, lambda: kept.shadow_params[0]


def ema_pytorch(**options: Any) -> Keeper:
    def make(start: nn.Module, net: nn.Module) -> tuple[Callable[[], Any], Callable[[], Tensor]]:
        package = pytest.importorskip("ema_pytorch")
        kept = package.EMA(net, ema_model=start, beta=DECAY, min_value=DECAY, update_every=1, **options)
        kept.initted.fill_(True)
        kept.step.fill_(1000)
        return kept.update, lambda: kept.ema_model.weight.detach()

    return make


def karras(start: nn.Module, net: nn.Module) -> tuple[Callable[[], Any], Callable[[], Tensor]]:
    package = pytest.importorskip("ema_pytorch")
    kept = package.KarrasEMA(net, ema_model=start, gamma=1.0, update_every=1)
    kept.initted.fill_(True)
    kept.step.fill_(20_000)
    return kept.update, lambda: kept.ema_model.weight.detach()


def timm(name: str, **options: Any) -> Keeper:
    def make(start: nn.Module, net: nn.Module) -> tuple[Callable[[], Any], Callable[[], Tensor]]:
        package = pytest.importorskip("timm.utils.model_ema")
        kept = getattr(package, name)(start, decay=DECAY, **options)
        inner = kept.ema if name == "ModelEma" else kept.module
        return lambda: kept.update(net), lambda: inner.weight.detach()

    return make


KEEPERS: dict[str, Keeper] = {
    "torch_ema": torch_ema,
    "torch_ema, and its state": torch_ema_by_its_state,
    "ema_pytorch.EMA": ema_pytorch(),
    "ema_pytorch.EMA, foreach": ema_pytorch(use_foreach=True),
    "ema_pytorch.EMA, coerce_dtype": ema_pytorch(coerce_dtype=True),
    "ema_pytorch.KarrasEMA": karras,
    "timm.ModelEma": timm("ModelEma"),
    "timm.ModelEmaV2": timm("ModelEmaV2"),
    "timm.ModelEmaV3": timm("ModelEmaV3"),
    "timm.ModelEmaV3, no foreach": timm("ModelEmaV3", foreach=False),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning:timm")
@pytest.mark.parametrize("name", KEEPERS)
def test_an_average_of_others_goes_float32s_way(name: str) -> None:
    ends = []
    for format in ("fixed16", None):
        start, net = twins(format)
        before = start.weight.detach().clone()
        update, kept = KEEPERS[name](start, net)
        averaged(start, net, lambda *_, update=update: update())
        ends.append(kept())
        assert torch.equal(net.weight.detach(), modules("fixed16")[1].weight.detach())
    assert isinstance(ends[0], FixedPointTensor)
    assert (ends[1] - before).abs().max() > 0.02
    check(ends[0], ends[1], modules("fixed16")[1].weight.dequantize())
