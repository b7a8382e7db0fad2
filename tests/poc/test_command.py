"""The proof of concept's runs, from the command line to their files."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml

from lowprec_plugin.cli.main import main
from lowprec_plugin.experiments.making import perturb_last_bit_
from lowprec_plugin.poc import VARIANTS
from lowprec_plugin.poc.command import run_poc
from lowprec_plugin.poc.run.processes import in_one_line
from lowprec_plugin.poc.run.study import RunRecord, load, load_runs, load_study, run_file
from lowprec_plugin.poc.run.variants import DEFAULT
from lowprec_plugin.tasks import MLP
from lowprec_plugin.text.files import alone_in
from tests.poc.users import USERS, Sorter, bits_of

pytestmark = pytest.mark.usefixtures("no_command_line")
ONE_PROCESS = [name for name in DEFAULT if name != "8-bit wire"]


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
        assert run.tested == ["test_acc"]
        assert run.environment["torch"] == torch.__version__
    study = load_study(folder)
    assert (study.metric, study.mode, study.steps) == ("val_acc", "max", 40)
    assert list(study.variants) == ONE_PROCESS
    assert list(study.left_out) == ["8-bit wire"]
    assert "--devices 2" in study.left_out["8-bit wire"]


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
    """Of weights and AdamW's moments, by hand: an exponent for each row, and a row for each number of a bias."""
    numbers = 4 * 32 + 32 + 32 * 3 + 3
    exponents = 32 + 32 + 3 + 3
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
    shares = {name: _share(runs[name, 0]) for name in ("float32", "bf16")}
    assert shares == {"float32": 1, "bf16": 1}  # of all but activations, as lowprec plan and the monitor say


def _share(run: RunRecord) -> float:
    """Of float32's bytes, activations aside."""
    held, floats = (
        {kind: of for kind, of in each.items() if kind != "activations"} for each in (run.held, run.float32)
    )
    return sum(held.values()) / sum(floats.values())


def test_what_autograd_saves(runs: dict[tuple[str, int], RunRecord]) -> None:
    """By hand, for a batch of 15: input, output of the ReLU, dropout's mask and output, log-softmax, labels."""
    float32, bf16 = runs["float32", 0], runs["bf16", 0]
    hidden, logits = 15 * 32, 15 * 3
    least = 4 * 15 * 4 + 4 * hidden + 4 * hidden + 4 * logits
    assert least <= float32.held["activations"] <= least + 4 * hidden + 8 * 15 + 64
    assert 2 * (15 * 4 + hidden + logits) <= bf16.held["activations"] < float32.held["activations"]
    for name in ("16", "12"):
        run = runs[name, 0]
        assert run.held["activations"] == float32.held["activations"]  # and no float copy of a weight
        assert run.float32["activations"] == float32.held["activations"]
        assert (run.bf16["activations"], run.bf16["weights"]) == (bf16.held["activations"], bf16.held["weights"])


