"""``tools.faults damage``, ``hostile`` and ``fuzz`` in short, and that they see what they look for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from tools.faulty import damage, damaged_files
from tools.faulty.processes import outcomes_of

ROOT = Path(__file__).parent.parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.faults", *arguments], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip


def test_no_flipped_bit_is_taken_for_a_weight(tmp_path: Path) -> None:
    done = run("damage", "--flips", "24", "--kinds", "weights", "checkpoint", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout
    lines = [json.loads(line) for line in (tmp_path / "damage.jsonl").read_text().splitlines()]
    outcomes = Counter((line["kind"], line["outcome"]) for line in lines)
    assert outcomes["weights", "refused"] > 6
    assert outcomes["checkpoint", "refused"] > 6
    assert outcomes["control", "accepted"] > 0
    assert "| a Lightning checkpoint under the plugin, resumed " in (tmp_path / "damage.md").read_text()


def test_a_file_that_is_not_checked_fails_the_command(tmp_path: Path, monkeypatch: Any) -> None:
    """As if weights carried no digest."""
    monkeypatch.setitem(damaged_files.KINDS, "weights", damaged_files.Floats)
    outcomes = Counter(damage._trial(number, "weights", 0, str(tmp_path))["outcome"] for number in range(60))
    damage._as_written.cache_clear()
    assert outcomes["accepted"] > 0


def test_hostile_tensors_are_refused_or_read_as_they_are() -> None:
    done = run("hostile", "--cases", "60", "--ways", "torch.load(weights_only=True)", "optimizer.load_state_dict")
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("refused") == 2


def test_odd_arguments_and_messages_are_refused_or_taken() -> None:
    done = run("fuzz", "--cases", "200")
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("taken") == 2


def ends_its_process(number: int) -> dict[str, Any]:
    if number == 1:
        os.abort()
    return {"outcome": "well"}


def test_a_trial_that_ends_its_process_is_an_outcome() -> None:
    outcomes = [each["outcome"] for each in outcomes_of(ends_its_process, (), 4)]
    assert outcomes == ["well", "died", "well", "well"]
