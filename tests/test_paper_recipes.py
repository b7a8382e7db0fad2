"""The paper's tables: which runs are made, and what becomes of them, from a file that is not complete as well."""

from __future__ import annotations

import csv
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call a recipe as its command line does."""
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))

    def called(name: str, *arguments: object) -> ModuleType:
        module = importlib.import_module(name)
        if name == "paper_table":
            module.write([Path(str(each)) for each in arguments])
        else:
            monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
            module.main()
        return module

    return called


def written(path: Path, errors: dict[tuple[str, int], list[float]]) -> Path:
    runs = [
        {"table": "mnist_fc", "row": row, "seed": seed, "epochs": len(curve), "test_error": curve[-1], "errors": curve,
         "train_losses": curve}
        for (row, seed), curve in errors.items()
    ]  # fmt: skip
    path.write_text("".join(json.dumps(run) + "\n" for run in runs))
    return path


def test_the_table_says_what_the_runs_give(recipe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    errors = {("nearest_8", 0): [9.0, 4.0], ("stochastic_14", 0): [3.0]}  # of which the last is a pilot
    for seed in range(4):
        last = 1.4 + 0.02 * seed
        errors |= {("float32", seed): [3.0, last], ("float32 twin", seed): [3.0, last + 0.04 * (-1) ** seed]}
        errors |= {("stochastic_10", seed): [3.0, last + 0.01 * (-1) ** seed], ("nearest_10", seed): [3.0, last + 0.3]}
    one = written(tmp_path / "one.jsonl", dict(list(errors.items())[:8]))
    other = written(tmp_path / "other.jsonl", dict(list(errors.items())[8:]))
    recipe("paper_table", one, other)
    said = capsys.readouterr()
    assert said.err == "left out: 1 runs of fewer than 2 epochs\n"
    assert one.with_suffix(".md").read_text() == said.out
    assert one.with_suffix(".png").stat().st_size > 10_000
    with one.with_suffix(".csv").open() as file:
        _, *rows = csv.reader(file)
    # Standard errors by hand: of 1.40, 1.42, 1.44, 1.46; the twins' is 0.04 / 2; nearest's differences are all alike.
    assert rows == [
        ["float32", "4", "1.43", "0.013", "+0.000", "0.020", "0.000", "-", "-", "1.4"],
        ["float32 twin", "4", "1.43", "0.021", "+0.000", "0.020", "0.023", "-", "-", "-"],
        ["stochastic, FL 10", "4", "1.43", "0.012", "+0.000", "0.020", "0.006", "yes", "yes", "~1.43"],
        ["nearest, FL 10", "4", "1.73", "0.013", "+0.300", "0.020", "0.000", "no", "no", "~1.75"],
        ["nearest, FL 8", "1", "4.00", "-", "+2.600", "0.040", "-", "too few seeds", "too few seeds", "~3.0"],
    ]


@pytest.mark.parametrize(
    ("errors", "message"),
    [
        ({}, "must hold runs of one table, and at least one"),
        ({("nearest_8", 0): [4.0]}, "no row yet: float32, its twin"),
    ],
)
def test_a_table_without_rows_says_why(recipe: Any, errors: Any, message: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(SystemExit, match=message):
        recipe("paper_table", written(tmp_path / "runs.jsonl", errors))


def test_what_has_been_run_is_not_run_again(recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    done: list[tuple[str, int]] = []

    def run(config: Path, seed: int, twin: bool, options: Any, more: list[str]) -> dict[str, Any]:
        done.append((config.stem + " twin" * twin, seed))
        assert more == ["--model.init_args.lr=0.2"]
        curve = [25.0] * (options.epochs or 120)
        return {"seed": seed, "epochs": len(curve), "test_error": 25.0, "errors": curve, "train_losses": curve}

    monkeypatch.setattr(importlib.import_module("paper"), "run", run)
    arguments = ("--table", "cifar_cnn", "--out", tmp_path / "runs.jsonl", "--model.init_args.lr=0.2")
    rows = ["float32", "float32 twin", "stochastic_14", "stochastic_12", "nearest_14", "nearest_12"]
    recipe("paper", *arguments, "--seeds", 1, "--rows", "float32")
    recipe("paper", *arguments, "--seeds", 2)
    assert done == [(row, seed) for seed in range(2) for row in rows]
    assert "| stochastic, FL 12 | 2 |" in (tmp_path / "runs.md").read_text()
    recipe("paper", *arguments, "--seeds", 1, "--epochs", 2, "--rows", "float32")  # a pilot is another run
    recipe("paper", *arguments, "--seeds", 2)
    assert done[12:] == [("float32", 0)]
