"""The report in Weights & Biases: the real client, offline, and what it left on disk."""

from __future__ import annotations

import builtins
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lowprec_plugin.cli.main import main
from lowprec_plugin.poc.report.command import FILES, write
from lowprec_plugin.poc.report.wandb_report import publish
from tests.monitoring.wandb_file import read, records
from tests.poc import staged


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    wandb = pytest.importorskip("wandb")
    settings = {"MODE": "offline", "SILENT": "true", "ERROR_REPORTING": "false", "DIR": str(tmp_path / "runs")}
    for name in ("DATA_DIR", "CACHE_DIR", "CONFIG_DIR"):
        settings[name] = str(tmp_path / "wandb")
    for name, value in settings.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    for name in ("API_KEY", "PROJECT"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    (tmp_path / "runs").mkdir()
    yield wandb
    wandb.finish()
    wandb.teardown()  # it keeps the folder of the first run of a process


def test_the_report_is_logged_to_a_run(offline: Any, tmp_path: Path) -> None:
    folder = staged.folder(tmp_path / "poc", staged.full())
    write(folder)
    report = json.loads((folder / "report.json").read_text())
    publish(folder, "poc")
    offline.teardown()  # only then is everything in the file
    found = read(tmp_path / "runs")
    assert found.summary["lowprec/verdict"] == report["verdict"]["headline"]
    (logged,) = found.history
    (files,) = (tmp_path / "runs").glob("wandb/offline-run-*/files")
    table = json.loads((files / logged["lowprec/poc/path"]).read_text())
    rows = {row[0]: dict(zip(table["columns"], row, strict=True)) for row in table["data"]}
    figures = report["variants"]["16/8"]["figures"]
    assert rows["16/8-bit"]["val_accuracy"] == figures["metric/mean"]["value"]
    assert rows["16/8-bit"]["bytes held"] == figures["held/total"]["value"]
    assert rows["12-bit stochastic"]["verdict"] == "worse"
    assert "within seed noise" in (files / logged["lowprec/report/path"]).read_text()
    (artifact,) = [each.artifact for each in records(tmp_path / "runs") if each.artifact.name == "lowprec-poc"]
    assert artifact.type == "report"
    assert json.loads(artifact.metadata)["verdict"] == report["verdict"]["headline"]
    for entry in artifact.manifest.contents:
        assert Path(entry.local_path).read_bytes() == (folder / entry.path).read_bytes()
    assert {entry.path for entry in artifact.manifest.contents} == set(FILES)


def test_the_command_makes_a_run_of_its_own(offline: Any, tmp_path: Path) -> None:
    folder = staged.folder(tmp_path / "poc", staged.full())
    assert main(["poc", "report", str(folder), "--wandb=trial"]) == 0
    offline.teardown()
    assert "16/8-bit" in read(tmp_path / "runs").summary["lowprec/verdict"]


def test_without_wandb_it_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = staged.folder(tmp_path / "poc", staged.full())
    usual = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "wandb":
            raise ImportError(name)
        return usual(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["poc", "report", str(folder), "--wandb=trial"]) == 2
    assert 'pip install "lowprec-plugin[wandb]"' in capsys.readouterr().err
    assert (folder / "report.html").exists(), "the report itself needs no wandb"