def test_curves_are_what_the_logger_wrote(runs: dict[tuple[str, int], RunRecord], folder: Path) -> None:
    for (name, seed), run in runs.items():
        with run_file(folder, name, seed).with_name("metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        for metric in ("train_loss", "val_acc", "lowprec/held_gib", "test_acc"):
            logged = [(int(row["step"]), float(row[metric])) for row in rows if row[metric]]
            assert run.curves[metric] == logged
        assert len(run.curves["train_loss"]) >= 20
        assert len(run.curves["lowprec/held_gib"]) >= 20
        assert run.curves["val_acc"][-1][1] == run.metrics["val_acc"]
        assert run.peak == round(2**30 * max(value for _, value in run.curves["lowprec/peak_gib"]))
        assert run.peak > run.held["weights"]


def test_layers_and_times(runs: dict[tuple[str, int], RunRecord]) -> None:
    names = ["layers.0.weight", "layers.0.bias", "layers.3.weight", "layers.3.bias"]
    for (variant, _), run in runs.items():
        assert [layer.name for layer in run.layers] == names
        held = sum(layer.nbytes for layer in run.layers)
        assert held + 16 == run.held["weights"] + run.held["state"] or VARIANTS[variant].options is None
        assert 0 < run.step_ms["fast"] <= run.step_ms["median"] <= run.step_ms["slow"] < 1e4
        options = VARIANTS[variant].options
        stored = "float32" if options is None else f"fixed{run.curves['lowprec/word_length'][-1][1]:.0f}"
        assert {layer.weights for layer in run.layers} == {stored}
        assert all((layer.lost is not None) == (options is not None) for layer in run.layers)


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


def test_a_ramp_that_fires_is_in_the_record(tmp_path: Path) -> None:
    """Steps far smaller than a code of 12 bits stall at once, and 80 steps are time enough to say so."""
    config = {
        "trainer": {"max_steps": 80, "accelerator": "cpu"},
        "model": {"class_path": "tests.poc.users.Sorter", "init_args": {"lr": 1e-5}},
        "data": {"class_path": "tests.poc.users.Clouds"},
    }
    (tmp_path / "user.yaml").write_text(yaml.safe_dump(config))
    record = run_poc("user.yaml", variants=["12 with ramp"], seeds=1, output="poc", progress=False)[-1]
    assert record.widened[0]["word_length"] == 16
    step, reason = record.widened[0]["step"], record.widened[0]["reason"]
    assert "updates are being lost" in reason
    before = [bits for at, bits in record.curves["lowprec/word_length"] if at < step]
    after = [bits for at, bits in record.curves["lowprec/word_length"] if at > step]
    assert set(before) == {12.0}
    assert min(after) >= 16.0


def test_a_run_that_diverges_is_a_result(tmp_path: Path) -> None:
    config = {
        "trainer": {"max_steps": 30, "accelerator": "cpu"},
        "model": {"class_path": "tests.poc.users.Sorter", "init_args": {"explode": 12}},
        "data": {"class_path": "tests.poc.users.Clouds"},
    }
    (tmp_path / "user.yaml").write_text(yaml.safe_dump(config))
    output = tmp_path / "poc"
    runs = run_poc("user.yaml", variants=["12", "16"], seeds=1, output=str(output), progress=False)
    assert [run.status for run in runs] == ["finished", "finished", "diverged", "finished"]
    assert "layers.0.weight" in runs[2].reason
    assert runs[2].nonfinite == "layers.0.weight"
    assert runs[2].steps == 0
    before = run_file(output, "12", 0).read_bytes()
    run_poc("user.yaml", variants=["12", "16"], seeds=1, output=str(output), progress=False)
    assert run_file(output, "12", 0).read_bytes() == before  # not repeated


def test_float32_that_diverges_says_so(tmp_path: Path) -> None:
    config = {
        "trainer": {"max_steps": 10, "accelerator": "cpu"},
        "model": {"class_path": "tests.poc.users.Line", "init_args": {"lr": 1e12}},
    }
    (tmp_path / "user.yaml").write_text(yaml.safe_dump(config))
    runs = run_poc("user.yaml", variants=[], seeds=1, output=str(tmp_path / "poc"), progress=False)
    assert [(run.status, run.reason) for run in runs] == [("diverged", "the training loss is not finite")] * 2
    assert runs[0].nonfinite is None  # by the end all are
    assert json.loads(run_file(tmp_path / "poc", "float32", 0).read_text())["status"] == "diverged"


def test_a_variant_that_fails_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its reason is on record, the others go on, and given again it alone is repeated."""
    monkeypatch.setattr(Sorter, "fail", 12)
    arguments: dict[str, Any] = {
        "model": "tests.poc.users.Sorter", "data": "tests.poc.users.Clouds", "steps": 4, "seeds": 1,
        "variants": ["12", "16"], "output": str(tmp_path / "poc"), "progress": False,
    }  # fmt: skip
    runs = run_poc(**arguments)
    assert [run.status for run in runs] == ["finished", "finished", "failed", "finished"]
    assert runs[2].reason == "RuntimeError: no 12 bits here,"
    monkeypatch.setattr(Sorter, "fail", 0)
    before = [run_file(tmp_path / "poc", name, 0) for name in ("float32", "16")]
    times = [path.stat().st_mtime_ns for path in before]
    again = run_poc(**arguments)
    assert [run.status for run in again] == ["finished"] * 4
    assert [path.stat().st_mtime_ns for path in before] == times


def test_a_run_is_repeated_where_another_metric_decided_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that diverged for a metric alone that is compared no longer, and one that ended without what now is."""

    class Two(Sorter):
        def validation_step(self, *args: Any) -> None:
            narrow = self.trainer.global_step and bits_of(self.layers[0].weight) == 16
            self.log_dict({"val_f1": 0.5, "val_auc": float("nan") if narrow else 0.5})

    monkeypatch.setattr("tests.poc.users.Two", Two, raising=False)

    def ended(metric: str, output: str) -> tuple[str, str]:
        run = run_poc(
            model="tests.poc.users.Two", data="tests.poc.users.Clouds", steps=2, seeds=1, variants=["16"],
            metric=metric, output=output, progress=False,
        )[-1]  # fmt: skip
        return run.status, run.reason

    diverged = ("diverged", "val_auc is not finite")
    assert ended("val_auc", "one") == diverged
    assert ended("val_f1", "one") == ("finished", "")
    assert ended("val_auc", "one") == diverged


def test_all_runs_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What calls the command learns of it; the report is there all the same."""
    step = Sorter.training_step

    def fails(self: Sorter, batch: Any, batch_idx: int) -> torch.Tensor:
        if batch_idx == 3:  # the rehearsal goes well
            raise RuntimeError("no fourth batch")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Sorter, "training_step", fails)
    options = [*USERS, "--steps=4", "--seeds=1", "--variants=16", f"--output={tmp_path}", "--progress=false"]
    assert main(["poc", *options]) == 2
    expected = "lowprec poc: every run failed; the first with RuntimeError: no fourth batch\n"
    assert capsys.readouterr().err.endswith(expected)
    assert (tmp_path / "report.html").exists()


def test_a_reason_has_an_end() -> None:
    assert in_one_line(KeyError("x" * 5000)) == f"KeyError: '{'x' * 289} …"


def test_killed_in_the_middle(runs: dict[tuple[str, int], RunRecord], tmp_path: Path) -> None:
    """The runs that had ended stay as they were; the one that was at work is made anew, as if nothing had been."""
    arguments = ["poc", *USERS, "--epochs=2", "--seeds=1", "--variants=[16]", "--output=poc", "--progress=false"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "lowprec_plugin.cli.main", *arguments]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    first, second = (run_file(tmp_path / "poc", name, 0).parent for name in ("float32", "float32 twin"))
    try:
        while not second.exists():
            assert process.poll() is None
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert [path.parent for path in (tmp_path / "poc").rglob("run.json")] == [first]
    ended = (first / "run.json").read_bytes()
    assert main(arguments) == 0
    assert (first / "run.json").read_bytes() == ended
    for name in ("float32", "float32 twin", "16"):
        record = load(run_file(tmp_path / "poc", name, 0))
        assert record.curves["train_loss"] == runs[name, 0].curves["train_loss"]
        assert record.metrics == runs[name, 0].metrics


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs=3"], "config.trainer.max_epochs=2, not 3"),
        (["--data=tests.poc.users.Other"], "config.data.class_path='tests.poc.users.Clouds', not"),
        (["--steps=3"], "config.trainer.max_steps=None, not 3"),
    ],
)
def test_a_folder_of_something_else_is_left_alone(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    command = ["poc", *USERS, "--epochs=2", *arguments, f"--output={folder}", "--progress=false"]
    assert main(command) == 2
    assert message in capsys.readouterr().err
    with alone_in(folder):
        assert main(command) == 2
        assert "another process is at work" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_the_twin_starts_one_last_bit_away() -> None:
    torch.manual_seed(0)
    one, other = MLP(), MLP()
    other.load_state_dict(one.state_dict())
    perturb_last_bit_(other)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert (a != b).all()
        torch.testing.assert_close(a, b, rtol=2e-7, atol=1e-44)


def test_the_twin_of_a_module_that_is_made_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """In ``configure_model`` and ``on_train_start``, when the fit has begun: before them there is no weight to move."""

    class Late(Sorter):
        starts: ClassVar[list[torch.Tensor]] = []

        def __init__(self) -> None:
            super().__init__()
            self.layers = None

        def configure_model(self) -> None:
            self.layers = self.layers or torch.nn.Sequential(torch.nn.Linear(4, 3))

        def on_train_start(self) -> None:
            torch.nn.init.ones_(self.layers[0].weight)

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if batch_idx == 0:
                self.starts.append(self.layers[0].weight.detach().clone())

    monkeypatch.setattr("tests.poc.users.Late", Late, raising=False)
    arguments: dict[str, Any] = {"model": "tests.poc.users.Late", "data": "tests.poc.users.Clouds", "steps": 2}
    run_poc(**arguments, variants=[], seeds=1, output="poc", progress=False)
    one, other = Late.starts[-2:]
    assert (one != other).all()
    torch.testing.assert_close(one, other, rtol=2e-7, atol=1e-44)
