"""Whether an optimizer trains in fixed-point what it trains in float32, is refused, or neither.

The measure is the distance between the weights at the end, as a share of float32's way from the start. At 24 bits it is
1e-5 for most, at 16 bits 1e-3: a step that is another's, or that goes missing, is far beyond either. Some optimizers
amplify any difference: those are held to what they make of the same noise in float32 (:mod:`.training` makes it), and
are in no case right further off than that allows.
"""

from __future__ import annotations

import gc
import re
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

import lowprec_plugin
from lowprec_plugin import memory
from tests.foreign.optimizers import Row
from tests.foreign.peak import parameters_at_once
from tests.foreign.training import STEPS, End, Training, Way, plainly, weights_of

PACKAGE = Path(lowprec_plugin.__file__).parent
#: Share of the way that is right at so many bits, and that of the fall of the loss.
NEAR = {24: 1e-3, 16: 5e-2}
LOSS = {24: 1e-3, 16: 2e-2}
#: Times the distance of float32 with the noise of rounding, where that is further; of one that is large already, fewer.
#: A distance of the whole way says nothing any more.
AMPLIFIED = 4
LARGE = 0.2
ALIKE = 1.5
SEEDS = (5, 6, 7)
EARLY = 12


@dataclass
class Verdict:
    """What came of one optimizer.

    Attributes:
        outcome: right, refused, wrong, or "not in float32" if it does not train there either.
        said: why.
        distance: at 16 bits, as a share of float32's way.
        noise: that of float32 with the noise of rounding, if it had to be measured.
        held: bytes of floats that live after training at 16 bits and did not before, by those of the weights.
        at_once: float copies of one of eight parameters that a step takes, in fixed-point and in float32.
    """

    outcome: str
    said: str = ""
    distance: float | None = None
    noise: float | None = None
    held: float | None = None
    at_once: tuple[float, float] | None = None


class NotRightError(Exception):
    pass


def judge(row: Row) -> Verdict:
    freeze()
    with warnings.catch_warnings(), row.within():
        warnings.simplefilter("ignore")
        try:
            floats = _trained(row, None)
        except Exception as error:
            return Verdict("not in float32", _line(error))
        verdict = Verdict("right")
        try:
            for bits in (24, 16):
                refused = _hold(row, bits, floats, verdict)
                if refused is not None:
                    return Verdict("refused", refused)
            if row.way.step is plainly and row.way.backward is Way.backward:
                verdict.at_once = parameters_at_once(row.make, "fixed16"), parameters_at_once(row.make, None)
        except NotRightError as error:
            return Verdict("wrong", _line(error))
        return verdict


@dataclass
class _Trained:
    start: Tensor
    first: float
    end: End
    grown: int
    held: int


def _trained(row: Row, format: str | None) -> _Trained:
    """A whole training.

    Raises:
        Exception: whatever the optimizer raises; of ours if it is refused.
        NotRightError: if it is refused late, or with weights changed.
    """
    before = float_bytes()
    training: Training | None = None
    try:
        training = Training(row.make, row.way, format)
        training.run(EARLY)
        early = float_bytes()
        training.run(STEPS - EARLY)
        end = training.end()
    except ValueError as error:
        if _is_ours(error) and training is not None:
            if training.steps:
                raise NotRightError(f"refused after {training.steps} steps in {format}: {_line(error)}") from error
            if (weights_of(training.net) != training.start).any():
                raise NotRightError(f"refused with weights changed: {_line(error)}") from error
        raise
    late = float_bytes()
    held = late - before - training.start.nbytes - end.weights.nbytes
    return _Trained(training.start, training.losses[0], end, late - end.weights.nbytes - early, held)


def _hold(row: Row, bits: int, floats: _Trained, verdict: Verdict) -> str | None:
    """Hold what comes of training at so many bits against float32, and note it in ``verdict``.

    Returns:
        why it is refused, if it is.

    Raises:
        NotRightError: if it is neither right nor refused.
    """
    try:
        found = _trained(row, f"fixed{bits}")
    except NotRightError:
        raise
    except Exception as error:
        if _is_ours(error):
            return _line(error)
        raise NotRightError(f"{type(error).__name__} at {bits} bits: {_line(error)}") from error
    if found.grown > max(floats.grown, 0):
        raise NotRightError(f"{found.grown:,} bytes of floats more after {STEPS} steps than after {EARLY}")
    way, fall = float((floats.end.weights - floats.start).norm()), abs(floats.first - floats.end.loss)

    def off(end: End) -> tuple[float, float]:
        return float((end.weights - floats.end.weights).norm()) / way, abs(end.loss - floats.end.loss) / fall

    far, loss = off(found.end)
    verdict.distance, verdict.noise, verdict.held = far, None, found.held / floats.start.nbytes
    if far < NEAR[bits] and loss < LOSS[bits]:
        return None
    noises = []
    for seed in SEEDS:
        noisy = Training(row.make, row.way, noise=(bits, seed))
        noisy.run(STEPS)
        noises.append(off(noisy.end()))
    noise, loss_noise = (max(column) for column in zip(*noises, strict=True))
    verdict.noise = noise
    said = f"at {bits} bits {far:.2g} of the way off and {loss:.2g} of the loss's fall, where the noise of rounding is "
    allowed = AMPLIFIED * noise if noise < LARGE else ALIKE * noise
    if not allowed < 1:
        raise NotRightError(f"{said}{noise:.2g}: rounding alone leads elsewhere")
    if not (far < max(NEAR[bits], allowed) and loss < max(LOSS[bits], AMPLIFIED * loss_noise)):
        raise NotRightError(f"{said}{noise:.2g} and {loss_noise:.2g}")
    return None


def _line(error: Exception) -> str:
    said = f"{error}" if isinstance(error, ValueError | NotRightError) else f"{type(error).__name__}: {error}"
    return re.sub(r" at 0x[0-9a-f]+", "", " ".join(said.split()))


def _is_ours(error: Exception) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, ValueError) and PACKAGE in Path(frames[-1].filename).parents


def float_bytes() -> int:
    """Of everything that lives in this process."""
    return sum(size for size, (dtype, _) in memory.live_storages().values() if dtype.is_floating_point)


def freeze() -> None:
    """Leave what lives now out of :func:`float_bytes`, which is then quick."""
    gc.collect()
    gc.freeze()
