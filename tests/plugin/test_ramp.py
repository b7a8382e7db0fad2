"""A word-length ramp in Lightning runs."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lowprec_plugin import FixedPointPrecision, FixedPointTensor, WordLengthRamp
from tests.comm import ranks
from tests.plugin import test_distributed, users


class Formats(Callback):
    """What is stored how after every step."""

    def __init__(self) -> None:
        self.weights: list[int] = []
        self.states: list[int] = []
        self.logged: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        (weights,) = {param.format.word_length for param in pl_module.parameters()}
        state = trainer.optimizers[0].state.values()
        values = [value for each in state for value in each.values() if isinstance(value, FixedPointTensor)]
        self.weights.append(weights)
        self.states.append(max((value.format.word_length for value in values), default=0))
        self.logged.append(float(trainer.callback_metrics["word_length"]))


def fit(
    plugin: FixedPointPrecision, module: Any = None, data: Any = None, epochs: int = 3, **options: Any
) -> tuple[Any, Formats]:
    seed_everything(0, verbose=False)
    module, formats = users.Regressor() if module is None else module, Formats()
    resume = options.pop("resume", None)
    callbacks = [formats, *options.pop("callbacks", [])]
    trainer = Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_progress_bar=False, callbacks=callbacks,
        enable_checkpointing=len(callbacks) > 1, enable_model_summary=False, plugins=plugin, **options,
    )  # fmt: skip
    trainer.fit(module, users.vectors() if data is None else data, ckpt_path=resume)
    return module, formats


def test_a_schedule_by_epochs() -> None:
    plugin = FixedPointPrecision(12, ramp=WordLengthRamp(at={1: 16, 2: 24}))
    _, formats = fit(plugin)
    assert formats.weights == formats.states == [12] * 4 + [16] * 4 + [24] * 4
    assert formats.logged == [float(bits) for bits in formats.weights]
    assert [(each["step"], each["word_length"]) for each in plugin.ramping.history] == [(4, 16), (8, 24)]
    assert str(plugin.format) == "fixed24"


def test_a_schedule_by_steps_of_a_static_format_and_pinned_state() -> None:
    ramp = WordLengthRamp(at={3: 16}, unit="step")
    module, formats = fit(FixedPointPrecision(12, 8, state_word_length=8, ramp=ramp))
    assert formats.weights == [12] * 3 + [16] * 9
    assert set(formats.states) == {8}
    assert {str(param.format) for param in module.parameters()} == {"<4,12>"}


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("options", [{}, {"state_word_length": 8}, {"fraction_length": 8}])
@pytest.mark.parametrize("again", [False, True], ids=["another plugin", "the same plugin"])
def test_resume_in_the_middle_of_the_ladder_is_exact(again: bool, options: dict[str, Any], tmp_path: Path) -> None:
    def plugin() -> FixedPointPrecision:
        return FixedPointPrecision(12, ramp=WordLengthRamp(at={1: 16, 3: 20}), **options)

    saver, first = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1), plugin()
    straight, formats = fit(first, epochs=5, callbacks=[saver])
    for epoch in (0, 1, 2, 3):
        resumed_plugin = first if again else plugin()
        resumed, found = fit(resumed_plugin, epochs=5, resume=str(tmp_path / f"epoch={epoch}.ckpt"))
        assert found.weights == formats.weights[4 * (epoch + 1) :]
        assert len(resumed_plugin.ramping.history) == 2
        for one, other in zip(straight.parameters(), resumed.parameters(), strict=True):
            assert one.format == other.format
            assert torch.equal(one.dequantize(), other.dequantize())


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_one_module_tests_an_early_checkpoint_and_then_a_late_one(tmp_path: Path) -> None:
    """Words that the module has stay as wide as they are: narrowed, it could not take up the late one."""
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    plugin = FixedPointPrecision(12, ramp=WordLengthRamp(at={1: 16}))
    module, _ = fit(plugin, epochs=2, callbacks=[saver])
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", plugins=plugin, **quiet)
    for epoch in (0, 1):
        path = tmp_path / f"epoch={epoch}.ckpt"
        trainer.test(module, users.vectors(), ckpt_path=path, verbose=False)
        for name, saved in torch.load(path, weights_only=False)["state_dict"].items():
            assert torch.equal(module.get_parameter(name).dequantize(), saved.dequantize())
    assert str(plugin.format) == "fixed16"


class OneWeight(users.Regressor):
    """A quadratic valley, and SGD at a learning rate that makes updates small or large beside a code."""

    def __init__(self, lr: float, curvature: float = 1.0, noise: float = 0.0) -> None:
        super().__init__()
        self.net = torch.nn.Linear(64, 1, bias=False)
        self.lr, self.curvature, self.noise = lr, curvature, noise

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        target = torch.linspace(-1, 1, 64)
        kick = self.noise * torch.randn(64)
        loss = self.curvature * ((self.net.weight.squeeze(0) - target + kick) ** 2).sum() / 2
        self.log("valley", loss, on_epoch=True, on_step=False)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def widened(module: Any, epochs: int = 1, steps: int = 600, **ramp: Any) -> list[dict[str, Any]]:
    options = {"ladder": (12, 16, 20), "patience": 5, "cooldown": 5, "smoothing": 0.5, **ramp}
    plugin = FixedPointPrecision(12, 10, rounding="nearest", ramp=WordLengthRamp(**options))
    fit(plugin, module, DataLoader(TensorDataset(torch.zeros(steps, 1)), batch_size=1), epochs)
    return plugin.ramping.history


def test_it_fires_by_itself_where_updates_are_lost(caplog: pytest.LogCaptureFixture) -> None:
    """With nearest rounding a step of 1e-2 of what is left stops when that is 50 codes; wider codes go on."""
    with caplog.at_level(logging.INFO):
        history = widened(OneWeight(lr=1e-2))
    assert [each["word_length"] for each in history][:1] == [16]
    assert history[0]["step"] > 300  # not before the weights have stopped
    assert re.search(r"9\d % of the updates are smaller than half a code", history[0]["reason"])
    assert "words widened from 12 to 16 bits at step" in caplog.text


def test_it_does_not_fire_on_a_run_that_still_improves() -> None:
    assert widened(OneWeight(lr=2e-3), min_delta=1e-3, patience=3) == []


def test_it_does_not_fire_on_a_plateau_of_another_cause(caplog: pytest.LogCaptureFixture) -> None:
    """Noise in the gradients keeps the loss where it is, with updates of many codes."""
    with caplog.at_level(logging.INFO):
        assert widened(OneWeight(lr=0.3, noise=0.5)) == []
    assert "words stay at 12 bits" in caplog.text
    assert "not one of precision" in caplog.text


def test_a_metric_by_name() -> None:
    history = widened(OneWeight(lr=1e-2), epochs=12, steps=60, monitor="valley", patience=2, smoothing=0.0)
    assert [each["word_length"] for each in history][:1] == [16]
    assert history[0]["step"] % 60 == 0  # looked at once an epoch
    with pytest.raises(ValueError, match=r"monitor=.hill. is not among the logged metrics: .*valley"):
        widened(OneWeight(lr=1e-2), epochs=2, steps=3, monitor="hill")


def always(**ramp: Any) -> FixedPointPrecision:
    """A ramp to which nothing is an improvement and every stall one of precision."""
    eager = {"ladder": (12, 16, 20), "patience": 2, "cooldown": 0, "smoothing": 0.0, "min_delta": 0.9, "min_lost": 0.0}
    return FixedPointPrecision(12, ramp=WordLengthRamp(**(eager | ramp)))


def validating(plugin: FixedPointPrecision, epochs: int = 8, batches: int = 4, **options: Any) -> list[tuple[int, int]]:
    seed_everything(0, verbose=False)
    resume, module = options.pop("resume", None), options.pop("module", None) or users.Regressor()
    trainer = Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_progress_bar=False, enable_model_summary=False,
        plugins=plugin, **({"enable_checkpointing": "callbacks" in options} | options),
    )  # fmt: skip
    trainer.fit(module, users.vectors(16 * batches), users.vectors(), ckpt_path=resume)
    return [(each["step"], each["word_length"]) for each in plugin.ramping.history]


def test_a_metric_that_is_not_there_after_every_epoch() -> None:
    """Looks at the ends of epochs 2, 4 and 6: what is not logged anew is no look."""
    assert validating(always(monitor="val_loss"), check_val_every_n_epoch=2) == [(24, 16)]


def test_a_metric_that_is_validated_within_an_epoch() -> None:
    widenings = validating(always(monitor="val_loss"), epochs=1, batches=70, val_check_interval=10)
    assert widenings == [(30, 16), (60, 20)]


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("monitor", ["val_loss", None])
def test_a_resumed_ramp_looks_as_one_that_went_through(monitor: str | None, tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    straight = validating(always(monitor=monitor), callbacks=[saver])
    assert straight
    for epoch in (0, 1, 2, 4):
        assert validating(always(monitor=monitor), resume=str(tmp_path / f"epoch={epoch}.ckpt")) == straight


def test_a_second_fit_does_not_ask_for_what_the_first_has_logged() -> None:
    plugin = always(monitor="val_loss", patience=1)
    assert validating(plugin, epochs=2) == []
    assert validating(plugin, epochs=2) == [(4, 16)]


class SometimesNaN(users.Regressor):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if self.global_step % 10 == 3 else loss


def test_a_loss_that_is_nan_now_and_then_is_looked_at(tmp_path: Path) -> None:
    plugin = always()
    plugin.options = replace(plugin.options, nonfinite="skip")
    with pytest.warns(UserWarning, match="step 3 was skipped"):
        fit(plugin, SometimesNaN(), epochs=10, default_root_dir=tmp_path)
    assert [each["step"] for each in plugin.ramping.history] == [30]


class NoGradients(users.Regressor):
    """From step 30 to 34, when the stall is seen."""

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if 30 <= self.global_step < 35:
            optimizer.zero_grad()


def test_a_stall_waits_for_a_step_that_can_be_measured() -> None:
    plugin = always()
    fit(plugin, NoGradients(), epochs=10)
    assert [each["step"] for each in plugin.ramping.history] == [35]


class Two(users.Regressor):
    """Manual optimization: the first optimizer's updates are of many codes, the second's are lost."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss = torch.nn.functional.mse_loss(self(batch[0]), batch[1])
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()
        self.log("flat", 1.0, on_step=False, on_epoch=True)

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(self.net[0].parameters(), 0.1), torch.optim.Adam(self.net[2].parameters(), 1e-7)]


