"""The monitor in runs of Lightning, one process."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger
from torch import nn

from lowprec_plugin import FixedPointMonitor, FixedPointPrecision, WordLengthRamp, memory
from lowprec_plugin.memory.timeline import KINDS
from lowprec_plugin.monitoring import monitor as monitor_module
from lowprec_plugin.monitoring.figures import GIB
from lowprec_plugin.telemetry import Concern, LayerReport
from tests.plugin import users


class Recorder(Logger):
    """Keeps what it is given."""

    name, version = "recorder", 0

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.lines.append((step, dict(metrics)))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    @property
    def ours(self) -> list[tuple[int | None, dict[str, float]]]:
        """What the monitor logged, without its prefix."""
        return [
            (step, {name.removeprefix("lowprec/"): value for name, value in line.items()})
            for step, line in self.lines
            if any(name.startswith("lowprec/") for name in line)
        ]


def fit(
    module: LightningModule | None = None,
    plugin: Any = None,
    monitor: FixedPointMonitor | None = None,
    callbacks: list[Callback] | None = None,
    **given: Any,
) -> Recorder:
    seed_everything(0, verbose=False)
    recorder = Recorder()
    resume, loggers = given.pop("resume", None), given.pop("loggers", [])
    data = given.pop("data", None) or users.vectors()
    trainer = Trainer(
        accelerator="cpu", logger=[recorder, *loggers], plugins=plugin, log_every_n_steps=1,
        callbacks=[*([monitor] if monitor else []), *(callbacks or [])], enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 2, "enable_checkpointing": False, **given},
    )  # fmt: skip
    trainer.fit(module or users.Regressor(), data, ckpt_path=resume)
    recorder.metrics = trainer.callback_metrics  # type: ignore[attr-defined]
    return recorder


def test_what_is_logged_is_what_is_held_at_the_steps_of_other_callbacks(tmp_path: Path) -> None:
    module, csv_logger = users.Regressor(), CSVLogger(tmp_path)
    plugin = FixedPointPrecision(16, state_word_length=8, keep_float="net.2.*")
    monitor, seen = FixedPointMonitor(3), Seen()
    recorder = fit(module, plugin, monitor, [seen, LearningRateMonitor("step")], loggers=[csv_logger])
    assert [step for step, _ in recorder.ours] == [0, 3, 6]
    rates = [step for step, line in recorder.lines if "lr-AdamW" in line or "lr-FixedPointAdamW" in line]
    assert rates == list(range(8))
    line = recorder.ours[-1][1]
    for name in ("weights", "state", "gradients"):
        assert line[f"{name}_gib"] == getattr(seen.report, name) / GIB
    floats = [seen.report.float32_weights, seen.report.float32_state, 4 * 449]
    assert line["float32_gib"] == line["bf16_mixed_gib"] == sum(floats) / GIB
    assert line["held_gib"] == line["predicted_gib"]
    assert line["saved_fraction"] == pytest.approx(1 - line["held_gib"] / line["float32_gib"])
    assert line["word_length"] == 16
    assert line["kept_in_float"] == pytest.approx(33 / 449)
    assert line["skipped_steps"] == 0
    assert 0 < line["noise_to_update"] < 0.1
    assert "activations_gib" not in line
    assert "sent_mib" not in line
    metrics = recorder.metrics  # type: ignore[attr-defined]
    assert {name: metrics[f"lowprec/{name}"].item() for name in line} == pytest.approx(line, rel=1e-6)
    with open(csv_logger.experiment.metrics_file_path) as file:
        rows = [row for row in csv.DictReader(file) if row["lowprec/held_gib"]]
    assert [int(row["step"]) for row in rows] == [0, 3, 6]
    assert float(rows[-1]["lowprec/held_gib"]) == line["held_gib"]


class Seen(Callback):
    """Looks for itself, while there are gradients."""

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.report = memory.report(pl_module, trainer.optimizers)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.report = memory.report(pl_module, trainer.optimizers)


def test_nothing_of_the_training_changes() -> None:
    def trained(monitor: FixedPointMonitor | None) -> list[torch.Tensor]:
        module = users.Convolutional()
        recorder = Recorder()
        seed_everything(0, verbose=False)
        trainer = Trainer(
            accelerator="cpu", max_epochs=2, logger=recorder, plugins=FixedPointPrecision(12), log_every_n_steps=1,
            callbacks=[monitor] if monitor else [], enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False,
        )  # fmt: skip
        trainer.fit(module, users.images())
        return [plane for param in module.parameters() for plane in param.blocks.planes]

    torch.manual_seed(0)
    plain = trained(None)
    torch.manual_seed(0)
    watched = trained(FixedPointMonitor(1, layers=True))
    assert all(torch.equal(one, other) for one, other in zip(plain, watched, strict=True))


@pytest.mark.parametrize(
    ("make", "given"),
    [(users.Regressor, {}), (users.Regressor, {"accumulate_grad_batches": 2}), (users.Manual, {}), (users.GAN, {})],
    ids=str,
)
def test_the_peak_is_that_of_a_step_by_kind(make: Any, given: Any) -> None:
    recorder = fit(make(), FixedPointPrecision(), FixedPointMonitor(1), **given)
    first, *_, line = [line for _, line in recorder.ours]
    shares = {name: line[f"peak_{name}"] for name in KINDS}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["weights"] * line["peak_gib"] == pytest.approx(line["weights_gib"])
    assert shares["state"] * line["peak_gib"] == pytest.approx(line["state_gib"], rel=0.02)
    # All that is held, and next to it no more than a small network's activations and temporaries.
    assert line["weights_gib"] + line["state_gib"] < line["peak_gib"] < 40_000 / GIB
    assert first["peak_gib"] <= line["peak_gib"]


def test_a_step_that_releases_gradients_is_followed_and_counted() -> None:
    class Wide(users.Regressor):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(12, 512), nn.Tanh(), nn.Linear(512, 512), nn.Linear(512, 1))

    def last(bits: Any) -> dict[str, float]:
        seed_everything(0, verbose=False)
        plugin = FixedPointPrecision(gradient_word_length=bits)
        return fit(Wide(), plugin, FixedPointMonitor(1), max_epochs=1).ours[-1][1]

    released, kept = last("release"), last(None)
    assert released["held_gib"] < 0.7 * kept["held_gib"]
    assert released["peak_gib"] < kept["peak_gib"]
    # At the worst moment there is one gradient as floats, beside that of the last layer, which is small.
    assert released["peak_gradients"] * released["peak_gib"] * GIB == pytest.approx(4 * 512 * 512, rel=0.01)
    assert released["lost"] == kept["lost"] > 0


def test_a_hidden_float_copy_raises_the_peak() -> None:
    """The control."""

    class Hoarding(users.Regressor):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            self.hidden = torch.zeros(1 << 16)
            return super().training_step(batch, batch_idx)

    honest, hoarding = (
        fit(make(), FixedPointPrecision(), FixedPointMonitor(1)).ours[-1][1] for make in (users.Regressor, Hoarding)
    )
    assert (hoarding["peak_gib"] - honest["peak_gib"]) * GIB == pytest.approx(4 << 16, rel=0.01)
    assert hoarding["held_gib"] == honest["held_gib"]


def test_what_is_compiled_is_not_followed() -> None:
    module = users.Regressor()
    module.net.compile(backend="eager")
    lines = [line for _, line in fit(module, FixedPointPrecision(), FixedPointMonitor(1)).ours]
    assert all("peak_weights" not in line and line["peak_gib"] > 2**20 / GIB for line in lines)  # the whole process


def test_an_exception_ends_the_look() -> None:
    class Failing(users.Regressor):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            raise KeyError

    monitor = FixedPointMonitor(1)
    with pytest.raises(KeyError):
        fit(Failing(), FixedPointPrecision(), monitor)
    assert monitor._tracker is None


class Clearing(users.Manual):
    """Has no gradients left at the end of a batch."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        super().training_step(batch, batch_idx)
        self.optimizers().zero_grad()


