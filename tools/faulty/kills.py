"""``kills``: trainings are killed at random moments, resumed, and must end with the bits of an undisturbed run.

A training saves every few steps. Its processes get SIGKILL, all of them or, of several, one alone, whose launcher then
ends the others; it is started again by the same command, as often as it takes to finish. Then every rank's weights,
optimizer state, learning rates and plugin state are compared with an undisturbed run's, bit for bit. Failures are bits
that differ, lives that hang or end by themselves, and checkpoint files under their final name that do not load.

Which checkpoint a training goes on from: the newest ``.ckpt`` that loads; of FSDP2's folders the newest with
``.metadata`` and a ``meta.pt`` that loads; with DeepSpeed the one that ``latest`` names.

A control of every kind goes on with another seed of the rounding: if that is not found to differ, the harness is at
fault.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import shlex
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tools.faulty import summary
from tools.faulty.jobs import Aim, Death, Job
from tools.faulty.kinds import KINDS, Kind
from tools.faulty.states import State, differing

#: Of the kills of several ranks: of one rank alone.
ALONE = 0.5
#: Which beginning of a write, counted from a life's first, is aimed at, at most.
LATEST_SAVE = 6


def add_to(subparsers: Any) -> None:
    """Add the sub-command ``kills``."""
    parser = subparsers.add_parser(
        "kills", help="kill trainings, resume them, and compare their final bits", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder of kills.jsonl and kills.md")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--kills", type=int, help="of every kind; otherwise 250 in all, 20 FSDP2, 30 DeepSpeed")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--saves", type=float, default=0.4, help="share of the kills that are aimed at a save")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds, without imports, after which a life hangs")
    parser.add_argument("--work", type=Path, help="folder for checkpoints; otherwise a temporary one")
    parser.add_argument(
        "--tmpdir", type=Path,
        help="TMPDIR of the trainings, where Lightning writes a checkpoint before it moves it; otherwise beside the "
        "checkpoints. On another file system (/dev/shm) the move is a copy, which a kill can cut off",
    )  # fmt: skip
    parser.add_argument(
        "--start", choices=("forkserver", "spawn"), default="forkserver",
        help="fork a life from a process that has imported everything and never had a thread; or start Python anew",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Run the trial as the command line says; 0 if nothing has failed."""
    if given.kills is not None and given.kills < 1:
        raise SystemExit(f"--kills {given.kills}: at least one, or nothing is tried")
    if not 0 <= given.saves <= 1:
        raise SystemExit(f"--saves {given.saves}: a share, from 0 to 1")
    preloaded = ["torch", "lightning.pytorch", "lowprec_plugin"]
    if any(KINDS[name].strategy == "zero" for name in given.kinds):
        preloaded += ["deepspeed", "deepspeed.runtime.zero.muon.muon_optimizer"]
    multiprocessing.set_forkserver_preload(preloaded)
    record = Record(given.out / "kills.jsonl")
    record.write(
        event="command", command=shlex.join(["python", "-m", "tools.faults", *sys.argv[1:]]), **summary.machine()
    )
    with work_folder(given.work, "checkpoints") as work, work_folder(given.tmpdir or given.work, "tmpdir") as tmpdir:
        for name in given.kinds:
            Trial(name, given, work, tmpdir, record).run()
    text, failures = summary.summary(record.lines)
    (given.out / "kills.md").write_text(text)
    print(text)
    return min(failures, 1)


@contextmanager
def work_folder(parent: Path | None, name: str) -> Iterator[Path]:
    """A temporary folder in ``parent``, removed afterwards with what killed trainings left there."""
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"lowprec-{name}-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


class Record:
    """The lines of the record, written as they come."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        self.path = path
        self.lines: list[dict[str, Any]] = []

    def write(self, **line: Any) -> None:
        """Append a line."""
        self.lines.append(line)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


@dataclass(frozen=True)
class Measured:
    """Of the undisturbed run: how long a save takes, the median in seconds, and every rank's final state."""

    save_seconds: float
    states: list[State]


