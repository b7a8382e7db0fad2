"""The verdict where seeds, chance and the size of a difference decide."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowprec_plugin.poc.verdict.judge import Verdict
from tests.poc.staged import NOISE, float32, outcomes, record, runs, verdict


def test_differences_within_seed_noise_have_no_winner() -> None:
    found = verdict(
        [*float32(), *runs("bf16", 0.9746, shift=2), *runs("16", 0.9749, shift=1), *runs("16/8", 0.9753, shift=5)]
    )
    assert set(outcomes(found).values()) == {"equal"}
    assert "None of them is shown to be better in quality" in found.next[0]
    said = " ".join([found.headline, *found.sentences.values(), *found.next])
    for word in ("best", "better than float32", "worse", "outperform", "improve"):
        assert word not in said
    assert "Try 16/8-bit: of the variants that kept the quality it holds the fewest bytes" in found.next[0]


@settings(max_examples=25)
@given(st.lists(st.floats(-0.001, 0.001), min_size=8, max_size=8))
def test_no_winner_whatever_the_noise(noise: list[float]) -> None:
    """Two variants that are both equal to float32 are never ordered by quality."""
    values = [0.975 + each for each in noise]
    records = [record(name, seed, values[4 * at + seed]) for at, name in enumerate(("16", "16/8")) for seed in range(4)]
    found = verdict([*float32(), *records])
    if set(outcomes(found).values()) == {"equal"}:
        assert "None of them is shown to be better" in found.next[0]
        assert "16/8-bit" in found.next[0], "the narrower one, whichever had the higher mean"


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_too_few_seeds(seeds: int) -> None:
    found = verdict([*float32(seeds), *runs("16", 0.975, seeds=seeds)])
    assert outcomes(found) == {"16": "few seeds"}
    assert f"Run {4 - seeds} more seed" in found.next[0]
    assert "within seed noise" not in found.headline


def test_within_the_noise_but_beyond_the_limit_is_neither_equal_nor_worse() -> None:
    found = verdict([*float32(), *runs("16", 0.969, spread=9)])
    assert outcomes(found) == {"16": "unsettled"}
    # The variant's seeds differ from float32's by 8 times the noise; two standard errors are to fall to 0.3 %.
    error = 8 * statistics.stdev(NOISE[:4]) / 2
    seeds = math.ceil(4 * (2 * error / (0.003 * 0.975)) ** 2)
    assert f"Run about {seeds} seeds to settle 16-bit stochastic." in found.next
    assert f"With two standard errors added it is {100 * (0.006 + 2 * error):.2g} points worse" in found.sentences["16"]
    hopeless = verdict([*float32(), *runs("16", 0.95, spread=40)])
    assert any(each.startswith("No practical number of seeds settles 16-bit stochastic") for each in hopeless.next)


@pytest.mark.parametrize("mean", [0.0, 1e-9, 1e-320])
def test_a_metric_near_zero_is_not_settled_by_any_number_of_seeds(mean: float) -> None:
    """0.3 % of it is nothing, so that only a tie is equal."""
    records = [
        record(name, seed, metrics={"reward": mean + noise[seed]})
        for name, noise in (("float32", (1, -1, 1, -1)), ("float32 twin", (-1, 1, 1, -1)), ("16", (1, 1, -1, 0)))
        for seed in range(4)
    ]
    tie = [record("16/8", seed, metrics={"reward": mean + (1, -1, 1, -1)[seed]}) for seed in range(4)]
    found = verdict([*records, *tie], "reward")
    assert outcomes(found) == {"16": "unsettled", "16/8": "equal"}
    assert any(each.startswith("No practical number of seeds settles 16-bit stochastic") for each in found.next)
    assert any("train longer, or compare a metric with less noise" in each for each in found.next)


@pytest.mark.parametrize("value", [1.0, 0.5, 0.0])
def test_a_metric_that_is_the_same_in_every_run_tells_nothing_apart(value: float) -> None:
    names = ("float32", "float32 twin", "16", "12")
    found = verdict([record(name, seed, value) for name in names for seed in range(4)])
    assert set(outcomes(found).values()) == {"unsettled"}
    said = f"val_accuracy cannot tell them apart: every run ended at {100 * value:.2f} %."
    assert found.headline == "16-bit stochastic and 12-bit stochastic are not settled."
    assert found.sentences["16"].startswith("16-bit stochastic is not settled (val_accuracy")
    assert found.sentences["16"].endswith(f"0.00 ± 0.00 points over 4 seeds). {said}")
    assert any(each.startswith("Compare something else (--metric") for each in found.next)
    assert not any(each.startswith(("Try", "Run about")) for each in found.next)
    other = verdict([*(record(name, s, value) for name in names[:2] for s in range(4)), *runs("16", value + 0.1)])
    assert outcomes(other)["16"] == "better", "it does tell where the variant ends elsewhere"
    unsteady = [record(names[1], 4, status="diverged", metrics={}), record("16", 4, status="diverged", metrics={})]
    found = verdict([*(record(name, s, value) for name in names[:3] for s in range(4)), *unsteady])
    assert outcomes(found) == {"16": "unsettled"}
    assert "every run ended" not in found.sentences["16"], "one of them diverged"


def test_of_many_comparisons_one_may_come_out_by_chance() -> None:
    """Said of what is just beyond two standard errors beside others, and of nothing else."""
    alone = verdict([*float32(), *runs("16", 0.973)])
    assert outcomes(alone) == {"16": "worse"}
    near = alone.findings[0].comparison
    assert near is not None
    assert 2 < abs(near.difference) / near.standard_error < 3
    assert "by chance" not in alone.sentences["16"]
    assert any(each.startswith("Give 16-bit stochastic more bits") for each in alone.next)
    many = verdict([*float32(), *runs("16", 0.973), *runs("12", 0.93), *runs("16/8", 0.977)])
    assert "It is one of 3 comparisons, of which one in twenty comes out so by chance" in many.sentences["16"]
    assert "by chance" not in many.sentences["12"]
    assert outcomes(many)["16/8"] == "better"
    assert "It is one of 3 comparisons" in many.sentences["16/8"]
    assert "by chance" not in many.sentences["12"]
    assert "Repeat 16-bit stochastic with 8 seeds, half of which are there: it may be worse by chance." in many.next
    assert any(each.startswith("Give 12-bit stochastic more bits") for each in many.next)


def test_an_equal_variant_says_what_so_few_seeds_cannot_show() -> None:
    found = verdict([*float32(), *runs("16", 0.9749, shift=2, spread=9)])
    assert outcomes(found) == {"16": "equal"}
    assert "4 seeds cannot show differences below" in found.sentences["16"]


def test_a_small_difference_beyond_the_noise_is_called_small() -> None:
    calm = [record(name, s, 0.975 + 1e-5 * NOISE[s]) for name in ("float32", "float32 twin") for s in range(4)]
    found = verdict([*calm, *(record("16", s, 0.974 + 1e-5 * NOISE[s]) for s in range(4))])
    assert outcomes(found) == {"16": "worse"}
    assert "The difference is below 0.3 %, but beyond seed noise." in found.sentences["16"]


def test_a_tolerance_takes_what_is_worse_by_less_or_open() -> None:
    def asked(tolerance: float | str | None) -> Verdict:
        records = [*float32(), *runs("16", 0.968), *runs("16/8", 0.972, spread=4, shift=1), *runs("12", 0.94)]
        return verdict(records, tolerance=tolerance)

    assert outcomes(asked(None)) == {"16": "worse", "16/8": "unsettled", "12": "worse"}
    for tolerance in ("1%", 0.01):
        found = asked(tolerance)
        assert outcomes(found) == {"16": "tolerated", "16/8": "tolerated", "12": "worse"}
        assert "Try 16/8-bit: of the variants that kept the quality it holds" in found.next[0]
    found = asked("1%")
    assert found.headline == "16-bit stochastic and 16/8-bit are within the 1 % you allow; 12-bit stochastic is worse."
    assert found.sentences["16"].startswith("16-bit stochastic is within the 1 % you allow (val_accuracy 96.80 %")
    assert "With two standard errors added it is" in found.sentences["16"]
    assert outcomes(asked("0.75%")) == {"16": "worse", "16/8": "unsettled", "12": "worse"}, "two errors are added"
    few = verdict([*float32(3), *runs("16", 0.968, seeds=3)], tolerance="1%")
    assert outcomes(few) == {"16": "few seeds"}
    better = verdict([*float32(), *runs("16", 0.99)], tolerance="1%")
    assert outcomes(better) == {"16": "better"}
    bf16 = verdict([*float32(), *runs("bf16", 0.968), *runs("16", 0.94)], tolerance="1%")
    assert outcomes(bf16) == {"bf16": "tolerated", "16": "worse"}
    assert bf16.next[0] == "bf16 mixed precision is within what you allow; no fixed-point variant is shown to be."
