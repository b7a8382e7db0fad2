"""A study, its runs, and the files that hold them.

``poc.json`` says what is compared, and is written before the first run. Each run has a folder below ``runs`` with the
logger's ``metrics.csv`` and, once the run has ended, ``run.json``. Reports are made from these files alone.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from lowprec_plugin.experiments.continuing import check_same
from lowprec_plugin.telemetry import LayerReport
from lowprec_plugin.text.files import whole_text

Mode = Literal["max", "min"]
Status = Literal["finished", "diverged", "failed"]
#: Layout of ``poc.json`` and of ``run.json``.
VERSION = 1
FILE, RUN = "poc.json", "run.json"


@dataclass(frozen=True)
class RunRecord:
    """One run, as ``run.json`` holds it; bytes are those of one process.

    The kinds of bytes held are those of :mod:`lowprec_plugin.memory.kinds`; activations are what is kept for one
    backward pass.
    """

    variant: str
    seed: int  # of weights, data order and rounding
    status: Status  # "diverged": a loss, a gradient or the metric was not finite; "failed": any other error
    reason: str = ""  # why it did not finish
    steps: int = 0  # of the optimizer
    epochs: int = 0
    devices: int = 1  # processes
    examples: int = 0  # in a batch; 0: unknown
    metrics: dict[str, float] = field(default_factory=dict)  # last logged value; validation's: of the last validation
    tested: list[str] = field(default_factory=list)  # metrics that only the test logged
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)  # all scalars, by step; ours: lowprec/
    held: dict[str, int] = field(default_factory=dict)  # bytes by kind
    float32: dict[str, int] = field(default_factory=dict)  # the same in float32
    bf16: dict[str, int] = field(default_factory=dict)  # the same in bf16 mixed precision
    parameters: int = 0  # numbers in all parameters
    peak: int = 0  # most bytes of any process: of device memory, on a CPU what MemoryTracker sees
    sent: float = 0.0  # bytes of gradients per step
    float32_sent: float = 0.0  # what float32 would send
    step_ms: dict[str, float] = field(default_factory=dict)  # of an optimizer step: median; first and last decile
    seconds: float = 0.0  # of the whole run
    began: str = ""  # start of the command: only step times of one command are compared
    layers: list[LayerReport] = field(default_factory=list)  # every parameter
    kept_in_float: dict[str, str] = field(default_factory=dict)  # parameters that are not in fixed-point, and why
    widened: list[dict[str, Any]] = field(default_factory=list)  # by a ramp: step, word_length, reason
    nonfinite: str | None = None  # first parameter whose gradient was not finite
    precision: str = ""  # the plugin, as text
    environment: dict[str, str] = field(default_factory=dict)  # versions and the device


@dataclass(frozen=True)
class Study:
    """One comparison, as ``poc.json`` holds it."""

    title: str  # what is trained, in words
    metric: str  # what is compared
    mode: Mode  # which way is better
    metric_chosen: str  # why this metric, in words
    config: dict[str, Any]  # LightningCLI's, in float32 and without a seed
    command: str  # the command line that makes the same folder
    variants: dict[str, str]  # what the Trainer is given for each; "float32" and "float32 twin" come first
    left_out: dict[str, str]  # requested variants that cannot run, and why
    seeds: list[int]  # every variant has one run for each
    devices: int  # processes of a run
    steps: int | None  # of a run, estimated by Lightning if it can
    price: float | None  # of one device's hour, in the user's currency
    versions: dict[str, str]
    device: str
    tolerance: float | str | None = None  # how much worse a variant may be: in the metric's units, or such as "2%"


def save(path: Path, content: RunRecord | Study) -> None:
    """Write ``content`` to ``path``, whole or not at all."""
    # A configuration may hold .inf; the numbers of a run are finite.
    text = json.dumps({"version": VERSION, **asdict(content)}, indent=1, allow_nan=isinstance(content, Study))
    whole_text(path, text + "\n")


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    version = content.pop("version")
    if version != VERSION:
        raise ValueError(f"its version is {version}, not {VERSION}")
    return content


def load(path: Path) -> RunRecord:
    """Read a run's record.

    Raises:
        ValueError: if ``path`` is not a record, or of another version.
    """
    try:
        content = _read(path)
        for name, blank in asdict(RunRecord("", 0, "finished")).items():
            kind = (int, float) if isinstance(blank, int | float) else type(blank)
            if name in content and blank is not None and not isinstance(content[name], kind):
                raise ValueError(f"its {name} is not of type {type(blank).__name__}")
        content["layers"] = [LayerReport(**layer) for layer in content["layers"]]
        content["curves"] = {
            name: [(int(step), float(value)) for step, value in curve] for name, curve in content["curves"].items()
        }
        return RunRecord(**content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not the record of a run ({error}): delete it, and the run is repeated") from error


def load_study(folder: Path) -> Study:
    """Read ``poc.json``.

    Raises:
        ValueError: if ``folder`` holds none, or one of another version.
    """
    path = folder / FILE
    if not path.exists():
        raise ValueError(f"there is no {path}: give the folder that lowprec poc --output was given")
    try:
        return Study(**_read(path))
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a study file ({error}): give another output folder") from error


def run_file(folder: Path, variant: str, seed: int) -> Path:
    """Where the record of a variant's run with a seed lies."""
    name = re.sub(r"[^a-z0-9]+", "-", variant.lower()).strip("-")
    return folder / "runs" / f"{name}-seed{seed}" / RUN


def load_runs(folder: Path, study: Study) -> list[RunRecord]:
    """The runs of ``study`` that have ended, variant by variant and in the order of the seeds.

    Raises:
        ValueError: if a record cannot be read.
    """
    paths = [run_file(folder, variant, seed) for variant in study.variants for seed in study.seeds]
    return [load(path) for path in paths if path.exists()]


def claim(folder: Path, study: Study) -> None:
    """Begin ``study`` in ``folder``, or continue it.

    Raises:
        ValueError: if ``folder`` holds runs of something else; the message names what differs.
    """
    if (folder / FILE).exists():
        fixed = ("config", "devices", "versions", "device")
        before, now = ({name: getattr(each, name) for name in fixed} for each in (load_study(folder), study))
        check_same(folder, before, now)
    elif (folder / "runs").exists():
        raise ValueError(f"{folder} holds runs from an unknown study, without {FILE}: give another output folder")
    save(folder / FILE, study)
