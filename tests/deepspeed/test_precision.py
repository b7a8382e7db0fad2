"""The Lightning plugin under DeepSpeedStrategy, on two processes; the strategy's demand for CUDA is lifted here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from tests.comm import ranks
from tests.deepspeed import engines

pytestmark = pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
ROOT = Path(__file__).parent.parent.parent


def _fit(rank: int, plugin: Any, stage: int = 2, *, epochs: int, poison: bool = False, **given: Any) -> Any:
    """Fit a module of the user's with ``plugin`` (or at a precision), and return the trainer."""
    os.environ |= {
        "GROUP_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip
    engines.begin(rank)
    from lightning.pytorch import LightningModule, Trainer, seed_everything
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.strategies import DeepSpeedStrategy
    from lightning.pytorch.strategies.parallel import ParallelStrategy

    class OnCPU(DeepSpeedStrategy):
        root_device = torch.device("cpu", 0)  # DeepSpeed wants an index

        def setup_environment(self) -> None:
            ParallelStrategy.setup_environment(self)

        def setup_distributed(self) -> None:
            self.set_world_ranks()
            self._init_deepspeed_distributed()

    class User(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = engines.network()

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            x, y = batch
            if poison and self.global_rank == 1:
                x = x * torch.inf
            return nn.functional.mse_loss(self.network(x).float(), y.float())

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]

    seed_everything(0)
    x = torch.randn(64, engines.FEATURES)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.sin(x[:, :5] * 2)), batch_size=8)
    folder, callbacks = given.pop("folder", None), given.pop("callbacks", [])
    if folder:
        callbacks = [*callbacks, ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)]
    trainer = Trainer(
        accelerator="cpu", devices=2, max_epochs=epochs, logger=given.pop("logger", False), plugins=plugin,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=folder is not None,
        strategy=OnCPU(stage=stage), default_root_dir=given.pop("root", None), callbacks=callbacks,
    )  # fmt: skip
    trainer.fit(User(), data, **given)
    return trainer


def _fits(rank: int, folder: str, stage: int) -> dict[str, Any]:
    from lowprec_plugin import FixedPointPrecision
    from lowprec_plugin.deepspeed import FixedPointDeepSpeedPrecision

    found: dict[str, Any] = {}
    straight = FixedPointDeepSpeedPrecision()
    trainer = _fit(rank, straight, stage, epochs=2, folder=folder)
    found["trainer"] = trainer.precision, trainer.global_step
    again = FixedPointDeepSpeedPrecision()
    _fit(rank, again, stage, epochs=2, ckpt_path=f"{folder}/epoch=0.ckpt")
    other = FixedPointDeepSpeedPrecision(seed=1)
    _fit(rank, other, stage, epochs=2)
    assert straight.adopted
    assert again.adopted
    assert other.adopted
    found["said"] = straight.adopted.said
    planes = engines.planes(straight.adopted)
    found["resumes"] = engines.same(planes, engines.planes(again.adopted))
    found["control"] = engines.same(planes, engines.planes(other.adopted))
    for name, plugin, given in (
        ("poison", FixedPointDeepSpeedPrecision(), {"poison": True, "root": f"{folder}/refused"}),
        ("skip", FixedPointDeepSpeedPrecision(nonfinite="skip"), {"poison": True, "root": f"{folder}/skipped"}),
        ("narrow", FixedPointDeepSpeedPrecision(12), {"ckpt_path": f"{folder}/epoch=0.ckpt"}),
        ("other plugin", FixedPointPrecision(comm_word_length=None), {}),
    ):
        try:
            _fit(rank, plugin, stage, epochs=2, **given)
            found[name] = "nothing"
        except ValueError as error:
            found[name] = str(error)
    return found


@pytest.mark.parametrize("stage", [2, 3])
def test_fit_resume_and_refuse(tmp_path: Path, stage: int) -> None:
    for found in ranks.run(2, _fits, str(tmp_path), stage, over=True):
        assert found["trainer"] == ("bf16-true", 8)
        assert f"ZeRO {stage} (weights fixed16" in found["said"]
        assert found["resumes"]
        assert not found["control"]
        assert "a gradient holds a NaN or an infinity" in found["poison"]
        assert found["skip"] == "nothing"
        for rank in range(2):
            assert (tmp_path / f"refused/nonfinite-step0-rank{rank}.json").exists()
            assert (tmp_path / f"skipped/nonfinite-step1-rank{rank}.json").exists()
        assert "stored as fixed16, which fixed12 does not hold exactly" in found["narrow"]
        assert "does not work with OnCPU: " in found["other plugin"]
        assert "FixedPointDeepSpeedPrecision works with DeepSpeedStrategy" in found["other plugin"]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"word_length": 25}, "word_length=25"),
        ({"compute_dtype": "float16"}, "compute_dtype='float16' is not one of"),
        ({"comm_word_length": 5}, "comm_word_length=5 is not one of"),
        ({"nonfinite": "ignore"}, "nonfinite='ignore' is not one of"),
        ({"rounding": "up"}, "rounding='up' is not one of"),
        ({"seed": 0.5}, "seed=0.5"),
    ],
)
def test_bad_arguments(given: dict[str, Any], text: str) -> None:
    from lowprec_plugin.deepspeed import FixedPointDeepSpeedPrecision

    with pytest.raises(ValueError, match=text):
        FixedPointDeepSpeedPrecision(**given)


