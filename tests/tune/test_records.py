"""The record of runs on the disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowprec_plugin.tune.records import Records, Run


def test_a_torn_line_is_cut_off_and_the_whole_ones_are_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full, or a second kill, would take them."""
    path = tmp_path / "runs.jsonl"
    Records(path, {"metric": "loss"}).add(Run(None, 0, value=1.0))
    whole = path.read_text()
    path.write_text(whole + '{"setting": nu')
    monkeypatch.setattr(Path, "write_bytes", lambda *args: pytest.fail("written again"))
    records = Records(path, {"metric": "loss"})
    assert path.read_text() == whole
    records.add(Run(None, 1, value=2.0))
    assert [run.seed for run in Records(path, {"metric": "loss"}).runs.values()] == [0, 1]
