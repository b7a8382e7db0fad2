"""Every run once: a file of JSON lines, from which an interrupted search goes on.

A run depends on what is trained and on its setting and seed alone. So another search in the same folder, with another
tolerance, other rungs or more runs, takes up what is there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lowprec_plugin.experiments.continuing import check_same
from lowprec_plugin.tune.space import Setting

#: Called with the epoch (from 1) and the metric at its end; ``True`` stops the run.
Judge = Callable[[int, float], bool]


@dataclass(frozen=True)
class Run:
    """What one training came to.

    Attributes:
        setting: ``None``: float32.
        seed: of weights, data order and rounding.
        twin: float32 with every weight one last bit away.
        curve: the metric at the end of each epoch.
        value: the metric at the end; ``None`` if the run was stopped or diverged.
        stopped: the epoch after which it was stopped, or ``None``.
        diverged: why, if a number was not finite.
        seconds: of the training.
    """

    setting: Setting | None
    seed: int
    twin: bool = False
    curve: list[float] = field(default_factory=list)
    value: float | None = None
    stopped: int | None = None
    diverged: str | None = None
    seconds: float = 0.0

    @property
    def key(self) -> str:
        """What the run is of."""
        return json.dumps([self.setting, self.seed, self.twin], sort_keys=True)


class Records:
    """Runs of one thing, in ``path``: its first line says what is trained.

    Args:
        path: made if it is not there.
        trained: everything that all runs depend on.

    Raises:
        ValueError: if ``path`` holds runs of something else.
    """

    def __init__(self, path: Path, trained: dict[str, Any]) -> None:
        self._path = path
        self.runs: dict[str, Run] = {}
        trained = json.loads(json.dumps(trained))
        complete = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""  # a torn last line is no run
        lines = [json.loads(line) for line in complete.splitlines()]
        if not lines:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(trained) + "\n")
            return
        check_same(path, lines[0], trained)
        os.truncate(path, len(complete) + 1)
        for line in lines[1:]:
            run = Run(**line)
            self.runs[run.key] = run

    def replayed(self, key: str, judge: Judge | None) -> Run | None:
        """The recorded run of ``key``, as far as the judge lets it go; ``None`` if it has to go further."""
        run = self.runs.get(key)
        if run is None:
            return None
        for epoch, value in enumerate(run.curve, start=1):
            if judge is not None and judge(epoch, value):
                return replace(run, curve=run.curve[:epoch], value=None, stopped=epoch, diverged=None)
        return run if run.stopped is None else None

    def add(self, run: Run) -> None:
        """Write a run down; it is on the disk when this returns."""
        self.runs[run.key] = run
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(run)) + "\n")
            file.flush()
            os.fsync(file.fileno())
