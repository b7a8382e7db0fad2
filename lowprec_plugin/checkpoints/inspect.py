"""``lowprec inspect``: what a checkpoint stores how, tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lowprec_plugin.arithmetic.blocks import from_planes
from lowprec_plugin.checkpoints.load import read_file
from lowprec_plugin.formats import rows_of
from lowprec_plugin.tensor import FixedPointTensor
from lowprec_plugin.tensor.dtensor import fixed_part, local_part
from lowprec_plugin.text.files import whole_text
from lowprec_plugin.text.tables import columns


@dataclass(frozen=True)
class StoredTensor:
    """How one tensor of a checkpoint is stored.

    Attributes:
        name: where it is in the checkpoint; of optimizer state, the parameter's name and the state's, if it has them.
            Of a tied tensor, which is stored once, its names.
        kind: ``"weights"`` or ``"state"``.
        format: a format as text, or a dtype.
        elements: numbers in it.
        nbytes, float32_nbytes: what it takes, and what as many floats would.
        saturated: share of the codes that stand for a number that was out of range, or at its very end: the smallest or
            largest code of a static format, and of a dynamic one in blocks with the largest exponent there is.
            ``None`` of floats.
        zero: share of the codes, or numbers, that are zero.
        exponents: least, median and largest exponent of the blocks that are not all zero; ``None`` if there is none.
    """

    name: str
    kind: str
    format: str
    elements: int
    nbytes: int
    float32_nbytes: int
    saturated: float | None
    zero: float
    exponents: tuple[int, int, int] | None


def inspect_checkpoint(checkpoint: Any) -> list[StoredTensor]:
    """What each tensor of a checkpoint is stored as.

    Args:
        checkpoint: of Lightning, a module's or an optimizer's ``state_dict``, or mappings and lists of these. Integers
            and scalars (such as an optimizer's count of steps) are left out, and of sharded tensors this process's
            shards are looked at.

    Raises:
        ValueError: if there is no tensor in it, or one that is sparse or has no values.
    """
    found: dict[object, StoredTensor] = {}
    for path, tensor in _tensors(checkpoint, ()):
        place, stored = _place(tensor), _stored(path, tensor)
        tied = found.get(place)
        found[place] = stored if tied is None else replace(tied, name=f"{tied.name} = {stored.name}")
    if not found:
        raise ValueError(f"{type(checkpoint).__name__} holds no tensors of numbers: no checkpoint, no state dict")
    return list(found.values())


def _place(tensor: Tensor) -> object:
    """The same of two tensors only if they are one, under two names."""
    part = fixed_part(tensor)
    plane = local_part(tensor) if part is None else part.codes
    return (plane.data_ptr(), plane.shape, plane.stride()) if plane.numel() else object()


def _tensors(held: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    if isinstance(held, Tensor):
        if held.is_floating_point() and held.dim() > 0:
            if held.layout != torch.strided or held.is_meta:
                what = "without values, of the meta device" if held.is_meta else _name_of(held.layout)
                raise ValueError(
                    f"{_name(path)} is {what}: only dense tensors are looked at, so leave it out of the file"
                )
            yield path, held
    elif isinstance(held, Mapping):
        for name, value in held.items():
            yield from _tensors(value, (*path, str(name)))
    elif isinstance(held, Sequence) and not isinstance(held, str):
        for index, value in enumerate(held):
            yield from _tensors(value, (*path, str(index)))


def _stored(path: tuple[str, ...], tensor: Tensor) -> StoredTensor:
    # An optimizer's state_dict keeps what it has of parameter 3 as state, 3, exp_avg.
    kind = "state" if any(part == "state" for part in path[:-1]) else "weights"
    part = fixed_part(tensor)
    if part is None:
        floats = local_part(tensor)
        zero = _share(int((floats == 0).sum()), floats.numel())
        name, nbytes = _name(path), floats.numel() * floats.element_size()
        return StoredTensor(
            name, kind, _name_of(floats.dtype), floats.numel(), nbytes, 4 * floats.numel(), None, zero, None
        )
    elements = part.codes.numel()
    # State of a parameter without a name is called by its own alone, which its place has too.
    name = part.label if kind == "state" and part.label not in ("", path[-1]) else _name(path)
    limits, zeros, exponents = _counted(part)
    return StoredTensor(
        name, kind, str(part.format), elements, part.nbytes, 4 * elements, _share(limits, elements),
        _share(zeros, elements), exponents,
    )  # fmt: skip


def _name(path: tuple[str, ...]) -> str:
    return ".".join(part for part in path if part != "state_dict")


def _name_of(what: object) -> str:
    return str(what).removeprefix("torch.")


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _counted(tensor: FixedPointTensor) -> tuple[int, int, tuple[int, int, int] | None]:
    """Saturated codes, zeros, and the exponents' spread."""
    blocks, format = tensor.blocks, tensor.format
    rows, row_length = rows_of(blocks.codes.shape)
    codes = from_planes(blocks, format).reshape(rows, row_length)
    zeros, limits = int((codes == 0).sum()), (codes == format.max_code) | (codes == format.min_code)
    if blocks.exponents is None:
        return int(limits.sum()), zeros, (format.static_exponent,) * 3
    # Rows are filled up to whole blocks, with zeros.
    count = format.blocks_per_row(row_length)
    by_block = (0, count * format.block_size - row_length)
    used = pad(codes != 0, by_block).view(rows, count, format.block_size).any(-1)
    at_end = pad(limits, by_block).view(rows, count, format.block_size).sum(-1)
    saturated = int(at_end[blocks.exponents == format.max_exponent].sum())
    exponents = blocks.exponents[used].int()
    if exponents.numel() == 0:
        return saturated, zeros, None
    return saturated, zeros, (int(exponents.min()), int(exponents.median()), int(exponents.max()))


def as_text(stored: Sequence[StoredTensor]) -> str:
    """One line per tensor, and the totals."""
    header = ["tensor", "format", "numbers", "bytes", "of float32", "saturated", "zero", "exponents"]
    rows = [
        [
            each.name, each.format, f"{each.elements:,}", f"{each.nbytes:,}",
            _percent(each.nbytes, each.float32_nbytes),
            "-" if each.saturated is None else f"{100 * each.saturated:.3f} %", f"{100 * each.zero:.3f} %",
            "-" if each.exponents is None else "{} / {} / {}".format(*each.exponents),
        ]
        for each in stored
    ]  # fmt: skip
    for kind in ("weights", "state", "total"):
        of_kind = [each for each in stored if kind in (each.kind, "total")]
        if of_kind:
            nbytes, floats = sum(each.nbytes for each in of_kind), sum(each.float32_nbytes for each in of_kind)
            numbers = sum(each.elements for each in of_kind)
            rows.append([kind, "", f"{numbers:,}", f"{nbytes:,}", _percent(nbytes, floats), "", "", ""])
    lines = columns([header, *rows], texts=2)
    return "\n".join([*lines, "exponents: least / median / largest of the blocks that are not all zero"])


def _percent(part: int, whole: int) -> str:
    return f"{100 * _share(part, whole):.1f} %"


def run_inspect(checkpoint: str, json_file: str | None = None) -> list[StoredTensor]:
    """Show formats, bytes, saturated codes and exponents of a checkpoint, tensor by tensor.

    Args:
        checkpoint: of Lightning, or a state_dict of a module or an optimizer that torch.save wrote.
        json_file: also write the figures to this file.

    Raises:
        ValueError: if the file is not there, is no checkpoint, or holds more than plain data and tensors.
    """
    stored = inspect_checkpoint(read_file(checkpoint))
    print(as_text(stored))
    if json_file is not None:
        whole_text(json_file, json.dumps([asdict(each) for each in stored], indent=1) + "\n")
    return stored
