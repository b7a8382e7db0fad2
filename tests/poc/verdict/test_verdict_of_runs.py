"""The verdict on trainings that did run, and whose end is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lowprec_plugin.poc import run_poc


def judged(module: str, variants: list[str], steps: int, folder: Path) -> dict[str, Any]:
    """The verdict that the report has on a module of :mod:`.regressions`."""
    run_poc(model=f"tests.poc.regressions.{module}", variants=variants, steps=steps, output=str(folder), progress=False)
    verdict: dict[str, Any] = json.loads((folder / "report.json").read_text())["verdict"]
    return verdict


def test_sixteen_bits_suffice_and_nearest_fails(tmp_path: Path) -> None:
    verdict = judged("Regression", ["16", "<2,10> nearest"], 100, tmp_path)
    assert verdict["headline"].startswith("16-bit stochastic is within seed noise of float32; ")
    even, nearest = verdict["findings"]
    assert even["outcome"] == "equal"
    assert nearest["outcome"] == "worse"
    assert "100 % of its updates were smaller than half a code, which rounding to nearest drops" in nearest["sentence"]


def test_float32_itself_diverges(tmp_path: Path) -> None:
    verdict = judged("Exploding", ["16"], 60, tmp_path)
    assert verdict["caution"].startswith("float32 itself diverged on 4 of 4 seeds")
    assert [finding["outcome"] for finding in verdict["findings"]] == ["no yardstick"]
