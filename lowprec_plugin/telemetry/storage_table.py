"""One table that says what is stored how: the proof that fixed-point is active, and where it is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lowprec_plugin.arithmetic import ops
from lowprec_plugin.formats import FixedPointFormat
from lowprec_plugin.memory import Kinds, bytes_of, side_by_side
from lowprec_plugin.memory.kinds import float32_of
from lowprec_plugin.optim.fused import fused_update
from lowprec_plugin.optim.plain import why_left
from lowprec_plugin.optim.state import state_format
from lowprec_plugin.optim.step import FixedPointStep, steps_each_by_itself
from lowprec_plugin.tensor import FixedPointTensor
from lowprec_plugin.tensor.dtensor import fixed_part, local_part
from lowprec_plugin.text.tables import columns

#: So many parameters that are kept for one reason are named one by one.
_FEW = 8


class Row(NamedTuple):
    """One line of the table: parameters that are stored alike.

    Attributes:
        group: ``"AdamW 0"`` for parameter group 0 of an AdamW, ``"no optimizer"``, or ``"buffers"``.
        weights, state: formats, as text.
        gradients: their format, or dtype, as text; ``"released"`` where none is kept.
        elements: parameters; of sharded ones those in this rank's shards.
        nbytes, float32_nbytes: bytes of weights and (expected) state, and what float32 would take.
        update: how the group is updated, and on which backend.
        gradient_nbytes, float32_gradient_nbytes: bytes of (expected) gradients, and what float32 would take.
    """

    group: str
    weights: str
    state: str
    gradients: str
    elements: int
    nbytes: int
    float32_nbytes: int
    update: str
    gradient_nbytes: int = 0
    float32_gradient_nbytes: int = 0


def describe(module: nn.Module, optimizers: Sequence[torch.optim.Optimizer] = ()) -> list[Row]:
    """What ``module`` and ``optimizers`` store how, and which update serves each parameter group."""
    rows: list[Row] = []
    seen: set[int] = set()
    for optimizer in optimizers:
        for index, group in enumerate(optimizer.param_groups):
            seen.update(id(param) for param in group["params"])
            for kind in _kinds(group["params"]).values():
                rows.append(group_row(f"{_name(optimizer)} {index}", kind, optimizer, group))
    loose = [param for param in module.parameters() if id(param) not in seen]
    rows += [group_row("no optimizer", kind, None, {}) for kind in _kinds(loose).values()]
    buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    if buffers:
        nbytes = sum(map(bytes_of, buffers))
        dtypes = ", ".join(sorted({_dtype(buffer) for buffer in buffers}))
        rows.append(
            Row(
                "buffers",
                dtypes,
                "-",
                "-",
                sum(b.numel() for b in buffers),
                nbytes,
                float32_of(buffers),
                "kept in float",
            )
        )
    return rows


def _kinds(params: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    kinds: dict[str, list[Tensor]] = {}
    for param in params:
        kinds.setdefault(f"{storage_of(param)}, {gradients_of(param)}", []).append(param)
    return kinds


def storage_of(tensor: Tensor) -> str:
    """The format of ``tensor`` as text; of a float its dtype; of what a class of its own stores, that class."""
    part = fixed_part(tensor)
    if part is not None:
        return str(part.format)
    kind = type(local_part(tensor))
    as_torch_does = kind.__torch_dispatch__ is Tensor.__torch_dispatch__
    return _dtype(tensor) if as_torch_does else kind.__name__


def gradients_of(param: Tensor) -> str:
    """What the gradients of ``param`` are kept as: a format, or a dtype; or that they are released."""
    part = fixed_part(param)
    if not param.requires_grad:
        return "-"
    if part is None or part.gradient_word_length is None:
        return _dtype_name(param.dtype if part is None else part.gradient_dtype or part.dtype)
    if part.gradient_word_length == "release":
        return "released"
    return str(FixedPointFormat(part.gradient_word_length, block_size=part.format.block_size))


def _gradient_bytes(params: Sequence[Tensor]) -> tuple[int, int]:
    """Bytes that the gradients of ``params`` will take, and in float32."""
    held = floats = 0
    for param in params:
        if not param.requires_grad:
            continue
        part, own = fixed_part(param), local_part(param)
        word_length = None if part is None else part.gradient_word_length
        floats += 4 * own.numel()
        if part is None or word_length is None:
            dtype = own.dtype if part is None else part.gradient_dtype or own.dtype
            held += own.numel() * dtype.itemsize
        elif isinstance(word_length, int):  # else none is kept
            held += FixedPointFormat(word_length, block_size=part.format.block_size).nbytes(part.codes.shape)
    return held, floats


def _made_state(
    parts: Sequence[Tensor], params: Sequence[Tensor], optimizer: torch.optim.Optimizer, group: dict[str, object]
) -> tuple[int, int]:
    """Bytes of state, and of the same in float32; before the first step those that a known algorithm will make."""
    named = [item for param in params for item in optimizer.state.get(param, {}).items()]
    made = [local_part(value) for name, value in named if isinstance(value, Tensor) and name != "step"]
    if made:
        return sum(map(bytes_of, made)), float32_of(made)
    own_class = optimizer.float_class if isinstance(optimizer, FixedPointStep) else type(optimizer)
    update, _ = fused_update(own_class, group)
    trained = [part for part, param in zip(parts, params, strict=True) if param.requires_grad]
    states = 0 if update is None else len(update.algorithm(group).states)
    return states * sum(map(bytes_of, trained)), states * float32_of(trained)


def _dtype(tensor: Tensor) -> str:
    return _dtype_name(tensor.dtype)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _name(optimizer: torch.optim.Optimizer) -> str:
    return (optimizer.float_class if isinstance(optimizer, FixedPointStep) else type(optimizer)).__name__


def group_row(
    group_name: str,
    params: list[Tensor],
    optimizer: torch.optim.Optimizer | None,
    group: dict[str, object],
) -> Row:
    """What ``params``, all stored alike, and their state are stored as, and how ``optimizer`` updates them."""
    parts = [local_part(param) for param in params]
    elements = sum(part.numel() for part in parts)
    nbytes = sum(map(bytes_of, parts))
    first = params[0]
    row = Row(
        group_name,
        storage_of(first),
        "-",
        gradients_of(first),
        elements,
        nbytes,
        4 * elements,
        "none",
        *_gradient_bytes(params),
    )
    if optimizer is None:
        return row
    if fixed_part(first) is None or not isinstance(optimizer, FixedPointStep):
        how = "as they are" if why_left(first) else "in float"
        own, floats = _made_state(parts, params, optimizer, group)
        return row._replace(
            state="float", nbytes=nbytes + own, float32_nbytes=4 * elements + floats,
            update=f"{_name(optimizer)}'s own, {how}",
        )  # fmt: skip
    update, reason = fused_update(optimizer.float_class, group)
    backend = ops.backend_for(parts[0].device)
    if update is None:
        how = "one parameter at a time" if steps_each_by_itself(optimizer.float_class) else "its own step, on floats"
        format = state_format(optimizer, first, "")
        own, floats = _made_state(parts, params, optimizer, group)
        said = f"{how} ({reason}), {backend} rounding"
        floats += 4 * elements
        return row._replace(state=str(format), nbytes=nbytes + own, float32_nbytes=floats, update=said)
    names = update.algorithm(group).states
    formats = [state_format(optimizer, first, name) for name in names]
    shapes = [part.codes.shape for part in parts if isinstance(part, FixedPointTensor)]
    state = sum(format.nbytes(shape) for format in formats for shape in shapes)
    return row._replace(
        state=", ".join(str(format) for format in formats) or "-",
        nbytes=nbytes + state,
        float32_nbytes=4 * elements * (1 + len(names)),
        update=f"fused, {backend}",
    )


def as_text(rows: Sequence[Row], kept: Mapping[str, str] = {}, wire: str = "") -> str:
    """The table as text, with the parameters that were not stored in fixed-point and why."""
    rows_of_text = [["group", "weights", "state", "gradients", "parameters", "bytes", "float32", "update"]]
    for row in rows:
        sizes = [_size(row.nbytes), _size(row.float32_nbytes)]
        rows_of_text.append([row.group, row.weights, row.state, row.gradients, f"{row.elements:,}", *sizes, row.update])
    lines = columns(rows_of_text, texts=8)
    parts = side_by_side(*_counted(rows)).values()
    lines.append(f"of float32's bytes: {', '.join(f'{part.name} {part.text}' for part in parts)}")
    lines += _not_stored(kept)
    if wire:
        lines.append(f"gradients between processes: {wire}")
    return "\n".join(lines)


def _counted(rows: Sequence[Row]) -> tuple[Kinds, Kinds]:
    """What the rows say is held, weights and state in one, and in float32."""
    buffers = [row for row in rows if row.group == "buffers"]
    params = [row for row in rows if row.group != "buffers"]
    return (
        Kinds(sum(row.nbytes for row in params), 0, sum(row.gradient_nbytes for row in params),
              buffers=sum(row.nbytes for row in buffers)),
        Kinds(sum(row.float32_nbytes for row in params), 0, sum(row.float32_gradient_nbytes for row in params),
              buffers=sum(row.float32_nbytes for row in buffers)),
    )  # fmt: skip


def _not_stored(kept: Mapping[str, str]) -> list[str]:
    """A line for each, or for many of one reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in kept.items():
        by_reason.setdefault(reason, []).append(name)
    lines = []
    for reason, names in by_reason.items():
        what = "kept in float" if reason.startswith("keep_float") else "left as it is"
        few = len(names) <= _FEW
        said = names if few else [f"{len(names):,} parameters from {names[0]} to {names[-1]}"]
        lines += [f"{what}: {each} ({reason})" for each in said]
    return lines


def _size(nbytes: int) -> str:
    return f"{nbytes / 2**20:.2f} MiB" if nbytes >= 2**20 else f"{nbytes / 2**10:.1f} KiB"
