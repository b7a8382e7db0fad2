"""An optimizer that was not adopted is warned of, once; not an adopted one, nor one in float."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from lowprec_plugin import FixedPointPrecision, FixedPointTensor, optim
from lowprec_plugin.tasks import MLP, Classifier, DigitsDataModule


def steps(optimizer: Any, module: nn.Module, count: int = 2) -> None:
    for _ in range(count):
        module(torch.ones(2, 8)).sum().backward()
        optimizer.step()


def test_an_optimizer_that_is_not_adopted_is_told_of_once() -> None:
    module = nn.Linear(8, 4)
    optimizer = torch.optim.AdamW(module.parameters())
    optim.quantize_(module)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        steps(optimizer, module)
    (only,) = caught
    assert "this AdamW updates fixed-point parameters by operations that round one by one" in str(only.message)
    assert only.filename == __file__  # points at the user's line


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.NAdam])
def test_adopted_and_float_ones_are_not(kind: Any) -> None:
    module, plain = nn.Linear(8, 4), nn.Linear(8, 4)
    optim.quantize_(module)
    steps(optim.adopt(kind(module.parameters(), lr=1e-3)), module)
    steps(kind(plain.parameters(), lr=1e-3), plain)


class Equal(torch.optim.SGD):
    """Without a hash, as a dataclass is."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Equal)


def test_one_without_a_hash_steps_and_is_told_of() -> None:
    module, plain = nn.Linear(8, 4), nn.Linear(8, 4)
    optimizer = Equal(module.parameters(), lr=0.1)
    steps(Equal(plain.parameters(), lr=0.1), plain)
    optim.quantize_(module)
    with pytest.warns(UserWarning, match="this Equal updates fixed-point parameters") as told:
        steps(optimizer, module)
    assert len(told) == 1


def test_one_whose_parameters_become_fixed_point_is_told_of() -> None:
    module = nn.Linear(8, 4)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    steps(optimizer, module)
    optim.quantize_(module)
    with pytest.warns(UserWarning, match="this SGD updates fixed-point parameters"):
        steps(optimizer, module)


def test_state_that_is_loaded_after_a_step_is_told_of() -> None:
    """torch.distributed.checkpoint makes a step of an optimizer without state, and loads it then."""
    fixed, module = nn.Linear(8, 4), nn.Linear(8, 4)
    optim.quantize_(fixed)
    source, optimizer = optim.AdamW(fixed.parameters()), torch.optim.AdamW(module.parameters())
    steps(source, fixed)
    steps(optimizer, module)
    for _ in range(2):
        optimizer.load_state_dict(source.state_dict())
        with pytest.warns(UserWarning, match="this AdamW goes on from state in fixed-point") as told:
            steps(optimizer, module)
        assert len(told) == 1
    optimizer.load_state_dict(optim.plain_optimizer_state(source))
    steps(optimizer, module)


def trained(epochs: int, checkpoint: Path | None = None, **options: Any) -> Trainer:
    trainer = Trainer(
        max_epochs=epochs, limit_train_batches=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, **options,
    )  # fmt: skip
    trainer.fit(Classifier(MLP()), DigitsDataModule(), ckpt_path=checkpoint)
    return trainer


def moment_of(trainer: Trainer) -> Any:
    return next(iter(trainer.optimizers[0].state.values()))["exp_avg_sq"]


def test_a_checkpoint_that_goes_on_without_the_plugin_is_told_of(tmp_path: Path) -> None:
    """Both remedies that the warning names are silent: warnings are errors."""
    path = tmp_path / "fixed.ckpt"
    trained(1, plugins=FixedPointPrecision()).save_checkpoint(path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert isinstance(moment_of(trained(2, path)), FixedPointTensor)
    (only,) = [str(each.message) for each in caught if "fixed-point" in str(each.message)]
    assert "this AdamW goes on from state in fixed-point (exp_avg, exp_avg_sq)" in only
    assert "plugins=lowprec_plugin.FixedPointPrecision()" in only
    assert "lowprec_plugin.optim.plain_optimizer_state" in only
    assert isinstance(moment_of(trained(2, path, plugins=FixedPointPrecision())), FixedPointTensor)
    content = torch.load(path, weights_only=True)
    content["optimizer_states"] = [optim.plain_optimizer_state(each) for each in content["optimizer_states"]]
    torch.save(content, tmp_path / "plain.ckpt")
    assert type(moment_of(trained(2, tmp_path / "plain.ckpt"))) is torch.Tensor
