"""Learning rates are logged under the names that they have without the plugin, so that runs share a chart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from lowprec_plugin import FixedPointPrecision, optim


class Own(torch.optim.NAdam):
    """A user's."""


class Net(LightningModule):
    def __init__(self, make: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.net, self.make = nn.Linear(3, 2), make

    def training_step(self, batch: Any, _: int) -> Any:
        return self.net(batch).square().mean()

    def configure_optimizers(self) -> Any:
        return self.make(self.net)


class TwoNets(Net):
    def __init__(self, make: Callable[[nn.Module], Any]) -> None:
        super().__init__(make)
        self.automatic_optimization = False

    def training_step(self, batch: Any, _: int) -> None:
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            optimizer.zero_grad()
            self.manual_backward(self.net(batch).square().mean())
            optimizer.step()


def groups(net: nn.Module, **options: Any) -> list[dict[str, Any]]:
    return [{"params": [net.weight], **options}, {"params": [net.bias], "lr": 0.2, **options}]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda net: torch.optim.AdamW(net.parameters(), 0.1), {"lr-AdamW", "lr-AdamW-momentum"}),
        (lambda net: torch.optim.SGD(net.parameters(), 0.1, momentum=0.5), {"lr-SGD", "lr-SGD-momentum"}),
        (lambda net: Own(net.parameters(), 0.1), {"lr-Own", "lr-Own-momentum"}),
        (
            lambda net: torch.optim.SGD(groups(net), 0.1),
            {f"lr-SGD/pg{i}{what}" for i in (1, 2) for what in ("", "-momentum")},
        ),
    ],
    ids=["AdamW", "SGD", "a user's", "groups"],
)
def test_as_without_the_plugin(make: Any, expected: set[str], tmp_path: Path) -> None:
    for plugin in (None, FixedPointPrecision()):
        assert logged(Net(make), plugin, tmp_path) == expected


def test_two_of_one_kind_are_numbered_as_ever(tmp_path: Path) -> None:
    def make(net: nn.Module) -> Any:
        return [torch.optim.AdamW([param], 0.1) for param in net.parameters()]

    for plugin in (None, FixedPointPrecision()):
        assert logged(TwoNets(make), plugin, tmp_path, log_momentum=False) == {"lr-AdamW", "lr-AdamW-1"}


def logged(net: Net, plugin: Any, folder: Path, log_momentum: bool = True) -> set[str]:
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=CSVLogger(folder), enable_checkpointing=False, plugins=plugin,
        callbacks=[LearningRateMonitor("step", log_momentum=log_momentum)], enable_progress_bar=False,
        log_every_n_steps=1, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(net, DataLoader(torch.randn(4, 3), batch_size=2))
    return {name for name in trainer.callback_metrics if name.startswith("lr-")}


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adagrad, Own])
def test_an_adopted_optimizer_calls_itself_what_it_was(kind: Any) -> None:
    """In its text and in messages that print its class's name too."""
    net = nn.Linear(3, 2)
    before = kind(net.parameters(), 0.1)
    text = str(before)
    optim.quantize_(net)
    adopted = optim.adopt(before)
    assert type(adopted).__name__ == kind.__name__
    assert str(adopted) == text
