"""Modules and data in float64: operations see float64, as without the plugin, and codes are stored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lowprec_plugin import Emulation, FixedPointPrecision, FixedPointTensor, WordLengthRamp


@pytest.fixture
def _float64_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Double(LightningModule):
    """Weights and buffers in float64, which a forward pass mixes."""

    def __init__(self, optimizer: Any = torch.optim.AdamW) -> None:
        super().__init__()
        self.optimizer = optimizer
        self.net = nn.Sequential(nn.Linear(12, 32), nn.BatchNorm1d(32), nn.Tanh(), nn.Linear(32, 1)).double()
        self.register_buffer("scale", torch.ones(1, dtype=torch.float64))
        self.losses: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        output = self.net(batch[0]) * self.scale
        self.dtypes = {output.dtype, batch[0].dtype}
        loss = nn.functional.mse_loss(output, batch[1])
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters(), 1e-2)  # type: ignore[no-any-return]


def data(dtype: torch.dtype = torch.float64) -> DataLoader[Any]:
    x = torch.randn(64, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    return DataLoader(TensorDataset(x, x[:, :1] * x[:, 1:2]), batch_size=16)


def fit(
    tmp_path: Path, plugin: Any, module: Any = Double, dtype: torch.dtype = torch.float64, checkpoint: Any = None
) -> Any:
    seed_everything(0, verbose=False)
    made = module()
    trainer = Trainer(
        max_epochs=5, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, plugins=plugin or [],
    )  # fmt: skip
    trainer.fit(made, data(dtype), ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    made.end = trainer
    return made


@pytest.mark.parametrize(
    "options",
    [
        {}, {"compute_dtype": torch.float64}, {"compute_dtype": "bf16-mixed"}, {"keep_float": "net.0.*"},
        {"ramp": WordLengthRamp(at={3: 20}, unit="step")}, {"activation_word_length": 8},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.NAdam])
def test_trains_as_without_the_plugin(tmp_path: Path, options: dict[str, Any], optimizer: Any) -> None:
    expected = fit(tmp_path, None, lambda: Double(optimizer))
    found = fit(tmp_path, FixedPointPrecision(**options), lambda: Double(optimizer))
    assert found.dtypes == {torch.float64}
    assert isinstance(found.net[3].weight, FixedPointTensor)
    assert found.net[3].weight.codes.element_size() == 2
    assert {param.dtype for param in found.parameters()} == {torch.float64}
    assert found.losses == pytest.approx(expected.losses, rel=2e-3)
    assert found.losses != expected.losses


@pytest.mark.usefixtures("_float64_by_default")
def test_float64_by_default(tmp_path: Path) -> None:
    class Plain(Double):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(12, 32), nn.Tanh(), nn.Linear(32, 1))

    expected, found = fit(tmp_path, None, Plain), fit(tmp_path, FixedPointPrecision(), Plain)
    assert found.losses == pytest.approx(expected.losses, rel=2e-3)


def test_float64_of_a_float32_module(tmp_path: Path) -> None:
    """Where it is asked for: parameters, buffers and inputs appear in it, and Lightning is told so."""

    class Single(Double):
        def __init__(self) -> None:
            super().__init__()
            self.float()

    found = fit(tmp_path, FixedPointPrecision(compute_dtype="float64"), Single, torch.float32)
    assert found.dtypes == {torch.float64}
    assert found.end.precision == "64-true"
    assert found.net[1].running_mean.dtype == torch.float64
    with pytest.raises(ValueError, match=r"compute_dtype='float64' is other arithmetic: emulation needs torch.float32"):
        FixedPointPrecision(compute_dtype="float64", emulation=Emulation())  # type: ignore[arg-type]


def test_tested_and_resumed(tmp_path: Path) -> None:
    module = fit(tmp_path, FixedPointPrecision())
    module.end.save_checkpoint(tmp_path / "x.ckpt")
    again = fit(tmp_path, FixedPointPrecision(), checkpoint=tmp_path / "x.ckpt")
    assert again.net[0].weight.dtype == torch.float64
    for name, param in module.named_parameters():
        assert torch.equal(param.codes, again.get_parameter(name).codes)


def test_left_in_float64(tmp_path: Path) -> None:
    module = fit(tmp_path, FixedPointPrecision(leave_float=True))
    assert {(type(param), param.dtype) for param in module.parameters()} == {(nn.Parameter, torch.float64)}
    state = module.end.optimizers[0].state[module.net[0].weight]
    assert state["exp_avg_sq"].dtype == torch.float64
