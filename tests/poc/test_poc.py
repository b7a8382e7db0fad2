"""The proof of concept, from the command line to its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lowprec_plugin.cli.main import main
from lowprec_plugin.poc import VARIANTS, run_poc
from lowprec_plugin.poc.report import table
from lowprec_plugin.tasks import MLP
from lowprec_plugin.trainings import perturb_last_bit_


def test_every_variant_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One short run of each: the bytes are what the formats say, and the table's figures are those of the runs."""
    status = main(["poc", "--seeds", "1", "--epochs", "1", "--output", str(tmp_path), "--progress", "false"])
    assert status == 0
    runs = {run["variant"]: run for run in json.loads((tmp_path / "runs.json").read_text())["runs"]}
    assert list(runs) == list(VARIANTS)
    expected = {"float32": 12.0, "16": 6.04, "16/8": 4.04, "<2,10>": 6.02}
    for name, figure in expected.items():
        assert runs[name]["bytes_per_parameter"] == pytest.approx(figure, abs=0.01)
    text = (tmp_path / "table.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()]
    for name, run in runs.items():
        (cells,) = [cells for cells in rows if cells[1:2] == [name]]
        assert cells[2] == f"{run['bytes_per_parameter']:.2f}"
        assert cells[3] == f"{100 * run['test_accuracy']:.2f} %"
    assert text.splitlines()[0] in capsys.readouterr().out


def test_runs_repeat(tmp_path: Path) -> None:
    results = [run_poc(variants=["16"], seeds=1, epochs=1, output=str(tmp_path), progress=False)[-1] for _ in range(2)]
    assert results[0].test_loss == results[1].test_loss


def test_the_twin_starts_one_last_bit_away() -> None:
    torch.manual_seed(0)
    one, other = MLP(), MLP()
    other.load_state_dict(one.state_dict())
    perturb_last_bit_(other)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert (a != b).all()
        torch.testing.assert_close(a, b, rtol=2e-7, atol=1e-44)


def run(variant: str, seed: int, accuracy: float) -> dict[str, Any]:
    return {
        "variant": variant, "seed": seed, "test_accuracy": accuracy, "test_loss": 1 - accuracy,
        "bytes_per_parameter": 4.0, "step_ms": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("accuracies", "verdict"),
    [([0.971, 0.969, 0.97, 0.97], "yes"), ([0.95] * 4, "no, worse"), ([0.99] * 4, "no, better")],
)
def test_verdicts(accuracies: list[float], verdict: str) -> None:
    runs = [run("float32", seed, 0.97) for seed in range(4)]
    runs += [run("float32 twin", seed, 0.97 + 0.001 * (-1) ** seed) for seed in range(4)]
    runs += [run("16", seed, accuracy) for seed, accuracy in enumerate(accuracies)]
    assert f"| {verdict} " in table(runs).splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variants", '["32"]'], "no variant '32'"),
        (["--seeds", "0"], "seeds=0"),
        (["--epochs", "0"], "epochs=0"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["poc", *arguments]) == 2
    assert message in capsys.readouterr().err
