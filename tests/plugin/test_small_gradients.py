"""The plugin with ``gradient_word_length="release"`` and with ``gradient_dtype``, in ordinary Trainers."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from lowprec_plugin import FixedPointMonitor, FixedPointPrecision, WordLengthRamp
from lowprec_plugin.compat.hooks import gradient_hooks
from lowprec_plugin.optim import NonFiniteGradientError, gradients
from lowprec_plugin.tensor.gradient_hook import ExchangedFirst
from tests.cases import planes
from tests.comm import ranks
from tests.plugin import test_distributed, test_model_parallel, test_unmodified_user, users


@pytest.fixture(autouse=True)
def _small_networks_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "FEWEST", 1)


class DataByStep(users.Regressor):
    """Draws its batch from the step's number, so that a resumed run goes on with the same."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = torch.randn(16, 12, generator=torch.Generator().manual_seed(self.global_step))
        return super().training_step((x, x[:, :1] * x[:, 1:2]), batch_idx)


class WithScheduler(DataByStep):
    def __init__(self, make_optimizer: Any) -> None:
        super().__init__(make_optimizer, lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.9), "step")


class Words(Callback):
    """The word lengths that there are after the steps."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.seen |= {param.format.word_length for param in pl_module.parameters()}


class Gradients(Callback):
    """The gradients that are there between backward pass and step."""

    def __init__(self) -> None:
        self.seen: set[Any] = set()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        self.seen |= {None if param.grad is None else param.grad.dtype for param in pl_module.parameters()}


def fit(
    folder: Path,
    steps: int = 20,
    make: Callable[[], Any] = DataByStep,
    resume: str | None = None,
    trainer: dict[str, Any] | None = None,
    **options: Any,
) -> list[Tensor]:
    seed_everything(0, verbose=False)
    module = make()
    save = ModelCheckpoint(folder, "{step}", every_n_epochs=1, save_top_k=-1, save_on_train_epoch_end=True)
    given = {"logger": False, **(trainer or {})}
    run = Trainer(
        accelerator="cpu", default_root_dir=folder, max_steps=steps, max_epochs=-1, enable_progress_bar=False,
        enable_model_summary=False, plugins=FixedPointPrecision(**options),
        callbacks=[save, *given.pop("callbacks", [])], **given,
    )  # fmt: skip
    run.fit(module, users.vectors(160), ckpt_path=resume, weights_only=True)  # an epoch is ten steps
    return planes(module, run.optimizers[0])


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda params: torch.optim.AdamW(params, 1e-2),
        lambda params: torch.optim.SGD(params, 1e-2, momentum=0.9),
        lambda params: torch.optim.NAdam(params, 1e-3),
    ],
    ids=["adamw", "momentum", "nadam"],
)
def test_codes_are_those_of_a_run_that_keeps_gradients(make_optimizer: Any, tmp_path: Path) -> None:
    ends, averages = [], []
    for kept in (None, "release"):
        seen, average = Gradients(), EMAWeightAveraging(decay=0.9)
        trainer = {"callbacks": [seen, average]}
        options = {"state_word_length": 8, "gradient_word_length": kept}
        ends.append(fit(tmp_path, 20, partial(WithScheduler, make_optimizer), trainer=trainer, **options))
        averages.append([param.dequantize() for param in average._average_model.parameters()])
        assert seen.seen == {torch.float32 if kept is None else None}
    assert same(*ends)
    assert same(*averages)


NO_CASES = ("clip by norm", "clip by value", "accumulation", "manual optimization", "gan", "hugging face")


@pytest.mark.parametrize("name", [name for name in test_unmodified_user.CASES if name not in NO_CASES])
def test_a_user_changes_nothing(name: str, tmp_path: Path) -> None:
    """Schedules, freezing, tied weights, averages, a search for a learning rate: the codes of a run with gradients."""
    case = test_unmodified_user.CASES[name]
    ends = []
    for kept in (None, "release"):
        plugin = FixedPointPrecision(compute_dtype="bf16-mixed", gradient_word_length=kept)
        module, run = test_unmodified_user.fit(case, plugin, tmp_path)
        ends.append([*planes(module, run.optimizers[0]), run.callback_metrics["train_loss"]])
    assert same(*ends)


@pytest.mark.parametrize("options", [{"gradient_word_length": "release"}, {"gradient_dtype": "bfloat16"}], ids=str)
def test_resume_is_bit_for_bit(options: dict[str, Any], tmp_path: Path) -> None:
    expected = fit(tmp_path, 20, **options)
    fit(tmp_path, 10, **options)
    assert same(fit(tmp_path, 20, resume=str(tmp_path / "step=10.ckpt"), **options), expected)


@pytest.mark.parametrize("at", [{"unit": "step", "at": {7: 16, 12: 20}}, {"unit": "epoch", "at": {1: 16}}], ids=str)
def test_a_ramp_with_a_schedule(at: dict[str, Any], tmp_path: Path) -> None:
    """Words are widened before the same update."""
    ends = []
    for kept in (None, "release"):
        watch = Words()
        options = {"word_length": 12, "ramp": WordLengthRamp(**at), "gradient_word_length": kept}
        ends.append(fit(tmp_path, 20, trainer={"callbacks": [watch]}, **options))
        assert watch.seen == {12, *at["at"].values()}
    assert same(*ends)


def test_the_monitor_counts_the_same(tmp_path: Path) -> None:
    reports = []
    for kept in (None, "release"):
        monitor = FixedPointMonitor(every_n_steps=3)
        trainer = {"callbacks": [monitor], "logger": CSVLogger(tmp_path)}
        fit(tmp_path, 10, trainer=trainer, gradient_word_length=kept)
        reports.append(monitor._counts)
    assert reports[0] == reports[1]
    assert len(reports[0]) == 4


class Sick(DataByStep):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * torch.nan if self.global_step == 3 else loss


def test_a_gradient_that_is_not_finite_is_named_and_its_step_not_run_again(tmp_path: Path) -> None:
    module, passes = Sick(), []
    module.net.register_forward_hook(lambda *_: passes.append(module.global_step))
    with pytest.raises(
        NonFiniteGradientError, match=r"'net\.2\.bias' holds a NaN.*Nothing has been written in this step"
    ):
        fit(tmp_path, make=lambda: module, gradient_word_length="release")
    assert passes == [0, 1, 2, 3]
    written = json.loads((tmp_path / "nonfinite-step3-rank0.json").read_text())
    assert written["run_again"] == {}
    assert [each["parameter"] for each in written["gradients"]] == ["net.2.bias"]


class Clips(DataByStep):
    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        nn.utils.clip_grad_norm_(self.parameters(), 1.0)


REFUSED = {
    r"accumulate_grad_batches=2 beside gradient_word_length='release'": {"trainer": {"accumulate_grad_batches": 2}},
    r"accumulate_grad_batches=4 beside": {
        "trainer": {"callbacks": [GradientAccumulationScheduler({0: 1, 3: 4})]}
    },
    r"gradient_clip_val=0.5 beside gradient_word_length='release'": {"trainer": {"gradient_clip_val": 0.5}},
    r"the configure_gradient_clipping of Clips": {"make": Clips},
    r"under manual optimization": {"make": users.Manual},
    r"nonfinite='skip' beside gradient_word_length='release'": {"nonfinite": "skip"},
    r"a ramp that measures updates": {"ramp": WordLengthRamp()},
}  # fmt: skip


@pytest.mark.parametrize("said", REFUSED)
def test_what_it_cannot_do_is_refused_before_training(said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        fit(tmp_path, gradient_word_length="release", **REFUSED[said])
    assert not list(tmp_path.glob("*.ckpt"))


def _refused(rank: int) -> list[str]:
    said = []
    gradients.FEWEST = 1
    for options in (
        {"gradient_word_length": "release", "comm_word_length": None},
        {"gradient_dtype": "bfloat16", "comm_word_length": None},
        {"gradient_dtype": "bfloat16", "trainer": {"strategy": DDPStrategy(ddp_comm_hook=test_distributed.halved)}},
    ):  # fmt: skip
        with pytest.raises(ValueError) as info:  # noqa: PT011
            test_distributed.fit(rank, **options)
        said.append(str(info.value))
    return said


def test_what_ddp_rules_out() -> None:
    for release, floats, hook in ranks.run(2, _refused):
        assert "gradient_word_length='release' under DDP travels in fixed-point: drop comm_word_length=None" in release
        assert "gradient_dtype=torch.bfloat16 under DDP travels in fixed-point: drop comm_word_length=None" in floats
        assert "gradient_dtype=torch.bfloat16 travels by itself, and not through the strategy's ddp_comm_hook" in hook


def _released_under_ddp(rank: int) -> list[dict[str, Any]]:
    gradients.FEWEST = 1
    runs = []
    for kept in (None, "release"):
        seen = Gradients()
        runs.append(test_distributed.fit(rank, gradient_word_length=kept, callbacks=[seen]) | {"dtypes": seen.seen})
    return runs


def test_release_under_ddp() -> None:
    (kept, released), (_, other) = ranks.run(2, _released_under_ddp)
    assert test_distributed.same(released, other)
    assert test_distributed.same(released, kept)
    assert kept["dtypes"] == {torch.float32}
    assert released["dtypes"] == {None, torch.float32}  # of the smallest, which stays with DDP


class Exchanges(Callback):
    """How often a gradient is exchanged."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.counts.append(sum(isinstance(hook, ExchangedFirst) for hook in gradient_hooks(pl_module.net[0].weight)))


