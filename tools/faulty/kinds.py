"""The trainings that are killed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Kind:
    """A kind of training.

    Attributes:
        said: what it is, for people.
        strategy: Lightning's ``"auto"``, ``"ddp"`` or ``"fsdp2"`` (ModelParallelStrategy); or ``"zero"``, an engine of
            DeepSpeed's without Lightning.
        ranks: processes.
        kills: of the long form.
        plugin: arguments of ``FixedPointPrecision``, of ``WordLengthRamp`` under ``"ramp"``; of ``adopt_engine`` for
            DeepSpeed.
        stage: of ZeRO.
    """

    said: str
    strategy: str
    ranks: int
    kills: int
    plugin: dict[str, Any] = field(default_factory=dict)
    stage: int = 0


#: A stall after twenty steps without half the loss, whatever the updates: words widen in the middle of every run.
_AT_A_STALL = {"ladder": (12, 16, 20), "patience": 1, "cooldown": 0, "smoothing": 0.0, "min_delta": 0.5, "min_lost": 0}
_BY_STEPS = {"at": {18: 16, 40: 20}, "unit": "step"}

KINDS = {
    "one": Kind("one process, 16/8", "auto", 1, 50, {"state_word_length": 8}),
    "ramp": Kind("one process, a ramp by steps", "auto", 1, 25, {"word_length": 12, "ramp": _BY_STEPS}),
    "stall": Kind("one process, a ramp at stalls", "auto", 1, 25, {"word_length": 12, "ramp": _AT_A_STALL}),
    "ddp": Kind("DDP, gradients in 16 bits", "ddp", 2, 35, {"state_word_length": 8}),
    "feedback": Kind(
        "DDP, gradients in 8 bits with error feedback", "ddp", 2, 35,
        {"comm_word_length": 8, "comm_error_feedback": True},
    ),
    "ddp-ramp": Kind("DDP, a ramp at stalls", "ddp", 2, 30, {"word_length": 12, "ramp": _AT_A_STALL}),
    "fsdp2": Kind("FSDP2, checkpoints of shards", "fsdp2", 2, 20, {"state_word_length": 8}),
    "zero2": Kind("DeepSpeed, ZeRO 2", "zero", 2, 20, {"state_word_length": 8}, stage=2),
    "zero3": Kind("DeepSpeed, ZeRO 3", "zero", 2, 10, {"state_word_length": 8}, stage=3),
}  # fmt: skip
