"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


_REMOVED = ".removed"


def path_of(path: str | Path) -> Path:
    """``path``, an argument, as a path.

    Raises:
        ValueError: if it is neither text nor a path, or names no file.
    """
    if not isinstance(path, str | os.PathLike) or not Path(path).name:
        raise ValueError(f"path={path!r} is not the path of a file")
    return Path(path)


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A path beside ``path`` to write to: it takes the name ``path`` when the context ends well, else it is removed.

    Folders that are missing are made. What was at ``path`` stays until then, through a kill or a loss of power too:
    the file is on the disk before it takes the name. A kill leaves the other file behind (:func:`remove_partial`).

    Raises:
        ValueError: if ``path`` is not the path of a file.
    """
    path = path_of(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{_short(path.name)}.{os.getpid()}.partial")
    partial.touch()
    mode = partial.stat().st_mode  # the user's own; some writers make files that nobody else may read
    try:
        yield partial
        partial.chmod(mode)
        _to_disk(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    opened = os.open(path, os.O_RDWR)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def remove_partial(path: str | Path) -> None:
    """Remove what processes that were killed while they wrote ``path`` left beside it."""
    path = Path(path)
    for partial in path.parent.glob(f"{escape(_short(path.name))}.*.partial"):
        partial.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Remove a folder, and what processes that were killed while they removed others beside it have left.

    It loses its name first: a kill meanwhile leaves no folder of that name that lacks a part.
    """
    os.replace(path, path.with_name(f"{_short(path.name)}.{os.getpid()}{_REMOVED}"))
    for removed in path.parent.glob(f"*{_REMOVED}"):
        shutil.rmtree(removed, ignore_errors=True)


def _short(name: str) -> str:
    """``name`` with room for more: file systems take 255 bytes."""
    return name.encode()[:230].decode(errors="ignore")


def whole_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path``, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes that ask for it too out of ``folder``, until the context or this process ends.

    Where neither the system nor the file system knows locks, nobody is kept out.

    Raises:
        ValueError: if one is in it.
    """
    opened = os.open(folder, os.O_RDONLY) if fcntl else None
    try:
        if opened is not None:
            with suppress(OSError):
                _lock(opened, folder)
        yield
    finally:
        if opened is not None:
            os.close(opened)


def _lock(opened: int, folder: Path) -> None:
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(f"another process is at work in {folder}: wait for it, or give another folder") from error
