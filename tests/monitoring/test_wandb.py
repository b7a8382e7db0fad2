"""The monitor with the real Weights & Biases client, offline: the run's file, read back."""

from __future__ import annotations

import importlib
import json
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers import wandb as lightning_wandb
from lightning.pytorch.utilities import rank_zero_only
from lightning_utilities.core.imports import RequirementCache

from lowprec_plugin import FixedPointMonitor, FixedPointPrecision
from lowprec_plugin.memory.timeline import KINDS
from lowprec_plugin.monitoring import panels
from tests.monitoring.wandb_file import WandbRun, read
from tests.plugin import users

ROOT = Path(__file__).parent.parent.parent


#: Of a run in one process, with activations in float.
SCALARS = (
    "weights_gib", "state_gib", "gradients_gib", "buffers_gib", "held_gib", "float32_gib", "bf16_mixed_gib",
    "predicted_gib", "weights_and_state_share", "gradients_share", "held_share", "saved_fraction", "peak_gib",
    "word_length", "kept_in_float", "saturated", "lost", "unchanged", "noise_to_update", "exponent_spread",
    "skipped_steps", *(f"peak_{kind}" for kind in KINDS),
)  # fmt: skip


class Counting(threading.Thread):
    """Where the client would call: counts who connects."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.connections = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def run(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            connection.close()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    wandb = pytest.importorskip("wandb")
    server = Counting()
    server.start()
    for name, value in {
        "WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_BASE_URL": server.url, "WANDB_ERROR_REPORTING": "false",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    for name in ("WANDB_API_KEY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    yield server
    wandb.teardown()
    server.close()


def finished(folder: Path) -> WandbRun:
    import wandb

    wandb.finish()
    wandb.teardown()  # its service writes the end of the file when it stops
    return read(folder)


def fit(logger: Any, *, plugin: Any = None, module: Any = None, **given: Any) -> tuple[Trainer, FixedPointMonitor]:
    monitor = FixedPointMonitor(**given)
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, logger=logger, callbacks=[monitor], plugins=plugin, log_every_n_steps=1,
        enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module or users.Regressor(), users.vectors())
    return trainer, monitor


def ours(run: WandbRun) -> list[dict[str, Any]]:
    return [line for line in run.history if "lowprec/held_gib" in line]


class Recorder(WandbLogger):
    """Notes what it is asked to log."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.logged: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if "lowprec/held_gib" in metrics:
            self.logged.append((step, dict(metrics)))
        super().log_metrics(metrics, step)


