"""A training that goes on from a checkpoint ends with the bits of one that was never interrupted."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

from lowprec_plugin import FixedPointTensor, optim
from tests.foreign.optimizers import Row, rows
from tests.foreign.training import Training, weights_of

NAMES = (
    *("torch: NAdam", "torch: Adafactor", "torch: RMSprop, centered", "transformers: Adafactor"),
    *("pytorch_optimizer: AdaBelief", "pytorch_optimizer: MADGRAD", "pytorch_optimizer: SPAM"),
    *("pytorch_optimizer: Lookahead of Adam", "pytorch_optimizer: SAM of SGD"),
    *("schedulefree: AdamWScheduleFree", "prodigyopt: Prodigy"),
)
ROWS = [row for row in rows() if str(row) in NAMES]


def through_a_file(held: Any) -> Any:
    file = io.BytesIO()
    torch.save(held, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("format", ["fixed16", None])
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_goes_on_as_if_it_had_not_stopped(row: Row, format: str | None) -> None:
    """In float32 too, or the test asks for what nobody has."""
    with row.within():
        whole = Training(row.make, row.way, format)
        whole.run(9)
        saved = through_a_file({"net": whole.net.state_dict(), "optimizer": whole.optimizer.state_dict()})
        whole.run(9)
        resumed = Training(row.make, row.way, format)
        resumed.net.load_state_dict(saved["net"])
        resumed.optimizer.load_state_dict(saved["optimizer"])
        resumed.steps = 9
        resumed.run(9)
        assert resumed.losses == whole.losses[9:]
        assert torch.equal(weights_of(resumed.net), weights_of(whole.net))


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_float_checkpoint_is_taken_and_given(row: Row) -> None:
    """State of float32 is rounded to nearest; ``optim.plain_optimizer_state`` is what float32 loads."""
    with row.within():
        floats = Training(row.make, row.way)
        floats.run(5)
        fixed = Training(row.make, row.way, "fixed24")
        fixed.net.load_state_dict(floats.net.state_dict())
        fixed.optimizer.load_state_dict(through_a_file(floats.optimizer.state_dict()))
        fixed.steps = floats.steps
        floats.run(3)
        fixed.run(3)
        assert all(isinstance(param, FixedPointTensor) for param in fixed.net.parameters())
        assert share(fixed, floats) < 3e-2

        back = Training(row.make, row.way)
        back.net.load_state_dict({name: value + 0 for name, value in fixed.net.state_dict().items()})
        plain = optim.plain_optimizer_state(fixed.optimizer.state_dict())
        back.optimizer.load_state_dict(through_a_file(plain))  # torch would go on in the tensors that are given
        back.steps = fixed.steps
        back.run(3)
        fixed.run(3)
        assert share(fixed, back) < 3e-2


def share(fixed: Training, floats: Training) -> float:
    """How far apart they are, as a share of the way from the start."""
    start, end = floats.start, weights_of(floats.net)
    return float((weights_of(fixed.net) - end).norm() / (end - start).norm())
