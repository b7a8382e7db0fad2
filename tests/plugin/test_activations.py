"""Emulation and kept activations by the one flag."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lowprec_plugin import Emulation, FixedPointPrecision
from tests.plugin import users
from tests.plugin.test_plugin import fit, trainer


def plugin(**options: Any) -> FixedPointPrecision:
    emulation = Emulation("<6,10>", "<2,14>")
    return FixedPointPrecision(16, 14, **({"emulation": emulation, "activation_word_length": 8} | options))


def inputs_seen(module: users.Regressor) -> list[Tensor]:
    """The outputs of the network's first layer, as they come."""
    seen: list[Tensor] = []
    module.net[0].register_forward_hook(lambda layer, args, out: seen.append(out.detach()))
    return seen


def test_training_and_evaluation_are_emulated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = users.Regressor()
    seen = inputs_seen(module)
    precision = plugin()
    run = trainer(tmp_path, precision, max_epochs=1, num_sanity_val_steps=0)
    run.fit(module, users.vectors(), users.vectors(32))
    assert precision.inside is not None
    assert precision.inside.step == 4
    assert precision.inside.emulator is not None
    assert precision.inside.emulator.counts["errors"]["net.0"].elements > 0
    run.test(module, users.vectors(32), verbose=False)
    assert len(seen) == 4 + 2 + 2
    assert all(torch.equal(out * 2**10, (out * 2**10).round()) for out in seen)
    assert torch.equal(seen[4], seen[6])  # the same weights on the same images: the same bits
    assert "emulation inside modules with parameters: activations <6,10> stochastic, errors <2,14>" in caplog.text
    assert "activations kept for backward: fixed8, stochastic" in caplog.text


def test_without_the_flag_nothing_is(tmp_path: Path) -> None:
    module = users.Regressor()
    seen = inputs_seen(module)
    trainer(tmp_path, plugin(emulation=None, activation_word_length=None), max_epochs=1).fit(module, users.vectors())
    assert not torch.equal(seen[0] * 2**10, (seen[0] * 2**10).round())


def test_settings_that_would_do_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="emulation='<6,10>' is not an Emulation"):
        plugin(emulation="<6,10>")
    misspelt = plugin(emulation=Emulation({"nett.*": "<6,10>"}))
    with pytest.raises(ValueError, match=r"'nett\.\*': \.\.\.\} matches no module; there are net, net\.0"):
        trainer(tmp_path, misspelt, max_epochs=1).fit(users.Regressor(), users.vectors())


def test_resume_is_bit_for_bit(tmp_path: Path) -> None:
    expected = fit(tmp_path, 20, plugin())
    fit(tmp_path, 10, plugin())
    resumed = fit(tmp_path, 20, plugin(), str(tmp_path / "step=10.ckpt"))
    assert all(torch.equal(a, b) for a, b in zip(resumed, expected, strict=True))
    others = fit(tmp_path, 20, plugin(emulation=None))
    assert not all(torch.equal(a, b) for a, b in zip(others, expected, strict=True))


class ByHand(users.Regressor):
    """Manual optimization: the backward pass, and what checkpointing runs in it, are inside the training step."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.net, x, use_reentrant=False)  # type: ignore[no-any-return]

    def training_step(self, batch: users.Batch, batch_idx: int) -> None:  # type: ignore[override]
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(nn.functional.mse_loss(self(batch[0]), batch[1]))
        optimizer.step()


def test_manual_optimization_and_checkpointing(tmp_path: Path) -> None:
    module = ByHand()
    seen = inputs_seen(module)
    trainer(tmp_path, plugin(), max_steps=1).fit(module, users.vectors())
    assert len(seen) == 2  # forwards, and again in the backward pass
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0] * 2**10, (seen[0] * 2**10).round())