def test_the_transformer(home: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every panel's values are in the file as they were logged, the summary says what is saved, nobody is called."""
    monkeypatch.syspath_prepend(ROOT / "recipes")
    from watch_transformer import watch

    logger = Recorder(project="lowprec", save_dir=tmp_path, offline=True)
    trainer, monitor = watch(4, logger, every_n_steps=2, state_word_length=8)
    run = finished(tmp_path)
    assert [step for step, _ in logger.logged] == [0, 2]
    assert [line["trainer/global_step"] for line in ours(run)] == [0, 2]
    for (_, logged), line in zip(logger.logged, ours(run), strict=True):
        assert set(logged) == {f"lowprec/{name}" for name in SCALARS}
        assert {name: line[name] for name in logged} == logged
    last = logger.logged[-1][1]
    assert {name: value for name, value in last.items() if name != "lowprec/peak_gib"} == pytest.approx(
        {name: trainer.callback_metrics[name].item() for name in last if name != "lowprec/peak_gib"}, rel=1e-6
    )
    for name, value in last.items():
        largest = max(logged[name] for _, logged in logger.logged)
        wanted: Any = {"max": largest} if name in ("lowprec/held_gib", "lowprec/peak_gib") else value
        assert run.summary[name] == wanted, name
    saved = last["lowprec/float32_gib"] - last["lowprec/held_gib"]
    assert run.summary["lowprec/saved_gib"] == saved
    assert run.summary["memory saved"] == (
        f"{saved:.4g} GiB of {last['lowprec/float32_gib']:.4g} GiB ({last['lowprec/saved_fraction']:.1%})"
    )
    assert last["lowprec/predicted_gib"] == pytest.approx(last["lowprec/held_gib"], rel=1e-9)
    for name in ("lowprec/*", "lowprec/held_gib", "lowprec/peak_gib"):
        assert run.metrics[name]["step"] == "trainer/global_step"
    layers(run, tmp_path, monitor)
    assert home.connections == 0


def layers(run: WandbRun, folder: Path, monitor: FixedPointMonitor) -> None:
    """Three histograms a look and one table, whatever the number of layers."""
    rows = monitor.layers()
    shown = [line for line in run.history if any(name.startswith("lowprec/exponents") for name in line)]
    assert [line["trainer/global_step"] for line in shown] == [0, 2]
    assert sum(shown[-1]["lowprec/lost_by_layer/values"]) == len(rows)
    assert sum(shown[-1]["lowprec/saturated_by_layer/values"]) == len(rows)
    assert sum(shown[-1]["lowprec/exponents/values"]) > len(rows)
    (file,) = folder.rglob("*.table.json")
    table = json.loads(file.read_text())
    assert table["columns"] == list(vars(rows[0]))
    assert table["data"] == [list(vars(row).values()) for row in rows]


def test_the_configuration_says_what_is_stored_how(home: Counting, tmp_path: Path) -> None:
    plugin = FixedPointPrecision(12, state_word_length=8, keep_float="net.2.*", seed=3)
    fit(WandbLogger(save_dir=tmp_path), plugin=plugin)
    said = finished(tmp_path).config["lowprec"]
    assert said["precision"] == "32-true"
    assert said["weights"] == "fixed12"
    numbers = {"seed": 3, "state_word_length": 8, "state_fraction_length": None, "emulation": None}
    assert {name: said[name] for name in numbers} == numbers  # to sort and filter runs by
    assert "counts" not in said
    assert said["kept_in_float"] == dict.fromkeys(["net.2.weight", "net.2.bias"], "keep_float='net.2.*'")
    assert [row["weights"] for row in said["table"]] == ["fixed12", "float32"]
    assert home.connections == 0


def test_a_run_that_does_not_come_to_its_end_has_saved_memory_too(home: Counting, tmp_path: Path) -> None:
    class Fails(users.Regressor):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.global_step == 1:
                raise RuntimeError("nothing goes on for ever")
            return super().training_step(batch, batch_idx)

    with pytest.raises(RuntimeError, match="for ever"):
        fit(WandbLogger(save_dir=tmp_path), plugin=FixedPointPrecision(), module=Fails())
    run = finished(tmp_path)
    (line,) = ours(run)
    assert run.summary["memory saved"].endswith(f"({line['lowprec/saved_fraction']:.1%})")
    assert run.summary["lowprec/saved_gib"] == line["lowprec/float32_gib"] - line["lowprec/held_gib"]


def test_a_prefix_is_the_loggers_own(home: Counting, tmp_path: Path) -> None:
    fit(WandbLogger(save_dir=tmp_path, prefix="mine"), plugin=FixedPointPrecision())
    run = finished(tmp_path)
    assert "mine-lowprec/held_gib" in run.history[0]
    assert "max" in run.summary["mine-lowprec/held_gib"]
    assert "mine-lowprec/saved_gib" in run.summary
    assert run.metrics["mine-lowprec/*"]["step"] == "trainer/global_step"


def test_of_several_processes_the_first_alone_has_a_summary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    panels.saved([WandbLogger(save_dir=tmp_path)], {"lowprec/held_gib": 1.0, "lowprec/float32_gib": 2.0})
    assert not list(tmp_path.iterdir()), "and no run was begun"


def test_without_layers_there_are_scalars_alone(home: Counting, tmp_path: Path) -> None:
    _, monitor = fit(WandbLogger(save_dir=tmp_path), plugin=FixedPointPrecision())
    run = finished(tmp_path)
    assert not any("by_layer" in name or "exponents/" in name for line in run.history for name in line)
    assert not list(tmp_path.rglob("*.table.json"))
    assert len(monitor.layers()) == 4


def test_a_float_run_is_recorded_as_such(home: Counting, tmp_path: Path) -> None:
    fit(WandbLogger(save_dir=tmp_path))
    run = finished(tmp_path)
    (row,) = run.config["lowprec"]["table"]
    assert row["weights"] == "float32"
    assert row["nbytes"] == row["float32_nbytes"] == 3 * 4 * row["elements"]  # two moments beside the weights
    assert row["gradient_nbytes"] == row["float32_gradient_nbytes"] == 4 * row["elements"]
    assert run.summary["memory saved"].startswith("0 GiB of ")


def test_without_wandb_the_monitor_works_and_its_logger_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # whatever imports it fails
    importlib.reload(panels)
    monkeypatch.setattr(lightning_wandb, "_WANDB_AVAILABLE", RequirementCache("wandb>=99999"))
    with pytest.raises(ModuleNotFoundError, match="pip install -U 'wandb"):
        WandbLogger()
