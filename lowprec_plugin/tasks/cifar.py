"""CIFAR-10 from its archive of binary records: read where it is, never downloaded behind one's back."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import torch
from torch import Tensor

from lowprec_plugin.tasks.gzipped import unpacked
from lowprec_plugin.tasks.images import ImageDataModule, Images

#: The archive as it is distributed, from https://www.cs.toronto.edu/~kriz/cifar.html
ARCHIVE = "cifar-10-binary.tar.gz"
#: Of that archive, its length in bytes and the MD5 that the same page gives.
LENGTH, MD5 = 170_052_171, "c32a1d4ab5d03f1284b67883e8d87530"
_RECORD = 1 + 3 * 32 * 32


def read_cifar(archive: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Images (uint8, ``(n, 3, 32, 32)``) and labels (int64) of ``"train"`` and ``"test"``.

    The archive is read to its end, so that gzip's checksum is; one as long as that which is distributed must be that.

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
    packed = archive.read_bytes()
    if len(packed) == LENGTH and (digest := hashlib.md5(packed, usedforsecurity=False).hexdigest()) != MD5:
        raise ValueError(f"{archive} is damaged (its MD5 is {digest}, not {MD5}): fetch it again")
    content = unpacked(archive, packed, "fetch it again")
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as files:
            members = sorted((each for each in files if each.isfile()), key=lambda member: member.name)
            opened = [(Path(member.name).name, files.extractfile(member)) for member in members]
            return [(name, bytearray(file.read())) for name, file in opened if file is not None]
    except tarfile.TarError as error:
        raise ValueError(f"{archive} is no archive of files ({error}): fetch it again") from error


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
