"""The processes of a training: started together, watched, killed at a moment, and ended as a launcher ends them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import Any

from tools.faulty.kinds import Kind
from tools.faulty.lives import Event, Life, live

#: Seconds after which a launcher sees that a process has ended, and that it leaves the others after SIGTERM.
LOOK, GRACE = 0.1, 5.0
#: Seconds that the imports of a process may take: they are no part of its life.
IMPORTS = 600.0


@dataclass(frozen=True)
class Aim:
    """When to kill: ``seconds`` after the first process has begun or, if ``saves``, has begun to write for that time.

    Attributes:
        seconds: after that.
        saves: which beginning of a write; 0: the beginning of the life.
        rank: the one process that is killed; ``None``: all of them.
    """

    seconds: float
    saves: int = 0
    rank: int | None = None

    def __str__(self) -> str:
        after = f"{self.seconds:.4f} s after " + (f"save {self.saves}" if self.saves else "its beginning")
        return f"{'all' if self.rank is None else f'rank {self.rank}'}, {after}"


@dataclass
class Death:
    """How a job ended.

    Attributes:
        outcome: ``finished``, ``killed``, ``failed`` (by itself) or ``hung``.
        seconds: that it lived, without its imports.
        events: of every rank, with the seconds since the job's start.
        stubborn: ranks that SIGTERM did not end.
    """

    outcome: str = ""
    seconds: float = 0.0
    events: list[list[tuple[float, Event]]] = field(default_factory=list)
    stubborn: list[int] = field(default_factory=list)

    def details(self, name: str) -> list[Any]:
        """Of every rank's events of this name."""
        return [event.detail for events in self.events for _, event in events if event.name == name]

    def times(self, name: str) -> list[float]:
        """Of the first rank's events of this name."""
        return [at for at, event in self.events[0] if event.name == name]

    @property
    def saving(self) -> bool:
        """Whether a process ended while it wrote a checkpoint."""
        names = [[event.name for _, event in events] for events in self.events]
        return any(each.count("saving") > each.count("saved") for each in names)


class Job:
    """One life of a training: a process per rank.

    Args:
        kind: of training.
        folder: of the training.
        tmpdir: TMPDIR of its processes.
        number: of this life.
        seed: of the plugin's rounding.
        start: ``"forkserver"``: processes are forked from one that has imported everything, runs nothing and has no
            threads; ``"spawn"``: each starts Python anew, as a launcher does.
    """

    def __init__(self, kind: Kind, folder: Path, tmpdir: Path, number: int, seed: int, start: str) -> None:
        for made in (folder, tmpdir):
            made.mkdir(parents=True, exist_ok=True)
        context: Any = multiprocessing.get_context(start)
        self.logs = [folder / f"life-{number}-{rank}.log" for rank in range(kind.ranks)]
        self._began = time.monotonic()
        self._processes, self._readers = [], []
        for rank, log in enumerate(self.logs):
            reader, writer = multiprocessing.Pipe(duplex=False)
            store = folder / f"store-{number}"
            life = Life(kind, rank, folder, store, tmpdir, log, seed, writer, start == "forkserver")
            process = context.Process(target=live, args=(life,), daemon=True)
            process.start()
            writer.close()  # so that the reader sees the end of the process
            self._processes.append(process)
            self._readers.append(reader)
        self._death = Death(events=[[] for _ in range(kind.ranks)])

    def watch(self, aim: Aim | None, limit: float) -> Death:
        """Wait for the job's end. It is killed as ``aim`` says, and if it lives for ``limit`` seconds in any case."""
        killed = False
        while any(process.is_alive() for process in self._processes):
            due, now = self._due(aim), time.monotonic()
            begun = self._death.times("begun")
            end = self._began + (begun[0] + limit if begun else IMPORTS)
            if now >= end:
                self._death.outcome = "hung"
                self._kill(range(len(self._processes)))
            elif aim is not None and due is not None and now >= due:
                killed = True
                self._kill(range(len(self._processes)) if aim.rank is None else [aim.rank])
                self._end_others()
            elif any(process.exitcode not in (None, 0) for process in self._processes):
                self._end_others()
            else:
                self._listen((end if due is None else min(due, end)) - now)
        self._listen(0)
        for process in self._processes:
            process.join()
        codes = [process.exitcode for process in self._processes]
        if not self._death.outcome:
            self._death.outcome = "finished" if not any(codes) else "killed" if killed else "failed"
        self._death.seconds = time.monotonic() - self._began - (self._death.times("begun") or [0.0])[0]
        return self._death

    def _due(self, aim: Aim | None) -> float | None:
        if aim is None:
            return None
        times = self._death.times("saving" if aim.saves else "begun")
        which = max(0, aim.saves - 1)
        return self._began + times[which] + aim.seconds if len(times) > which else None

    def _listen(self, seconds: float) -> None:
        """Take in what the processes tell, for at most ``seconds`` and until one of them tells something or ends."""
        living = [process.sentinel for process in self._processes if process.is_alive()]
        open_readers = [reader for reader in self._readers if not reader.closed]
        for ready in connection.wait([*open_readers, *living], max(0.0, seconds)):
            if isinstance(ready, connection.Connection):
                self._take(ready)

    def _take(self, reader: connection.Connection) -> None:
        events = self._death.events[self._readers.index(reader)]
        try:
            while reader.poll():
                event = reader.recv()
                events.append((time.monotonic() - self._began, event))
        except (EOFError, OSError):
            reader.close()

    def _kill(self, ranks: Sequence[int]) -> None:
        for rank in ranks:
            self._signal(rank, signal.SIGKILL)

    def _end_others(self) -> None:
        """What a launcher does when a process has ended: SIGTERM to the others, and SIGKILL to those that stay."""
        time.sleep(LOOK)
        living = [rank for rank, process in enumerate(self._processes) if process.is_alive()]
        for rank in living:
            self._signal(rank, signal.SIGTERM)
        end = time.monotonic() + GRACE
        for rank in living:
            self._processes[rank].join(max(0.0, end - time.monotonic()))
            if self._processes[rank].is_alive():
                self._death.stubborn.append(rank)
                self._signal(rank, signal.SIGKILL)

    def _signal(self, rank: int, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._processes[rank].pid, number)
