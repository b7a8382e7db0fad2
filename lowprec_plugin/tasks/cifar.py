"""CIFAR-10 from its archive of binary records: read where it is, never downloaded behind one's back."""

from __future__ import annotations

import tarfile
import zlib
from pathlib import Path

import torch
from torch import Tensor

from lowprec_plugin.tasks.images import ImageDataModule, Images

#: The archive as it is distributed, from https://www.cs.toronto.edu/~kriz/cifar.html
ARCHIVE = "cifar-10-binary.tar.gz"
_RECORD = 1 + 3 * 32 * 32


def read_cifar(archive: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Images (uint8, ``(n, 3, 32, 32)``) and labels (int64) of ``"train"`` and ``"test"``.

    Raises:
        ValueError: if the archive is not there, is damaged, lacks batches, or holds something else.
    """
    if not archive.exists():
        raise ValueError(
            f"{archive} is not there: fetch the binary version of CIFAR-10 from "
            f"https://www.cs.toronto.edu/~kriz/{ARCHIVE} and put it there, or pass its folder as root"
        )
    found: dict[str, list[Tensor]] = {"train": [], "test": []}
    for name, data in _files(archive):
        part = "test" if name == "test_batch.bin" else "train" if name.startswith("data_batch_") else None
        if part is None:
            continue
        if not data or len(data) % _RECORD:
            raise ValueError(f"{name} in {archive} holds {len(data)} bytes, not records of {_RECORD}")
        found[part].append(torch.frombuffer(data, dtype=torch.uint8).reshape(-1, _RECORD))
    missing = [part for part, batches in found.items() if not batches]
    if missing:
        raise ValueError(f"{archive} has no batches for {' and '.join(missing)}: is it CIFAR-10's binary version?")
    records = {part: torch.cat(batches) for part, batches in found.items()}
    if any(int(each[:, 0].max()) > 9 for each in records.values()):
        raise ValueError(f"{archive} has labels above 9: is it CIFAR-10's binary version, or CIFAR-100's?")
    return {part: (each[:, 1:].reshape(-1, 3, 32, 32), each[:, 0].long()) for part, each in records.items()}


def _files(archive: Path) -> list[tuple[str, bytearray]]:
    """The archive's files in the order of their paths: their names without folders, and what they hold."""
    try:
        with tarfile.open(archive) as packed:
            members = sorted(packed.getmembers(), key=lambda member: member.name)
            opened = [(Path(member.name).name, packed.extractfile(member)) for member in members]
            return [(name, bytearray(content.read())) for name, content in opened if content is not None]
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(f"{archive} is damaged ({error}): fetch it again") from error


class CIFAR10DataModule(ImageDataModule):
    """Pixels in [0, 1] of shape (3, 32, 32), nothing else done to them; the test images validate too.

    Args:
        root: folder of ``cifar-10-binary.tar.gz``.
        batch_size: of training.
    """

    def __init__(self, root: str = "data/cifar10", batch_size: int = 100) -> None:
        super().__init__(batch_size, test_batch_size=1000)
        self.root = Path(root)

    def setup(self, stage: str) -> None:
        """Read the archive."""
        parts = read_cifar(self.root / ARCHIVE)
        self.train, self.test = (
            Images(images.float() / 255, labels) for images, labels in (parts["train"], parts["test"])
        )
