"""What is settled before the runs: the metric, and how a ramp waits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lowprec_plugin.poc.run.metrics import Scale
from lowprec_plugin.poc.run.rehearsal import Rehearsed, _steps, chosen_metric
from lowprec_plugin.poc.run.variants import VARIANTS, paced
from lowprec_plugin.poc.run.worker import interval_of
from lowprec_plugin.ramp import WordLengthRamp

FOUND = Rehearsed(["train_acc", "val_acc", "val_loss"], ["val_acc", "val_loss"], ["test_acc"], True, 100, {}, "cpu", [])


@pytest.mark.parametrize(
    ("validated", "tested", "metric", "mode"),
    [
        (["val_loss", "val_top5_accuracy", "val_acc"], ["test_acc"], "val_acc", "max"),
        (["loss_of_teacher", "val_loss"], [], "val_loss", "min"),
        (["valid/loss"], ["test_acc"], "valid/loss", "min"),
        ([], ["test_loss", "test_Accuracy"], "test_Accuracy", "max"),
        (["accel_error", "accumulated", "val_acc_loss", "val_transferred_loss"], [], "val_transferred_loss", "min"),
        (["val/top5acc1", "val_inferred", "val/a loss"], [], "val/top5acc1", "max"),
    ],
)
def test_the_metric_that_is_chosen(validated: list[str], tested: list[str], metric: str, mode: str) -> None:
    """An accuracy before a loss, of validation if there is one, else of the test; never one of training."""
    found = replace(FOUND, validated=validated, tested=tested)
    assert chosen_metric(found, None, None)[:2] == (metric, mode)


def test_the_metric_that_is_asked_for() -> None:
    assert chosen_metric(FOUND, "val_loss", None)[:2] == ("val_loss", "min")
    assert chosen_metric(FOUND, "train_acc", "min")[:2] == ("train_acc", "min")
    assert chosen_metric(FOUND, None, "min")[:2] == ("val_loss", "min")
    for unclear in (
        "val_auc2",
        "terrain_iou",
        "accumulated",
        "acc_loss",
        "val/mse_f1",
        "premse",
        "r2d2",
        "val_neg_mse",
    ):
        with pytest.raises(ValueError, match=f"metric='{unclear}' does not say whether more of it is better"):
            chosen_metric(replace(FOUND, validated=[unclear]), unclear, None)
    assert chosen_metric(replace(FOUND, validated=["perplexity"]), "perplexity", None)[1] == "min"
    with pytest.raises(ValueError, match=r"metric='acc' is not logged .*; the module logs test_acc, train_acc"):
        chosen_metric(FOUND, "acc", None)


@pytest.mark.parametrize(
    ("metric", "mode"),
    [("val/rmse", "min"), ("val_MAE", "min"), ("MSE", "min"), ("test.mape-1", "min"), ("val_perplexity", "min"),
     ("val/f1", "max"), ("val_auroc_epoch", "max"), ("AUC", "max"), ("val r2", "max"), ("val_accuracy", "max")],
)  # fmt: skip
def test_metrics_whose_names_tell_the_way(metric: str, mode: str) -> None:
    found = replace(FOUND, validated=[metric])
    assert chosen_metric(found, metric, None)[1] == mode
    other = "max" if mode == "min" else "min"
    assert chosen_metric(found, metric, other)[1] == other  # type: ignore[arg-type]  # who says so is believed
    assert Scale.of(metric, [0.5]).unit == (" %" if metric == "val_accuracy" else "")


@pytest.mark.parametrize("steps", [20, 100, 420, 1000, 3999])
def test_a_ramp_of_a_short_run_can_climb_its_ladder(steps: int) -> None:
    """Filling its mean and waiting take a quarter of the run at most, so that three widenings find their time."""
    ramp = WordLengthRamp(**paced(steps))
    looks = max(1.0, steps / 10)
    assert ramp.patience == ramp.cooldown <= max(1, looks / 8)
    assert ramp.patience + 1 / (1 - ramp.smoothing) <= max(2.0, looks / 4 + 1)
    assert ramp.ladder == [12, 16, 20, 24]


@pytest.mark.parametrize("steps", [None, 4000, 10**6])
def test_a_ramp_of_a_long_run_has_its_defaults(steps: int | None) -> None:
    assert replace(WordLengthRamp(**paced(steps)), ladder=(12, 16, 20, 24)) == WordLengthRamp()


@pytest.mark.parametrize(
    ("trainer", "steps", "interval"),
    [({}, 420, 14), ({}, 10**6, 50), ({}, 10, 2), ({}, None, 50), ({"log_every_n_steps": 5}, 10**6, 5)],
)
def test_points_of_a_curve(trainer: dict[str, int], steps: int | None, interval: int) -> None:
    assert interval_of({"trainer": trainer}, steps) == interval


@pytest.mark.usefixtures("no_command_line")
@pytest.mark.parametrize(
    ("trainer", "one", "two"),
    [({}, 60, 30), ({"limit_train_batches": 4}, 12, 12), ({"limit_train_batches": 0.5}, 30, 15),
     ({"overfit_batches": 4}, 12, 12), ({"max_steps": 5}, 5, 5)],
)  # fmt: skip
def test_steps_of_a_run(trainer: dict[str, Any], one: int, two: int) -> None:
    """Several processes share an epoch, but a limit of batches is each one's own."""
    for devices, steps in ((1, one), (2, two)):
        given = {"max_epochs": 3, "accelerator": "cpu", **trainer, "devices": devices}
        config = {"trainer": given, "model": "tests.poc.users.Sorter", "data": "tests.poc.users.Clouds"}
        assert _steps(config) == steps


def test_what_else_the_plugin_was_given_holds_for_all() -> None:
    """What makes a variant is the variant's; the rest is the user's."""
    given = {"word_length": 8, "comm_word_length": 4, "keep_float": ["head.*"], "activation_word_length": 8}
    config = {"trainer": {"plugins": [{"class_path": "lowprec_plugin.FixedPointPrecision", "init_args": given}]}}
    (plugin,) = VARIANTS["16/8"].config(config, 3, None)["trainer"]["plugins"]
    assert plugin["init_args"] == {
        "keep_float": ["head.*"], "activation_word_length": 8, "word_length": 16, "state_word_length": 8, "seed": 3,
    }  # fmt: skip
    assert VARIANTS["bf16"].config(config, 3, None)["trainer"] == {"plugins": [], "precision": "bf16-mixed"}
    assert VARIANTS["float32"].flag(config, None) == ""
