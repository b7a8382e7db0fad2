"""Schedule-free optimizers: the weights that are evaluated are others than those that train."""

from __future__ import annotations

from typing import Any

import pytest
import schedulefree
import torch

from tests.foreign.optimizers import of, to_train
from tests.foreign.training import Training, Way, weights_of

KINDS = {
    "AdamW": to_train(of(schedulefree.AdamWScheduleFree, lr=0.01)),
    "SGD": to_train(of(schedulefree.SGDScheduleFree, lr=1.0)),
    "RAdam": to_train(of(schedulefree.RAdamScheduleFree, lr=0.02)),
}


def runs(make: Any) -> tuple[Training, Training]:
    return Training(make, Way()), Training(make, Way(), "fixed24")


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_evaluation_and_back_as_in_float32(make: Any) -> None:
    """And there and back the weights are those that trained, but for what two roundings do to them."""
    floats, fixed = runs(make)
    seen = []
    for training in (floats, fixed):
        training.run(12)
        trained = weights_of(training.net)
        training.optimizer.eval()
        averaged = weights_of(training.net)
        assert (averaged - trained).norm() > 0.01 * (trained - training.start).norm()
        training.optimizer.train()
        torch.testing.assert_close(weights_of(training.net), trained, rtol=1e-3, atol=1e-4)
        training.run(3)
        training.optimizer.eval()
        seen.append((averaged, weights_of(training.net)))
    for one, other in zip(*seen, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_a_step_in_the_mode_of_evaluation_is_refused_as_in_float32(make: Any) -> None:
    for training in runs(make):
        training.run(2)
        training.optimizer.eval()
        before = weights_of(training.net)
        with pytest.raises(Exception, match="train"):
            training.run(1)
        assert torch.equal(weights_of(training.net), before)


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_a_checkpoint_of_the_mode_of_evaluation_goes_on_to_train(make: Any) -> None:
    """As its authors ask: ``eval()``, save, ``train()``; the mode comes back with the state."""
    whole = Training(make, Way(), "fixed16")
    whole.run(8)
    whole.optimizer.eval()
    saved = {"net": whole.net.state_dict(), "optimizer": whole.optimizer.state_dict()}
    saved = torch.load(_saved(saved), weights_only=True)
    whole.optimizer.train()
    whole.run(6)
    resumed = Training(make, Way(), "fixed16")
    resumed.net.load_state_dict(saved["net"])
    resumed.optimizer.load_state_dict(saved["optimizer"])
    resumed.steps = 8
    resumed.optimizer.train()
    resumed.run(6)
    assert torch.equal(weights_of(resumed.net), weights_of(whole.net))


def _saved(held: Any) -> Any:
    import io

    file = io.BytesIO()
    torch.save(held, file)
    file.seek(0)
    return file
