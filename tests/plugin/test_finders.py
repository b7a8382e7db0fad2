"""Lightning's finders, which train on trial and restore a checkpoint: what they leave is what was there before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import BatchSizeFinder, Callback, LearningRateFinder
from lightning.pytorch.tuner import Tuner

from lowprec_plugin import FixedPointPrecision, WordLengthRamp
from tests.cases import planes
from tests.plugin import users

Optimizer = type[torch.optim.Optimizer]


class Tunable(users.LearningRateByAttribute):
    """Takes a learning rate and a batch size by attributes, and any optimizer."""

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__()
        self.optimizer, self.batch_size = optimizer, 8

    def train_dataloader(self) -> Any:
        data = users.vectors().dataset
        return torch.utils.data.DataLoader(data, batch_size=self.batch_size)

    val_dataloader = train_dataloader  # the batch size finder asks for it

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters(), self.lr)


class Begin(Callback):
    """What training begins with."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        plugin: Any = trainer.precision_plugin
        self.planes = [plane.clone() for plane in planes(pl_module, trainer.optimizers[0])]
        self.state = {
            "format": str(plugin.format), "history": list(plugin.ramping.history) if plugin.ramping else None,
            "roundings": [param.roundings for param in pl_module.parameters()],
            "skipped": plugin.skipped_steps, "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "held": sum(len(each) for each in trainer.optimizers[0].state.values()),
        }  # fmt: skip


class FindLearningRate(LearningRateFinder):
    """In the fit, and leaves the learning rate that was asked for."""

    def lr_find(self, trainer: Trainer, pl_module: Any) -> None:
        super().lr_find(trainer, pl_module)
        self.words = {str(param.format) for param in pl_module.parameters()}


class FindBatchSize(BatchSizeFinder):
    """In the fit, and leaves the batch size that was asked for."""

    def scale_batch_size(self, trainer: Trainer, pl_module: Any) -> None:
        super().scale_batch_size(trainer, pl_module)
        self.words = {str(param.format) for param in pl_module.parameters()}
        pl_module.batch_size = 8
        trainer.fit_loop._combined_loader = None
        trainer.fit_loop.setup_data()


def fit(tmp_path: Path, optimizer: Optimizer, ramp: Any, *finders: Callback) -> tuple[Begin, list[torch.Tensor]]:
    seed_everything(0, verbose=False)
    module, begin = Tunable(optimizer), Begin()
    plugin = FixedPointPrecision(12, ramp=ramp() if ramp else None)
    trainer = Trainer(
        accelerator="cpu", default_root_dir=tmp_path, max_steps=12, max_epochs=-1, logger=False, plugins=plugin,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, callbacks=[*finders, begin],
    )  # fmt: skip
    trainer.fit(module)
    return begin, planes(module, trainer.optimizers[0])


def scheduled() -> WordLengthRamp:
    return WordLengthRamp(at={2: 16, 8: 20}, unit="step")


FINDERS = {
    "learning rate": lambda: FindLearningRate(num_training_steps=6, update_attr=False, early_stop_threshold=None),
    "batch size": lambda: FindBatchSize(steps_per_trial=4, max_trials=2),
}


@pytest.mark.parametrize("find", FINDERS.values(), ids=list(FINDERS))
@pytest.mark.parametrize(
    ("optimizer", "ramp"),
    [(torch.optim.AdamW, scheduled), (torch.optim.NAdam, scheduled), (torch.optim.NAdam, None)],
    ids=["AdamW, ramp", "NAdam, ramp", "NAdam"],
)
def test_a_run_after_a_finder_is_the_run_without_one(
    tmp_path: Path, optimizer: Optimizer, ramp: Any, find: Any
) -> None:
    """Weights, words, state, counts that key random bits, and so every bit of the end."""
    expected, end = fit(tmp_path, optimizer, ramp)
    finder = find()
    begin, found = fit(tmp_path, optimizer, ramp, finder)
    assert finder.words == {"fixed12"}
    assert begin.state == expected.state
    assert begin.state["format"] == "fixed12"
    assert all(torch.equal(a, b) for a, b in zip(begin.planes, expected.planes, strict=True))
    assert len(found) == len(end)
    assert all(torch.equal(a, b) for a, b in zip(found, end, strict=True))


def test_the_tuner_leaves_the_words_narrow(tmp_path: Path) -> None:
    seed_everything(0, verbose=False)
    module, plugin = Tunable(torch.optim.AdamW), FixedPointPrecision(12, ramp=scheduled())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trainer = Trainer(
        accelerator="cpu", default_root_dir=tmp_path, max_steps=4, max_epochs=-1, logger=False, plugins=plugin,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    Tuner(trainer).lr_find(module, num_training=6, update_attr=False, early_stop_threshold=None)
    assert str(plugin.format) == "fixed12"
    assert plugin.ramping is not None
    assert plugin.ramping.history == []
    assert {str(param.format) for param in module.parameters()} == {"fixed12"}
    for name, value in module.state_dict().items():
        assert torch.allclose(value.dequantize(), before[name], atol=2e-4), name
    trainer.fit(module)
    assert [each["step"] for each in plugin.ramping.history] == [2]
