"""The plugin under everything a Lightning user does: the same code with and without the flag.

Each case trains both ways from the same seed. The run with the flag must hold its weights and state in fixed-point, end
within rounding of the float32 run, and keep whatever the feature promises.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateFinder,
    ModelCheckpoint,
    WeightAveraging,
)
from torch.optim import lr_scheduler

from lowprec_plugin import FixedPointPrecision, FixedPointTensor
from tests.plugin import users


@dataclass
class Case:
    """One way of training. ``tolerance``: of the last training loss, relative to float32's."""

    module: Callable[[], LightningModule]
    data: Callable[[], Any] = users.vectors
    trainer: dict[str, Any] = field(default_factory=dict)
    callbacks: Callable[[], list[Any]] = list
    validate: bool = False
    tolerance: float = 0.02


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, 0.05, momentum=0.9)


CASES = {
    "adamw": Case(users.Regressor),
    "clip by norm": Case(users.Regressor, trainer={"gradient_clip_val": 0.1}),
    "clip by value": Case(
        users.Regressor, trainer={"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}, tolerance=0.05
    ),
    "accumulation": Case(users.Regressor, trainer={"accumulate_grad_batches": 2}),
    "step schedule": Case(lambda: users.Regressor(sgd, lambda o: lr_scheduler.StepLR(o, 3), "step")),
    "epoch schedule": Case(lambda: users.Regressor(sgd, lambda o: lr_scheduler.ExponentialLR(o, 0.5))),
    "plateau": Case(lambda: users.Regressor(sgd, lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0))),
    "one cycle": Case(lambda: users.Regressor(sgd, lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=12), "step")),
    "generic optimizer": Case(lambda: users.Regressor(lambda params: torch.optim.NAdam(params, 1e-2))),
    "manual optimization": Case(users.Manual),
    "gan": Case(users.GAN, tolerance=0.1),
    "freeze and thaw": Case(users.Freezing),
    "convolutions": Case(users.Convolutional, users.images),
    "transformer, tied weights": Case(users.LanguageModel, users.tokens),
    "hugging face": Case(users.HuggingFace, users.tokens),
    "early stopping": Case(users.Regressor, callbacks=lambda: [EarlyStopping("val_loss")], validate=True),
    "ema": Case(users.Regressor, callbacks=lambda: [EMAWeightAveraging(decay=0.5)]),
    "swa": Case(users.Regressor, callbacks=lambda: [WeightAveraging()]),
    "lr finder": Case(
        users.LearningRateByAttribute,
        callbacks=lambda: [LearningRateFinder(num_training_steps=8, early_stop_threshold=None)],
        tolerance=0.3,
    ),
}


def fit(case: Case, plugin: FixedPointPrecision | None, tmp_path: Any) -> tuple[LightningModule, Trainer]:
    seed_everything(0, verbose=False)
    module = case.module()
    options = {"max_epochs": 3} | case.trainer
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=tmp_path, callbacks=case.callbacks(),
        plugins=[] if plugin is None else plugin, **options,
    )  # fmt: skip
    trainer.fit(module, case.data(), case.data() if case.validate else None)
    return module, trainer


@pytest.mark.parametrize("name", CASES)
def test_trains_as_in_float32(name: str, tmp_path: Any) -> None:
    case = CASES[name]
    _, floats = fit(case, None, tmp_path)
    module, trainer = fit(case, FixedPointPrecision(), tmp_path)
    for parameter_name, param in module.named_parameters():
        assert isinstance(param, FixedPointTensor), parameter_name
    for optimizer in trainer.optimizers:
        for param, state in optimizer.state.items():
            for key, value in state.items():
                same_shape = isinstance(value, torch.Tensor) and value.shape == param.shape and key != "step"
                if param.numel() > 1:  # one number may be a count, and stays a float unless an update knows it
                    assert isinstance(value, FixedPointTensor) == same_shape, key
    assert trainer.global_step == floats.global_step
    expected, found = floats.callback_metrics["train_loss"], trainer.callback_metrics["train_loss"]
    torch.testing.assert_close(found, expected, rtol=case.tolerance, atol=case.tolerance / 10)
    for one, other in zip(floats.optimizers, trainer.optimizers, strict=True):
        for float_group, group in zip(one.param_groups, other.param_groups, strict=True):
            assert group["lr"] == pytest.approx(float_group["lr"], rel=0.2 if name == "lr finder" else 1e-9)


def test_tied_weights_stay_tied(tmp_path: Any) -> None:
    module, _ = fit(CASES["transformer, tied weights"], FixedPointPrecision(), tmp_path)
    assert module.head.weight is module.embedding.weight


