"""IDX files, their download, and the real data."""

from __future__ import annotations

import gzip
import hashlib
import random
import struct
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from lowprec_plugin.tasks import MNISTDataModule, mnist


def idx(shape: tuple[int, ...], data: bytes) -> bytes:
    return gzip.compress(b"\x00\x00\x08" + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + data)


def test_reads_idx(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(idx((2, 3), bytes(range(6))))
    assert mnist.read_idx(path).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(b"hello"), "not an IDX file"),
        (gzip.compress(b""), "not an IDX file"),
        (idx((2, 3), b"abc"), r"holds 3 bytes where its header says \(2, 3\)"),
        (idx((2, 3), bytes(range(6)))[:-9], r"x\.gz is damaged .*: delete it, and it will be downloaded again"),
        (b"<html>", r"x\.gz is damaged"),
        (gzip.compress(b"\x00\x00\x08\x03\x00\x00"), r"x\.gz ends in its header: 6 bytes where 16 are needed: delete"),
        (gzip.compress(b"\x00\x00\x0d\x01" + bytes(5)), "not an IDX file of unsigned bytes: it starts with 00000d01"),
        (idx((2, 3), bytes(range(7))), r"holds 7 bytes where its header says \(2, 3\): delete it"),
        (idx((0, 2**32 - 1, 2**32 - 1, 2**32 - 1), b""), "holds 0 bytes where its header says"),
        (idx((2, 3), bytes(range(6))) + b"x", r"x\.gz is damaged \(1 bytes follow its content\): delete it"),
        (idx((2, 3), bytes(range(6))) * 2, r"x\.gz is damaged \(\d+ bytes follow its content\): delete it"),
    ],
    ids=[
        "no header",
        "empty",
        "too short",
        "cut off",
        "not gzip",
        "short header",
        "floats",
        "too long",
        "nothing",
        "trailing byte",
        "two members",
    ],
)
def test_bad_idx(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        mnist.read_idx(path)


def test_whatever_damages_a_file_is_noticed(tmp_path: Path) -> None:
    path, generator = tmp_path / "x.gz", random.Random(0)
    whole = idx((3, 5, 2), generator.randbytes(30))
    path.write_bytes(whole)
    read, said = mnist.read_idx(path), []
    for index in range(8 * len(whole)):  # every bit of it, and every cut
        flipped = bytearray(whole)
        flipped[index // 8] ^= 1 << index % 8
        path.write_bytes(flipped if index % 8 else whole[: index // 8])
        try:
            assert torch.equal(mnist.read_idx(path), read)  # gzip's date and the like, which no checksum covers
        except ValueError as error:
            said.append(str(error))
    assert len(said) > 8 * (len(whole) - 10)
    assert all(each.startswith(f"{path} is damaged (") for each in said)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A mirror on this machine that serves a folder; the first mirror of the list does not answer."""
    folder = tmp_path / "mirror"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = server.server_address[1]
    monkeypatch.setattr(mnist, "MIRRORS", ("http://127.0.0.1:9/", f"http://127.0.0.1:{port}/"))
    yield folder
    server.shutdown()
    server.server_close()


def test_downloads_and_checks(mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sums = {}
    for name, shape in zip(mnist.SHA256, [(4, 28, 28), (4,), (2, 28, 28), (2,)], strict=True):
        data = idx(shape, bytes(torch.randint(10, shape).flatten().tolist()))
        (mirror / name).write_bytes(data)
        sums[name] = hashlib.sha256(gzip.decompress(data)).hexdigest()
    monkeypatch.setattr(mnist, "SHA256", sums)
    module = MNISTDataModule(str(tmp_path / "data"), batch_size=2)
    module.prepare_data()
    module.setup("fit")
    images, labels = next(iter(module.train_dataloader()))
    assert images.shape == (2, 1, 28, 28)
    assert labels.dtype == torch.int64


def test_a_wrong_checksum_leaves_nothing(mirror: Path, tmp_path: Path) -> None:
    name = next(iter(mnist.SHA256))
    (mirror / name).write_bytes(gzip.compress(b"not MNIST"))
    with pytest.raises(OSError, match=r"checksum .* is not .*; put the four files"):
        mnist.download(tmp_path / "data", name)
    assert not (tmp_path / "data").exists()


def test_a_download_that_breaks_off_goes_to_the_next_mirror(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, content = next(iter(mnist.SHA256)), idx((4,), bytes(4))
    (mirror / name).write_bytes(content)
    (mirror / "broken").mkdir()
    (mirror / "broken" / name).write_bytes(content[:-5])
    monkeypatch.setattr(mnist, "MIRRORS", (f"{mnist.MIRRORS[1]}broken/", mnist.MIRRORS[1]))
    monkeypatch.setattr(mnist, "SHA256", {name: hashlib.sha256(gzip.decompress(content)).hexdigest()})
    mnist.download(tmp_path / "data", name)
    path = tmp_path / "data" / name
    assert path.read_bytes() == content
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode  # others of the machine may read it too


def test_the_real_data(mnist_root: Path) -> None:
    for name, digest in mnist.SHA256.items():
        assert hashlib.sha256(gzip.decompress((mnist_root / name).read_bytes())).hexdigest() == digest
    module = MNISTDataModule(str(mnist_root))
    module.setup("fit")
    assert (len(module.train), len(module.test)) == (60000, 10000)
    images = module.train.tensors[0]
    assert images.min() == 0
    assert images.max() == 1
    assert images.mean().item() == pytest.approx(0.1307, abs=1e-4)
