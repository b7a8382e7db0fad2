"""Processes of this machine that make runs together, one run after another."""

from __future__ import annotations

import os
import queue
import socket
from collections.abc import Callable
from typing import Any

import torch
from torch import multiprocessing
from torch.multiprocessing.spawn import ProcessRaisedException, spawn

#: Called with the epoch and the step of a run.
Told = Callable[[int, int], None]
#: Makes a run, in every process; what the first returns counts.
Work = Callable[[Any, Told], Any]
#: Seconds between two looks at the processes.
LOOK = 0.2
#: Characters of an error in one line.
LONGEST = 300


class Processes:
    """Processes in which Lightning's ``strategy="ddp"`` finds its ranks.

    They start with the first run, and again after a failed one. ``ddp_spawn`` would start new ones for every fit and
    test, each importing everything, and return weights alone.

    Args:
        devices: how many; 1: this process.
        work: importable by its name.
    """

    def __init__(self, devices: int, work: Work) -> None:
        self._devices, self._work = devices, work
        self._started: Any = None

    def run(self, order: Any, told: Told) -> Any:
        """Carry out ``order``, and return what the first process makes of it.

        Raises:
            torch.multiprocessing.ProcessRaisedException: if one of several raises; if there is one, its exception.
        """
        if self._devices == 1:
            return self._work(order, told)
        try:
            if self._started is None:
                self._start()
            for inbox in self._inboxes:
                inbox.put(order)
            while True:
                try:
                    said = self._said.get(timeout=LOOK)
                except queue.Empty:
                    self._started.join(0)  # raises what one of them has raised
                    continue
                if not isinstance(said, tuple):
                    return said
                told(*said)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End them."""
        for process in self._started.processes if self._started is not None else ():
            if process.is_alive():
                process.kill()
            process.join()
        self._started = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._said = context.Queue()
        self._inboxes = [context.SimpleQueue() for _ in range(self._devices)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        given = (self._devices, port, self._inboxes, self._said, self._work)
        self._started = spawn(_serve, given, self._devices, join=False)  # type: ignore[no-untyped-call]


def _serve(rank: int, devices: int, port: str, inboxes: list[Any], said: Any, work: Work) -> None:
    # What Lightning's own environment reads.
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0", "LOCAL_RANK": str(rank)}
    torch.set_num_threads(max(1, torch.get_num_threads() // devices))
    while True:
        made = work(inboxes[rank].get(), lambda epoch, step: said.put((epoch, step)) if rank == 0 else None)
        if rank == 0:
            said.put(made)


def in_one_line(error: Exception) -> str:
    """What went wrong, in one line that a report has room for."""
    lines = str(error).strip().splitlines() or [""]
    said = f"{type(error).__name__}: {lines[0]}"
    if isinstance(error, ProcessRaisedException):
        last = max(at for at, line in enumerate(lines) if line.startswith("  File "))  # the exception follows
        said = next(line for line in lines[last:] if line and not line[0].isspace())
    return said if len(said) <= LONGEST else f"{said[:LONGEST]} …"
