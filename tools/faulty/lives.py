"""What a training's process is given, and what it tells the harness while it lives."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tools.faulty.kinds import Kind

#: Steps of a training, of an epoch, and between two checkpoints: most of them lie in the middle of an epoch.
STEPS, EPOCH, EVERY = 60, 20, 7
FEATURES, WIDTH, CLASSES, BATCH = 64, 640, 10, 16


class Event(NamedTuple):
    """What a process tells: ``begun`` (imports are over), ``resumed``, ``cut off``, ``step``, ``saving``, ``saved``."""

    name: str
    detail: Any = None


@dataclass(frozen=True)
class Life:
    """One process of a training, from its start to its end.

    Attributes:
        kind: of training.
        rank: of this process.
        folder: of the training: its checkpoints, and, when it has ended, every rank's final state.
        store: a file over which the ranks of this job find each other.
        tmpdir: TMPDIR.
        log: file of what it prints.
        seed: of the plugin's rounding.
        say: where :class:`Event` go.
        forked: whether its parent has imported everything beforehand.
    """

    kind: Kind
    rank: int
    folder: Path
    store: Path
    tmpdir: Path
    log: Path
    seed: int
    say: Connection
    forked: bool

    def tell(self, name: str, detail: Any = None) -> None:
        """Send an event. Small enough for a pipe to take it whole or, if this process is killed, not at all."""
        self.say.send(Event(name, detail))

    @contextmanager
    def saving(self, detail: Any) -> Iterator[None]:
        """Around the writing of a checkpoint."""
        self.tell("saving", detail)
        yield
        self.tell("saved", detail)

    @property
    def checkpoints(self) -> Path:
        """Their folder."""
        return self.folder / "checkpoints"

    def final(self, rank: int) -> Path:
        """The file of a rank's final state."""
        return self.folder / f"final-{rank}.pt"


def live(life: Life) -> None:
    """Run a process of a training to its end."""
    out = os.open(life.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    if life.forked:  # threads do not survive a fork, and what they had locked stays locked
        threads = os.listdir(f"/proc/{os.getppid()}/task")
        assert len(threads) == 1, f"the process that forks has {len(threads)} threads"
    assert threading.active_count() == 1
    os.environ |= {
        "RANK": str(life.rank), "LOCAL_RANK": str(life.rank), "WORLD_SIZE": str(life.kind.ranks),
        "LOCAL_WORLD_SIZE": str(life.kind.ranks), "GROUP_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1",
        "TORCHELASTIC_RUN_ID": "faults", "GLOO_SOCKET_IFNAME": "lo", "TMPDIR": str(life.tmpdir),
    }  # fmt: skip
    tempfile.tempdir = None  # looked up anew
    torch.set_num_threads(1)
    if life.kind.strategy == "zero":
        from tools.faulty import zero

        zero.train(life)
    else:
        from tools.faulty import training

        training.train(life)


def network() -> nn.Sequential:
    """The network that all kinds train: half a million weights, the same at every start."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(FEATURES, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, CLASSES)
    )


def batch(rank: int, step: int) -> tuple[Tensor, Tensor]:
    """The batch of a rank and step: inputs and targets."""
    generator = torch.Generator().manual_seed(1000 * rank + step)
    x = torch.randn(BATCH, FEATURES, generator=generator)
    return x, torch.sin(2 * x[:, :CLASSES]) + x[:, CLASSES : 2 * CLASSES]
