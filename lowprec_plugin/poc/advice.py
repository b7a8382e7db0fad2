"""What to do next, as far as the runs say."""

from __future__ import annotations

from lowprec_plugin.poc.groups import BF16, Groups
from lowprec_plugin.poc.outcomes import PRACTICAL, SHORT, SPOKEN, is_short, may_be_chance, of, seeds_to_settle
from lowprec_plugin.poc.pace import pace
from lowprec_plugin.poc.phrases import names
from lowprec_plugin.poc.wording import Words
from lowprec_plugin.poc.words import bytes_text, counted, spoken, times
from lowprec_plugin.quality import (
    MIN_SEEDS,
)

#: Share of all bytes that activations take, from which on they are worth a word.
MOSTLY = 0.5
#: Of float32's bytes: who holds more saves little.
LITTLE = 0.9


def advice(words: Words) -> list[str]:
    """In the order in which to do it."""
    if words.baseline in ("flat", "diverged"):
        return [
            "Make the training work in float32 first: a lower learning rate, gradient clipping, a longer warm-up. Then "
            "run this again, with another --output."
        ]
    if words.baseline == "one":
        return [
            "Let --seeds decide: leave seed_everything and manual_seed out of the module and its data, and shuffle the "
            "batches. Then run this again, with another --output."
        ]
    if words.baseline in ("failed", "no run"):
        return ["Let float32 and its twin finish: the same command goes on where it stopped."]
    said = []
    if is_short(words.groups):
        said.append(f"Give the runs {SHORT} steps and more; a few hundred are better.")
    if words.baseline == "unstable":
        said.append("Steady the training first (lower learning rate, gradient clipping): float32 diverges too.")
    said += _adopt(words)
    said += _activations(words.groups)
    said += _avoid(words)
    said += _seeds(words)
    if missing := of(words.findings, "no run"):
        said.append(f"Let {names(missing)} run: the same command goes on where it stopped.")
    if failed := of(words.findings, "failed"):
        said.append(f"See why there is no result of {names(failed)}: the same command tries again.")
    return [*said, "Before you decide, repeat the choice at the length and size of your real training."]


def _adopt(words: Words) -> list[str]:
    groups = words.groups
    ours = [each for each in of(words.findings, "equal", "tolerated") if each.variant != BF16]
    if not ours:
        return _none_equal(words)
    held = {each.variant: groups.of[each.variant].held or float("inf") for each in ours}
    best = min(ours, key=lambda each: held[each.variant]).variant
    whole = groups.float32.held
    if whole is None or held[best] >= whole:
        return [f"{names(ours)}: good enough, but no bytes were saved here."]
    little = ", little less" if held[best] > LITTLE * whole else ""
    saved = f"{bytes_text(held[best])} where float32 holds {bytes_text(whole)}{little}"
    good = "equal or within what you allow" if of(words.findings, "tolerated") else "equal"
    said = [f"Try {spoken(best)}: of what is {good} it holds fewest bytes, {saved}."]
    if (found := pace(groups, best)) and found.word == "slower":
        said.append(
            f"Weigh the time: here a step of {spoken(best)} took {times(found.ratio)} float32's. Measure on your "
            "device."
        )
    rival = next((each for each in of(words.findings, "equal", "tolerated") if each.variant == BF16), None)
    if rival and (theirs := groups.of[BF16].held) and theirs < held[best]:
        said.append(f"bf16 mixed precision is {SPOKEN[rival.outcome]} too and holds less here: {bytes_text(theirs)}.")
    return said


def _none_equal(words: Words) -> list[str]:
    if bf16 := of(words.findings, "equal", "tolerated"):  # no other is left
        good = "equal to float32" if bf16[0].outcome == "equal" else SPOKEN["tolerated"]
        return [f"bf16 mixed precision is {good}; no fixed-point variant is shown to be."]
    if better := of(words.findings, "better"):
        return [f"Nothing speaks against {names(better)} in quality: repeat with other seeds to see if it lasts."]
    open_ = of(words.findings, "few seeds", "unsettled", "no run", "failed")
    return [] if open_ or not words.findings else ["Stay with float32: no variant that was tried keeps its quality."]


def _activations(groups: Groups) -> list[str]:
    kept, held = groups.float32.kinds.get("activations", 0.0), groups.float32.held
    if held and kept > MOSTLY * held:
        return [
            f"{100 * kept / held:.0f} % of float32's bytes are activations, which the formats of weights leave as they "
            "are: a smaller batch saves more, or activation_word_length=8, which is not among these variants: put it "
            "into the configuration's plugin."
        ]
    return []


def _avoid(words: Words) -> list[str]:
    bad = of(words.findings, "worse", "diverged")
    tried = {each.variant for each in words.findings}
    recovered = {each.recovers for each in words.findings}
    said = []
    nearest = [each for each in bad if "nearest" in each.variant]
    if nearest:
        said.append(f"Do not use {names(nearest)}: round stochastically, which keeps small updates on average.")
    for each in bad:
        if each in nearest or each.variant == BF16:
            continue
        if each.outcome == "worse" and may_be_chance(each, words.findings):
            said.append(
                f"Repeat {spoken(each.variant)} with {2 * len(each.seeds)} seeds, of which half are there: that it is "
                "worse may be chance."
            )
            continue
        if each.variant in recovered:
            said.append(f"{spoken(each.variant)} needs its ramp.")
        elif each.variant.endswith("ramp"):
            said.append(f"{spoken(each.variant)} is not enough: begin wider, or let the ramp widen earlier.")
        elif not any(name.startswith(each.variant) and name.endswith("ramp") for name in tried):
            said.append(f"For {spoken(each.variant)} give more bits, or let a ramp widen it.")
    return said


def _seeds(words: Words) -> list[str]:
    said = []
    if few := of(words.findings, "few seeds"):
        more = MIN_SEEDS - min(len(each.seeds) for each in few)
        said.append(
            f"Run {counted(more, 'more seed')} for a verdict on {names(few)}: runs that are there are not repeated."
        )
    if stuck := words.stuck:
        said.append(
            f"Compare something else (--metric, --mode), or make validation harder: {words.groups.metric} "
            f"cannot tell {names(stuck)} from float32. Another metric takes up the runs that are there."
        )
    if unsettled := [each for each in of(words.findings, "unsettled") if not each.diverged and each not in stuck]:
        most = max(seeds_to_settle(each) for each in unsettled)
        asks = ": --tolerance=2% asks whether it is within that" if words.groups.tolerance is None else ""
        said.append(
            f"Run about {most} seeds to settle {names(unsettled)}."
            if most <= PRACTICAL
            else f"Float32's own seeds and twins end too far apart to settle {names(unsettled)}: let the learning "
            "rate fall towards zero, train longer, or compare a metric with less noise. Until then go by how much "
            f"worse it may be{asks}."
        )
    return said
