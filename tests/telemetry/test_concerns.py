"""What is amiss is said where its limit is passed, and not before."""

from __future__ import annotations

import re

import pytest
from torch import nn

from lowprec_plugin import optim
from lowprec_plugin.arithmetic.update_counts import UpdateCounts
from lowprec_plugin.telemetry import concerns


def stored(format: str, rounding: str) -> nn.Module:
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    optim.quantize_(module, format, rounding=rounding)
    return module


def counts(*, lost: int = 0, saturated: int = 0, noise: float = 0.0, size: float = 1.0) -> UpdateCounts:
    """Of 10,000 numbers; ``noise`` and ``size`` are root mean squares."""
    squares = 10_000 * size**2
    return UpdateCounts(10_000, 10_000, lost, lost, saturated, squares, noise**2 * squares)


FINE = counts()
CASES = [
    (
        "fixed12",
        "stochastic",
        counts(noise=2.02),
        "noise",
        r"fixed12 adds noise 2\.0 times as large .* \(WordLengthRamp\)",
    ),
    ("fixed12", "stochastic", counts(noise=1.98), None, ""),
    ("fixed12", "stochastic", counts(lost=10_000, saturated=99), None, ""),
    ("fixed12", "nearest", counts(lost=5_100, noise=0.51), "lost", '51% of the updates .* rounding="stochastic"'),
    ("fixed12", "nearest", counts(lost=4_900, noise=0.9), None, ""),
    ("fixed12", "nearest", counts(lost=9_900, noise=0.49), None, ""),
    (
        "<4,12>",
        "stochastic",
        counts(saturated=101),
        "saturated",
        r"1\.0% .*\(<4,12>\) .* smaller fraction_length",
    ),
    ("<4,12>", "nearest", counts(saturated=99), None, ""),
    ("fixed12", "nearest", counts(lost=5_100, noise=0.51), "lost", "or more than 12 bits$"),
    ("<4,12>", "nearest", counts(lost=5_100, noise=0.51), "lost", "or a larger fraction_length or none$"),
    ("<4,12>", "stochastic", counts(noise=3), "noise", "use a larger fraction_length or none, or a ramp"),
    ("fixed12", "stochastic", counts(noise=9, size=0.013), "noise", "noise 9.0 times"),
    ("fixed12", "stochastic", counts(noise=9, size=0.006), None, ""),  # stands still beside the other layer
    ("<4,12>", "nearest", counts(saturated=101, size=0.006), "saturated", "clipped"),
]


@pytest.mark.parametrize(("format", "rounding", "found", "cause", "said"), CASES)
def test_limits(format: str, rounding: str, found: UpdateCounts, cause: str | None, said: str) -> None:
    concerned = concerns(stored(format, rounding), {"0.weight": FINE, "1.weight": found})
    assert [(each.cause, each.layer) for each in concerned] == ([(cause, "1.weight")] if cause else [])
    for each in concerned:
        assert re.search(said, each.said)


def test_of_several_layers_the_worst_is_named_and_of_several_causes_each() -> None:
    module = stored("<4,12>", "nearest")
    found = concerns(
        module, {"0.weight": counts(saturated=200, lost=9_000, noise=0.9), "1.weight": counts(saturated=900)}
    )
    assert {each.cause: each.layer for each in found} == {"saturated": "1.weight", "lost": "0.weight"}


def test_what_was_not_counted_is_not_judged() -> None:
    assert concerns(stored("fixed8", "nearest"), {}) == []
    assert concerns(nn.Linear(2, 2), {"weight": counts(noise=99)}) == []
