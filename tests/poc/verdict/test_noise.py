"""Step times beside float32's."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lowprec_plugin.poc.report.command import FILES, write
from lowprec_plugin.poc.run.study import RunRecord
from lowprec_plugin.poc.verdict.groups import Groups
from lowprec_plugin.poc.verdict.noise import Pace, pace
from tests.poc.staged import float32, folder, record, runs


def paced(records: Sequence[RunRecord], variant: str = "16") -> Pace:
    found = pace(Groups.make(records, "val_accuracy", "max"), variant)
    assert found is not None
    return found


def test_a_step_is_slower_only_beyond_what_the_twin_shows() -> None:
    """A machine with other work: float32's twin, the same code, takes 1.4 times as long or 0.8 times."""

    def found(ratio: float, *twins: float) -> tuple[str, str]:
        times = {"float32": [10.0] * 4, "float32 twin": [10 * each for each in twins], "16": [10 * ratio] * 4}
        records = [*float32(), *runs("16", 0.9748, shift=1)]
        timed = paced([replace(run, step_ms={"median": times[run.variant][run.seed]}) for run in records])
        return f"{timed.ratio:.2f} ± {timed.error:.2f}", timed.said

    assert found(1.3, 1.4, 0.8, 0.7, 1.3) == ("1.30 ± 0.36", "")
    assert found(1.3, 1.01, 1, 9, 0.99) == ("1.30 ± 0.01", ", slower"), "one run that says nothing"
    assert found(0.8, 1.01, 1.01, 1.02, 1) == ("0.80 ± 0.01", ", faster")
    assert found(1.04, 1, 1, 1, 1)[1] == "", "nobody's concern"


def test_the_step_of_one_seed_is_never_called_slower() -> None:
    one = paced([*float32(1), *runs("16", 0.9748, seeds=1)])
    assert (round(one.ratio, 2), round(one.error, 2), one.said) == (1.56, 0.0, "")
    many, rng = 400, random.Random(1)

    def called(seeds: int) -> float:
        """The share of comparisons in which the very same code is called slower or faster."""
        words = []
        for _ in range(many):
            records = [
                record(name, seed, step_ms={"median": 10 * math.exp(0.1 * rng.gauss(0, 1))})
                for name in ("float32", "float32 twin", "16") for seed in range(seeds)
            ]  # fmt: skip
            words.append(paced(records).word)
        return sum(map(bool, words)) / many

    assert called(1) == 0
    assert called(4) < 0.08


def test_very_uncertain_times_are_called_so(tmp_path: Path) -> None:
    """``26.86 ± 20.06 ×`` of a busy machine would read as if there were a figure."""
    times = {"float32": (1, 1, 1, 1), "float32 twin": (2, 0.2, 3, 0.4), "16": (9, 60, 8, 70)}
    records = [
        record(name, seed, step_ms={"median": ms}) for name, each in times.items() for seed, ms in enumerate(each)
    ]
    assert paced(records).said == ", slower, very uncertain"
    assert paced([each for each in records if each.seed == 0]).said == ", very uncertain"
    write(folder(tmp_path, records))
    for name in FILES[:2]:
        assert " ×, slower, very uncertain" in (tmp_path / name).read_text()


def test_step_times_of_two_commands_are_not_compared() -> None:
    """A variant that is added on another day is timed on a machine with other work."""
    before = [replace(run, began="Monday") for run in [*float32(), *runs("16", 0.9748)[:2]]]
    after = [replace(run, began="Tuesday") for run in [*runs("16", 0.9748)[2:], *runs("12", 0.9748)]]
    found = paced([*before, *after])
    assert (round(found.ratio, 2), round(found.error, 2), found.said) == (1.55, 0.01, ", slower"), "of seeds 0 and 1"
    assert pace(Groups.make([*before, *after], "val_accuracy", "max"), "12") is None