def test_state_that_would_be_rounded_is_refused() -> None:
    """Narrower than that of the checkpoint, whose own bits may be those of its weights."""
    from lowprec_plugin.deepspeed import FixedPointDeepSpeedPrecision as Plugin

    for narrow, wide in (({"state_word_length": 8}, {}), ({"word_length": 16}, {"state_word_length": 20})):
        saved = Plugin(**wide).state_dict()
        with pytest.raises(ValueError, match=r"state has (16|20) bits, .* resume with state_word_length=(16|20)"):
            Plugin(**narrow).load_state_dict(saved)
        Plugin(**wide).load_state_dict(Plugin(**narrow).state_dict())


def _shipped(rank: int) -> list[float]:
    config = json.loads((ROOT / "configs" / "deepspeed_zero2.json").read_text())
    zero = config.pop("zero_optimization")
    engine = engines.engine(rank, zero.pop("stage"), zero=zero, **config)
    from lowprec_plugin.deepspeed import adopt_engine

    adopt_engine(engine)
    return engines.train(engine, 3)


def test_the_shipped_json() -> None:
    assert len(ranks.run(2, _shipped)[0]) == 3


def test_the_shipped_yaml() -> None:
    """As far as it goes without CUDA: every name and value in it is known."""
    command = [sys.executable, "-m", "lowprec_plugin.cli.main", "fit", "--config", "configs/deepspeed.yaml"]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "JSONARGPARSE_DEPRECATION_WARNINGS": "off"}
    done = subprocess.run([*command, "--print_config"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    trainer = yaml.safe_load(done.stdout[done.stdout.index("seed_everything") :])["trainer"]
    assert trainer["plugins"]["class_path"] == "lowprec_plugin.deepspeed.FixedPointDeepSpeedPrecision"
    assert trainer["plugins"]["init_args"]["nonfinite"] == "raise"  # a default, which only the class can have told
    assert (ROOT / trainer["strategy"]["init_args"]["config"]).exists()
    done = subprocess.run(
        [*command, "--trainer.plugins.no_such_option=1", "--print_config"],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode != 0


def _monitored(rank: int, stage: int) -> dict[str, Any]:
    from lowprec_plugin import FixedPointMonitor
    from lowprec_plugin.deepspeed import FixedPointDeepSpeedPrecision
    from tests.monitoring.test_monitor import Recorder

    plugin, monitor = FixedPointDeepSpeedPrecision(state_word_length=8), FixedPointMonitor(3)
    trainer = _fit(rank, plugin, stage, epochs=1, callbacks=[monitor], logger=Recorder())
    adopted = plugin.adopted
    assert adopted is not None
    state = [value for held in adopted.optimizer.state.values() for value in held.values()]
    return {
        "weights": sum(partition.nbytes for partition in adopted.partitions) + adopted.rows[-1].nbytes,
        "state": sum(tensor.nbytes for tensor in state), "rows": monitor.layers(),
        "elements": sum(partition.numel() for partition in adopted.partitions),
        "metrics": {name.removeprefix("lowprec/"): value.item() for name, value in trainer.callback_metrics.items()},
    }  # fmt: skip


@pytest.mark.parametrize("stage", [2, 3])
def test_monitored(stage: int) -> None:
    found = ranks.run(2, _monitored, stage, over=True)
    metrics = found[0]["metrics"]
    assert metrics == found[1]["metrics"]
    for name in ("weights", "state"):
        assert metrics[f"{name}_gib"] * 2**30 == pytest.approx(max(each[name] for each in found), rel=1e-6)
    assert metrics["held_gib"] == pytest.approx(metrics["weights_gib"] + metrics["state_gib"])
    assert not {"gradients_gib", "predicted_gib"} & set(metrics)  # the engine keeps its gradients to itself
    assert metrics["saved_fraction"] > 0.4
    assert metrics["kept_in_float"] == 0
    assert metrics["noise_to_update"] > 0
    assert metrics["float32_sent_mib"] > 1.5 * metrics["sent_mib"] > 0
    for each in found:
        assert [row.name for row in each["rows"]] == ["ZeRO partition 0"]
        assert each["rows"][0].elements == each["elements"]
        assert each["rows"][0].state == "fixed8, fixed8^2"