@pytest.mark.parametrize(
    ("module", "given", "steps", "elements"),
    [
        (users.Manual, {}, [0, 3, 6], 449),
        (Clearing, {}, [0, 3, 6], 449),
        (users.Regressor, {"accumulate_grad_batches": 2}, [0, 3], 449),
        (users.GAN, {}, [0, 3, 6], 284 + 225),
    ],
    ids=lambda each: getattr(each, "__name__", None),
)
def test_gradients_are_seen_while_there_are_some(module: Any, given: Any, steps: list[int], elements: int) -> None:
    """However the user optimizes; and every optimizer's steps are counted."""
    monitor = FixedPointMonitor(3)
    recorder = fit(module(), FixedPointPrecision(), monitor, **given)
    assert [step for step, _ in recorder.ours] == steps
    for _, line in recorder.ours:
        assert line["gradients_gib"] == 4 * elements / GIB
        assert "lost" in line
    assert all(row.noise_to_update is not None for row in monitor.layers())
    assert sum(row.elements for row in monitor.layers()) == elements


def test_activations_are_those_of_one_step() -> None:
    class Wide(users.Regressor):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(12, 128), nn.Tanh(), nn.Linear(128, 1))

    plugin = FixedPointPrecision(activation_word_length=8)
    recorder = fit(Wide(), plugin, FixedPointMonitor(1))
    lines = [line for _, line in recorder.ours]
    assert plugin.inside is not None
    assert plugin.inside.kept is not None
    kept = plugin.inside.kept.bytes
    assert len({line["activations_gib"] for line in lines}) == 1
    assert lines[0]["activations_gib"] == (kept.stored + kept.left) / 8 / GIB
    assert lines[0]["float32_gib"] > lines[0]["bf16_mixed_gib"] > lines[0]["held_gib"]
    with_activations = lines[0]["weights_gib"] + lines[0]["state_gib"] + lines[0]["gradients_gib"]
    assert lines[0]["held_gib"] == pytest.approx(with_activations + lines[0]["activations_gib"])


