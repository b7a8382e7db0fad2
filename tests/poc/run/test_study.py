"""The files of a study."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from lowprec_plugin.poc.run.study import load_runs, load_study, run_file, save

FORMER = Path(__file__).parent.parent / "fixtures" / "0.1.0"


def test_what_an_earlier_version_wrote_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Byte for byte: a study that was begun then goes on now."""
    study = load_study(FORMER)
    runs = load_runs(FORMER, study)
    assert [(run.variant, run.status) for run in runs] == [
        ("float32", "finished"), ("float32 twin", "finished"), ("12 with ramp", "finished"), ("16", "failed"),
    ]  # fmt: skip
    assert (study.seeds, study.tolerance, runs[2].widened[0]["step"]) == ([0, 1], "2%", 400)
    save(tmp_path / "poc.json", study)
    assert (tmp_path / "poc.json").read_bytes() == (FORMER / "poc.json").read_bytes()
    for run in runs:
        save(run_file(tmp_path, run.variant, run.seed), run)
        former = run_file(FORMER, run.variant, run.seed)
        assert run_file(tmp_path, run.variant, run.seed).read_bytes() == former.read_bytes()


@pytest.mark.parametrize("change", [{"version": 2}, {"metric": None, "version": 1, "colour": "red"}])
def test_what_is_not_a_study_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    content = {"version": 1, **asdict(load_study(FORMER)), **change}
    (tmp_path / "poc.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"poc\.json is not a study file .*: give another output folder"):
        load_study(tmp_path)
