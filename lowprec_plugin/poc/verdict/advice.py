"""What to do next, as far as the runs say."""

from __future__ import annotations

from collections.abc import Iterator

from lowprec_plugin.poc.run.variants import BF16, spoken
from lowprec_plugin.poc.verdict.groups import Groups
from lowprec_plugin.poc.verdict.noise import pace
from lowprec_plugin.poc.verdict.outcomes import PRACTICAL, SPOKEN, Baseline, Finding, Overview
from lowprec_plugin.poc.verdict.sentences import SHORT, names
from lowprec_plugin.quality import MIN_SEEDS
from lowprec_plugin.text.numbers import bytes_text, counted, times

FIRST = "Make the training work in float32 first (lower learning rate, gradient clipping, longer warm-up)."
SEEDS = "Leave seed_everything and manual_seed out of the module and its data, and shuffle the batches."
AGAIN = "Then run this again, with another --output."
FINISH = "Let float32 and its twin finish: the same command continues where it stopped."
UNFIT: dict[Baseline, str] = {
    "flat": f"{FIRST} {AGAIN}",
    "diverged": f"{FIRST} {AGAIN}",
    "one": f"{SEEDS} {AGAIN}",
    "failed": FINISH,
    "no run": FINISH,
}
#: Share of all bytes from which on activations are worth a word.
MOSTLY = 0.5


def advice(view: Overview) -> list[str]:
    """In the order in which to do it."""
    return [UNFIT[view.baseline]] if view.baseline in UNFIT else [*_steps(view)]


def _steps(view: Overview) -> Iterator[str]:
    if view.steps < SHORT:
        yield f"Run at least {SHORT} steps; a few hundred are better."
    if view.baseline == "unstable":
        yield "Stabilise the training first (lower learning rate, gradient clipping): float32 diverges too."
    yield from _adopt(view)
    yield from _activations(view.groups)
    yield from _avoid(view)
    yield from _seeds(view)
    if missing := view.found("no run"):
        yield f"Let {names(missing)} run: the same command continues where it stopped."
    if failed := view.found("failed"):
        yield f"Find out why {names(failed)} gave no result: the same command tries again."
    yield "Before you decide, repeat your choice at the length and size of your real training."


def _adopt(view: Overview) -> Iterator[str]:
    good = view.found("equal", "tolerated")
    rivals = [each for each in good if each.variant == BF16.name]
    ours = [each for each in good if each not in rivals]
    if not ours:
        if rivals:
            yield f"bf16 mixed precision is {SPOKEN[rivals[0].outcome].word}; no fixed-point variant is shown to be."
        elif better := view.found("better"):
            yield f"{names(better)} showed no loss of quality: repeat with other seeds to see whether it lasts."
        elif view.findings and not view.found("few seeds", "unsettled", "no run", "failed"):
            yield "Stay with float32: no variant kept its quality."
        return
    bytes_of = {each.variant: view.groups.of[each.variant].held or float("inf") for each in good}
    best, whole = min((each.variant for each in ours), key=lambda variant: bytes_of[variant]), view.groups.float32.held
    held = bytes_of[best]
    if whole is None or held >= whole:
        yield f"{names(ours)} kept the quality, but saved no bytes here."
        return
    saved = f"{bytes_text(held)} against float32's {bytes_text(whole)}"
    unranked = ". None of them is shown to be better in quality" if len(good) > 1 else ""
    yield f"Try {spoken(best)}: of the variants that kept the quality it holds the fewest bytes, {saved}{unranked}."
    if (found := pace(view.groups, best)) and found.word == "slower":
        yield f"Weigh the time: its step took {times(found.ratio)} float32's here. Measure on your device."
    if rivals and bytes_of[BF16.name] < held:
        yield f"bf16 mixed precision kept it too, and holds less here: {bytes_text(bytes_of[BF16.name])}."


def _activations(groups: Groups) -> Iterator[str]:
    kept, held = groups.float32.kinds.get("activations", 0.0), groups.float32.held
    if held and kept > MOSTLY * held:
        yield (
            f"{100 * kept / held:.0f} % of float32's bytes are activations, which these variants leave as they are: "
            "use a smaller batch, or give the configuration's plugin activation_word_length=8."
        )


def _avoid(view: Overview) -> Iterator[str]:
    bad = [each for each in view.found("worse", "diverged") if each.variant != BF16.name]
    if nearest := [each for each in bad if "nearest" in each.variant]:
        yield f"Do not use {names(nearest)}: round stochastically, which keeps small updates on average."
    for each in bad:
        if each not in nearest and (text := _instead(each, view)):
            yield text


def _instead(finding: Finding, view: Overview) -> str:
    name = spoken(finding.variant)
    if view.may_be_chance(finding):
        return f"Repeat {name} with {2 * len(finding.seeds)} seeds, half of which are there: it may be worse by chance."
    if any(each.recovers == finding.variant for each in view.findings):
        return f"{name} needs its ramp."
    if finding.variant.endswith("ramp"):
        return f"{name} is not enough: start wider, or let the ramp widen earlier."
    tried = (each.variant for each in view.findings if each.variant.endswith("ramp"))
    return "" if any(each.startswith(finding.variant) for each in tried) else f"Give {name} more bits, or a ramp."


def _seeds(view: Overview) -> Iterator[str]:
    if few := view.found("few seeds"):
        more = counted(MIN_SEEDS - min(len(each.seeds) for each in few), "more seed")
        need = f"it takes {MIN_SEEDS} on which float32, its twin and the variant finish"
        yield f"Run {more} for a verdict on {names(few)}: {need}. Existing runs are kept."
    if stuck := [each for each in view.findings if view.is_stuck(each)]:
        yield f"Compare something else (--metric, --mode) for {names(stuck)}, or make validation harder."
    if unsettled := [each for each in view.found("unsettled") if not each.diverged and each not in stuck]:
        most = max(each.seeds_to_settle for each in unsettled)
        if most <= PRACTICAL:
            yield f"Run about {most} seeds to settle {names(unsettled)}."
        else:
            yield (
                f"No practical number of seeds settles {names(unsettled)}: let the learning rate fall towards zero, "
                "train longer, or compare a metric with less noise; or allow a difference, as by --tolerance=2%."
            )
