from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowprec_plugin.ramp import Evidence, RampState, WordLengthRamp, decide, observe

LOST, KEPT = Evidence(lost=0.9, noise=5.0), Evidence(lost=0.1, noise=0.2)


def stall_at(ramp: WordLengthRamp, metrics: list[float], state: RampState | None = None) -> int | None:
    """The look at which the run stalls."""
    state = RampState() if state is None else state
    for index, metric in enumerate(metrics):
        state, stalled = observe(ramp, state, metric)
        if stalled:
            return index
    return None


def test_a_flat_metric_stalls_after_patience() -> None:
    assert stall_at(WordLengthRamp(patience=10, smoothing=0.0), [1.0] * 50) == 10
    assert stall_at(WordLengthRamp(patience=10, smoothing=0.9), [1.0] * 50) == 18  # nine looks fill the mean


def test_a_run_that_still_improves_does_not() -> None:
    falling = [math.exp(-0.002 * step) for step in range(2000)]
    assert stall_at(WordLengthRamp(patience=10, min_delta=0.001, smoothing=0.9), falling) is None
    assert (
        stall_at(WordLengthRamp(patience=10, mode="max", smoothing=0.9), [1 - each for each in falling[:1000]]) is None
    )


def test_an_improvement_below_min_delta_is_none() -> None:
    falling = [1 - 1e-6 * step for step in range(100)]
    assert stall_at(WordLengthRamp(patience=10, min_delta=0.001, smoothing=0.0), falling) == 10
    assert stall_at(WordLengthRamp(patience=10, min_delta=0.0, smoothing=0.0), falling) is None


def test_smoothing_sees_through_noise() -> None:
    noisy = [1 + (0.3 if step % 2 else -0.3) - 0.002 * step for step in range(300)]
    assert stall_at(WordLengthRamp(patience=20, smoothing=0.95), noisy) is None


def test_cooldown() -> None:
    ramp = WordLengthRamp(patience=10, cooldown=25, smoothing=0.0)
    assert stall_at(ramp, [1.0] * 100, RampState(cooling=25)) == 34


def test_what_is_not_finite_is_no_look() -> None:
    state, stalled = observe(WordLengthRamp(), RampState(), math.nan)
    assert (state, stalled) == (RampState(), False)
    assert stall_at(WordLengthRamp(patience=3, smoothing=0.0), [1.0, math.inf, 1.0, math.nan, 1.0, 1.0]) == 5


def test_widening_needs_lost_updates() -> None:
    ramp, state = WordLengthRamp(ladder=(12, 16, 20)), RampState(1.0, 1.0, 1.0, waited=500)
    kept = decide(ramp, state, 12, KEPT)
    assert kept.word_length is None
    assert kept.state.waited == 0
    assert "not one of precision: 10 % of the updates" in kept.reason
    lost = decide(ramp, state, 12, LOST)
    assert lost.word_length == 16
    assert lost.state == RampState(cooling=ramp.cooldown)
    assert "90 % of the updates are smaller than half a code and rounding adds 5 times" in lost.reason
    assert decide(ramp, state, 12, Evidence(0.0, 3.0)).word_length == 16
    assert decide(ramp, state, 13, LOST).word_length == 16
    top = decide(ramp, state, 20, LOST)
    assert top.word_length is None
    assert "end of the ladder" in top.reason


@given(st.lists(st.floats(-1e6, 1e6), max_size=60), st.floats(0, 0.999))
def test_a_stall_never_comes_before_patience(metrics: list[float], smoothing: float) -> None:
    stalled = stall_at(WordLengthRamp(patience=20, smoothing=smoothing), metrics)
    assert stalled is None or stalled >= 20


@given(st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=30), st.floats(0, 0.99))
def test_the_smoothed_metric_is_a_mean_of_those_seen(metrics: list[float], smoothing: float) -> None:
    state = RampState()
    for metric in metrics:
        state, _ = observe(WordLengthRamp(smoothing=smoothing), state, metric)
    slack = 1e-6 * max(1.0, *map(abs, metrics))
    assert min(metrics) - slack <= state.smoothed <= max(metrics) + slack


def test_schedule() -> None:
    ramp = WordLengthRamp(at={60: 20, 30: 16})
    assert [ramp.scheduled(now) for now in (0, 29, 30, 59, 60, 1000)] == [None, None, 16, 16, 20, 20]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ladder": (16, 12)}, r"\[16, 12\] must grow"),
        ({"ladder": ()}, "must grow"),
        ({"ladder": (12, 32)}, "a rung of the ladder=32"),
        ({"patience": 0}, "patience=0"),
        ({"patience": 1.5}, "patience=1.5 is not an integer"),
        ({"cooldown": -1}, "cooldown=-1"),
        ({"smoothing": 1.0}, r"smoothing=1.0 is not in \[0, 1\)"),
        ({"min_delta": -0.1}, "min_delta=-0.1"),
        ({"mode": "least"}, "mode='least'"),
        ({"unit": "day"}, "unit='day'"),
        ({"at": {30: 20, 60: 16}}, "must grow"),
        ({"at": {0.5: 16}}, "epoch=0.5 is not an integer"),
        ({"at": (2, 5)}, r"at=\(2, 5\) does not map epochs or steps"),
        ({"at": {2: 16}, "monitor": "val_loss"}, "monitor='val_loss' beside at: a schedule watches nothing"),
        ({"ladder": 12}, "ladder=12 is not a sequence of word lengths"),
    ],
)  # fmt: skip
def test_bad_values(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WordLengthRamp(**options)
