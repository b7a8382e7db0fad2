"""safetensors: the planes as they are stored, and the formats as metadata.

A fixed-point tensor ``name`` is up to three entries: ``name`` (codes, int8 or int16), ``name.low`` (uint8, of words of
17 to 24 bits) and ``name.exponents`` (int8, of dynamic formats), laid out as
:class:`~lowprec_plugin.arithmetic.blocks.Blocks` says. Other tensors are entries as they are. The metadata's
``"lowprec"`` is JSON: per fixed-point tensor its ``word_length``, ``fraction_length`` (``null`` if dynamic) and
``block_size``. Its ``"lowprec_digest"`` is a checksum of all entries and of that JSON, which reading compares.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowprec_plugin.arithmetic.blocks import Blocks
from lowprec_plugin.arithmetic.random_bits import stream_of
from lowprec_plugin.export.integers import State, exportable, split
from lowprec_plugin.formats import FixedPointFormat
from lowprec_plugin.tensor import FixedPointTensor
from lowprec_plugin.tensor.integrity import check_numbers
from lowprec_plugin.text.files import path_of, whole_file

_FIELDS = ("word_length", "fraction_length", "block_size")
_REMEDY = "write it again with to_safetensors, or take another copy"


def _safetensors() -> Any:
    try:
        import safetensors.torch  # safe_open and SafetensorError come with it
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('this takes safetensors: pip install "lowprec-plugin[export]"') from error
    return safetensors


def to_safetensors(module_or_state: nn.Module | State, path: str | Path) -> None:
    """Write what a module or a state dict holds, codes as codes, whole or not at all.

    Raises:
        ValueError: for a shard, for entries that are no tensors, for names that collide with a plane's, and if nothing
            is in fixed-point.
    """
    words, rest = split(module_or_state)
    state = module_or_state.state_dict() if isinstance(module_or_state, nn.Module) else module_or_state
    entries: list[tuple[str, Tensor]] = []
    for name, value in rest.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{name!r} is {type(value).__name__}, and safetensors holds tensors: take it out")
        entries.append((name, value))
    for name in words:
        tensor = exportable(name, state[name])
        assert tensor is not None
        planes = zip((name, f"{name}.low", f"{name}.exponents"), tensor.blocks, strict=True)
        entries += [(entry, plane) for entry, plane in planes if plane is not None]
    # A copy of each: safetensors refuses tensors that share memory, which tied parameters do.
    tensors = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in entries}
    if len(tensors) < len(entries):
        taken = next(name for name, _ in entries if sum(other == name for other, _ in entries) > 1)
        raise ValueError(f"{taken!r} is both a plane of a fixed-point tensor and a name in the state dict: rename it")
    formats = {name: {field: getattr(each.format, field) for field in _FIELDS} for name, each in words.items()}
    said = json.dumps(formats)
    with whole_file(path) as partial:
        _safetensors().torch.save_file(tensors, partial, {"lowprec": said, "lowprec_digest": _digest(tensors, said)})


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """The state dict that :func:`to_safetensors` wrote: ``module.load_state_dict(state, assign=True)`` takes it.

    The file holds no random streams: each tensor gets that of its name and seed 0.

    Raises:
        ValueError: if the file is damaged or not of this kind: no safetensors file, without formats in its metadata, or
            with formats that are invalid or of tensors that it does not hold.
        OSError: if it cannot be read.
    """
    planes, text = _entries(path)
    state: dict[str, Tensor] = {}
    for name, format in _formats(path, text).items():
        if name not in planes:
            raise ValueError(f"{path} names a format for {name!r}, whose codes it does not hold: {_REMEDY}")
        blocks = Blocks(planes.pop(name), planes.pop(f"{name}.low", None), planes.pop(f"{name}.exponents", None))
        try:
            state[name] = FixedPointTensor(blocks, format, label=name, stream=stream_of(0, name))
            check_numbers(blocks, format)
        except ValueError as error:
            raise ValueError(f"{path} holds a damaged tensor {name!r}: {error}: {_REMEDY}") from error
    return {**state, **planes}


def _entries(path: str | Path) -> tuple[dict[str, Tensor], str]:
    """Every entry, and the metadata that is ours."""
    library = _safetensors()
    path_of(path).open("rb").close()  # names the file if it cannot be read
    try:
        with library.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            planes = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
    except library.SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or damaged ({error}): {_REMEDY}") from error
    if "lowprec" not in metadata:
        raise ValueError(f"{path} has no metadata 'lowprec': it holds no fixed-point tensors of ours")
    text = metadata["lowprec"]
    found = _digest(planes, text)
    if metadata.get("lowprec_digest", found) != found:  # earlier versions wrote none
        raise ValueError(f"{path} is damaged, its digest is not that of what it holds: {_REMEDY}")
    return planes, text


def _digest(entries: Mapping[str, Tensor], formats: str) -> str:
    """A checksum of all that a file holds, CRC-32 in eight hexadecimal digits."""
    crc = zlib.crc32(formats.encode())
    for name, entry in sorted(entries.items()):
        crc = zlib.crc32(f"{name} {entry.dtype} {tuple(entry.shape)}".encode(), crc)
        crc = zlib.crc32(entry.reshape(-1).view(torch.uint8).numpy().data, crc)  # of bfloat16 too, which NumPy lacks
    return f"{crc:08x}"


def _formats(path: str | Path, text: str) -> dict[str, FixedPointFormat]:
    """The formats by the names of their tensors, as the metadata's JSON says them."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} has metadata 'lowprec' that is no JSON ({error}): {_REMEDY}") from error
    if not isinstance(said, dict):
        raise ValueError(f"{path} has metadata 'lowprec' that is no mapping of names to formats: {_REMEDY}")
    formats = {}
    for name, fields in said.items():
        if not isinstance(fields, dict) or set(fields) != set(_FIELDS):
            raise ValueError(f"{path} says of {name!r} {fields!r} and not {', '.join(_FIELDS)}: {_REMEDY}")
        try:
            formats[name] = FixedPointFormat(**fields)
        except ValueError as error:
            raise ValueError(f"{path} says of {name!r} {error}: {_REMEDY}") from error
    return formats
