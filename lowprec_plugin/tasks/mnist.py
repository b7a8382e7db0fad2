"""MNIST from its IDX files: read where they are, else downloaded and checked."""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import urllib.request
import zlib
from http.client import HTTPException
from pathlib import Path

import torch
from torch import Tensor

from lowprec_plugin.tasks.gzipped import unpacked
from lowprec_plugin.tasks.images import ImageDataModule, Images
from lowprec_plugin.text.files import whole_file

#: Where the files are downloaded from, tried in order.
MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")
#: Of the unpacked files: mirrors pack them differently.
SHA256 = {
    "train-images-idx3-ubyte.gz": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte.gz": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte.gz": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte.gz": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}

_REMEDY = "delete it, and it will be downloaded again"


def read_idx(path: Path) -> Tensor:
    """The unsigned bytes of a gzipped IDX file, in its own shape.

    Raises:
        ValueError: if the file is damaged, not an IDX file of bytes, or its length is not what its header says.
    """
    data = unpacked(path, path.read_bytes(), _REMEDY)
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is not an IDX file of unsigned bytes: it starts with {data[:4].hex()}: {_REMEDY}")
    start = 4 + 4 * data[3]
    if len(data) < start:
        raise ValueError(f"{path} ends in its header: {len(data)} bytes where {start} are needed: {_REMEDY}")
    shape = struct.unpack_from(f">{data[3]}I", data, 4)
    if len(data) == start or len(data) - start != math.prod(shape):
        raise ValueError(f"{path} holds {len(data) - start} bytes where its header says {shape}: {_REMEDY}")
    return torch.frombuffer(data, dtype=torch.uint8, offset=start).reshape(shape)


def download(root: Path, name: str) -> None:
    """Fetch one file into ``root``; only a complete file with the right checksum ever gets its name.

    Raises:
        OSError: if no mirror gives it.
    """
    failures = []
    for mirror in MIRRORS:
        try:
            with urllib.request.urlopen(mirror + name, timeout=60) as response:
                data = response.read()
            digest = hashlib.sha256(gzip.decompress(data)).hexdigest()
        except (OSError, HTTPException, EOFError, zlib.error) as error:
            failures.append(f"{mirror}: {error}")
            continue
        if digest != SHA256[name]:
            failures.append(f"{mirror}: checksum {digest} is not {SHA256[name]}")
            continue
        with whole_file(root / name) as partial:
            partial.write_bytes(data)
        return
    raise OSError(
        f"could not download {name} ({'; '.join(failures)}); put the four files of MNIST into {root}, or pass the "
        "folder that has them as root"
    )


class MNISTDataModule(ImageDataModule):
    """Pixels in [0, 1] of shape (1, 28, 28), nothing else done to them; the 10,000 test images validate too.

    Args:
        root: folder of the four IDX files, gzipped, as they are distributed. Those missing are downloaded there.
        batch_size: of training.
    """

    def __init__(self, root: str = "data/mnist", batch_size: int = 100) -> None:
        super().__init__(batch_size, test_batch_size=1000)
        self.root = Path(root)

    def prepare_data(self) -> None:
        """Download what is missing."""
        for name in SHA256:
            if not (self.root / name).exists():
                download(self.root, name)

    def setup(self, stage: str) -> None:
        """Read the files."""
        train_images, train_labels, test_images, test_labels = (read_idx(self.root / name) for name in SHA256)
        self.train = Images(_pixels(train_images), train_labels.long())
        self.test = Images(_pixels(test_images), test_labels.long())


def _pixels(images: Tensor) -> Tensor:
    return (images.float() / 255).unsqueeze(1)
