"""What a proof of concept compares, as ``poc.json`` in its folder says, and where its runs lie.

``poc.json`` is written before the first run; each run has a folder of its own below ``runs``, with ``run.json``
(:mod:`.records`) and the logger's ``metrics.csv``. The report is made of these files and of nothing else.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lowprec_plugin.poc.records import RunRecord, load
from lowprec_plugin.text.files import whole_text
from lowprec_plugin.text.option_error import Option, OptionError

#: Of the layout of ``poc.json``.
VERSION = 1
FILE = "poc.json"
#: In a run's folder.
RUN = "run.json"


@dataclass(frozen=True)
class Study:
    """One comparison.

    Attributes:
        title: what is trained, in words.
        metric: what is compared: a name in each run's ``metrics``.
        mode: whether more of it is better, ``"max"`` or ``"min"``.
        metric_chosen: how the metric came to be that one, in words.
        config: LightningCLI's configuration of what is trained, in float32 and without a seed.
        command: the command line that makes the same folder.
        variants: what is compared, in order, ``"float32"`` and ``"float32 twin"`` first, and what the Trainer is given
            for it as text; ``""``: nothing.
        left_out: variants that were asked for and cannot run, and why.
        seeds: of the runs; every variant has one run for each.
        devices: processes of a run.
        steps: optimizer steps of a run as Lightning estimates them; ``None`` if it cannot.
        price: of an hour of one device, in the user's own currency; ``None`` if it was not given.
        versions: of the packages.
        device: what it runs on.
        tolerance: by how much a variant may be worse and still be taken: a number in the metric's units, or text such
            as ``"2%"``; ``None`` if it was not given.
    """

    title: str
    metric: str
    mode: Literal["max", "min"]
    metric_chosen: str
    config: dict[str, Any]
    command: str
    variants: dict[str, str]
    left_out: dict[str, str]
    seeds: list[int]
    devices: int
    steps: int | None
    price: float | None
    versions: dict[str, str]
    device: str
    tolerance: float | str | None = None


def save_study(folder: Path, study: Study) -> None:
    """Write ``poc.json`` into ``folder``, whole or not at all."""
    whole_text(folder / FILE, json.dumps({"version": VERSION, **asdict(study)}, indent=1) + "\n")


def load_study(folder: Path) -> Study:
    """Read what :func:`save_study` wrote.

    Raises:
        ValueError: if ``folder`` holds none, or one of another version.
    """
    path = folder / FILE
    if not path.exists():
        raise ValueError(f"there is no {path}: give the folder that lowprec poc --output was given")
    try:
        content = json.loads(path.read_text())
        version = content.pop("version")
        if version != VERSION:
            raise ValueError(f"its version is {version}, not {VERSION}")
        return Study(**content)
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no proof of concept's ({error}): give another output folder") from error


def run_folder(folder: Path, variant: str, seed: int) -> Path:
    """Where the run of a variant with a seed lies."""
    name = re.sub(r"[^a-z0-9]+", "-", variant.lower()).strip("-")
    return folder / "runs" / f"{name}-seed{seed}"


def load_runs(folder: Path, study: Study) -> list[RunRecord]:
    """The runs of ``study`` that have ended so far, variant by variant and in the order of the seeds.

    Raises:
        ValueError: if a record cannot be read.
    """
    paths = [run_folder(folder, variant, seed) / RUN for variant in study.variants for seed in study.seeds]
    return [load(path) for path in paths if path.exists()]


def claim(folder: Path, study: Study) -> None:
    """Make ``folder`` the study's, to be begun or gone on with.

    Raises:
        ValueError: if it holds runs of something else, with what differs.
    """
    if (folder / FILE).exists():
        before, now = (_flat(_trained(each)) for each in (load_study(folder), study))
        for name in {**now, **before}:
            if before.get(name) != now.get(name):
                raise OptionError(
                    f"{folder} holds runs with ",
                    Option.given(name, before.get(name)),
                    f", not {now.get(name)!r}: give another output folder, or delete that one",
                )
    elif (folder / "runs").exists():
        raise ValueError(f"{folder} holds runs without {FILE}, of nobody knows what: give another output folder")
    save_study(folder, study)


def _trained(study: Study) -> dict[str, Any]:
    """What all runs depend on."""
    content = asdict(study)
    return {name: content[name] for name in ("config", "devices", "versions", "device")}


def _flat(content: Any, name: str = "") -> dict[str, Any]:
    """The leaves of nested data, by their paths, as JSON holds them."""
    if isinstance(content, dict) and content:
        return {
            path: leaf
            for key, each in content.items()
            for path, leaf in _flat(each, f"{name}.{key}".strip(".")).items()
        }
    return {name: json.loads(json.dumps(content), parse_constant=str)}  # for not even NaN is NaN
