"""Several processes: bytes are those of the process that has most, counts are summed."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.strategies import ModelParallelStrategy

from lowprec_plugin import FixedPointMonitor, FixedPointPrecision, memory
from lowprec_plugin.monitoring.figures import GIB, MIB
from tests.comm import ranks
from tests.monitoring.test_monitor import Recorder
from tests.plugin import users
from tests.plugin.test_model_parallel import Sharded

#: Bytes that the second process alone takes for a moment.
ONLY_ON_ONE = 4 * MIB


class Own(Callback):
    """What this process holds by itself, at the last batch."""

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if trainer.global_rank == 1:
            torch.ones(ONLY_ON_ONE // 4)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.gradients = memory.report(pl_module, []).gradients

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        report = memory.report(pl_module, trainer.optimizers)
        own = {"weights": report.weights, "state": report.state, "gradients": self.gradients}
        counts = list(trainer.optimizers[0].fixed_point.counts.values())
        self.found = own | {
            "held": sum(own.values()), "wire": trainer.precision_plugin.wire.report(),
            "counts": [sum(column) for column in zip(*counts, strict=True)],
        }  # fmt: skip


def _fit(rank: int, sharded: bool) -> dict[str, Any]:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0",
        "MASTER_ADDR": "localhost", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "test", "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    seed_everything(0)
    own, monitor, recorder = Own(), FixedPointMonitor(3), Recorder()
    module = Sharded() if sharded else users.Regressor()
    trainer = Trainer(
        accelerator="cpu", devices=2, max_epochs=2, logger=recorder, callbacks=[monitor, own],
        plugins=FixedPointPrecision(state_word_length=8), strategy=ModelParallelStrategy(2, 1) if sharded else "ddp",
        enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, users.vectors())
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("lowprec/")}
    return {
        "own": own.found, "metrics": metrics, "logged": recorder.ours, "rows": monitor.layers(),
        "elements": sum(param.numel() for param in module.parameters()),
    }  # fmt: skip


@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp2"])
def test_two_processes(sharded: bool) -> None:
    found = ranks.run(2, _fit, sharded)
    owns = [each["own"] for each in found]
    metrics = found[0]["metrics"]
    assert metrics == found[1]["metrics"]
    for name in ("weights", "state", "gradients", "held"):
        most = max(own[name] for own in owns)
        assert metrics[f"lowprec/{name}_gib"] * GIB == pytest.approx(most, rel=1e-6), name
    assert ONLY_ON_ONE < metrics["lowprec/peak_gib"] * GIB < 1.02 * ONLY_ON_ONE
    assert metrics["lowprec/peak_temporaries"] > 0.9
    assert (owns[0]["weights"] > owns[1]["weights"]) == sharded  # a bias of one element, on the first alone
    assert metrics["lowprec/predicted_gib"] * GIB == pytest.approx(max(own["held"] for own in owns), rel=1e-6)
    counts = [sum(column) for column in zip(*(own["counts"] for own in owns), strict=True)]
    assert counts[0] == (1 if sharded else 2) * found[0]["elements"]
    assert metrics["lowprec/lost"] == pytest.approx(counts[2] / counts[1])
    assert metrics["lowprec/noise_to_update"] == pytest.approx((counts[6] / counts[5]) ** 0.5)
    wires = [own["wire"] for own in owns]
    sent = [wire["bytes_sent_per_step"] + wire.get("weight_bytes_sent_per_step", 0) for wire in wires]
    assert metrics["lowprec/sent_mib"] * MIB == pytest.approx(max(sent), rel=1e-6)
    assert metrics["lowprec/float32_sent_mib"] > metrics["lowprec/sent_mib"] > 0
    for row, other in zip(found[0]["rows"], found[1]["rows"], strict=True):
        assert (row.name, row.lost, row.noise_to_update) == (other.name, other.lost, other.noise_to_update)
    # Only the first process logs, as Lightning has it, and at the steps at which all looked.
    assert [step for step, _ in found[0]["logged"]] == [0, 3]
