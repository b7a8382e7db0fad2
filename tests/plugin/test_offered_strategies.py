"""Every strategy that Lightning offers: the plugins work under it, or say before any training what to use."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.pytorch import Trainer, strategies
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import StrategyRegistry
from torch import nn

from lowprec_plugin import FixedPointPrecision
from lowprec_plugin.deepspeed import FixedPointDeepSpeedPrecision

PLUGINS = {"FixedPointPrecision": FixedPointPrecision, "FixedPointDeepSpeedPrecision": FixedPointDeepSpeedPrecision}
#: What each class of strategies does with the plugins: the plugin that works, or who refuses both.
OFFERED = {
    "SingleDeviceStrategy": "FixedPointPrecision",
    "DDPStrategy": "FixedPointPrecision",
    "ModelParallelStrategy": "FixedPointPrecision",
    "DeepSpeedStrategy": "FixedPointDeepSpeedPrecision",
    "FSDPStrategy": "Lightning, when it is given the plugin",
    "XLAStrategy": "Lightning, when it is given the plugin",
    "SingleDeviceXLAStrategy": "Lightning, when it is given the plugin",
    "SingleTPUStrategy": "Lightning, when it is given the plugin",  # the former name of the one before
    "HPUParallelStrategy": "Lightning has none any more",
    "SingleHPUStrategy": "Lightning has none any more",
}


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """What a strategy that was tried leaves behind, a group of processes and variables, is not the next test's."""
    with patch.dict(os.environ):
        yield
    if dist.is_initialized():
        dist.destroy_process_group()


def test_none_is_left_out() -> None:
    """A version of Lightning with another strategy fails here, until somebody has looked at it."""
    abstract = {"Strategy", "ParallelStrategy"}
    found = {name for name, each in vars(strategies).items() if inspect.isclass(each) and name.endswith("Strategy")}
    assert found - abstract == OFFERED.keys()
    registered = {StrategyRegistry[name]["strategy"].__name__ for name in StrategyRegistry.available_strategies()}
    assert registered <= OFFERED.keys()


@pytest.mark.parametrize("plugin", PLUGINS)
@pytest.mark.parametrize("name", [name for name, who in OFFERED.items() if who.endswith("given the plugin")])
def test_those_with_a_precision_of_their_own_name_the_alternatives(name: str, plugin: str) -> None:
    strategy = object.__new__(getattr(strategies, name))  # made, it would look for a TPU
    with pytest.raises(TypeError, match=r"can only work with.*found.*works on one device, with strategy=\"ddp\", and"):
        strategy.precision_plugin = PLUGINS[plugin]()


class Watched(BoringModel):
    """Says whether a batch of any kind has been seen."""

    seen = False

    def on_validation_start(self) -> None:
        self.seen = True

    on_train_start = on_validation_start


def fitted(plugin: Precision, strategy: str) -> Watched:
    module = Watched()
    before = [param.clone() for param in module.parameters()]
    trainer = Trainer(
        strategy=strategy, accelerator="cpu", devices=1, max_steps=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, plugins=plugin,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"does not work with \w+: FixedPointPrecision works on one device.*deepspeed"):
        trainer.fit(module)
    assert all(type(param) is nn.Parameter for param in module.parameters())
    assert all(torch.equal(one, other) for one, other in zip(before, module.parameters(), strict=True))
    return module


@pytest.mark.parametrize("strategy", ["auto", "ddp"])
def test_the_plugin_for_deepspeed_is_refused_by_others(strategy: str) -> None:
    assert not fitted(FixedPointDeepSpeedPrecision(compute_dtype=torch.float32), strategy).seen


def test_fabric_refuses_the_plugin_for_deepspeed() -> None:
    fabric = Fabric(accelerator="cpu", plugins=FixedPointDeepSpeedPrecision(compute_dtype=torch.float32))
    wrapped = fabric.setup_module(nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"deepspeed.initialize and lowprec_plugin\.deepspeed\.adopt_engine"):
        wrapped(torch.ones(1, 3))
