"""Sides that take turns, so that a slow moment of the machine slows them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

from lowprec_plugin.arithmetic.devices import wait_for

#: The side that others are held against.
FLOAT32 = "float32"
Side = TypeVar("Side")
Found = TypeVar("Found")
#: Rounds before the first that counts: optimizers make their state in the first, and DDP lays out its buckets anew.
UNTIMED = 2


def in_turns(sides: Mapping[str, Side], rounds: int, measured: Callable[[Side, int], Found]) -> dict[str, list[Found]]:
    """What ``measured`` finds of each side in each round; it is called with the side and the round's number.

    Two rounds come first, of each side on its own, and do not count.
    """
    for side in sides.values():
        for index in range(UNTIMED):
            measured(side, index)
    found: dict[str, list[Found]] = {name: [] for name in sides}
    for index in range(UNTIMED, UNTIMED + rounds):
        for name, side in sides.items():
            found[name].append(measured(side, index))
    return found


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """What ``call`` takes, until its work on ``device`` is done."""
    wait_for(device)
    start = time.perf_counter()
    call()
    wait_for(device)
    return time.perf_counter() - start
