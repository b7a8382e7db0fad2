"""The verdict on records that were made for it. Its words are tested as a reader would take them."""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowprec_plugin.poc.curves import training_loss
from lowprec_plugin.poc.groups import Groups
from lowprec_plugin.poc.pace import pace
from lowprec_plugin.poc.records import RunRecord
from lowprec_plugin.poc.verdict import Verdict, judge
from tests.poc.staged import NOISE, curves, diverged, float32, full, record, runs, widened


def verdict(records: list[RunRecord], metric: str = "val_accuracy", mode: str = "max") -> Verdict:
    return judge(records, metric, mode)


def outcomes(found: Verdict) -> dict[str, str]:
    return {finding.variant: finding.outcome for finding in found.findings}


def test_sixteen_bits_suffice_and_nearest_fails() -> None:
    found = verdict([*float32(), *runs("16", 0.9748, shift=1), *runs("16 nearest", 0.93)])
    assert outcomes(found) == {"16": "equal", "16 nearest": "worse"}
    assert found.headline == (
        "16-bit stochastic is within seed noise of float32 (val_accuracy 97.47 % against 97.50 %, −0.02 ± 0.09 points "
        "over 4 seeds); 16-bit nearest (−4.50 ± 0.08 points) is not."
    )
    assert found.costs["16"] == "It held 69 % of float32's bytes. Slower: a step took 1.54 ± 0.01 × float32's time."
    assert (
        "78 % of its updates were smaller than half a code, which rounding to nearest drops"
        in found.sentences["16 nearest"]
    )
    assert "Try 16-bit stochastic" in found.next[0]
    assert "1.54 × float32's" in found.next[1]
    assert any("Do not use 16-bit nearest: round stochastically" in each for each in found.next)


def test_twelve_bits_stall_and_the_ramp_recovers() -> None:
    ramp = [record("12 with ramp", seed, 0.9748 + NOISE[seed + 2], **widened(400 + 12 * seed)[0]) for seed in range(4)]
    found = verdict([*float32(), *runs("16", 0.9748, shift=1), *runs("12", 0.94), *ramp])
    assert outcomes(found) == {"16": "equal", "12": "worse", "12 with ramp": "equal"}
    assert found.headline.endswith(
        "12-bit stochastic (−3.50 ± 0.08 points) is not; the ramp recovered it, widening at steps 400 to 436."
    )
    assert "It recovered 12-bit stochastic, widening at steps 400 to 436" in found.sentences["12 with ramp"]
    assert "12-bit stochastic needs its ramp." in found.next


def test_a_ramp_that_widened_at_one_step_or_not_at_all_or_in_vain() -> None:
    records = [*float32(), *runs("12", 0.94)]
    one = verdict([*records, *(record("12 with ramp", s, 0.975 + NOISE[s], **widened(412)[0]) for s in range(4))])
    assert "the ramp recovered it, widening at step 412." in one.headline
    none = verdict([*records, *runs("12 with ramp", 0.975, shift=2)])
    assert "recovered" not in none.headline
    assert "Its words never widened" in none.sentences["12 with ramp"]
    vain = verdict([*records, *(record("12 with ramp", s, 0.95 + NOISE[s], **widened(412)[0]) for s in range(4))])
    assert "recovered" not in vain.headline
    assert any("12-bit with ramp is not enough" in each for each in vain.next)
    sound = verdict(
        [*float32(), *runs("12", 0.975), *(record("12 with ramp", s, 0.975, **widened(412)[0]) for s in range(4))]
    )
    assert "recovered" not in sound.headline, "there was nothing to recover"


@pytest.mark.parametrize("others", ["diverged", "finished"])
def test_float32_itself_diverges(others: str) -> None:
    """Precision is not to blame, whatever the variants did."""
    mine = diverged("16", range(4)) if others == "diverged" else runs("16", 0.97)
    found = verdict(
        [*diverged("float32", range(4)), *diverged("float32 twin", range(4)), *mine, *diverged("12", range(4))]
    )
    assert found.baseline == "diverged"
    assert set(outcomes(found).values()) == {"no yardstick"}
    assert found.headline == (
        "float32 itself diverged on 4 of 4 seeds (the training loss was inf at step 96). This comparison says nothing "
        "of precision."
    )
    assert found.next == [
        "Make the training work in float32 first: a lower learning rate, gradient clipping, a longer warm-up. Then run "
        "this again."
    ]
    for sentence in found.sentences.values():
        assert "worse" not in sentence
        assert "equal" not in sentence


