"""The benchmark runs and its ratios are those of its times. How fast it is, is for docs/results to say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lowprec import main
from lowprec_plugin.bench import allreduce, emulation
from lowprec_plugin.bench import run as bench
from lowprec_plugin.bench.models import Transformer
from tests.comm import ranks


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


@pytest.mark.parametrize("installed", [False, True])
def test_emulation_is_timed_beside_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], installed: bool
) -> None:
    def qpytorch(batch: emulation.Batch, rounding: str) -> Callable[[], None]:
        if not installed:
            raise ImportError("No module named 'qtorch'")
        return lambda: None

    monkeypatch.setattr(emulation, "_qpytorch", qpytorch)
    path, threads = tmp_path / "emulation.json", torch.get_num_threads()
    assert main(["bench", "emulation", "--rounds=1", "--batch_size=4", "--threads=1", f"--output={path}"]) == 0
    assert torch.get_num_threads() == threads
    record = json.loads(path.read_text())
    expected = {f"{rounding}, sums {sums}" for rounding in ("stochastic", "nearest") for sums in ("float32", "exact")}
    others = {"QPyTorch, stochastic", "QPyTorch, nearest"} if installed else set()
    assert set(record["steps"]) == {"float32"} | expected | others
    assert ("missing" in record) != installed
    assert ("QPyTorch is not measured: No module named 'qtorch'" in capsys.readouterr().out) != installed


def _small(rank: int, path: str) -> None:
    allreduce.Transformer = lambda: Transformer(24, 1, 2)  # type: ignore[assignment,misc]
    allreduce._measure(1.0, 4, True, path)


def test_all_reduce_is_measured_by_every_process(tmp_path: Path) -> None:
    path = tmp_path / "allreduce.json"
    ranks.run(2, _small, str(path), over=True)
    record = json.loads(path.read_text())
    assert record["processes"] == 2
    for table in ("all_reduce", "step"):
        sides = record[table]
        assert {"float32", "fp16_compress_hook", "lowprec 16", "lowprec 8"} <= set(sides)
    # Other traffic of this machine is in the operating system's count: a bound with room, and not for so small a step.
    assert record["all_reduce"]["lowprec 8"]["MiB_sent"] < 0.6 * record["all_reduce"]["float32"]["MiB_sent"]


def _uncounted(rank: int, path: str) -> tuple[bool, list[float]]:
    allreduce._bytes_sent = lambda: 0  # type: ignore[assignment]
    inputs, finite = [], []
    sides = allreduce.collectives

    def watched(gradient: torch.Tensor) -> dict[str, allreduce.Side]:
        def watch(side: allreduce.Side) -> allreduce.Side:
            def run(index: int) -> None:
                inputs.append(float(gradient.double().sum()))
                side(index)
                finite.append(bool(gradient.isfinite().all()))

            return run

        return {name: watch(side) for name, side in sides(gradient).items()}

    allreduce.collectives = watched
    allreduce._measure(0.01, 20, False, path)
    return all(finite), sorted(set(inputs))


def test_every_round_begins_with_the_same_gradient_and_needs_no_count(tmp_path: Path) -> None:
    path = tmp_path / "allreduce.json"
    for finite, inputs in ranks.run(2, _uncounted, str(path), over=True):
        assert finite
        assert len(inputs) == 1
    assert json.loads(path.read_text())["all_reduce"]["lowprec 8"]["of_float32"] is None