def test_a_run_without_a_plugin_is_watched_too() -> None:
    monitor = FixedPointMonitor(2)
    line = fit(users.Regressor(), None, monitor).ours[-1][1]
    assert line["held_gib"] == line["float32_gib"] == line["predicted_gib"] > 0
    assert line["saved_fraction"] == 0
    assert line["kept_in_float"] == 1
    assert not {"lost", "saturated", "word_length", "exponent_spread"} & set(line)
    assert {row.weights for row in monitor.layers()} == {"float32"}
    assert {row.lost for row in monitor.layers()} == {None}


def test_a_skipped_step_shows_and_counts_nothing(tmp_path: Path) -> None:
    class Poisoned(users.Regressor):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return super().training_step(batch, batch_idx) * (torch.nan if self.global_step == 2 else 1)

    monitor = FixedPointMonitor(1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "step .* was skipped")
        recorder = fit(Poisoned(), FixedPointPrecision(nonfinite="skip"), monitor, default_root_dir=tmp_path)
    lines = [line for _, line in recorder.ours]
    skipped = next(at for at, line in enumerate(lines) if line["skipped_steps"])
    assert "lost" in lines[skipped - 1]
    assert "lost" not in lines[skipped]


def test_counts_go_on_after_a_checkpoint(tmp_path: Path) -> None:
    through, resumed = FixedPointMonitor(1), FixedPointMonitor(1)
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    fit(users.Regressor(), FixedPointPrecision(12), through, [keep], enable_checkpointing=True)
    again = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    checkpoint = {"resume": tmp_path / "epoch=0.ckpt", "enable_checkpointing": True}
    fit(users.Regressor(), FixedPointPrecision(12), resumed, [again], **checkpoint)
    assert resumed.layers() == through.layers()
    fresh = FixedPointMonitor(1)
    fit(users.Regressor(), FixedPointPrecision(12), fresh, max_epochs=1)
    assert fresh.layers() != through.layers()


