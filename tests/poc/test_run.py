"""The proof of concept's runs, from the command line to their files."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from lowprec_plugin.cli.main import main
from lowprec_plugin.poc import VARIANTS
from lowprec_plugin.poc.records import RunRecord
from lowprec_plugin.poc.run import DEFAULT, run_poc
from lowprec_plugin.poc.study import load_runs, load_study, run_folder
from tests.poc.users import Sorter

USERS = ["--model=tests.poc.users.Sorter", "--data=tests.poc.users.Clouds"]
ONE_PROCESS = [name for name in DEFAULT if name != "8-bit wire"]


@pytest.fixture(autouse=True)
def _no_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """LightningCLI warns where it is given arguments beside a command line, here pytest's own."""
    monkeypatch.setattr("sys.argv", ["lowprec"])
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All variants that one process runs, with two seeds, which the tests share."""
    folder = tmp_path_factory.mktemp("poc")
    Sorter.seen.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["lowprec"])
        assert main(["poc", *USERS, "--seeds=2", "--epochs=2", f"--output={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[tuple[str, int], RunRecord]:
    return {(run.variant, run.seed): run for run in load_runs(folder, load_study(folder))}


def test_every_variant_has_its_runs(runs: dict[tuple[str, int], RunRecord], folder: Path) -> None:
    assert list(runs) == [(name, seed) for name in ONE_PROCESS for seed in (0, 1)]
    for run in runs.values():
        assert (run.status, run.reason, run.steps, run.epochs, run.devices) == ("finished", "", 40, 2, 1)
        assert run.examples == 15
        assert {"train_loss", "val_acc", "test_acc"} <= run.metrics.keys()
        assert run.environment["torch"] == torch.__version__
    study = load_study(folder)
    assert (study.metric, study.mode, study.steps) == ("val_acc", "max", 40)
    assert list(study.variants) == ONE_PROCESS
    assert list(study.left_out) == ["8-bit wire"]
    assert "devices=2" in study.left_out["8-bit wire"]


def test_the_same_data_in_the_same_order(folder: Path) -> None:
    """Whatever the variant draws of random numbers; in another order with another seed."""
    whole = [tuple(sums) for sums in Sorter.seen if len(sums) == 40]
    assert len(whole) == 2 * len(ONE_PROCESS)
    first, second = set(whole[: len(ONE_PROCESS)]), set(whole[len(ONE_PROCESS) :])
    assert (len(first), len(second)) == (1, 1)
    assert first != second
    (order,) = first
    assert order[:20] != order[20:40]  # shuffled anew in every epoch


def test_bytes_are_those_of_the_formats(runs: dict[tuple[str, int], RunRecord]) -> None:
    """Of weights and AdamW's moments, by hand: rows of 4 and of 32, so that exponents are many."""
    numbers = 4 * 32 + 32 + 32 * 3 + 3
    exponents = 32 + 1 + 3 + 1  # a row each, and the biases
    steps = 4 * 4  # AdamW's counts
    expected = {
        "float32": (4 * numbers, 8 * numbers + steps), "bf16": (4 * numbers, 8 * numbers + steps),
        "16": (2 * numbers + exponents, 4 * numbers + 2 * exponents + steps),
        "16/8": (2 * numbers + exponents, 2 * numbers + 2 * exponents + steps),
    }  # fmt: skip
    for name, figures in expected.items():
        run = runs[name, 0]
        assert (run.held["weights"], run.held["state"]) == figures
        assert (run.float32["weights"], run.float32["state"]) == expected["float32"]
        assert run.held["gradients"] == 4 * numbers
        assert run.parameters == numbers


