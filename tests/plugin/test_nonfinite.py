"""What a run says and writes of a step that was refused or skipped."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from lowprec_plugin import FixedPointPrecision
from lowprec_plugin.optim import NonFiniteGradientError
from lowprec_plugin.plugin.nonfinite import FILES
from tests.plugin import users

BAD = 3  # the step that goes wrong


class Sick(users.Regressor):
    """Goes wrong in step ``BAD``: at a module's output, in the loss, in the backward pass, or in the data."""

    def __init__(self, where: str, forever: bool = False) -> None:
        super().__init__()
        self.where, self.forever = where, forever
        self.net.insert(1, Infects(self))

    def now(self, where: str) -> bool:
        wrong = self.global_step >= BAD if self.forever else self.global_step == BAD
        return self.training and wrong and where == self.where

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        loss = super().training_step((x / 0 if self.now("data") else x, y), batch_idx)
        return loss * torch.nan if self.now("loss") else loss


class Infects(nn.Module):
    def __init__(self, owner: Sick) -> None:
        super().__init__()
        self.owner = [owner]  # no module of this one

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.owner[0].now("forward"):
            return x * torch.inf
        # The root of zero: its value is 0 and its derivative infinite.
        return x + (x * 0).sqrt() if self.owner[0].now("backward") else x


def fit(tmp_path: Path, module: Any, plugin: FixedPointPrecision, data: Any = None, **options: Any) -> None:
    trainer = Trainer(
        accelerator="cpu", default_root_dir=tmp_path, plugins=plugin, logger=False, max_epochs=4,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, **options,
    )  # fmt: skip
    trainer.fit(module, data or users.vectors())


def dump(tmp_path: Path, step: int = BAD) -> dict[str, Any]:
    return json.loads((tmp_path / f"nonfinite-step{step}-rank0.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("clip", [None, 1.0], ids=["", "clipped"])
@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("forward", "the first output that was not finite was that of module 'net.1'"),
        ("loss", "every module's output was finite and the loss was not"),
        ("backward", "the first gradient that was not was that of the output of module 'net.0'"),
        ("data", "what went into module 'net' was not finite: look at the data"),
    ],
)
def test_the_first_to_go_wrong_is_named(where: str, said: str, clip: float | None, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteGradientError, match=said) as raised:
        fit(tmp_path, Sick(where), FixedPointPrecision(), gradient_clip_val=clip)
    content = dump(tmp_path)
    assert content["first"] in str(raised.value)
    assert str(tmp_path) in str(raised.value)
    assert content["outcome"] == "refused"
    assert [each["step"] for each in content["last_steps"]] == [0, 1, 2]
    assert all(math.isfinite(each["loss"]) for each in content["last_steps"])
    before = ["net.0.weight", "net.0.bias"]  # what lies behind the sick place in the backward pass is well
    assert [each["parameter"] for each in content["gradients"]][: len(before)] == before
    if where == "backward":
        assert [each["parameter"] for each in content["gradients"]] == before


def test_a_step_that_is_well_when_run_again(tmp_path: Path) -> None:
    class Once(users.Regressor):
        def on_after_backward(self) -> None:
            if self.global_step == BAD and not hasattr(self, "poisoned"):
                self.poisoned = True
                self.net[2].bias.grad[0] = torch.inf

    with pytest.raises(
        NonFiniteGradientError, match=r"The last parameter whose gradient is not finite is 'net\.2\.bias'"
    ):
        fit(tmp_path, Once(), FixedPointPrecision())
    assert dump(tmp_path)["gradients"] == [{"parameter": "net.2.bias", "elements": 1, "nan": 0, "infinite": 1}]


