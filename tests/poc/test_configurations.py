"""Proofs of concept of what users' configurations and modules are like."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Callback

from lowprec_plugin.cli.main import main
from lowprec_plugin.monitoring import FixedPointMonitor
from lowprec_plugin.poc.command import run_poc
from lowprec_plugin.poc.run.study import RunRecord, load, load_study
from tests.poc.users import Sorter

pytestmark = pytest.mark.usefixtures("no_command_line")


def test_a_configuration_of_another_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By YAML as LightningCLI saves it: a loss to go by, a head in float, callbacks that would end runs apart."""
    config = {
        "ckpt_path": None, "weights_only": None, "seed_everything": True,
        "trainer": {
            "max_epochs": 6, "max_time": {"seconds": 0}, "accelerator": "cpu", "precision": "32-true",
            "gradient_clip_val": float("inf"),
            "plugins": {"class_path": "lowprec_plugin.FixedPointPrecision", "init_args": {"keep_float": ["head.*"]}},
            "logger": "CSVLogger",
            "callbacks": ["RichProgressBar", {"class_path": "EarlyStopping",
                                              "init_args": {"monitor": "val_size", "patience": 1}}],
        },
        "model": {"class_path": "tests.poc.users.Line", "init_args": {"lr": 0.03}},
    }  # fmt: skip
    (tmp_path / "line.yaml").write_text(yaml.safe_dump(config))
    output = tmp_path / "poc"
    runs = run_poc("line.yaml", variants=["16", "12 with ramp"], seeds=1, output=str(output), progress=False)
    assert {each.began for each in runs} == {load(each).began for each in output.glob("runs/*/run.json")} != {""}
    assert len({each.began for each in runs}) == 1
    assert (
        f"\nleft out of the configuration, because all runs take the same steps and write only to {output}: max_time, "
        "CSVLogger, EarlyStopping, ModelCheckpoint and RichProgressBar\n"
    ) in capsys.readouterr().out
    study = load_study(output)
    assert (study.metric, study.mode, study.steps) == ("val_loss", "min", 24)
    assert study.variants["16"] == "plugins=FixedPointPrecision(keep_float=['head.*'], word_length=16)"
    assert {run.steps for run in runs} == {24}
    assert [run.status for run in runs] == ["finished"] * 4
    assert not list(output.rglob("*.ckpt"))
    assert (
        json.loads((output / "report.json").read_text())["study"]["config"]["trainer"]["gradient_clip_val"]
        == "Infinity"
    )
    assert runs[0].metrics.keys() == {"val_loss", "val_size"}
    for run in runs[2:]:
        assert list(run.kept_in_float) == ["head.weight", "head.bias"]
        assert [layer.weights for layer in run.layers if layer.name.startswith("head")] == ["float32", "float32"]


def small(model: str, **trainer: Any) -> RunRecord:
    """The record of float32's one run."""
    config = {
        "trainer": {"max_epochs": 1, "accelerator": "cpu", **trainer},
        "model": f"tests.poc.users.{model}", "data": "tests.poc.users.Clouds",
    }  # fmt: skip
    Path("user.yaml").write_text(yaml.safe_dump(config))
    return run_poc("user.yaml", variants=[], seeds=1, output="poc", progress=False)[0]


def test_a_title_says_how_long_runs_are() -> None:
    for limits, title in [({"max_steps": 2000}, ", 1 epoch"), ({"max_steps": 5}, ", 5 steps"), ({}, ", 1 epoch")]:
        small("Sorter", **limits)
        assert load_study(Path("poc")).title.endswith(f"Clouds{title}")
        shutil.rmtree("poc")


def test_other_processes_than_the_configurations_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    small("Sorter", devices=4, num_nodes=2, strategy="ddp")
    told = "instead of the configuration's devices=4 and num_nodes=2: 1 process on this machine (--devices)\n"
    assert told in capsys.readouterr().out
    small("Sorter", devices="auto", num_nodes=1, strategy="auto")
    assert "instead of" not in capsys.readouterr().out


def test_two_optimizers_by_hand() -> None:
    """A batch of 50 ms or more makes two steps, so that steps times their time is what the run takes. The gradients are
    those of both, where the first step has but the first optimizer's: 15 rows of an embedding, and their indices."""
    record = small("Pair")
    assert (record.status, record.steps) == ("finished", 2 * 20)
    assert 25 <= record.step_ms["fast"] < 50
    gradients = 15 * (4 * 4 + 8) + 4 * (4 * 32 + 32 + 32 * 3 + 3)
    assert record.held["gradients"] == record.float32["gradients"] == gradients


def test_a_step_takes_all_its_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Sorter):
        def training_step(self, *args: Any) -> Any:
            time.sleep(0.003)
            return super().training_step(*args)

    monkeypatch.setattr("tests.poc.users.Slow", Slow, raising=False)
    record = small("Slow", accumulate_grad_batches=4)
    assert record.steps == 5
    assert record.step_ms["fast"] >= 12


