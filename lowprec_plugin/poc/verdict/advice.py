"""What to do next, as far as the runs say."""

from __future__ import annotations

from lowprec_plugin.poc.run.variants import BF16, spoken
from lowprec_plugin.poc.verdict.groups import Groups
from lowprec_plugin.poc.verdict.noise import pace
from lowprec_plugin.poc.verdict.outcomes import PRACTICAL, SPOKEN, Baseline, Finding, may_be_chance
from lowprec_plugin.poc.verdict.sentences import SHORT, Overview, names
from lowprec_plugin.quality import MIN_SEEDS
from lowprec_plugin.text.numbers import bytes_text, counted, times

FIRST = "Make the training work in float32 first: a lower learning rate, gradient clipping, a longer warm-up."
SEEDS = (
    "Let --seeds decide: leave seed_everything and manual_seed out of the module and its data, and shuffle the batches."
)
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
#: A share of float32's bytes above which little is saved.
LITTLE = 0.9


def advice(view: Overview) -> list[str]:
    """In the order in which to do it."""
    if view.baseline in UNFIT:
        return [UNFIT[view.baseline]]
    said = []
    if view.steps < SHORT:
        said.append(f"Run at least {SHORT} steps; a few hundred are better.")
    if view.baseline == "unstable":
        said.append("Stabilise the training first (lower learning rate, gradient clipping): float32 diverges too.")
    said += [*_adopt(view), *_activations(view.groups), *_avoid(view), *_seeds(view)]
    if missing := view.found("no run"):
        said.append(f"Let {names(missing)} run: the same command continues where it stopped.")
    if failed := view.found("failed"):
        said.append(f"Find out why {names(failed)} gave no result: the same command tries again.")
    return [*said, "Before you decide, repeat your choice at the length and size of your real training."]


def _adopt(view: Overview) -> list[str]:
    groups, good = view.groups, view.found("equal", "tolerated")
    ours = [each for each in good if each.variant != BF16.name]
    rival = next((each for each in good if each.variant == BF16.name), None)
    if not ours:
        if rival:
            how = "equal to float32" if rival.outcome == "equal" else SPOKEN["tolerated"].word
            return [f"bf16 mixed precision is {how}; no fixed-point variant is shown to be."]
        if better := view.found("better"):
            return [f"{names(better)} showed no loss of quality: repeat with other seeds to see whether it lasts."]
        still_open = view.found("few seeds", "unsettled", "no run", "failed") or not view.findings
        return [] if still_open else ["Stay with float32: no variant kept its quality."]
    bytes_of = {each.variant: groups.of[each.variant].held or float("inf") for each in good}
    best, whole = min((each.variant for each in ours), key=lambda variant: bytes_of[variant]), groups.float32.held
    held = bytes_of[best]
    if whole is None or held >= whole:
        return [f"{names(ours)} kept the quality, but saved no bytes here."]
    which = "variants that are equal or within what you allow" if view.found("tolerated") else "equal variants"
    little = ", little less" if held > LITTLE * whole else ""
    saved = f"{bytes_text(held)} against float32's {bytes_text(whole)}{little}"
    unranked = ". None of them is shown to be better in quality" if len(good) > 1 else ""
    said = [f"Try {spoken(best)}: of the {which} it holds the fewest bytes, {saved}{unranked}."]
    if (found := pace(groups, best)) and found.word == "slower":
        took = f"a step of {spoken(best)} took {times(found.ratio)} float32's here"
        said.append(f"Weigh the time: {took}. Measure on your device.")
    if rival and bytes_of[rival.variant] < held:
        less = bytes_text(bytes_of[rival.variant])
        said.append(f"bf16 mixed precision is {SPOKEN[rival.outcome].word} too, and holds less here: {less}.")
    return said


def _activations(groups: Groups) -> list[str]:
    kept, held = groups.float32.kinds.get("activations", 0.0), groups.float32.held
    if held and kept > MOSTLY * held:
        return [
            f"{100 * kept / held:.0f} % of float32's bytes are activations, which these variants leave as they are: "
            "use a smaller batch, or give the configuration's plugin activation_word_length=8."
        ]
    return []


def _avoid(view: Overview) -> list[str]:
    bad = [each for each in view.found("worse", "diverged") if each.variant != BF16.name]
    nearest = [each for each in bad if "nearest" in each.variant]
    said = (
        [f"Do not use {names(nearest)}: round stochastically, which keeps small updates on average."] if nearest else []
    )
    return said + [text for each in bad if each not in nearest and (text := _instead(each, view))]


def _instead(finding: Finding, view: Overview) -> str:
    name = spoken(finding.variant)
    if finding.outcome == "worse" and may_be_chance(finding, view.findings):
        return f"Repeat {name} with {2 * len(finding.seeds)} seeds, half of which are there: it may be worse by chance."
    if any(each.recovers == finding.variant for each in view.findings):
        return f"{name} needs its ramp."
    if finding.variant.endswith("ramp"):
        return f"{name} is not enough: start wider, or let the ramp widen earlier."
    tried = (each.variant for each in view.findings if each.variant.endswith("ramp"))
    return "" if any(each.startswith(finding.variant) for each in tried) else f"Give {name} more bits, or a ramp."


def _seeds(view: Overview) -> list[str]:
    said = []
    if few := view.found("few seeds"):
        more = counted(MIN_SEEDS - min(len(each.seeds) for each in few), "more seed")
        said.append(f"Run {more} for a verdict on {names(few)}: existing runs are kept.")
    if stuck := [each for each in view.findings if view.is_stuck(each)]:
        said.append(
            f"Compare something else (--metric, --mode), or make validation harder: {view.groups.metric} cannot tell "
            f"{names(stuck)} from float32. Existing runs are kept."
        )
    if unsettled := [each for each in view.found("unsettled") if not each.diverged and each not in stuck]:
        most = max(each.seeds_to_settle for each in unsettled)
        asks = ": --tolerance=2% asks whether it is within that" if view.groups.tolerance is None else ""
        said.append(
            f"Run about {most} seeds to settle {names(unsettled)}."
            if most <= PRACTICAL
            else f"Float32's own seeds and twins differ too much to settle {names(unsettled)}: let the learning rate "
            "fall towards zero, train longer, or compare a metric with less noise. Until then, go by how much worse "
            f"it may be{asks}."
        )
    return said