def test_float32_diverges_on_some_seeds() -> None:
    """What diverges beside it is not settled; what does not is judged on the seeds that are left."""
    records = [*float32(5), *diverged("float32", [5]), *diverged("float32 twin", [5])]
    found = verdict(
        [*records, *diverged("12", [1]), *runs("12", 0.975, seeds=6)[2:], *runs("16", 0.975, seeds=6, shift=2)]
    )
    assert found.baseline == "unstable"
    assert outcomes(found) == {"12": "unsettled", "16": "equal"}
    assert found.headline.startswith("float32 itself diverged on 2 of 12 runs; ")
    assert "need not be the precision" in found.sentences["12"]
    assert "over 5 seeds" in found.sentences["16"]
    assert found.next[0].startswith("Steady the training first")


def test_float32_learns_nothing() -> None:
    flat = {"curves": {**curves(0, 0.1), "train_loss": [(0, 2.30), *((step, 2.31) for step in range(5, 200, 5))]}}
    found = verdict([*(record(name, s, 0.1, **flat) for name in ("float32", "float32 twin", "16") for s in range(4))])
    assert found.baseline == "flat"
    assert found.headline == (
        "float32 itself learned nothing on 4 of 4 seeds: its train_loss did not fall, and val_accuracy got no better. "
        "This comparison says nothing of precision."
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"kl_loss": [(step, float(step)) for step in range(0, 200, 5)]},  # a part that rises beside a loss that falls
        {"train_loss": [(0, 0.3), *((step, 0.31) for step in range(5, 200, 5))]},  # while the metric gets better
    ],
)
def test_float32_that_learned_is_not_called_flat(changed: dict[str, list[tuple[int, float]]]) -> None:
    names = ("float32", "float32 twin", "16")
    found = verdict([each for name in names for each in runs(name, 0.97, curves={**curves(0, 0.97), **changed})])
    assert found.baseline == "sound"
    assert outcomes(found) == {"16": "equal"}


def test_the_training_loss() -> None:
    """The densest; the part of a loss that is logged as often does not stand for it."""
    parts = {
        "kl_loss": [(0, 0.0), (5, 1.0)],
        "train_loss": [(0, 2.0), (5, 1.0)],
        "train_backcast_loss": [(0, 0.1), (5, 0.2)],
        "val_loss": [(at, 1.0) for at in range(9)],
    }
    assert training_loss([record("float32", 0, curves=parts)]) == "train_loss"
    assert (
        training_loss([record("float32", 0, curves={**parts, "kl_loss": [(at, 1.0) for at in range(9)]})]) == "kl_loss"
    )


def test_differences_within_seed_noise_have_no_winner() -> None:
    found = verdict(
        [*float32(), *runs("bf16", 0.9746, shift=2), *runs("16", 0.9749, shift=1), *runs("16/8", 0.9753, shift=5)]
    )
    assert set(outcomes(found).values()) == {"equal"}
    assert found.headline.endswith("of those that are equal, none is shown to be better than another.")
    said = " ".join([found.headline, *found.sentences.values(), *found.next])
    for word in ("best", "better than float32", "worse", "outperform", "improve"):
        assert word not in said
    assert "Try 16/8-bit: of what is equal it holds fewest bytes" in found.next[0]


@settings(max_examples=25)
@given(st.lists(st.floats(-0.001, 0.001), min_size=8, max_size=8))
def test_no_winner_whatever_the_noise(noise: list[float]) -> None:
    """Two variants that are both equal to float32 are never ordered by quality."""
    values = [0.975 + each for each in noise]
    records = [record(name, seed, values[4 * at + seed]) for at, name in enumerate(("16", "16/8")) for seed in range(4)]
    found = verdict([*float32(), *records])
    if set(outcomes(found).values()) == {"equal"}:
        assert "none is shown to be better" in found.headline
        assert "16/8-bit" in found.next[0], "the narrower one, whichever had the higher mean"


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_too_few_seeds(seeds: int) -> None:
    found = verdict([*float32(seeds), *runs("16", 0.975, seeds=seeds)])
    assert outcomes(found) == {"16": "few seeds"}
    assert f"{4 - seeds} more" in found.sentences["16"]
    assert f"Run {4 - seeds} more seed" in found.next[0]
    assert "within seed noise" not in found.headline


