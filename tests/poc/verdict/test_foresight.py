"""What is told before the runs have ended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lowprec_plugin.poc.run.study import load_study
from lowprec_plugin.poc.verdict.noise import blind
from tests.poc.staged import float32, folder, record


def test_noise_that_hides_what_counts_as_equal_is_told_after_two_twins(tmp_path: Path) -> None:
    study = replace(load_study(folder(tmp_path, float32())), seeds=list(range(4)))
    ends = {"float32": (0.90, 0.91, 0.90), "float32 twin": (0.91, 0.90, 0.92)}
    runs = [record(name, seed, value) for name, values in ends.items() for seed, value in enumerate(values)]

    def told(ended: int, **changes: object) -> str:
        return blind(replace(study, **changes), [run for run in runs if run.seed < ended])  # type: ignore[arg-type]

    assert told(2) == (
        "float32 and its twin end 1 points apart in val_accuracy: 4 seeds cannot show differences below 1 points, "
        "where up to 0.27 points count as equal. Use a steadier metric, more --seeds or a larger --tolerance"
    )
    assert told(1) == told(3) == "", "once, and not by one pair"
    assert "where you allow 0.91 points" in told(2, tolerance="1%")
    assert told(2, tolerance="2%") == told(2, seeds=list(range(400))) == ""
    assert told(2, seeds=[0, 1]) == "", "there is no verdict then"
    assert blind(study, [run for run in float32() if run.seed < 2]) == "", "there the noise is small"
