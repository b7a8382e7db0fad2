"""CIFAR-10's archive of binary records, on small ones of the same format."""

from __future__ import annotations

import gzip
import hashlib
import io
import random
import tarfile
from pathlib import Path

import pytest
import torch

from lowprec_plugin.tasks import CIFAR10DataModule, cifar
from lowprec_plugin.tasks.cifar import ARCHIVE, read_cifar


def write(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def records(labels: list[int], first: int) -> bytes:
    """Records whose red plane counts up from ``first``, whose green plane is 1 and blue plane 2."""
    planes = bytes((first + i) % 256 for i in range(1024)) + bytes([1]) * 1024 + bytes([2]) * 1024
    return b"".join(bytes([label]) + planes for label in labels)


BATCHES = {f"data_batch_{i}.bin": records([i, 9], i) for i in range(1, 6)}


def test_reads_the_archive(tmp_path: Path) -> None:
    files = {**BATCHES, "test_batch.bin": records([7], 0), "batches.meta.txt": b"airplane\n", "readme.html": b"<html>"}
    write(tmp_path / ARCHIVE, files)
    data = CIFAR10DataModule(str(tmp_path), batch_size=2)
    data.setup("fit")
    images, labels = data.train.tensors
    assert labels.tolist() == [1, 9, 2, 9, 3, 9, 4, 9, 5, 9]
    assert images.shape == (10, 3, 32, 32)
    assert torch.equal(images[2, 0].flatten() * 255, (torch.arange(1024) + 2) % 256)
    assert torch.equal(images[2, 1:].flatten(1)[:, 0] * 255, torch.tensor([1.0, 2.0]))
    assert data.test.tensors[1].tolist() == [7]
    assert [len(batch[0]) for batch in data.train_dataloader()] == [2] * 5


def test_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"fetch the binary version of CIFAR-10 from https://www.cs.toronto.edu"):
        read_cifar(tmp_path / ARCHIVE)


@pytest.mark.parametrize("kept", [100, -20])
def test_a_damaged_archive_is_named(tmp_path: Path, kept: int) -> None:
    write(tmp_path / ARCHIVE, {**BATCHES, "test_batch.bin": records([7], 0)})
    (tmp_path / ARCHIVE).write_bytes((tmp_path / ARCHIVE).read_bytes()[:kept])
    with pytest.raises(ValueError, match=rf"{ARCHIVE} is damaged .*: fetch it again"):
        read_cifar(tmp_path / ARCHIVE)


def damaged(archive: bytes, seed: int) -> bytes:
    """``archive`` with one bit flipped, cut off, or longer by a byte or a member."""
    generator = random.Random(seed)
    if seed % 4 == 0:
        return archive[: generator.randrange(len(archive))]
    if seed % 40 == 1:
        return archive + (archive if seed % 80 == 1 else b"x")
    flipped = bytearray(archive)
    # The header and the trailer are few bytes: as many flips as the data.
    places = (range(10), range(len(archive) - 8, len(archive)), range(len(archive)))[seed % 4 - 1]
    flipped[generator.choice(places)] ^= 1 << generator.randrange(8)
    return bytes(flipped)


def test_whatever_damages_an_archive_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ARCHIVE
    noise = random.Random(0).randbytes(20 * 3072)
    images = [bytes([i % 10]) + noise[3072 * i : 3072 * (i + 1)] for i in range(20)]
    write(path, {**{f"data_batch_{i}.bin": b"".join(images[i::6]) for i in range(1, 6)}, "test_batch.bin": images[0]})
    whole, read = path.read_bytes(), read_cifar(path)
    accepted, said = 0, []
    for seed in range(400):
        path.write_bytes(damaged(whole, seed))
        try:
            found = read_cifar(path)
        except ValueError as error:
            said.append(str(error))
            continue
        accepted += 1  # gzip's date, which no checksum covers
        assert all(torch.equal(*pair) for part in read for pair in zip(found[part], read[part], strict=True))
    assert 0 < accepted < 100
    assert all(ARCHIVE in each and each.endswith("fetch it again") for each in said)
    # The archive that is distributed is held against its published digest too.
    monkeypatch.setattr(cifar, "LENGTH", len(whole))
    monkeypatch.setattr(cifar, "MD5", hashlib.md5(whole).hexdigest())
    for seed in range(400):
        path.write_bytes(damaged(whole, seed))
        with pytest.raises(ValueError, match=rf"{ARCHIVE} is damaged \(.*\): fetch it again"):
            read_cifar(path)
    path.write_bytes(whole)
    assert torch.equal(read_cifar(path)["train"][0], read["train"][0])


def test_a_whole_gzip_that_holds_no_archive(tmp_path: Path) -> None:
    (tmp_path / ARCHIVE).write_bytes(gzip.compress(b"no archive" * 100))
    with pytest.raises(ValueError, match=rf"{ARCHIVE} is no archive of files \(.*\): fetch it again"):
        read_cifar(tmp_path / ARCHIVE)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (BATCHES, "has no batches for test"),
        ({"test_batch.bin": records([1], 0)}, "has no batches for train"),
        ({**BATCHES, "test_batch.bin": b"abc"}, "test_batch.bin in .* holds 3 bytes, not records of 3073"),
        ({**BATCHES, "test_batch.bin": records([12], 0)}, "labels above 9"),
    ],
)
def test_another_archive_is_refused(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    write(tmp_path / ARCHIVE, files)
    with pytest.raises(ValueError, match=message):
        read_cifar(tmp_path / ARCHIVE)