def test_a_variant_that_failed() -> None:
    failed = [record("16", s, status="failed", reason="CUDA out of memory.", metrics={}) for s in range(4)]
    found = verdict([*float32(), *failed, *runs("16/8", 0.975)])
    assert outcomes(found) == {"16": "failed", "16/8": "equal"}
    assert found.sentences["16"] == "16-bit stochastic gave no result: CUDA out of memory."
    some = verdict(
        [*float32(5), *runs("16", 0.975, seeds=4), record("16", 4, status="failed", reason="killed", metrics={})]
    )
    assert outcomes(some) == {"16": "equal"}
    assert "1 of 5 seeds gave no result: killed" in some.sentences["16"]


def test_a_metric_that_was_not_logged() -> None:
    found = verdict([*float32(), *(record("16", s, metrics={"loss": 1.0}) for s in range(4))])
    assert found.sentences["16"] == "16-bit stochastic gave no result: it logged no finite val_accuracy."


@pytest.mark.parametrize("count", [1, 4])
def test_a_variant_diverges_beside_a_healthy_float32(count: int) -> None:
    found = verdict([*float32(), *diverged("12 nearest", range(count)), *runs("12 nearest", 0.975)[count:]])
    assert outcomes(found) == {"12 nearest": "diverged"}
    assert f"12-bit nearest diverged on {count} of 4 seeds" in found.headline
    assert "float32 on none" in found.headline
    assert "inf at step 96" in found.sentences["12 nearest"]


def test_better_than_float32_is_not_celebrated() -> None:
    found = verdict([*float32(), *runs("16", 0.985)])
    assert outcomes(found) == {"16": "better"}
    assert found.headline == "16-bit stochastic differs, in its favour (+1.00 ± 0.08 points)."
    assert "not a promise" in found.sentences["16"]
    assert "better" not in found.headline


def test_within_the_noise_but_beyond_the_limit_is_neither_equal_nor_worse() -> None:
    found = verdict([*float32(), *runs("16", 0.969, spread=9)])
    assert outcomes(found) == {"16": "unsettled"}
    # The variant's seeds differ from float32's by 8 times the noise; two standard errors are to fall to 0.3 %.
    error = 8 * statistics.stdev(NOISE[:4]) / 2
    assert f"about {math.ceil(4 * (2 * error / (0.003 * 0.975)) ** 2)} seeds would settle it" in found.sentences["16"]
    assert f"Two standard errors away it is {100 * (0.006 + 2 * error):.2g} points worse" in found.sentences["16"]
    hopeless = verdict([*float32(), *runs("16", 0.95, spread=40)])
    assert "no practical number of seeds" in hopeless.sentences["16"]


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
    assert "no practical number of seeds settles it" in found.sentences["16"]
    assert any("train longer, or compare a metric with less noise" in each for each in found.next)


def test_a_few_steps_show_nothing() -> None:
    found = verdict([replace(run, steps=5) for run in [*float32(), *runs("16", 0.9748, shift=1)]])
    assert found.headline.startswith("These runs had 5 steps, too few to show what a format does; ")
    assert found.next[0] == "Give the runs 50 steps and more; a few hundred are better."


def test_a_step_is_slower_only_beyond_what_the_twin_shows() -> None:
    """A machine with other work: float32's twin, the same code, takes 1.4 times as long or 0.8 times."""

    def said(ratio: float, *twins: float) -> str:
        times = {"float32": [10.0] * 4, "float32 twin": [10 * each for each in twins], "16": [10 * ratio] * 4}
        found = verdict([
            replace(run, step_ms={"median": times[run.variant][run.seed]})
            for run in [*float32(), *runs("16", 0.9748, shift=1)]
        ])  # fmt: skip
        return found.costs["16"]

    assert "A step took 1.30 ± 0.36 × float32's time: no difference that is shown." in said(1.3, 1.4, 0.8, 0.7, 1.3)
    assert "Slower: a step took 1.30 ± 0.01 ×" in said(1.3, 1.01, 1, 9, 0.99), "one run that says nothing"
    assert "Faster: a step took 0.80 ± 0.01 ×" in said(0.8, 1.01, 1.01, 1.02, 1)
    assert "no difference that is shown" in said(1.04, 1, 1, 1, 1), "nobody's concern"


