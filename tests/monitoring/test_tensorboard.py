"""The monitor with TensorBoard, whose files are read back by its own reader."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("tensorboard")

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lowprec_plugin import FixedPointMonitor, FixedPointPrecision
from tests.plugin import users

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_scalars_histograms_and_a_table(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monitor, logger = FixedPointMonitor(3, layers=True), TensorBoardLogger(tmp_path)
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=logger, callbacks=[monitor], plugins=FixedPointPrecision(),
        log_every_n_steps=1, enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(users.Regressor(), users.vectors())
    read = EventAccumulator(logger.log_dir).Reload()
    for name, value in trainer.callback_metrics.items():
        if name.startswith("lowprec/"):
            events = read.Scalars(name)
            assert [event.step for event in events] == [0, 3]
            assert events[-1].value == pytest.approx(value.item(), rel=1e-6)
    exponents, lost = read.Histograms("lowprec/exponents")[-1], read.Histograms("lowprec/lost_by_layer")[-1]
    assert sum(exponents.histogram_value.bucket) == exponents.histogram_value.num == 32 + 32 + 1 + 1
    assert sum(lost.histogram_value.bucket) == len(monitor.layers()) == 4
    (table,) = read.Tensors("lowprec/layers/text_summary")
    text = table.tensor_proto.string_val[0].decode()
    assert [line.split(" | ")[0].rstrip() for line in text.splitlines()[2:]] == [
        f"| {row.name}" for row in monitor.layers()
    ]
