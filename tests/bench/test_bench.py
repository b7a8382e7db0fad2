"""The benchmark runs and its ratios are those of its times. How fast it is, is for docs/results to say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lowprec_plugin.bench import run as bench
from lowprec_plugin.bench.models import Transformer
from lowprec_plugin.cli.main import main


def test_reports_ratios(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench, "Transformer", lambda: Transformer(24, 1, 2))
    path = tmp_path / "bench.json"
    assert main(["bench", "--elements", str(2**20), "--rounds", "1", "--device", "cpu", "--output", str(path)]) == 0
    record = json.loads(path.read_text())
    for table in ("adamw", "transformer"):
        sides = record[table]
        assert set(sides) == {"float32", *bench.SETTINGS}
        for side in sides.values():
            assert side["ratio"] == pytest.approx(side["median"] / sides["float32"]["median"])
    assert "ns per element" in capsys.readouterr().out