def test_another_fit_counts_anew() -> None:
    def rows(word_length: int) -> list[LayerReport]:
        torch.manual_seed(0)
        fit(users.Regressor(), FixedPointPrecision(word_length), monitor)
        return monitor.layers()

    monitor = FixedPointMonitor(1)
    once = rows(12)
    assert rows(8) != once
    assert rows(12) == once


@pytest.mark.parametrize(("interval", "said"), [(0, "is less than 1"), (2.5, "is not an integer")])
def test_an_interval_is_at_least_one_step(interval: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FixedPointMonitor(interval)


def test_without_a_logger_it_says_so() -> None:
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, callbacks=[FixedPointMonitor()], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(MisconfigurationException, match="Cannot use `FixedPointMonitor` callback with `Trainer`"):
        trainer.fit(users.Regressor(), users.vectors())


def cosine(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)


@pytest.mark.parametrize("options", [{}, {"state_word_length": 8}, {"rounding": "nearest"}], ids=str)
@pytest.mark.parametrize(
    ("make", "data"),
    [
        (lambda: users.Regressor(make_scheduler=cosine, interval="step"), users.vectors),
        (users.Convolutional, users.images), (users.LanguageModel, users.tokens), (users.GAN, users.vectors),
    ],
    ids=["cosine", "Convolutional", "LanguageModel", "GAN"],
)  # fmt: skip
def test_of_a_healthy_run_nothing_is_said(make: Any, data: Any, options: Any) -> None:
    fit(
        make(), FixedPointPrecision(**options), FixedPointMonitor(1), max_epochs=10, data=data()
    )  # a warning would fail


@pytest.mark.parametrize(
    ("plugin", "lr", "said"),
    [
        (
            FixedPointPrecision(8, fraction_length=8),
            1e-1,
            r"numbers of net\..* \(<0,8>\) and its state are out of their formats. range",
        ),
        (FixedPointPrecision(8, rounding="nearest"), 1e-4, 'rounding to nearest .* use rounding="stochastic"'),
        (FixedPointPrecision(6), 1e-4, r"rounding net\..* to fixed6 adds noise .* a ramp"),
    ],
    ids=["saturated", "lost", "noise"],
)
def test_what_should_worry_somebody_is_said_once(plugin: Any, lr: float, said: str) -> None:
    module = users.Regressor(lambda params: torch.optim.AdamW(params, lr))
    with pytest.warns(UserWarning, match=said) as found:
        fit(module, plugin, FixedPointMonitor(1), max_epochs=4)
    assert len([each for each in found if "net." in str(each.message)]) == 1


def test_one_look_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """What two looks in a row find is said, though the worst layer be another; what comes and goes is not."""

    def found(*layers: str | None) -> list[str]:
        looks = iter(layers)

        def look(module: nn.Module, counts: Any) -> list[Concern]:
            layer = next(looks)
            return [Concern("noise", layer, f"{layer} is noisy")] if layer else []

        monkeypatch.setattr(monitor_module, "concerns", look)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            fit(users.Regressor(), FixedPointPrecision(), FixedPointMonitor(2))
        return [str(each.message) for each in said if "is noisy" in str(each.message)]

    assert found("a", None, "a", None) == []
    assert found("a", "b", "a", "a") == ["b is noisy"]


def test_a_ramp_sees_to_lost_updates_itself() -> None:
    module = users.Regressor(lambda params: torch.optim.AdamW(params, 1e-4))
    plugin = FixedPointPrecision(6, ramp=WordLengthRamp(ladder=(6, 16)))
    lines = [line for _, line in fit(module, plugin, FixedPointMonitor(1), max_epochs=4).ours]  # a warning would fail
    assert min(line["noise_to_update"] for line in lines) > 2