def _fitted_twice(rank: int) -> tuple[list[int], list[Any]]:
    gradients.FEWEST = 1
    module, exchanges = users.Regressor(), Exchanges()
    plugin = FixedPointPrecision(gradient_word_length="release")
    for _ in range(2):
        test_distributed.fit(rank, module=module, plugin=plugin, callbacks=[exchanges])
    return exchanges.counts, [hook for hook in gradient_hooks(module.net[0].weight) if isinstance(hook, ExchangedFirst)]


def test_a_second_fit_exchanges_once_and_a_test_after_it_not() -> None:
    assert ranks.run(2, _fitted_twice) == [([1, 1], [])] * 2


def _under_ddp(rank: int) -> dict[str, Any]:
    seen = Gradients()
    trainer = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}
    run = test_distributed.fit(rank, gradient_dtype="bfloat16", callbacks=[seen], trainer=trainer)
    return {**run, "dtypes": seen.seen}


def test_bfloat16_gradients_under_ddp() -> None:
    one, other = ranks.run(2, _under_ddp)
    assert test_distributed.same(one, other)
    assert one["dtypes"] == {torch.bfloat16, torch.float32}  # of the smallest, which stays with DDP


def test_no_clipping_and_no_accumulation_by_their_names(tmp_path: Path) -> None:
    trainer = {"gradient_clip_val": 0, "callbacks": [GradientAccumulationScheduler({0: 1})]}
    fit(tmp_path, 2, trainer=trainer, gradient_word_length="release")