def test_skipped_steps_are_written_and_warned_of_once(tmp_path: Path) -> None:
    plugin = FixedPointPrecision(nonfinite="skip")
    with pytest.warns(UserWarning, match="was skipped") as warned:
        fit(tmp_path, Sick("backward"), plugin)
    assert plugin.skipped_steps > 0
    assert sum("was skipped" in str(each.message) for each in warned) == 1
    first = dump(tmp_path, BAD)
    assert first["outcome"] == "skipped"
    assert [each["parameter"] for each in first["gradients"]] == ["net.0.weight", "net.0.bias"]
    assert first["first"] == "The last parameter whose gradient is not finite is 'net.0.bias'"


def test_not_a_file_for_every_one(tmp_path: Path) -> None:
    plugin = FixedPointPrecision(nonfinite="skip")
    with pytest.warns(UserWarning, match="was skipped"):
        fit(tmp_path, Sick("loss", forever=True), plugin)
    assert plugin.skipped_steps > FILES
    assert len(list(tmp_path.glob("nonfinite-*"))) == FILES


def test_a_disk_that_refuses_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NonFiniteGradientError, match=r"module 'net\.1'.*could not be written"):
        fit(tmp_path / "file", Sick("forward"), FixedPointPrecision())


class Poisons(nn.Module):
    """Makes NaN of what ``part`` gives."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.part(x) * torch.nan


def test_a_mask_of_minus_infinity_is_no_trouble(tmp_path: Path) -> None:
    """Its zeros and minus infinities go into every layer of a transformer."""
    module = users.LanguageModel()
    module.encoder.layers[1].norm1 = Poisons(module.encoder.layers[1].norm1)
    with pytest.raises(NonFiniteGradientError, match=r"first output .* was that of module 'encoder\.layers\.1\.norm1'"):
        fit(tmp_path, module, FixedPointPrecision(), users.tokens())


class Masked(users.Regressor):
    """Softmax of masked numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.mask, self.softmax = Masks(), nn.Softmax(-1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net[2](self.softmax(self.mask(self.net[0](x))))


class Masks(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.masked_fill(torch.arange(x.shape[-1]) > 20, -torch.inf)


def test_masked_numbers_are_no_trouble_to_a_softmax(tmp_path: Path) -> None:
    module = Masked()
    module.net[2] = Poisons(module.net[2])
    with pytest.raises(NonFiniteGradientError, match=r"first output that was not finite was that of module 'net\.2'"):
        fit(tmp_path, module, FixedPointPrecision())


def test_they_are_mentioned_where_nothing_else_is_known(tmp_path: Path) -> None:
    class Sickly(Masked):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return super().training_step(batch, batch_idx) * torch.inf

    with pytest.raises(
        NonFiniteGradientError, match=r"the loss was not finite, and .* minus infinity .* module 'mask'"
    ):
        fit(tmp_path, Sickly(), FixedPointPrecision())


def test_what_is_computed_between_modules(tmp_path: Path) -> None:
    class Between(users.Regressor):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net[2](self.net[1](torch.log(0 * self.net[0](x))))

    with pytest.raises(
        NonFiniteGradientError, match=r"into module 'net\.1' was .* the last of module 'net\.0', were: look at what is"
    ):
        fit(tmp_path, Between(), FixedPointPrecision())


def test_accumulated_batches_before_the_last(tmp_path: Path) -> None:
    class Early(users.Regressor):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return super().training_step(batch, batch_idx) * (torch.nan if batch_idx == 2 else 1)

    with pytest.raises(
        NonFiniteGradientError, match="the last was run again, and all was finite: look at those before"
    ):
        fit(tmp_path, Early(), FixedPointPrecision(), accumulate_grad_batches=2)


def test_manual_optimization(tmp_path: Path) -> None:
    class SickByHand(users.Manual):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            x, y = batch
            super().training_step((x * torch.nan if self.global_step == BAD else x, y), batch_idx)

    with pytest.raises(NonFiniteGradientError, match="Every gradient is NaN throughout"):
        fit(tmp_path, SickByHand(), FixedPointPrecision())
    assert dump(tmp_path)["run_again"] == {}  # nothing was: the passes are in the training step