def test_every_optimizer_of_several_is_measured(caplog: pytest.LogCaptureFixture) -> None:
    plugin = always(monitor="flat", min_lost=0.5)
    with caplog.at_level(logging.INFO):
        fit(plugin, Two(), epochs=5)
    assert [(each["step"], each["word_length"]) for each in plugin.ramping.history] == [(25, 16)]
    assert "words stay at 12 bits at step 24, for optimizer 0: the stall is not one of precision" in caplog.text


class LaterLost(Two):
    """From epoch 4 the first optimizer's updates are lost; the second has nothing in fixed-point."""

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 4:
            self.trainer.optimizers[0].param_groups[0]["lr"] = 1e-7


def test_an_optimizer_that_shows_nothing_keeps_no_other_from_being_measured_again() -> None:
    plugin = always(monitor="flat", min_lost=0.5)
    plugin.options = replace(plugin.options, keep_float=["net.2.*"])
    assert validating(plugin, module=LaterLost()) == [(40, 16)]


class Falls(users.Regressor):
    """A loss that falls by a tenth in every ten steps, whatever is learnt."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return 0.0 * super().training_step(batch, batch_idx) + 0.99**self.global_step


def test_batches_that_are_accumulated_and_then_are_not_make_no_stall() -> None:
    plugin = always(min_delta=0.001)
    options = {"callbacks": [GradientAccumulationScheduler({0: 8, 2: 1})], "enable_checkpointing": False}
    assert validating(plugin, epochs=3, batches=40, module=Falls(), **options) == []


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"word_length=14 is not a rung of the ramp's ladder, \(12, 16, 20, 24\)"):
        FixedPointPrecision(14, ramp=WordLengthRamp())
    with pytest.raises(ValueError, match=r"at=\{1: 12, 2: 20\} narrows word_length=16"):
        FixedPointPrecision(16, ramp=WordLengthRamp(at={1: 12, 2: 20}))
    for given, argument in (({30: 16}, "at"), ((12, 16), "ladder")):
        with pytest.raises(ValueError, match=rf"is not a WordLengthRamp: write WordLengthRamp\({argument}="):
            FixedPointPrecision(12, ramp=given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"under manual optimization.*name it as the ramp's monitor"):
        fit(FixedPointPrecision(12, ramp=WordLengthRamp()), users.Manual())


class Watch(Callback):
    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        plugin = trainer.precision_plugin
        self.state = plugin.ramping._state
        self.history, self.wire = plugin.ramping.history, plugin.wire.word_length


def _two_ranks(rank: int) -> Any:
    watch = Watch()
    ramp = WordLengthRamp(ladder=(8, 12, 16, 20), patience=2, cooldown=0, smoothing=0.0, min_lost=0.0, min_delta=0.9)
    run = test_distributed.fit(rank, epochs=100, word_length=8, ramp=ramp, callbacks=[watch])
    return run["planes"], watch.history, watch.wire


def test_all_ranks_widen_at_the_same_step_and_the_wire_follows() -> None:
    (planes, history, wire), (other_planes, other_history, other_wire) = ranks.run(2, _two_ranks)
    assert history == other_history
    assert [each["word_length"] for each in history] == [12, 16, 20]
    assert wire == other_wire == 16
    for one, other in zip(planes, other_planes, strict=True):
        assert torch.equal(one, other)


def _resumed(rank: int, folder: str) -> Any:
    ends = []
    for resume in (None, f"{folder}/epoch=2.ckpt", f"{folder}/epoch=11.ckpt"):
        watch = Watch()
        plugin = always(ladder=(12, 16), patience=1)
        run = test_distributed.fit(
            rank, None if resume else folder, resume, epochs=16, plugin=plugin, callbacks=[watch]
        )
        ends.append((run["planes"], watch.history, watch.state))
    return ends


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_two_ranks_resume_between_two_looks_as_if_they_had_gone_through(tmp_path: Path) -> None:
    """Each has losses of its own since the last look."""
    for straight, *resumed in ranks.run(2, _resumed, str(tmp_path)):
        assert [each["word_length"] for each in straight[1]] == [16]
        for planes, *ramp in resumed:
            assert ramp == list(straight[1:])
            assert all(torch.equal(one, other) for one, other in zip(planes, straight[0], strict=True))