def test_what_other_loggers_take_goes_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that draws to TensorBoard, W&B, Comet or Neptune is rehearsed and runs, and its numbers are read."""

    class Drawing(Sorter):
        def on_fit_start(self) -> None:
            super().on_fit_start()
            self.logger.experiment.config.update({"x": 1})
            assert "x" not in self.logger.experiment.config

        def validation_step(self, *args: Any) -> None:
            super().validation_step(*args)
            self.logger.experiment.add_scalar("x", 1.0, self.global_step)
            self.logger.experiment["series"].log(1.0)
            self.logger.experiment.summary["best"] = 1.0
            self.logger.run["series"].append(1.0)
            with self.logger.experiment.validate():
                pass
            self.logger.log_image("x", [1])
            self.logger.log_metrics({"val_best": 0.5, "converged": True, "note": "fine"}, self.global_step)

    monkeypatch.setattr("tests.poc.users.Drawing", Drawing, raising=False)
    record = small("Drawing")
    assert (record.status, record.reason) == ("finished", "")
    assert record.curves["val_best"][-1] == (20, 0.5)
    assert len(record.curves["train_loss"]) == 10
    assert not {"converged", "note"} & record.curves.keys()


def test_a_monitor_of_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning takes one alone: a configuration's is left out, a module's takes the place of the run's."""

    class Watched(Sorter):
        def configure_callbacks(self) -> list[Callback]:
            return [FixedPointMonitor(5)]

    monkeypatch.setattr("tests.poc.users.Watched", Watched, raising=False)
    for model, callbacks in (("Sorter", ["lowprec_plugin.FixedPointMonitor"]), ("Watched", [])):
        record = small(model, callbacks=callbacks)
        assert (record.status, len(record.layers)) == ("finished", 4)
        shutil.rmtree("poc")


@pytest.mark.parametrize("limits", [{}, {"max_steps": 5}])
def test_what_validation_logs_is_its_own(limits: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """By whatever names training logs something later, and a test last."""

    class Shared(Sorter):
        def training_step(self, *args: Any) -> Any:
            self.log("acc", 0.25, on_step=False, on_epoch=True)
            return super().training_step(*args)

        def validation_step(self, *args: Any) -> None:
            self.log("acc", 0.5)

        def test_step(self, *args: Any) -> None:
            self.log_dict({"acc": 0.75, "top5": 0.875})

    monkeypatch.setattr("tests.poc.users.Shared", Shared, raising=False)
    record = small("Shared", **limits)
    assert (record.metrics["acc"], record.metrics["top5"], record.tested) == (0.5, 0.875, ["top5"])


def test_what_validation_logs_by_step_and_by_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning has two names for it, and returns one of them: both are of the last validation."""

    class Stepwise(Sorter):
        def validation_step(self, *args: Any) -> None:
            self.log("acc", self.global_step / 10, on_step=True, on_epoch=True)

    monkeypatch.setattr("tests.poc.users.Stepwise", Stepwise, raising=False)
    metrics = small("Stepwise", max_steps=5).metrics
    assert (metrics["acc"], metrics["acc_epoch"]) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"max_epochs": -1}, "no end of a run is given"),
        ({"max_steps": 2, "precision": "16-mixed"}, "trainer.precision='16-mixed'"),
        ({"max_steps": 2, "plugins": {"class_path": "lightning.pytorch.plugins.precision.MixedPrecision",
                                      "init_args": {"precision": "bf16-mixed", "device": "cpu"}}},
         "trainer.plugins bring precision 'bf16-mixed'"),
    ],
)  # fmt: skip
def test_a_trainer_that_cannot_be_compared_is_refused(trainer: dict[str, Any], message: str, tmp_path: Path) -> None:
    config = {"trainer": {"accelerator": "cpu", **trainer}, "model": "tests.poc.users.Line"}
    (tmp_path / "user.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=re.escape(message)):
        run_poc("user.yaml")
    assert not (tmp_path / "lowprec_poc").exists()


@pytest.mark.parametrize(
    ("argument", "message"), [({"limit_train_batches": -1}, " for limit_train_batches"),
                              ({"gradient_clip_val": 1, "gradient_clip_algorithm": "no"}, "Allowed algorithms")]
)  # fmt: skip
def test_what_lightning_refuses_of_a_trainer_is_one_line(
    argument: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"trainer": {"accelerator": "cpu", "max_steps": 2, **argument}, "model": "tests.poc.users.Line"}
    (tmp_path / "user.yaml").write_text(yaml.safe_dump(config))
    assert main(["poc", "--config=user.yaml"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "lowprec_poc").exists()


@pytest.mark.parametrize(
    "strategy", ["fsdp", "deepspeed_stage_2", {"class_path": "lightning.pytorch.strategies.FSDPStrategy"}]
)
def test_strategies_that_shard_are_refused(strategy: Any, tmp_path: Path) -> None:
    config = {"trainer": {"max_steps": 2, "strategy": strategy}, "model": {"class_path": "tests.poc.users.Line"}}
    (tmp_path / "user.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match="runs are compared on one process, or on several with DDP"):
        run_poc("user.yaml")


@pytest.mark.parametrize("variants", ["16", "16,bf16"])
def test_a_module_that_does_not_run_in_bf16_says_so(
    variants: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What bf16 would hold is not computed then, and the command and the report say why; or its own run does."""

    class Narrow(Sorter):
        def training_step(self, *args: Any) -> Any:
            if self.trainer.precision == "bf16-mixed":
                raise RuntimeError("not in bf16")
            return super().training_step(*args)

    monkeypatch.setattr("tests.poc.users.Narrow", Narrow, raising=False)
    arguments = ["--model=tests.poc.users.Narrow", "--data=tests.poc.users.Clouds", f"--variants={variants}"]
    assert main(["poc", *arguments, "--steps=2", "--seeds=1", "--output=poc", "--progress=false"]) == 0
    why = "RuntimeError: not in bf16"
    page, named = Path("poc/report.html").read_text(), "bf16" in variants
    assert (f"bf16 mixed, computed is left out: {why}" in capsys.readouterr().out) is not named
    assert (f"bf16 mixed, computed: {why}" in page) is not named
    assert (f"bf16 gave no result: {why}" in page) is named
    assert not any(load(path).bf16 for path in Path("poc").glob("runs/*/run.json"))
    assert "bf16 mixed, computed" not in json.loads(Path("poc/report.json").read_text())["variants"]
