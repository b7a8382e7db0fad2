"""Trials one after another in a process of their own, so that one that ends it is an outcome like others."""

from __future__ import annotations

import json
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lowprec_plugin.text.files import whole_text
from lowprec_plugin.text.tables import markdown_table

Outcome = dict[str, Any]


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


def tried(
    what: str, trial: Callable[..., Outcome], arguments: tuple[Any, ...], count: int, bad: set[str]
) -> list[Outcome]:
    """Do the trials of one kind, and print how often each came to what, and all of those that are ``bad``."""
    results = list(outcomes_of(trial, arguments, count))
    print(f"{what}: {dict(Counter(result['outcome'] for result in results))}", flush=True)
    for result in results:
        if result["outcome"] in bad:
            print(json.dumps(result), flush=True)
    return results


def write_table(
    file: Path, title: str, said: str, command: str, results: Mapping[str, Sequence[Outcome]], outcomes: Sequence[str]
) -> None:
    """Write how often each kind came to each outcome, with what it means and the command."""
    table = [["what", *outcomes]]
    for what, of_kind in results.items():
        counts = Counter(result["outcome"] for result in of_kind)
        table.append([what, *(str(counts[outcome]) for outcome in outcomes)])
    whole_text(file, f"# {title}\n\n{said.strip()}\n\n    {command}\n\n{markdown_table(table)}\n")
