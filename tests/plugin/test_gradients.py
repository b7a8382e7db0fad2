"""Gradients in codes under the Trainer, with modules that know nothing of them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import grad_norm
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lowprec_plugin import FixedPointPrecision
from lowprec_plugin.optim import gradients
from lowprec_plugin.tensor.dtensor import stored_part
from lowprec_plugin.tensor.gradient import FixedPointGradient
from tests.comm import ranks
from tests.plugin import test_distributed, users
from tests.plugin.test_plugin import fit


class Seen(Callback):
    """What a callback sees of gradients before each step."""

    def __init__(self) -> None:
        self.kinds: set[type] = set()
        self.norms: list[float] = []
        self.losses: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.kinds |= {type(param.grad) for param in pl_module.parameters() if param.grad is not None}
        self.norms.append(float(grad_norm(pl_module, 2).get("grad_2.0_norm_total", 0.0)))

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.losses.append(float(trainer.callback_metrics["train_loss"]))


def run(bits: int | None, make: Any, data: Any, **options: Any) -> tuple[Seen, LightningModule]:
    seed_everything(0)
    seen, module = Seen(), make()
    Trainer(
        accelerator="cpu", max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        plugins=FixedPointPrecision(gradient_word_length=bits), callbacks=[seen, *options.pop("callbacks", [])],
        **options,
    ).fit(module, data)  # fmt: skip
    return seen, module


@pytest.fixture
def _all_in_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "FEWEST", 1)


@pytest.mark.usefixtures("_all_in_codes")
@pytest.mark.parametrize(
    ("make", "data", "options"),
    [
        (users.Regressor, users.vectors, {}),
        (users.Regressor, users.vectors, {"gradient_clip_val": 0.1}),
        (users.Regressor, users.vectors, {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}),
        (users.Regressor, users.vectors, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}),
        (users.Manual, users.vectors, {}),
        (users.GAN, users.vectors, {}),
        (users.Freezing, users.vectors, {}),
        (users.Convolutional, users.images, {}),
        (users.LanguageModel, users.tokens, {"gradient_clip_val": 1.0}),
    ],
)
def test_what_people_train_trains_as_with_float_gradients(make: Any, data: Any, options: dict[str, Any]) -> None:
    floats, _ = run(None, make, data(), **options)
    found, module = run(16, make, data(), **options)
    assert FixedPointGradient in found.kinds
    assert FixedPointGradient not in floats.kinds
    for one, other in zip(found.losses, floats.losses, strict=True):
        assert one == pytest.approx(other, rel=0.05, abs=0.02)
    assert found.norms[0] == pytest.approx(floats.norms[0], rel=1e-3)
    assert all(param.grad is None or param.grad.isfinite().all() for param in module.parameters())


@pytest.mark.usefixtures("_all_in_codes")
def test_accumulation_that_changes() -> None:
    schedule = GradientAccumulationScheduler({0: 1, 1: 2})
    found, _ = run(8, users.Regressor, users.vectors(), callbacks=[schedule])
    assert FixedPointGradient in found.kinds
    assert len(found.norms) == 4 + 2 + 2


@pytest.mark.usefixtures("_all_in_codes")
@pytest.mark.parametrize("bits", [16, 8])
def test_resume_is_bit_for_bit(bits: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"state_word_length": 8, "gradient_word_length": bits}
    expected = fit(tmp_path, 20, FixedPointPrecision(**options))
    fit(tmp_path, 10, FixedPointPrecision(**options))
    resumed = fit(tmp_path, 20, FixedPointPrecision(**options), str(tmp_path / "step=10.ckpt"))
    assert all(torch.equal(a, b) for a, b in zip(resumed, expected, strict=True))


def test_the_table_says_what_gradients_are_kept_as(caplog: pytest.LogCaptureFixture) -> None:
    class Wide(users.Regressor):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(12, 512), nn.Tanh(), nn.Linear(512, 1))

    with caplog.at_level(logging.INFO):
        run(8, Wide, users.vectors())
    lines = [line.split() for line in caplog.text.splitlines() if line.startswith("AdamW 0")]
    assert [line[line.index("fixed16,") + 2] if "fixed16," in line else "" for line in lines]
    kept = {(line[5], line[6]) for line in lines}
    assert kept == {("fixed8", "6,144"), ("float32", "1,025")}


def wide() -> LightningModule:
    module = users.Regressor()
    module.net = nn.Sequential(nn.Linear(12, 512), nn.Tanh(), nn.Linear(512, 64), nn.Tanh(), nn.Linear(64, 1))
    return module


def _settings(rank: int) -> dict[str, Any]:
    one = test_distributed.fit
    return {
        "floats": one(rank, module=wide()),
        "16": one(rank, module=wide(), gradient_word_length=16),
        "8, accumulated": one(
            rank, module=wide(), gradient_word_length=8,
            trainer={"accumulate_grad_batches": 2, "gradient_clip_val": 0.1},
        ),
        "unused": one(
            rank, module=wide(), gradient_word_length=16, trainer={"strategy": "ddp_find_unused_parameters_true"}
        ),
    }  # fmt: skip


def test_two_processes_train_alike() -> None:
    one, other = ranks.run(2, _settings)
    for name, its in one.items():
        assert test_distributed.same(its, other[name]), name
    assert "floats wait" in one["16"]["said"]
    assert "floats wait" not in one["floats"]["said"]
    assert one["16"]["report"]["bytes_sent_per_step"] == pytest.approx(
        one["floats"]["report"]["bytes_sent_per_step"], rel=0.05
    )


def _refused(rank: int) -> Any:
    def hook(state: Any, bucket: Any) -> Any:
        raise NotImplementedError

    with pytest.raises(ValueError, match="comm_word_length"):
        test_distributed.fit(rank, module=wide(), gradient_word_length=8, comm_word_length=None)
    with pytest.raises(ValueError, match="ddp_comm_hook"):
        test_distributed.fit(
            rank, module=wide(), gradient_word_length=8, trainer={"strategy": DDPStrategy(ddp_comm_hook=hook)}
        )
    return None


def test_what_could_not_be_exchanged_is_refused() -> None:
    ranks.run(2, _refused)


def test_a_gradient_that_is_not_finite_is_named(tmp_path: Path) -> None:
    class Broken(users.Regressor):
        def training_step(self, batch: users.Batch, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            return loss * (torch.nan if batch_idx == 1 else 1.0)

    def make() -> LightningModule:
        module = Broken()
        module.net = wide().net
        return module

    with pytest.raises(ValueError, match=r"net\.0\.weight"):
        run(8, make, users.vectors(), default_root_dir=tmp_path)


def test_a_module_s_gradients_are_codes_by_its_own_name() -> None:
    _, module = run(8, wide, users.vectors())
    assert stored_part(module.net[0].weight).gradient_word_length == 8
    data = DataLoader(TensorDataset(*next(iter(users.vectors()))), batch_size=4)
    _, module = run(None, lambda: module, data)
    assert stored_part(module.net[0].weight).gradient_word_length is None