def test_the_step_of_one_seed_is_never_called_slower() -> None:
    found = verdict([*float32(1), *runs("16", 0.9748, seeds=1)])
    assert "A step took 1.56 ± 0.00 × float32's time: one seed is too few to tell." in found.costs["16"]
    many, rng = 400, random.Random(1)

    def called(seeds: int) -> float:
        """The share of comparisons in which the very same code is called slower or faster."""
        words = []
        for _ in range(many):
            records = [
                record(name, seed, step_ms={"median": 10 * math.exp(0.1 * rng.gauss(0, 1))})
                for name in ("float32", "float32 twin", "16") for seed in range(seeds)
            ]  # fmt: skip
            words.append(pace(Groups.make(records, "val_accuracy", "max"), "16").word)  # type: ignore[union-attr]
        return sum(map(bool, words)) / many

    assert called(1) == 0
    assert called(4) < 0.08


def test_step_times_of_two_commands_are_not_compared() -> None:
    """A variant that is added on another day is timed on a machine with other work."""
    before = [replace(run, began="Monday") for run in [*float32(), *runs("16", 0.9748)[:2]]]
    after = [replace(run, began="Tuesday") for run in [*runs("16", 0.9748)[2:], *runs("12", 0.9748)]]
    found = verdict([*before, *after])
    assert "Slower: a step took 1.55 ± 0.01 ×" in found.costs["16"], "of the seeds that are left"
    assert found.costs["12"].endswith(
        "Its step time is not compared: no seed was timed with float32 and its twin by one command."
    )


@pytest.mark.parametrize("value", [1.0, 0.5, 0.0])
def test_a_metric_that_is_the_same_in_every_run_tells_nothing_apart(value: float) -> None:
    names = ("float32", "float32 twin", "16", "12")
    found = verdict([record(name, seed, value) for name in names for seed in range(4)])
    assert set(outcomes(found).values()) == {"unsettled"}
    said = f"val_accuracy cannot tell: every run ended at {100 * value:.2f} %, float32's too."
    assert found.headline.endswith(f"are not settled; for 16-bit stochastic and 12-bit stochastic {said}")
    assert found.sentences["16"].endswith(f"16-bit stochastic is not settled: {said}")
    assert any(each.startswith("Compare something else (--metric") for each in found.next)
    assert not any(each.startswith(("Try", "Run about")) for each in found.next)
    other = verdict([*(record(name, s, value) for name in names[:2] for s in range(4)), *runs("16", value + 0.1)])
    assert outcomes(other)["16"] == "better", "it does tell where the variant ends elsewhere"


def test_of_many_comparisons_one_may_come_out_by_chance() -> None:
    """Said of what is just beyond two standard errors beside others, and of nothing else."""
    alone = verdict([*float32(), *runs("16", 0.973)])
    assert outcomes(alone) == {"16": "worse"}
    near = alone.findings[0].comparison
    assert near is not None
    assert 2 < abs(near.difference) / near.standard_error < 3
    assert "by chance" not in alone.sentences["16"]
    assert any(each.startswith("For 16-bit stochastic give more bits") for each in alone.next)
    many = verdict([*float32(), *runs("16", 0.973), *runs("12", 0.93), *runs("16/8", 0.977)])
    assert "It was one of 3 comparisons, and by chance one in twenty comes out so" in many.sentences["16"]
    assert outcomes(many)["16/8"] == "better"
    assert "It was one of 3 comparisons" in many.sentences["16/8"]
    assert "by chance" not in many.sentences["12"]
    assert (
        "Repeat 16-bit stochastic with 8 seeds, of which half are there: that it is worse may be chance." in many.next
    )
    assert any(each.startswith("For 12-bit stochastic give more bits") for each in many.next)


def test_an_equal_variant_says_what_so_few_seeds_cannot_show() -> None:
    found = verdict([*float32(), *runs("16", 0.9749, shift=2, spread=9)])
    assert outcomes(found) == {"16": "equal"}
    assert "4 seeds cannot show differences below" in found.sentences["16"]


def test_a_small_difference_beyond_the_noise_is_called_small() -> None:
    calm = [record(name, s, 0.975 + 1e-5 * NOISE[s]) for name in ("float32", "float32 twin") for s in range(4)]
    found = verdict([*calm, *(record("16", s, 0.974 + 1e-5 * NOISE[s]) for s in range(4))])
    assert outcomes(found) == {"16": "worse"}
    assert "beyond seed noise though below 0.3 %" in found.sentences["16"]


def test_less_is_better() -> None:
    found = verdict([*float32(), *runs("16", 0.93), *runs("16/8", 0.99)], "val_loss", "min")
    assert outcomes(found) == {"16": "worse", "16/8": "better"}
    assert "val_loss 0.2800 against 0.1000" in found.sentences["16"]


