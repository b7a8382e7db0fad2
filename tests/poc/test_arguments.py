"""What the command takes and tells, before the runs and between them."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tqdm.std import tqdm

from lowprec_plugin.cli.main import main
from lowprec_plugin.poc.run import worker
from lowprec_plugin.poc.run.study import RunRecord, load_study, save
from tests.poc.staged import record
from tests.poc.users import USERS, Sorter

pytestmark = pytest.mark.usefixtures("no_command_line")


def staged(order: worker.Order, *_: Any) -> RunRecord:
    """In place of a run: a record that is made up."""
    made = record(order.variant, order.seed, metrics={"val_acc": 0.9})
    order.folder.mkdir(parents=True)
    save(order.folder / "run.json", made)
    return made


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variants=[32]"], "variants='32' is not one of"),
        (["--variants=16,<2,11>"], "variants='<2,11>' is not one of"),
        (["--seeds=0"], "seeds=0"),
        (["--epochs=0"], "epochs=0"),
        (["--steps=-1"], "steps=-1"),
        (["--devices=0"], "devices=0"),
        (["--price=-2"], "price=-2"),
        ([f"--output={__file__}"], "is a file: give a folder"),
        (["--task=imagenet"], "task"),
        (["--mode=best"], "mode"),
        (["--data=tests.poc.users.Clouds"], "needs a module to train"),
        (["--config=nowhere.yaml"], "nowhere.yaml"),
        ([*USERS], "no end of a run is given: --epochs, --steps, or max_epochs or max_steps in the configuration"),
        ([*USERS, "--steps=2", "--metric=val_loss"], "metric='val_loss' is not logged while fitting or testing; the "
         "module logs test_acc, train_loss, val_acc"),
        (["--model=tests.poc.users.Line", "--steps=2", "--metric=val_size"], "give --mode=max or --mode=min"),
        (["--model=tests.poc.users.Silent", "--steps=2"], "no validation or test logs an accuracy or a loss"),
        (["--model=tests.poc.users.Nobody", "--steps=2"], "Nobody"),
        (["--model=tests.poc.users.Sorter", "--steps=2"], "users.Sorter' has no train_dataloader: give the data to "
         "train on, --data=package.DataModule, or data: in the configuration"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused_before_anything_is_run(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(["poc", *arguments])
    except SystemExit as exit_:  # what the command's parser refuses
        status = exit_.code  # type: ignore[assignment]
    assert status == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "lowprec_poc").exists()


def test_nothing_is_drawn_where_nobody_looks(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Standard error is no terminal here."""
    assert main(["poc", *USERS, "--steps=3", "--seeds=1", "--variants=[16]", "--output=poc"]) == 0
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("variants", "names"),
    [("16", ["16"]), ("16/8, <2,10> nearest,12", ["16/8", "<2,10> nearest", "12"]), ("[16, 12]", ["16", "12"])],
)
def test_variants_by_name(variants: str, names: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With commas between them, or as a list."""
    monkeypatch.setattr("lowprec_plugin.poc.command.train", staged)
    arguments = ["poc", *USERS, "--steps=2", "--seeds=1", "--metric=val_acc", "--output=poc"]
    assert main([*arguments, f"--variants={variants}"]) == 0
    assert list(load_study(tmp_path / "poc").variants) == ["float32", "float32 twin", *names]


def test_what_is_told_without_a_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The study, what it leaves out and how many runs there are; then a line for each as it ends, with what is left."""
    monkeypatch.setattr(Sorter, "fail", 12)
    arguments = ["poc", *USERS, "--steps=4", "--variants=12,16,8-bit wire", "--seeds=1", "--output=poc",
                 "--progress=false"]  # fmt: skip
    assert main(arguments) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].endswith("users.Clouds, 4 steps: val_acc, chosen from what validation logs (val_acc)")
    assert told[1] == "8-bit wire is left out: one process sends nothing; use --devices 2 or more"
    assert told[2] == "4 runs (4 variants, 1 seed) of 4 steps"
    of_runs = ["1 of 4: float32, seed 0: val_acc 0", "2 of 4: float32 twin, seed 0: val_acc 0",
               "3 of 4: 12, seed 0: failed: RuntimeError: no", "4 of 4: 16, seed 0: val_acc 0"]  # fmt: skip
    for line, expected in zip(told[3:7], of_runs, strict=True):
        assert line.startswith(expected)
        assert re.search(r", \d+\.\d s$" if line == told[6] else r", \d+\.\d s, about \d+ s left$", line)
    assert told[7] == ""
    monkeypatch.setattr(Sorter, "fail", 0)
    assert main(arguments) == 0
    again = capsys.readouterr().out.splitlines()
    assert again[:3] == [*told[:2], "4 runs (4 variants, 1 seed) of 4 steps; 3 are there already"]
    assert again[3].startswith("4 of 4: 12, seed 0: val_acc 0")
    assert again[4] == ""


def test_what_is_left_is_the_mean_of_the_runs_that_this_command_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of others nobody knows on what machine, and how busy, they were made. The default's runs could be fewer."""

    def timed(order: worker.Order, *_: Any) -> RunRecord:
        made = replace(staged(order), seconds={"float32": 100.0, "float32 twin": 200.0}.get(order.variant, 3000.0))
        save(order.folder / "run.json", made)
        return made

    monkeypatch.setattr("lowprec_plugin.poc.command.train", timed)
    arguments = ["poc", *USERS, "--steps=2", "--output=poc", "--progress=false"]
    assert main([*arguments, "--variants=16", "--seeds=1"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[1] == "3 runs (3 variants, 1 seed) of 2 steps"
    assert [line.rpartition(" s, ")[2] for line in told[2:4]] == ["about 3 min left", "about 2 min left"]
    assert main([*arguments, "--seeds=2"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[2] == "18 runs (9 variants, 2 seeds) of 2 steps; 3 are there already; --variants 16,16/8 would be 8"
    assert told[3].startswith("4 of 18: bf16, seed 0: ")
    assert told[3].endswith(" 3000.0 s, about 11.7 hours left")
    assert main([*arguments, "--seeds=2", "--variants=16,16/8"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "8 runs (4 variants, 2 seeds) of 2 steps; 8 are there already"


def test_the_bar_tells_the_step_of_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the first run has ended nothing else says how long it may take."""
    said = []
    monkeypatch.setattr(tqdm, "set_postfix", lambda bar, **told: said.append(told))
    assert main(["poc", *USERS, "--steps=2", "--variants=16", "--seeds=1", "--output=poc", "--progress=false"]) == 0
    assert {"epoch": 1, "step": "1/2"} in said


def test_runs_that_are_there_cost_the_bar_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins where they end, so that the time that is left is that of runs that are made now."""
    bars = []

    class Bar(tqdm):  # type: ignore[type-arg]
        def __init__(self, **given: Any) -> None:
            super().__init__(**{**given, "disable": False, "file": io.StringIO()})
            bars.append(self)

    monkeypatch.setattr("lowprec_plugin.poc.command.tqdm", Bar)
    monkeypatch.setattr("lowprec_plugin.poc.command.train", staged)
    arguments = ["poc", *USERS, "--steps=2", "--variants=16", "--output=poc"]
    assert main([*arguments, "--seeds=1"]) == 0
    assert main([*arguments, "--seeds=3"]) == 0
    assert [(bar.initial, bar.n, bar.total) for bar in bars] == [(0, 3, 3), (3, 9, 9)]
