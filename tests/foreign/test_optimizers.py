"""Every optimizer of the table is right or refused, and is what the committed page says of it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from lowprec_plugin import optim
from tests.foreign import optimizers
from tests.foreign.optimizers import Row, of, rows
from tests.foreign.table import committed
from tests.foreign.training import STEPS, Training, Way
from tests.foreign.verdict import float_bytes, judge

ROWS = rows()
PAGE = committed()


@pytest.fixture(autouse=True)
def _thaw() -> Iterator[None]:
    yield
    gc.unfreeze()


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_is_right_or_refused(row: Row) -> None:
    verdict = judge(row)
    assert verdict.outcome != "wrong", verdict.said
    outcome, said = PAGE[str(row)]
    assert verdict.outcome == outcome
    if outcome == "refused":
        assert verdict.said == said


def test_the_page_has_these_rows() -> None:
    """``python -m tests.foreign.table docs/foreign.md`` makes it anew."""
    assert list(PAGE) == [str(row) for row in ROWS]


def test_at_most_a_handful_is_refused_that_go_through_their_groups() -> None:
    ours = [outcome for name, (outcome, _) in PAGE.items() if name.startswith("pytorch_optimizer: ")]
    assert len(ours) > 130
    assert ours.count("refused") <= 5
    assert not set(ours) - {"right", "refused", "not in float32"}


class OneNumberOff(torch.optim.SGD):
    """A momentum that fixed-point runs do not share: the last of a thousand numbers is left out."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for param in group["params"]:
                if type(param.data) is not torch.Tensor:
                    param.grad.view(-1)[-1:] = 0
        return super().step(closure)


class Heaps(torch.optim.SGD):
    """Keeps a float copy of each gradient, in fixed-point alone."""

    def step(self, closure: Any = None) -> Any:
        kept = self.__dict__.setdefault("kept", [])
        for group in self.param_groups:
            kept += [param.grad.clone() for param in group["params"] if type(param.data) is not torch.Tensor]
        return super().step(closure)


class Late(torch.optim.SGD):
    """Raises what is not ours, in fixed-point alone."""

    def step(self, closure: Any = None) -> Any:
        if type(self.param_groups[0]["params"][0].data) is not torch.Tensor:
            raise ValueError("of somebody else's")
        return super().step(closure)


@pytest.mark.parametrize(
    ("kind", "said"), [(OneNumberOff, "of the way off"), (Heaps, "bytes of floats more"), (Late, "ValueError at 24")]
)
def test_what_is_a_little_wrong_is_found(kind: Any, said: str) -> None:
    verdict = judge(Row("here", "wrong", of(kind, lr=0.1)))
    assert (verdict.outcome, said in verdict.said) == ("wrong", True), verdict.said


@pytest.mark.slow
def test_a_thousand_steps_of_soap_hold_no_more_than_fifty() -> None:
    import heavyball

    with optimizers.not_compiled():
        if PAGE["heavyball: SOAP"][0] == "refused":
            with pytest.raises(ValueError, match="SOAP"):
                Training(of(heavyball.SOAP, lr=0.003), Way(), "fixed16").run(1)
            return
        training = Training(of(heavyball.SOAP, lr=0.003), Way(), "fixed16")
        training.run(STEPS)
        before = float_bytes()
        training.run(1000 - STEPS)
        assert float_bytes() <= before


def test_rows_do_something() -> None:
    """A network that does not move would be right in any case."""
    for name in ("Adam", "SGD"):
        (row,) = (row for row in ROWS if str(row) == f"torch: {name}")
        training = Training(row.make, row.way)
        training.run(STEPS)
        assert training.end().loss < 0.8 * training.losses[0]


def test_adopting_takes_the_very_object() -> None:
    net = nn.Linear(4, 4)
    optim.quantize_(net)
    optimizer = torch.optim.NAdam(net.parameters())
    assert optim.adopt(optimizer) is optimizer
