"""Whether an optimizer trains in fixed-point what it trains in float32, is refused, or neither.

The measure is the distance between the weights at the end, as a share of float32's way from the start. At 24 bits it is
1e-5 for most, at 16 bits 1e-3: a step that is another's, or that goes missing, is far beyond either. Some optimizers
amplify any difference: those are held to what they make of the same noise in float32 (:mod:`.training` makes it), and
are in no case right further off than that allows.
"""

from __future__ import annotations

import gc
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

import lowprec_plugin
from lowprec_plugin import memory
from tests.foreign.optimizers import Row
from tests.foreign.training import STEPS, End, Training, weights_of

PACKAGE = Path(lowprec_plugin.__file__).parent
#: Share of the way that is right at so many bits, and that of the fall of the loss.
NEAR = {24: 1e-3, 16: 5e-2}
LOSS = {24: 1e-3, 16: 2e-2}
#: Times the distance of float32 with the noise of rounding, where that is further; and where it says nothing any more.
AMPLIFIED = 4
VOID = 0.25
SEEDS = (5, 6, 7)
EARLY = 12


@dataclass
class Verdict:
    """``outcome``: right, refused, wrong, or "not in float32" if it does not train there either; ``said``: why."""

    outcome: str
    said: str = ""
    distance: float | None = None  # at 16 bits, of float32's way
    noise: float | None = None  # float32's own, of the same noise, where it had to be measured


class NotRightError(Exception):
    pass


def judge(row: Row) -> Verdict:
    with warnings.catch_warnings(), row.within():
        warnings.simplefilter("ignore")
        try:
            begun = Training(row.make, row.way)
            begun.run(STEPS)
            start, floats, first = begun.start, begun.end(), begun.losses[0]
        except Exception as error:
            return Verdict("not in float32", f"{type(error).__name__}: {error}")
        try:
            far = noise = 0.0
            for bits in (24, 16):
                found = _train(row, bits)
                if isinstance(found, Verdict):
                    return found
                far, noise = _hold(row, bits, found, floats, start, first)
        except NotRightError as error:
            return Verdict("wrong", str(error))
        return Verdict("right", "", far, noise or None)


def _train(row: Row, bits: int) -> End | Verdict:
    """The end in fixed-point, or that it is refused."""
    training: Training | None = None
    before: Tensor | None = None
    try:
        training = Training(row.make, row.way, f"fixed{bits}")
        before = training.start
        training.run(EARLY)
        early = float_bytes()
        training.run(STEPS - EARLY)
        late = float_bytes()
        end = training.end()
    except Exception as error:
        if not _is_ours(error):
            raise NotRightError(f"{type(error).__name__} at {bits} bits: {error}") from error
        if training is not None and training.steps:
            raise NotRightError(f"refused after {training.steps} steps at {bits} bits: {error}") from error
        if training is not None and (weights_of(training.net) != before).any():
            raise NotRightError(f"refused with weights changed: {error}") from error
        return Verdict("refused", str(error))
    if late > early:
        raise NotRightError(f"{late - early:,} bytes of floats more after {STEPS} steps than after {EARLY}")
    return end


def _is_ours(error: Exception) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, ValueError) and PACKAGE in Path(frames[-1].filename).parents


def _hold(row: Row, bits: int, found: End, floats: End, start: Tensor, first: float) -> tuple[float, float]:
    """The distance from float32, and that of its noise if it was needed.

    Raises:
        NotRightError: if the former is too far.
    """
    way = float((floats.weights - start).norm())
    far, fall = float((found.weights - floats.weights).norm()) / way, abs(first - floats.loss)
    loss = abs(found.loss - floats.loss) / fall
    if far < NEAR[bits] and loss < LOSS[bits]:
        return far, 0.0
    noise = loss_noise = 0.0
    for seed in SEEDS:
        noisy = Training(row.make, row.way, noise=(bits, seed))
        noisy.run(STEPS)
        end = noisy.end()
        noise = max(noise, float((end.weights - floats.weights).norm()) / way)
        loss_noise = max(loss_noise, abs(end.loss - floats.loss) / fall)
    said = f"at {bits} bits {far:.2g} of the way off and {loss:.2g} of the loss's fall, where the noise of rounding is "
    if bits == 24 and not noise < VOID:
        raise NotRightError(f"{said}{noise:.2g}: nothing can be told; try another learning rate")
    if not (far < max(NEAR[bits], AMPLIFIED * noise) and loss < max(LOSS[bits], AMPLIFIED * loss_noise)):
        raise NotRightError(f"{said}{noise:.2g} and {loss_noise:.2g}")
    return far, noise


def float_bytes() -> int:
    """Of everything that lives in this process."""
    return sum(size for size, (dtype, _) in memory.live_storages().values() if dtype.is_floating_point)


def freeze() -> None:
    """Leave what lives now out of :func:`float_bytes`, which is then quick."""
    gc.collect()
    gc.freeze()


def as_cells(verdict: Verdict) -> list[Any]:
    far = "" if verdict.distance is None else f"{verdict.distance:.0e}"
    return [verdict.outcome, far, verdict.said]
