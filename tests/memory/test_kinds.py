"""One way to count: what every tool says of one run, in the printed digits."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lowprec_plugin import FixedPointMonitor, FixedPointPrecision, memory
from lowprec_plugin.memory.kinds import Kinds, Part, side_by_side
from lowprec_plugin.monitoring.watched import watched
from lowprec_plugin.plan import plan
from lowprec_plugin.plan.table import as_text
from lowprec_plugin.telemetry.storage_table import as_text as as_table
from lowprec_plugin.text.numbers import share
from tests.monitoring.test_monitor import Recorder
from tests.plugin import users

#: The plugin's options, ``None`` without one; Lightning's precision; the name of the plan's row.
RUNS: dict[str, tuple[dict[str, Any] | None, Any, str]] = {
    "16/16": ({"word_length": 16}, None, "lowprec 16"),
    "16/8": ({"state_word_length": 8}, None, "lowprec 16/8"),
    "16/8, 8-bit gradients": (
        {"state_word_length": 8, "gradient_word_length": 8}, None, "lowprec 16/8, 8-bit gradients"
    ),
    "bf16 mixed": (None, "bf16-mixed", "bf16 mixed"),
    "float32": (None, None, "float32"),
}  # fmt: skip


class Wide(users.Regressor):
    """With a matrix whose gradients become codes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(12, 600), torch.nn.BatchNorm1d(600), torch.nn.Linear(600, 1))


class Looks(Callback):
    """What the other tools say of the same run."""

    said: dict[str, Any]

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        report = memory.report(pl_module, trainer.optimizers)
        if report.gradients and report.state:
            self.said = {"report": str(report), "table": as_table(watched(trainer).rows)}


def shares(text: str) -> dict[str, str]:
    """Of a printed table: the last column, by the name of the row."""
    rows = re.findall(r"^(weights and state|gradients|buffers|held) .* (\S+ %)$", text, re.MULTILINE)
    return dict(rows)


@pytest.mark.parametrize("run", RUNS)
def test_every_tool_prints_the_same_shares(run: str) -> None:
    options, precision, row = RUNS[run]
    module, recorder, looks = Wide(), Recorder(), Looks()
    given: dict[str, Any] = {"precision": precision} if precision else {}
    if options is not None:
        given["plugins"] = FixedPointPrecision(**options)
    planned = plan(Wide(), **options or {})
    Trainer(
        accelerator="cpu", logger=[recorder], callbacks=[FixedPointMonitor(1), looks], max_epochs=1,
        log_every_n_steps=1, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, **given,
    ).fit(module, users.vectors())  # fmt: skip
    logged = recorder.ours[-1][1]
    monitor = {
        "weights and state": share(logged["weights_and_state_share"]),
        "gradients": share(logged["gradients_share"]), "held": share(logged["held_share"]),
    }  # fmt: skip
    report = shares(looks.said["report"])
    assert {name: report[name] for name in monitor} == monitor
    amounts = next(each for each in (planned.ours, *planned.others) if each.name == row)
    assert {name: part.text for name, part in side_by_side(amounts.kinds, planned.float32.kinds).items()} == report
    last = re.search(r"of float32's bytes: (.*)$", looks.said["table"], re.MULTILINE)
    assert last is not None
    assert last.group(1) == ", ".join(f"{name} {text}" for name, text in report.items())
    printed = next(line for line in as_text(planned).splitlines() if line.startswith(f"{row}  ") and "%" in line)
    assert re.findall(r"\S+ %", printed)[:-1] == list(report.values())  # the last is of all at most
    if run in ("float32", "bf16 mixed"):
        assert set(report.values()) == {"100 %"}


def test_parts_of_which_there_is_nothing_are_left_out() -> None:
    found = side_by_side(Kinds(2, 1, 0), Kinds(4, 4, 0))
    assert found == {"weights and state": Part("weights and state", 3, 8), "held": Part("held", 3, 8)}
    assert Part("gradients", 0, 0).text == "-"


def test_a_report_is_printed_in_units_that_fit() -> None:
    module = torch.nn.Linear(512, 512)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 512)).sum().backward()
    optimizer.step()
    printed = str(memory.report(module, optimizer)).splitlines()
    assert printed[0].split() == ["held", "float32", "of", "float32"]
    assert re.fullmatch(r"weights and state +3\.01 MiB +3\.01 MiB +100 %", printed[1])
    assert re.fullmatch(r"gradients +1\.00 MiB +1\.00 MiB +100 %", printed[2])
    assert re.fullmatch(r"held +4\.01 MiB +4\.01 MiB +100 %", printed[3])
