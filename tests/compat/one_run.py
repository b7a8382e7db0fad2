"""Trains once under ``pytorch_lightning`` and prints a digest of the codes; run by test_lightnings.py.

``first`` imports one package before the others: ours, ``lightning`` or ``pytorch_lightning``; ``without`` ours, where
``lightning`` is not installed. The plugin and the monitor are made then, before the rest is imported.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

if __name__ == "__main__":
    first, folder, devices = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if first == "without":
        sys.modules["lightning"] = None  # type: ignore[assignment]
    elif first != "lowprec_plugin":
        importlib.import_module(first)

    from lowprec_plugin import FixedPointMonitor, FixedPointPrecision, WordLengthRamp

    ramp = WordLengthRamp(at={0: 12, 4: 16}, unit="step")
    plugin, monitor = FixedPointPrecision(12, ramp=ramp), FixedPointMonitor(2)
    ours = sorted({"lightning", "pytorch_lightning"} & {name for name, each in sys.modules.items() if each})

    from pytorch_lightning import Trainer
    from pytorch_lightning.loggers import CSVLogger

    from tests.compat import users

    trainer = Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_steps=8,
        plugins=plugin, callbacks=[monitor], logger=CSVLogger(folder), gradient_clip_val=0.01,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module = users.Net()
    trainer.fit(module, datamodule=users.Data())
    said = {
        "imported": ours,
        "weights": [each.dequantize().tolist() for each in module.parameters()],  # type: ignore[operator]
        "widened": plugin.ramping.history if plugin.ramping else [],
        "layers": len(monitor.layers()),
        "sent": 0 if plugin.wire is None else plugin.wire.report()["bytes_sent_per_step"],
    }
    (Path(folder) / f"rank{trainer.global_rank}.json").write_text(json.dumps(said))
