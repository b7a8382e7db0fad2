"""Whether a checkpoint is still what was written.

Files of ``torch.save`` are zip archives: they hold a CRC-32 of every record, and torch does not look at it when it
reads one, so that a flipped bit is a weight like any other. Distributed checkpoints are many such archives in few
files, and DeepSpeed's are folders of them.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import IO

from torch.distributed.checkpoint.filesystem import FileSystemReader

_REMEDY = "copy or save it again, or give another checkpoint"
_DOS_FOLDER = 0x10  # of an entry's attributes


def check_undamaged(path: str | Path, share: int = 0, shares: int = 1) -> None:
    """Read a checkpoint once, and compare every checksum in it.

    Args:
        path: a file, or the folder of a distributed checkpoint or of DeepSpeed's. What has no checksums passes: a file
            of torch's former format, and what is not there.
        share, shares: which part of a folder's archives to read, of how many, so that processes can do it together.

    Raises:
        ValueError: naming the file and what in it is damaged.
    """
    path = Path(path)
    archives = _archives(path) if path.is_dir() else iter([path]) if path.is_file() else iter(())
    for archive in islice(archives, share, None, shares):
        if isinstance(archive, Path):
            with archive.open("rb") as file:
                _check(file, str(archive))
        else:
            file_path, offset, length = archive
            with file_path.open("rb") as file:
                file.seek(offset)
                _check(BytesIO(file.read(length)), f"{file_path}, {length:,} bytes from byte {offset:,} on,")


def _archives(folder: Path) -> Iterator[Path | tuple[Path, int, int]]:
    """What is an archive by itself: whole files, and parts of the files of a distributed checkpoint."""
    parts: set[Path] = set()
    if (folder / ".metadata").exists():
        try:
            stored = FileSystemReader(folder).read_metadata().storage_data or {}
        except Exception as error:  # whatever unpickling makes of damaged bytes
            raise ValueError(f"{folder / '.metadata'} is damaged ({error}): {_REMEDY}") from error
        places = sorted({(folder / info.relative_path, info.offset, info.length) for info in stored.values()})
        parts = {path for path, _, _ in places}
        yield from places
    yield from (path for path in sorted(folder.rglob("*")) if path.is_file() and path not in parts)


def _check(file: IO[bytes], name: str) -> None:
    begins_as_archive = file.read(4) == b"PK\x03\x04"
    try:
        archive = zipfile.ZipFile(file) if zipfile.is_zipfile(file) else None
        record = None if archive is None else archive.testzip() or _misread(archive)
    except Exception as error:  # whatever a zip archive's damaged directory comes to
        raise ValueError(f"{name} is damaged ({error}): {_REMEDY}") from error
    if archive is None and begins_as_archive:
        raise ValueError(f"{name} is not whole, its end is missing: {_REMEDY}")
    if record is not None:
        raise ValueError(f"{name} is damaged (record {record!r} is not what was written): {_REMEDY}")


def _misread(archive: zipfile.ZipFile) -> str | None:
    """The first record that torch would not read as it was written, though its bytes are those that were.

    No checksum covers an archive's directory: of a record that it calls a folder, torch leaves the numbers as they were
    in memory.
    """
    for info in archive.infolist():
        called_folder = bool(info.external_attr & _DOS_FOLDER) and not info.is_dir()
        if called_folder or (info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size):
            return info.filename
    return None
