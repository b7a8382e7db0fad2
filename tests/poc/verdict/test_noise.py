"""Step times beside float32's."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

from lowprec_plugin.poc.report.command import write
from lowprec_plugin.poc.verdict.groups import Groups
from lowprec_plugin.poc.verdict.noise import pace
from tests.poc.staged import float32, folder, record, runs, verdict


def test_a_step_is_slower_only_beyond_what_the_twin_shows() -> None:
    """A machine with other work: float32's twin, the same code, takes 1.4 times as long or 0.8 times."""

    def said(ratio: float, *twins: float) -> str:
        times = {"float32": [10.0] * 4, "float32 twin": [10 * each for each in twins], "16": [10 * ratio] * 4}
        found = verdict([
            replace(run, step_ms={"median": times[run.variant][run.seed]})
            for run in [*float32(), *runs("16", 0.9748, shift=1)]
        ])  # fmt: skip
        return found.costs["16"]

    assert "A step took 1.30 ± 0.36 × float32's time: this shows no difference." in said(1.3, 1.4, 0.8, 0.7, 1.3)
    assert "Slower: a step took 1.30 ± 0.01 ×" in said(1.3, 1.01, 1, 9, 0.99), "one run that says nothing"
    assert "Faster: a step took 0.80 ± 0.01 ×" in said(0.8, 1.01, 1.01, 1.02, 1)
    assert "this shows no difference" in said(1.04, 1, 1, 1, 1), "nobody's concern"


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


def test_very_uncertain_times_are_a_range(tmp_path: Path) -> None:
    """``26.86 ± 20.06 ×`` of a busy machine would read as if there were a figure."""
    times = {"float32": (1, 1, 1, 1), "float32 twin": (2, 0.2, 3, 0.4), "16": (9, 60, 8, 70)}
    records = [
        record(name, seed, step_ms={"median": ms}) for name, each in times.items() for seed, ms in enumerate(each)
    ]
    found = verdict(records)
    assert "Slower: a step took somewhere between 3.57 and 151 × float32's time." in found.costs["16"]
    few = [each for each in records if each.seed == 0]
    assert "A step took somewhere between 0.685 and 118 × float32's time: one seed" in verdict(few).costs["16"]
    write(folder(tmp_path, records))
    assert "<dt>of its step time, slower, very uncertain</dt>" in (tmp_path / "report.html").read_text()


def test_step_times_of_two_commands_are_not_compared() -> None:
    """A variant that is added on another day is timed on a machine with other work."""
    before = [replace(run, began="Monday") for run in [*float32(), *runs("16", 0.9748)[:2]]]
    after = [replace(run, began="Tuesday") for run in [*runs("16", 0.9748)[2:], *runs("12", 0.9748)]]
    found = verdict([*before, *after])
    assert "Slower: a step took 1.55 ± 0.01 ×" in found.costs["16"], "of the seeds that are left"
    assert found.costs["12"].endswith(
        "Its step time is not compared: no command timed it with float32 and its twin on one seed."
    )
