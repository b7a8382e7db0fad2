"""Trials one after another in a process of their own, so that one that ends it is an outcome like others."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from typing import Any


def outcomes_of(
    trial: Callable[..., dict[str, Any]], arguments: tuple[Any, ...], count: int
) -> Iterator[dict[str, Any]]:
    """What ``trial(number, *arguments)`` gives for each number below ``count``.

    After one that ends its process, whose outcome is ``"died"``, the next begin in another.
    """
    spawn = multiprocessing.get_context("spawn")
    done = 0
    while done < count:
        mine, its = spawn.Pipe(duplex=False)
        worker = spawn.Process(target=_work, args=(trial, arguments, done, count, its))
        worker.start()
        its.close()
        try:
            while True:
                yield {"number": done, **mine.recv()}
                done += 1
        except EOFError:
            worker.join()
        if done < count:
            yield {"number": done, "outcome": "died", "said": f"exit status {worker.exitcode}"}
            done += 1


def _work(
    trial: Callable[..., dict[str, Any]], arguments: tuple[Any, ...], first: int, count: int, results: Any
) -> None:
    for number in range(first, count):
        results.send(trial(number, *arguments))
    results.close()