def test_what_autograd_saves(runs: dict[tuple[str, int], RunRecord]) -> None:
    """By hand, for a batch of 15: input, output of the ReLU, dropout's mask and output, log-softmax, labels."""
    float32, bf16 = runs["float32", 0], runs["bf16", 0]
    hidden, logits = 15 * 32, 15 * 3
    least = 4 * 15 * 4 + 4 * hidden + 4 * hidden + 4 * logits
    assert least <= float32.held["activations"] <= least + 4 * hidden + 8 * 15 + 64
    assert bf16.held["activations"] < float32.held["activations"]
    for name in ("16", "12"):
        run = runs[name, 0]
        assert run.held["activations"] == float32.held["activations"]  # and no float copy of a weight
        assert run.float32["activations"] == float32.held["activations"]
        assert run.bf16["activations"] == bf16.held["activations"]


def test_curves_are_what_the_logger_wrote(runs: dict[tuple[str, int], RunRecord], folder: Path) -> None:
    for (name, seed), run in runs.items():
        with (run_folder(folder, name, seed) / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        for metric in ("train_loss", "val_acc", "lowprec/held_gib", "test_acc"):
            logged = [(int(row["step"]), float(row[metric])) for row in rows if row[metric]]
            assert run.curves[metric] == logged
        assert len(run.curves["train_loss"]) >= 20
        assert len(run.curves["lowprec/held_gib"]) >= 20
        assert run.curves["val_acc"][-1][1] == run.metrics["val_acc"]
        assert run.peak == round(2**30 * max(value for _, value in run.curves["lowprec/peak_gib"])) > 2**27


def test_layers_and_times(runs: dict[tuple[str, int], RunRecord]) -> None:
    names = ["layers.0.weight", "layers.0.bias", "layers.3.weight", "layers.3.bias"]
    for (variant, _), run in runs.items():
        assert [layer.name for layer in run.layers] == names
        assert sum(layer.nbytes for layer in run.layers) == pytest.approx(
            run.held["weights"] + run.held["state"], abs=16
        )
        assert 0 < run.step_ms["fast"] <= run.step_ms["median"] <= run.step_ms["slow"] < 1e4
        fixed = VARIANTS[variant].options is not None
        assert {layer.weights for layer in run.layers} == (
            {"fixed12" if "12" in variant else "fixed16"} if fixed else {"float32"}
        ) or run.widened
        assert all((layer.lost is not None) == fixed for layer in run.layers)
    assert runs["16 nearest", 0].layers[0].lost is not None


def test_runs_repeat(runs: dict[tuple[str, int], RunRecord], tmp_path: Path) -> None:
    """Bit for bit, in another folder and beside other variants."""
    arguments = {"model": "tests.poc.users.Sorter", "data": "tests.poc.users.Clouds", "epochs": 2, "progress": False}
    again = run_poc(**arguments, variants=["16/8"], seeds=1, output=str(tmp_path / "again"))
    assert [run.variant for run in again] == ["float32", "float32 twin", "16/8"]
    for run in again:
        before = runs[run.variant, 0]
        assert run.metrics == before.metrics
        assert run.curves["train_loss"] == before.curves["train_loss"]
    assert again[0].curves["train_loss"] != again[1].curves["train_loss"]


def test_the_command_in_the_folder_makes_the_same_folder(folder: Path) -> None:
    """Given again, nothing is trained, and nothing changes."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    words = load_study(folder).command.split()
    assert words[:2] == ["lowprec", "poc"]
    seen = len([sums for sums in Sorter.seen if len(sums) > 2])
    assert main([*words[1:], "--progress=false"]) == 0
    assert len([sums for sums in Sorter.seen if len(sums) > 2]) == seen
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_more_seeds_take_up_the_runs_that_are_there(tmp_path: Path) -> None:
    arguments = ["poc", *USERS, "--steps=4", "--variants=[16]", f"--output={tmp_path / 'poc'}", "--progress=false"]
    assert main([*arguments, "--seeds=1"]) == 0
    paths = sorted((tmp_path / "poc").glob("runs/*/run.json"))
    before = {path: path.read_bytes() for path in paths}
    assert len(before) == 3
    assert main([*arguments, "--seeds=2"]) == 0
    assert {path: path.read_bytes() for path in paths} == before
    assert len(list((tmp_path / "poc").glob("runs/*/run.json"))) == 6
