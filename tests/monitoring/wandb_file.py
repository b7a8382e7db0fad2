"""Reads the file that a run of the wandb client leaves: protobuf records in the format of LevelDB's log."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

BLOCK, HEADER = 32 * 1024, 7
MAGIC = b":W&B" + struct.pack("<H", 0xBEE1)  # a byte for the version follows
FULL, FIRST, MIDDLE, LAST = range(1, 5)


class WandbRun(NamedTuple):
    """What is in one file.

    Attributes:
        history: what was logged, in order: each a mapping of names to values.
        summary: as it was at the end.
        config: the run's.
        metrics: by name or pattern what ``define_metric`` said: ``step`` and ``summary``.
    """

    history: list[dict[str, Any]]
    summary: dict[str, Any]
    config: dict[str, Any]
    metrics: dict[str, dict[str, Any]]


def read(folder: Path) -> WandbRun:
    """The one run under ``folder``."""
    run = WandbRun([], {}, {}, {})
    for record in records(folder):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            run.history.append({_key(item): json.loads(item.value_json) for item in record.history.item})
        elif kind == "summary":
            run.summary.update({_key(item): json.loads(item.value_json) for item in record.summary.update})
        elif kind in ("config", "run"):
            update = record.config.update if kind == "config" else record.run.config.update
            run.config.update({_key(item): json.loads(item.value_json) for item in update})
        elif kind == "metric":
            metric = record.metric
            chosen = [field.name for field, value in metric.summary.ListFields() if value is True]
            run.metrics[metric.name or metric.glob_name] = {"step": metric.step_metric, "summary": chosen}
    return run


def records(folder: Path) -> Iterator[Any]:
    """The records of the one run under ``folder``, in order, as the client's own protobuf has them."""
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.rglob("*.wandb")
    for data in _records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        yield record


def _key(item: Any) -> str:
    return item.key or "/".join(item.nested_key)


def _records(data: bytes) -> Iterator[bytes]:
    assert data.startswith(MAGIC), data[:8]
    at, parts = HEADER, []
    while at + HEADER <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER:
            at += left
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, at)
        if kind == 0:
            at += left
            continue
        part = data[at + HEADER : at + HEADER + length]
        assert _masked(zlib.crc32(bytes([kind]) + part)) == checksum
        at += HEADER + length
        parts.append(part)
        if kind in (FULL, LAST):
            yield b"".join(parts)
            parts = []


def _masked(crc: int) -> int:
    return crc
