"""What one training of the proof of concept came to, as it is written beside the report.

A folder per run holds ``run.json``, this record, written whole when the run has ended; the report is made of these
files and of nothing else.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from lowprec_plugin.telemetry import Layer
from lowprec_plugin.text.files import whole_text

Status = Literal["finished", "diverged", "failed"]
#: Of the layout of ``run.json``.
VERSION = 1


@dataclass(frozen=True)
class RunRecord:
    """One run.

    Attributes:
        variant: what was trained, by the name that the command line has for it.
        seed: of weights, data order and rounding.
        status: ``"finished"``; ``"diverged"``: a loss, metric or gradient was not finite; ``"failed"``: anything else.
        reason: why, if it is not finished.
        steps, epochs, devices: optimizer steps and epochs made; processes.
        examples: in a batch of one process, as its loader counts them; 0: nothing tells.
        metrics: what the module logged last, by name: what validation logs is of the last one, whoever logs it later.
        tested: the names of those that the test logged, and validation does not.
        curves: every scalar logged, by name, as (step, value) in the order of steps: the module's own, and the
            monitor's under ``lowprec/``.
        held: bytes held by one process: ``weights`` (with copies of them that autocast keeps), ``state``,
            ``gradients``, ``buffers``, ``activations`` (kept for the backward pass of one step).
        float32, bf16: what the same would take in float32 and in bf16 mixed precision, by the same names.
        parameters: numbers in all parameters.
        peak: most bytes of device memory (on a CPU: resident memory), of the process that held most.
        sent, float32_sent: bytes of gradients sent per step and process, and what float32 would; 0 for one process.
        step_ms: milliseconds of an optimizer step: ``median``, ``fast`` and ``slow`` (10 % of steps are outside each).
        seconds: of the whole run.
        began: when the command did that made it; step times are compared within one.
        layers: every parameter.
        kept_in_float: parameters left in float though the variant stores in fixed-point, and why.
        widened: what a ramp widened: ``step``, ``word_length`` and ``reason``.
        nonfinite: the parameter whose gradient was not finite first, if one was.
        precision: how the run was stored, in words.
        environment: versions and the device.
    """

    variant: str
    seed: int
    status: Status
    reason: str = ""
    steps: int = 0
    epochs: int = 0
    devices: int = 1
    examples: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    tested: list[str] = field(default_factory=list)
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    float32: dict[str, int] = field(default_factory=dict)
    bf16: dict[str, int] = field(default_factory=dict)
    parameters: int = 0
    peak: int = 0
    sent: float = 0.0
    float32_sent: float = 0.0
    step_ms: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    began: str = ""
    layers: list[Layer] = field(default_factory=list)
    kept_in_float: dict[str, str] = field(default_factory=dict)
    widened: list[dict[str, Any]] = field(default_factory=list)
    nonfinite: str | None = None
    precision: str = ""
    environment: dict[str, str] = field(default_factory=dict)


def save(path: Path, record: RunRecord) -> None:
    """Write ``record`` to ``path``, whole or not at all."""
    whole_text(path, json.dumps({"version": VERSION, **asdict(record)}, indent=1, allow_nan=False) + "\n")


def load(path: Path) -> RunRecord:
    """Read what :func:`save` wrote.

    Raises:
        ValueError: if ``path`` is no such file, or of another version.
    """
    try:
        content = json.loads(path.read_text())
        version = content.pop("version")
        if version != VERSION:
            raise ValueError(f"its version is {version}, not {VERSION}")
        _check_kinds(content)
        layers = [Layer(**layer) for layer in content.pop("layers")]
        curves = {
            name: [(int(step), float(value)) for step, value in curve] for name, curve in content.pop("curves").items()
        }
        return RunRecord(**content, layers=layers, curves=curves)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not the record of a run ({error}): delete it, to have the run made again"
        ) from error


def _check_kinds(content: dict[str, Any]) -> None:
    for name, blank in asdict(RunRecord("", 0, "finished")).items():
        kind = (int, float) if isinstance(blank, int | float) else type(blank)
        if name in content and blank is not None and not isinstance(content[name], kind):
            raise ValueError(f"its {name} is no {type(blank).__name__}")