@pytest.mark.parametrize(
    ("size", "evidence"),
    [
        (1e-11, "val_loss 1.001 × 1e-11 against 1.000 × 1e-11, +0.0010 ± 0.0008 × 1e-11 over 4 seeds"),
        (-400, "val_loss −400.4 against −400.0, −0.4 ± 0.3 over 4 seeds"),
        (1e20, "val_loss 1.001 × 1e20 against 1.000 × 1e20, +0.0010 ± 0.0008 × 1e20 over 4 seeds"),
    ],
)
def test_metrics_of_any_size_are_readable(size: float, evidence: str) -> None:
    records = [
        record(name, seed, metrics={"val_loss": size * (at + NOISE[(seed + shift) % 4])})
        for name, at, shift in (("float32", 1, 0), ("float32 twin", 1, 1), ("16", 1.001, 0))
        for seed in range(4)
    ]
    assert evidence in verdict(records, "val_loss", "min").sentences["16"]


def test_bfloat16_beside_ours() -> None:
    found = verdict([*float32(), *runs("bf16", 0.975, shift=2), *runs("16", 0.93)])
    assert found.next[0] == "bf16 mixed precision is equal to float32; no fixed-point variant is shown to be."
    small = {"held": {"weights": 1, "state": 1, "gradients": 1, "activations": 1, "buffers": 0}}
    rival = verdict([*float32(), *runs("bf16", 0.975, shift=2, **small), *runs("16", 0.975)])
    assert any("bf16 mixed precision is equal too and holds less here" in each for each in rival.next)


def test_a_study_that_has_just_begun() -> None:
    found = judge([record("float32", 0)], "val_accuracy", "max", ["float32", "float32 twin", "16"])
    assert found.headline == (
        "float32's twin, by which the noise is measured, has no run yet. This comparison says nothing of precision."
    )
    assert outcomes(found) == {"16": "no run"}


def test_the_order_of_the_records_does_not_matter() -> None:
    records = full()
    shuffled = random.Random(0).sample(records, len(records))
    names = list(dict.fromkeys(each.variant for each in records))
    assert judge(shuffled, "val_accuracy", "max", names) == judge(records, "val_accuracy", "max", names)


def test_a_tolerance_takes_what_is_worse_by_less_or_open() -> None:
    def asked(tolerance: float | str | None) -> Verdict:
        records = [*float32(), *runs("16", 0.968), *runs("16/8", 0.972, spread=4, shift=1), *runs("12", 0.94)]
        return judge(records, "val_accuracy", "max", tolerance=tolerance)

    assert outcomes(asked(None)) == {"16": "worse", "16/8": "unsettled", "12": "worse"}
    for tolerance in ("1%", 0.01):
        found = asked(tolerance)
        assert outcomes(found) == {"16": "tolerated", "16/8": "tolerated", "12": "worse"}
        assert "Try 16/8-bit: of what is equal or within what you allow it holds fewest bytes" in found.next[0]
    found = asked("1%")
    assert found.headline.startswith("16-bit stochastic and 16/8-bit are within the 1 % that you allow; 12-bit")
    assert found.sentences["16"].startswith("16-bit stochastic is within the 1 % that you allow (val_accuracy 96.80 %")
    assert "Two standard errors away it is" in found.sentences["16"]
    assert outcomes(asked("0.75%")) == {"16": "worse", "16/8": "unsettled", "12": "worse"}, "two errors are added"
    few = judge([*float32(3), *runs("16", 0.968, seeds=3)], "val_accuracy", "max", tolerance="1%")
    assert outcomes(few) == {"16": "few seeds"}
    better = judge([*float32(), *runs("16", 0.99)], "val_accuracy", "max", tolerance="1%")
    assert outcomes(better) == {"16": "better"}


def test_activations_that_outweigh_all_else_are_told_whatever_the_verdict() -> None:
    held = {"weights": 100, "state": 200, "gradients": 100, "buffers": 0, "activations": 3600}
    records = [replace(run, held=held) for run in float32()] + runs("16", 0.94)
    (said,) = [each for each in verdict(records).next if "activation_word_length=8" in each]
    assert said.startswith("90 % of float32's bytes are activations")
    assert not any("activation_word_length" in each for each in verdict([*float32(), *runs("16", 0.94)]).next)


def test_what_has_not_run_yet_is_not_called_a_failure() -> None:
    found = judge([*float32(), *runs("16", 0.9748)], "val_accuracy", "max", ["16", "12"])
    assert "Let 12-bit stochastic run: the same command goes on where it stopped." in found.next
    assert not any(each.startswith("See why") for each in found.next)