def test_a_test_is_no_training(tmp_path: Path) -> None:
    plugin = FixedPointPrecision(gradient_word_length="release")
    Trainer(
        accelerator="cpu", default_root_dir=tmp_path, logger=False, enable_progress_bar=False, plugins=plugin,
        accumulate_grad_batches=2, enable_checkpointing=False,
    ).test(users.Regressor(), users.vectors(), verbose=False)  # fmt: skip


def test_the_table_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        fit(tmp_path, 1, gradient_word_length="release")
        fit(tmp_path, 1, gradient_dtype="float16")
    assert "released" in caplog.text
    assert "float16" in caplog.text


def test_bfloat16_gradients_are_accumulated_and_clipped(tmp_path: Path) -> None:
    seen = Gradients()
    trainer = {"callbacks": [seen], "accumulate_grad_batches": 2, "gradient_clip_val": 0.1}
    fit(tmp_path, 5, trainer=trainer, gradient_dtype=torch.bfloat16)
    assert seen.seen == {torch.bfloat16}


def _under_fsdp2(rank: int, folder: str) -> list[dict[str, Any]]:
    options = {"gradient_dtype": "bfloat16", "trainer": {"gradient_clip_val": 0.5, "accumulate_grad_batches": 2}}
    runs = [test_model_parallel.fit(rank, 2, f"{folder}/straight", **copy.deepcopy(options))]
    resume = f"{folder}/straight/epoch=0.ckpt"
    runs += [test_model_parallel.fit(rank, 2, f"{folder}/resumed", resume=resume, **copy.deepcopy(options))]
    with pytest.raises(ValueError, match="on one device and under DDP, and not with ModelParallelStrategy"):
        test_model_parallel.fit(rank, 2, f"{folder}/released", gradient_word_length="release")
    return runs


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_bfloat16_gradients_under_fsdp2(tmp_path: Path) -> None:
    (straight, resumed), (other, _) = ranks.run(2, _under_fsdp2, str(tmp_path))
    assert test_model_parallel.same(straight, other)
    assert test_model_parallel.same(straight, resumed)


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        ("gradient_word_length: release", "gradient_word_length", "release"),
        ("gradient_word_length: 8", "gradient_word_length", 8),
        ("gradient_dtype: bfloat16", "gradient_dtype", torch.bfloat16),
        ("gradient_dtype: torch.float16", "gradient_dtype", torch.float16),
        ("gradient_dtype: null", "gradient_dtype", None),
    ],
)
def test_text_of_a_configuration(given: str, name: str, value: Any) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(FixedPointPrecision, "plugin")
    parser.add_argument("--config", action="config")
    config = parser.parse_args(["--config", f"plugin:\n  {given}\n"])
    plugin = parser.instantiate_classes(config).plugin
    assert getattr(plugin.options, name) == value
    assert plugin.terms()[name] in (value, str(value).removeprefix("torch."))
