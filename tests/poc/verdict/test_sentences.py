"""The verdict on records that were made for it. Its words are tested as a reader would take them."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowprec_plugin.poc.run.metrics import Scale
from lowprec_plugin.poc.run.variants import VARIANTS, spoken
from lowprec_plugin.poc.verdict.curves import training_loss
from lowprec_plugin.poc.verdict.groups import Groups
from lowprec_plugin.poc.verdict.outcomes import SPOKEN, Finding, Outcome
from lowprec_plugin.poc.verdict.sentences import Overview, headline
from tests.poc.staged import NOISE, curves, diverged, float32, full, outcomes, record, runs, verdict, widened


def test_sixteen_bits_suffice_and_nearest_fails() -> None:
    found = verdict([*float32(), *runs("16", 0.9748, shift=1), *runs("16 nearest", 0.93)])
    assert outcomes(found) == {"16": "equal", "16 nearest": "worse"}
    assert found.headline == "16-bit stochastic is within seed noise of float32; 16-bit nearest is worse."
    assert found.sentences["16"] == (
        "16-bit stochastic is within seed noise of float32 (val_accuracy 97.47 % against 97.50 %, −0.02 ± 0.09 points "
        "over 4 seeds)."
    )
    assert "−4.50 ± 0.08 points" in found.sentences["16 nearest"]
    assert (
        "78 % of its updates were smaller than half a code, which rounding to nearest drops"
        in found.sentences["16 nearest"]
    )
    assert "Try 16-bit stochastic" in found.next[0]
    assert found.next[1].startswith("Weigh the time: its step took 1.54 × float32's here")
    assert any("Do not use 16-bit nearest: round stochastically" in each for each in found.next)


def test_twelve_bits_stall_and_the_ramp_recovers() -> None:
    ramp = [record("12 with ramp", seed, 0.9748 + NOISE[seed + 2], **widened(400 + 12 * seed)[0]) for seed in range(4)]
    found = verdict([*float32(), *runs("16", 0.9748, shift=1), *runs("12", 0.94), *ramp])
    assert outcomes(found) == {"16": "equal", "12": "worse", "12 with ramp": "equal"}
    assert found.headline == (
        "16-bit stochastic and 12-bit with ramp are within seed noise of float32; 12-bit stochastic is worse."
    )
    assert "−3.50 ± 0.08 points" in found.sentences["12"]
    assert "It recovered 12-bit stochastic, widening at steps 400 to 436" in found.sentences["12 with ramp"]
    assert "12-bit stochastic needs its ramp." in found.next


def test_a_ramp_that_widened_at_one_step_or_not_at_all_or_in_vain() -> None:
    records = [*float32(), *runs("12", 0.94)]
    one = verdict([*records, *(record("12 with ramp", s, 0.975 + NOISE[s], **widened(412)[0]) for s in range(4))])
    assert "It recovered 12-bit stochastic, widening at step 412." in one.sentences["12 with ramp"]
    none = verdict([*records, *runs("12 with ramp", 0.975, shift=2)])
    assert "recovered" not in none.sentences["12 with ramp"]
    assert "Its words never widened" in none.sentences["12 with ramp"]
    vain = verdict([*records, *(record("12 with ramp", s, 0.95 + NOISE[s], **widened(412)[0]) for s in range(4))])
    assert "recovered" not in vain.sentences["12 with ramp"]
    assert any("12-bit with ramp is not enough" in each for each in vain.next)
    sound = verdict(
        [*float32(), *runs("12", 0.975), *(record("12 with ramp", s, 0.975, **widened(412)[0]) for s in range(4))]
    )
    assert "recovered" not in sound.sentences["12 with ramp"], "there was nothing to recover"


@pytest.mark.parametrize("others", ["diverged", "finished"])
def test_float32_itself_diverges(others: str) -> None:
    """Precision is not to blame, whatever the variants did."""
    mine = diverged("16", range(4)) if others == "diverged" else runs("16", 0.97)
    found = verdict(
        [*diverged("float32", range(4)), *diverged("float32 twin", range(4)), *mine, *diverged("12", range(4))]
    )
    assert found.baseline == "diverged"
    assert set(outcomes(found).values()) == {"no yardstick"}
    assert found.headline == "float32 itself diverged: this comparison says nothing about precision."
    assert found.caution == "float32 itself diverged on 4 of 4 seeds (the training loss was inf at step 96)."
    assert found.next == [
        "Make the training work in float32 first (lower learning rate, gradient clipping, longer warm-up). Then run "
        "this again, with another --output."
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
    assert found.caution == "float32 itself diverged on 2 of 12 runs: this training is unstable."
    assert (
        "diverged on 1 of 5 seeds (the training loss was inf at step 96), float32 and its twin on 2 of 12 runs"
        in (found.sentences["12"])
    )
    assert "over 5 seeds" in found.sentences["16"]
    assert found.next[0].startswith("Stabilise the training first")


def test_float32_learns_nothing() -> None:
    flat = {"curves": {**curves(0, 0.1), "train_loss": [(0, 2.30), *((step, 2.31) for step in range(5, 200, 5))]}}
    found = verdict([*(record(name, s, 0.1, **flat) for name in ("float32", "float32 twin", "16") for s in range(4))])
    assert found.baseline == "flat"
    assert found.headline == "float32 itself learned nothing: this comparison says nothing about precision."
    assert found.caution == (
        "float32 itself learned nothing on 4 of 4 seeds: its train_loss did not fall, and val_accuracy got no better."
    )


def test_seeds_that_make_no_difference_are_one() -> None:
    """A module that calls ``seed_everything(42)`` itself: over four such seeds anything would look certain."""
    names = {"float32": 0.97, "float32 twin": 0.9702, "16": 0.9601}
    found = verdict([record(name, s, at, curves=curves(0, at)) for name, at in names.items() for s in range(4)])
    assert found.baseline == "one"
    assert found.headline == "float32's seeds make no difference: this comparison says nothing about precision."
    assert found.caution == (
        "float32's seeds make no difference: all 4 runs are the same, as if the module or its data set its own seed."
    )
    assert outcomes(found) == {"16": "no yardstick"}
    assert found.next[0].startswith("Leave seed_everything and manual_seed out")
    assert verdict(float32(1)).baseline == "sound"


def test_runs_of_other_lengths_are_told() -> None:
    """What ends runs when they are good enough sets them apart, whatever the format."""
    found = verdict([*float32(), *runs("16", 0.96)[:3], record("16", 3, 0.95, steps=320), *runs("12", 0.96)])
    assert "1 of 4 seeds ended at step 320, float32's at step 645: more than the format" in found.sentences["16"]
    assert "ended at" not in found.sentences["12"]


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
    assert found.headline == "12-bit nearest diverged."
    assert found.sentences["12 nearest"].startswith(f"12-bit nearest diverged on {count} of 4 seeds")
    assert "inf at step 96), float32 and its twin on 0 of 8 runs" in found.sentences["12 nearest"]


def test_better_than_float32_is_not_celebrated() -> None:
    found = verdict([*float32(), *runs("16", 0.985)])
    assert outcomes(found) == {"16": "better"}
    assert found.headline == "16-bit stochastic is different, favourably."
    assert "+1.00 ± 0.08 points" in found.sentences["16"]
    assert "not a promise" in found.sentences["16"]
    assert "better" not in found.headline


def test_a_few_steps_show_nothing() -> None:
    found = verdict([replace(run, steps=5) for run in [*float32(), *runs("16", 0.9748, shift=1)]])
    assert found.caution == "These runs had 5 steps, too few to show what a format does."
    assert found.next[0] == "Run at least 50 steps; a few hundred are better."


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


def test_distances_are_written_without_an_exponent() -> None:
    """``1.5e+02`` is no figure for a sentence, nor is ``1.2e-05``."""
    scale = Scale.of("val_mse", [2500.0, 250_000.0])
    distances = {1.23e-5: "0.000012", 0.0123: "0.012", 1.0: "1", 153: "150", 15_234: "15000"}
    assert [scale.distance(each) for each in distances] == list(distances.values())


def test_bfloat16_beside_ours() -> None:
    found = verdict([*float32(), *runs("bf16", 0.975, shift=2), *runs("16", 0.93)])
    assert found.next[0] == "bf16 mixed precision is equal; no fixed-point variant is shown to be."
    small = {"held": {"weights": 1, "state": 1, "gradients": 1, "activations": 1, "buffers": 0}}
    rival = verdict([*float32(), *runs("bf16", 0.975, shift=2, **small), *runs("16", 0.975)])
    assert any("bf16 mixed precision kept it too, and holds less here" in each for each in rival.next)


def test_a_study_that_has_just_begun() -> None:
    found = verdict([record("float32", 0)], variants=["float32", "float32 twin", "16"])
    assert found.headline == "float32's twin has not run yet: this comparison says nothing about precision."
    assert found.caution == "float32's twin has not run yet."
    assert outcomes(found) == {"16": "no run"}


def test_the_order_of_the_records_does_not_matter() -> None:
    records = full()
    shuffled = random.Random(0).sample(records, len(records))
    names = list(dict.fromkeys(each.variant for each in records))
    assert verdict(shuffled, variants=names) == verdict(records, variants=names)


def test_activations_that_outweigh_all_else_are_told_whatever_the_verdict() -> None:
    held = {"weights": 100, "state": 200, "gradients": 100, "buffers": 0, "activations": 3600}
    records = [replace(run, held=held) for run in float32()] + runs("16", 0.94)
    (said,) = [each for each in verdict(records).next if "activation_word_length=8" in each]
    assert said.startswith("90 % of float32's bytes are activations")
    assert not any("activation_word_length" in each for each in verdict([*float32(), *runs("16", 0.94)]).next)


def test_what_has_not_run_yet_is_not_called_a_failure() -> None:
    found = verdict([*float32(), *runs("16", 0.9748)], variants=["16", "12"])
    assert "Let 12-bit stochastic run: the same command continues where it stopped." in found.next
    assert not any(each.startswith("Find out why") for each in found.next)


def test_a_headline_names_variants_while_there_is_room() -> None:
    assert verdict(full()).headline == (
        "bf16, 16-bit stochastic, 16/8-bit and 12-bit with ramp are within seed noise of float32; 12-bit stochastic "
        "and 8-bit stochastic are worse; 2 others below."
    )


OTHERS = [name for name in VARIANTS if not name.startswith("float32")]


@given(st.lists(st.sampled_from(list(SPOKEN)), min_size=1, max_size=len(OTHERS)))
def test_a_headline_has_at_most_25_words(outcomes: list[Outcome]) -> None:
    """Whatever the variants come out as; none is left uncounted."""
    groups = Groups.make([], "val_accuracy", "max", tolerance="1%")
    found = [Finding(name, outcome) for name, outcome in zip(OTHERS, outcomes, strict=False)]
    said = headline(Overview(groups, Scale.of("val_accuracy", [0.9]), "sound", found))
    assert len(said.split()) <= 25
    counts = sum(map(int, re.findall(r"(\d+) (?:variants|others?)", said)))
    for name in sorted((spoken(each.variant) for each in found), key=len, reverse=True):
        counts += name in said
        said = said.replace(name, "", 1)
    assert counts == len(found)