def test_embedding_padding_stays_zero(tmp_path: Any) -> None:
    case = Case(lambda: _Padded(), users.tokens)
    module, _ = fit(case, FixedPointPrecision(), tmp_path)
    assert module.embedding.weight[0].abs().sum() == 0
    assert module.embedding.weight[1].abs().sum() > 0


class _Padded(users.LanguageModel):
    """Untied, so that nothing but the embedding's own gradient reaches it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(16, 20, bias=False)


def test_thawed_layer_moves(tmp_path: Any) -> None:
    seed_everything(0, verbose=False)
    before = users.Freezing().net[0].weight.detach().clone()
    module, _ = fit(Case(users.Freezing, trainer={"max_epochs": 1}), FixedPointPrecision(), tmp_path)
    torch.testing.assert_close(module.net[0].weight.dequantize(), before, rtol=0, atol=1e-4)
    module, _ = fit(Case(users.Freezing), FixedPointPrecision(), tmp_path)
    assert (module.net[0].weight - before).abs().max() > 1e-3


def test_average_is_stored_fixed_point_and_moves(tmp_path: Any) -> None:
    averaging = EMAWeightAveraging(decay=0.9)
    case = Case(users.Regressor, callbacks=lambda: [averaging])
    floats, fixed = [], []
    for plugin, found in ((None, floats), (FixedPointPrecision(), fixed)):
        averaging = EMAWeightAveraging(decay=0.9)
        module, _ = fit(case, plugin, tmp_path)
        found.extend(module.parameters())  # the callback ends by copying the average into the module
    for one, other in zip(floats, fixed, strict=True):
        assert isinstance(other, FixedPointTensor)
        torch.testing.assert_close(other.dequantize(), one.detach(), rtol=0, atol=2e-3)


@pytest.mark.parametrize("options", [{}, {"compute_dtype": "bf16-mixed"}, {"compute_dtype": torch.bfloat16}], ids=str)
def test_validate_test_predict(options: dict[str, Any], tmp_path: Any) -> None:
    case = Case(users.Regressor)
    module, trainer = fit(case, FixedPointPrecision(**options), tmp_path)
    (validated,) = trainer.validate(module, users.vectors(), verbose=False)
    (tested,) = trainer.test(module, users.vectors(), verbose=False)
    assert validated["val_loss"] == pytest.approx(tested["test_loss"], rel=1e-6)
    predictions = trainer.predict(module, users.vectors())
    assert predictions is not None
    assert len(predictions) == 4
    assert all(torch.isfinite(batch).all() for batch in predictions)


def test_without_fit(tmp_path: Any) -> None:
    """A Trainer that only tests converts the module too."""
    module = users.Regressor()
    with torch.no_grad():
        expected = module(users.vectors().dataset[0][0])
    trainer = Trainer(accelerator="cpu", logger=False, plugins=FixedPointPrecision(), default_root_dir=tmp_path,
                      enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)  # fmt: skip
    trainer.test(module, users.vectors(), verbose=False)
    assert isinstance(module.net[0].weight, FixedPointTensor)
    with torch.no_grad():
        found = module(users.vectors().dataset[0][0])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_torch_compile(tmp_path: Any) -> None:
    def compiled() -> LightningModule:
        module = users.Regressor()
        module.net = torch.compile(module.net, fullgraph=True)
        return module

    case = Case(compiled)
    _, floats = fit(case, None, tmp_path)
    module, trainer = fit(case, FixedPointPrecision(), tmp_path)
    assert all(isinstance(param, FixedPointTensor) for param in module.parameters())
    torch.testing.assert_close(
        trainer.callback_metrics["train_loss"], floats.callback_metrics["train_loss"], rtol=0.02, atol=1e-3
    )


def test_checkpoint_callback_writes_codes(tmp_path: Any) -> None:
    checkpoint = ModelCheckpoint(dirpath=tmp_path, filename="it", monitor="val_loss")
    case = Case(users.Regressor, trainer={"enable_checkpointing": True}, callbacks=lambda: [checkpoint], validate=True)
    seed_everything(0, verbose=False)
    module = case.module()
    trainer = Trainer(
        accelerator="cpu", logger=False, max_epochs=2, callbacks=[checkpoint], plugins=FixedPointPrecision(),
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, users.vectors(), users.vectors())
    saved = torch.load(checkpoint.best_model_path, weights_only=True)
    assert all(isinstance(tensor, FixedPointTensor) for tensor in saved["state_dict"].values())