class Trial:
    """The kills of one kind of training."""

    def __init__(self, name: str, given: argparse.Namespace, work: Path, tmpdir: Path, record: Record) -> None:
        self.name, self.kind, self.given, self.record = name, KINDS[name], given, record
        self.work, self.tmpdir = work, tmpdir
        self.kills = 0
        self._seconds = 0.0  # of the last life from the start to the end: other work may make them longer or shorter
        self._random = random.Random(f"{given.seed} {name}")

    def run(self) -> None:
        """The undisturbed run, the control, and trainings until there are kills enough or something is broken."""
        wanted = self.given.kills or self.kind.kills
        measured = self._undisturbed()
        if measured is None:
            return
        self._control(measured)
        training = 0
        while self.kills < wanted:
            training += 1
            if not self._training(training, wanted, measured):
                return

    def _undisturbed(self) -> Measured | None:
        with self._folder("undisturbed") as folder:
            death = self._life("undisturbed", folder, 1, None, 0)
            if death.outcome != "finished":
                return None
            saves = [end - begin for begin, end in zip(death.times("saving"), death.times("saved"), strict=True)]
            return Measured(statistics.median(saves), final_states(folder, self.kind))

    def _control(self, measured: Measured) -> None:
        with self._folder("control") as folder:
            # Two writes have ended by then: there is a whole checkpoint.
            first = self._life("control", folder, 1, Aim(0.0, saves=3), 0)
            if first.outcome == "killed" and self._life("control", folder, 2, None, 1).outcome == "finished":
                self._compare("control", folder, measured)

    def _training(self, number: int, wanted: int, measured: Measured) -> bool:
        """Kill a training until it has finished; whether it has."""
        name = f"training {number}"
        with self._folder(name) as folder:
            life, outcome = 0, "killed"
            while outcome == "killed":
                life += 1
                aim = self._aim(measured) if self.kills < wanted else None
                outcome = self._life(name, folder, life, aim, 0).outcome
            if outcome == "finished":
                self._compare(name, folder, measured)
        return outcome == "finished"

    def _aim(self, measured: Measured) -> Aim:
        draw = self._random
        alone = self.kind.ranks > 1 and draw.random() < ALONE
        rank = draw.randrange(self.kind.ranks) if alone else None
        if draw.random() < self.given.saves:
            return Aim(draw.uniform(0, measured.save_seconds), draw.randint(1, LATEST_SAVE), rank)
        return Aim(draw.uniform(0, self._seconds), 0, rank)

    def _life(self, training: str, folder: Path, number: int, aim: Aim | None, seed: int) -> Death:
        job = Job(self.kind, folder, self.tmpdir, number, seed, self.given.start)
        death = job.watch(aim, self.given.limit)
        killed, resumed = death.outcome == "killed", next(iter(death.details("resumed")), None)
        if death.outcome == "finished" and resumed is None:
            self._seconds = death.seconds
        self.kills += killed and training != "control"
        line = {
            "event": "life", "kind": self.name, "training": training, "life": number, "aim": aim and str(aim),
            "resumed": resumed, "outcome": death.outcome,
            "steps": max(death.details("step"), default=None), "saving": killed and death.saving,
            "seconds": round(death.seconds, 3), "stubborn": death.stubborn, "cut_off": death.details("cut off"),
        }  # fmt: skip
        if death.outcome in ("failed", "hung"):
            line["log"] = [log.read_text()[-2000:] if log.exists() else "" for log in job.logs]
        self.record.write(**line)
        print(said(line), flush=True)
        return death

    def _compare(self, training: str, folder: Path, measured: Measured) -> None:
        bits: dict[str, int] = {}
        for rank, (own, other) in enumerate(zip(final_states(folder, self.kind), measured.states, strict=True)):
            bits |= {f"rank {rank} {name}": count for name, count in differing(own, other).items()}
        of_weights = sum(count for name, count in bits.items() if name.split(" ", 2)[2].startswith("weights"))
        self.record.write(
            event="end", kind=self.name, training=training, differing_bits=sum(bits.values()),
            differing_bits_of_weights=of_weights, differing=sorted(bits, key=bits.__getitem__, reverse=True)[:8],
        )  # fmt: skip
        print(f"{self.name}, {training}: {sum(bits.values())} bits differ, {of_weights} of them of weights", flush=True)

    @contextmanager
    def _folder(self, training: str) -> Iterator[Path]:
        folder = self.work / self.name / training
        yield folder
        shutil.rmtree(folder, ignore_errors=True)


def final_states(folder: Path, kind: Kind) -> list[State]:
    """What every rank had at the end."""
    return [torch.load(folder / f"final-{rank}.pt", weights_only=True) for rank in range(kind.ranks)]


def said(line: dict[str, Any]) -> str:
    """A life, in a line."""
    steps = f"from {line['resumed'] or 'the start'} to step {line['steps']}" if line["steps"] else "no step"
    text = f"{line['kind']}, {line['training']}, life {line['life']}: {steps}"
    text += f", {line['outcome']} after {line['seconds']:.2f} s"
    text += " while saving" if line["saving"] else ""
    text += f" (aim: {line['aim']})" if line["aim"] else ""
    for name, words in (("cut_off", "does not load: "), ("stubborn", "left after SIGTERM: rank "), ("log", "")):
        text += f"; {words}{', '.join(map(str, line[name]))}" if line.get(name) else ""
    return text
