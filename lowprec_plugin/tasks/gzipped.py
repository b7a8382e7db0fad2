"""Gzipped files that are unpacked whole or refused."""

from __future__ import annotations

import zlib
from pathlib import Path

_GZIP = 31  # window bits that tell zlib to expect gzip's header, and to check its trailer


def unpacked(path: Path, packed: bytes, remedy: str) -> bytearray:
    """The content of ``packed``, which is what ``path`` holds: one gzip member to its end.

    The trailer's checksum and length are held against the content, so whatever changes a byte of it is noticed; of the
    header, the date and the name are not content.

    Raises:
        ValueError: if the file is no gzip, damaged, cut off, or goes on behind the member.
    """
    reader = zlib.decompressobj(_GZIP)
    try:
        content = bytearray(reader.decompress(packed))
    except zlib.error as error:
        raise ValueError(f"{path} is damaged ({error}): {remedy}") from error
    if not reader.eof:
        raise ValueError(f"{path} is damaged (it is cut off): {remedy}")
    if reader.unused_data:
        raise ValueError(f"{path} is damaged ({len(reader.unused_data)} bytes follow its content): {remedy}")
    return content
