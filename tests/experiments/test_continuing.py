"""Runs of something else are not taken for those of now."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from lowprec_plugin.experiments.continuing import check_same

BEFORE = {"config": {"trainer": {"max_epochs": 2, "clip": math.inf}, "model": {}}, "torch": "2.13"}


def test_the_same_is_continued_whatever_json_makes_of_it() -> None:
    check_same(Path("runs"), BEFORE, {"torch": "2.13", "config": {**BEFORE["config"], "model": {}}})  # type: ignore[dict-item]
    check_same(Path("runs"), {"at": (1, math.nan)}, {"at": [1, math.nan]})


@pytest.mark.parametrize(
    ("now", "differs"),
    [
        ({**BEFORE, "torch": "2.14"}, "torch='2.13', not '2.14'"),
        ({**BEFORE, "config": {"trainer": {"max_epochs": 2}, "model": {}}}, "config.trainer.clip='Infinity', not None"),
        ({**BEFORE, "seeds": 4}, "seeds=None, not 4"),
        ({"config": BEFORE["config"]}, "torch='2.13', not None"),
    ],
)
def test_what_differs_is_named(now: dict[str, object], differs: str) -> None:
    with pytest.raises(ValueError, match=f"^runs holds runs with {differs}: give another output folder, or delete"):
        check_same(Path("runs"), BEFORE, now)
