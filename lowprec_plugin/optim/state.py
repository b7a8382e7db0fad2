"""How an optimizer's state of fixed-point parameters is stored: in which format, and where it lies."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lowprec_plugin.arithmetic import ops
from lowprec_plugin.arithmetic.blocks import empty_blocks
from lowprec_plugin.arithmetic.random_bits import key_of, substream
from lowprec_plugin.arithmetic.reference.rounding import FLOAT32_MAX
from lowprec_plugin.compat.exchanging import is_used_elsewhere
from lowprec_plugin.formats import FixedPointFormat
from lowprec_plugin.optim.adopted import Adopted
from lowprec_plugin.optim.fused import FUSED, SQUARED_STATES
from lowprec_plugin.optim.naming import described, name_of
from lowprec_plugin.optim.options import StepOptions
from lowprec_plugin.tensor import FixedPointTensor
from lowprec_plugin.tensor.copying import convert_
from lowprec_plugin.tensor.dtensor import as_floats, each_on_any_rank, fixed_part, in_place_of, local_part, stored_part
from lowprec_plugin.text.option_error import Option, OptionError

Place = tuple[Any, Any, str]


def format_of_state(weights: FixedPointFormat, options: StepOptions, name: str) -> FixedPointFormat:
    """The format of state ``name``, by the name that a fused update knows, of a parameter in format ``weights``.

    Raises:
        ValueError: if ``options`` have a ``state_fraction_length`` and the state is one of squares.
    """
    squared = name in SQUARED_STATES
    if squared and options.state_fraction_length is not None:
        raise OptionError(
            Option.given("state_fraction_length", options.state_fraction_length),
            f": {name} is a mean of squares, which has to have a radix point in every block: leave it None, or use an "
            "optimizer without squares",
        )
    return _format(weights, options, squared)


def _format(weights: FixedPointFormat, options: StepOptions, squared: bool) -> FixedPointFormat:
    bits, fraction_length = options.state_word_length or weights.word_length, options.state_fraction_length
    return FixedPointFormat(bits, None if squared else fraction_length, weights.block_size, squared)


def state_format(optimizer: Adopted, param: Tensor, name: str) -> FixedPointFormat:
    """The format in which ``optimizer`` stores state ``name`` of ``param``, by the name that a fused update knows."""
    return format_of_state(stored_part(param).format, optimizer.fixed_point, name)


def is_elementwise(value: Any, param: Tensor) -> bool:
    """Whether ``value`` of an optimizer's state has a number for every element of ``param``."""
    return isinstance(value, Tensor) and value.shape == param.shape and value.is_floating_point()


def places(state: Any, name: str = "") -> list[Place]:
    """Where the tensors of one parameter's ``state`` lie: what holds each, under which key, and its name.

    Dictionaries and lists may nest; what is in a tuple cannot be replaced, and is left out.
    """
    items: Iterable[tuple[Any, Any]] = (
        list(state.items()) if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    )
    found: list[Place] = []
    for key, value in items:
        called = f"{name}.{key}" if name else str(key)
        found += [(state, key, called)] if isinstance(value, Tensor) else places(value, called)
    return found


def new_state(optimizer: Adopted, param: Tensor, name: str) -> Tensor:
    """State ``name`` of ``param``, all zeros."""
    format, part = state_format(optimizer, param, name), stored_part(param)
    empty = FixedPointTensor(empty_blocks(part.codes.shape, format, part.device), format)
    return _own(optimizer, empty, param, name, part.dtype)


def store_state(optimizer: Adopted, param: Tensor, name: str, value: Any) -> Any:
    """``value`` of state ``name`` as ``optimizer`` holds it: fixed-point if it has an element per parameter's.

    Floats are rounded to nearest.

    Raises:
        ValueError: if it is fixed-point in another format and not exact in this one, or not finite.
    """
    if not is_stored(optimizer, param, name, value):
        return value
    local = local_part(value)
    if not isinstance(local, FixedPointTensor):
        return round_state(optimizer, param, name, value, looks_of(param, [local])[0])
    format = _wanted(optimizer, param, name, local)
    if local.format == format:
        return _own(optimizer, local, param, name, local.dtype)
    converted = _own(
        optimizer, FixedPointTensor(empty_blocks(stored_part(param).codes.shape, format, local.device), format),
        param, name, local.dtype,
    )  # fmt: skip
    try:
        convert_(stored_part(converted), local)
    except ValueError as error:
        raise ValueError(
            f"state {name!r} of {described(param)}: {error}. Resume with state_word_length="
            f"{local.format.word_length}, or load optim.plain_optimizer_state(state_dict), which is rounded"
        ) from None
    return converted


class Looks(NamedTuple):
    """What floats that are state of a parameter look like, in any of its shards."""

    nan: bool
    negative: bool
    nonzero: bool
    differs: bool  # from the parameter


def looks_of(param: Tensor, new: Sequence[Tensor], written: Sequence[Tensor] = ()) -> list[Looks]:
    """How floats of this rank look; on all ranks that share ``param`` out. One wait for the device.

    Args:
        param: fixed-point.
        new: values of state.
        written: values whose format is known: they are not compared with ``param``.

    Returns:
        of ``written``, then of ``new``.
    """
    if not (new or written):
        return []
    parts = [value.detach() for value in (*written, *new)]
    ends = [torch.stack(torch.aminmax(each)).float() if each.numel() else torch.zeros(2) for each in parts]
    flags = [flag for each in ends for flag in (each[0].isnan(), each[0] < 0, each.any())]
    if new:
        part = stored_part(param)
        weights = ops.dequantize(part._planes, part.format)
        flags += [(each.reshape(weights.shape) != weights).any() for each in parts[len(written) :]]
    device = parts[0].device
    agreed = each_on_any_rank(torch.stack([flag.to(device) for flag in flags]).tolist(), [param])
    differs = [True] * len(written) + agreed[3 * len(parts) :]
    triples = (agreed[3 * at : 3 * at + 3] for at in range(len(parts)))
    return [Looks(nan, negative, nonzero, differs[at]) for at, (nan, negative, nonzero) in enumerate(triples)]


def round_state(
    optimizer: Adopted, param: Tensor, name: str, value: Tensor, looks: Looks, roundings: int | None = None
) -> Tensor:
    """Floats that are state ``name`` of ``param``, stored: rounded to nearest, or as the optimizer rounds in its step.

    The format of what a fused update knows goes by its name. Otherwise values tell: what equals the parameter is a
    copy of it and is stored as it is; of what has no negative number the root is stored, as of a mean of squares,
    unless the optimizer declares its ``squared_states``.

    Args:
        looks: how it looks.
        roundings: how often the step has rounded this state before; what overflows float32 saturates in it.
            ``None``: not in a step.

    Raises:
        ValueError: if it is not finite.
    """
    part, local = stored_part(param), local_part(value).detach()
    floats, rounding = local.reshape(part._codes.shape).float(), "nearest"
    if roundings is not None:
        floats, rounding = floats.clamp(-FLOAT32_MAX, FLOAT32_MAX), optimizer.fixed_point.rounding
    copied = looks.nonzero and not looks.differs and optimizer.float_class not in FUSED
    format = _by_name(optimizer, param, name)
    if format is None:
        format = part.format if copied else format_by_values(optimizer, part, name, looks.negative)
    key = key_of(substream(substream(part.stream, name), "in place"), roundings or 0)
    try:
        blocks, saturated = ops.quantize(floats, format, rounding=rounding, key=key, first_row=part.first_row)
    except ValueError as error:
        raise ValueError(f"state {name!r} of {described(param)}: {error}") from None
    optimizer.fixed_point.saturated += saturated
    stored = _own(optimizer, FixedPointTensor(blocks, format), param, name, local.dtype, copied)
    stored_part(stored).roundings = (roundings or 0) + 1
    return stored


def name_copies(param: Tensor, state: Any) -> None:
    """Give what the optimizer has cloned into ``state`` of ``param`` a name and a random stream of its own."""
    part = stored_part(param)
    for holder, key, name in places(state):
        value, stream = fixed_part(holder[key]), substream(part.stream, name)
        if value is not None and value.stream != stream:
            name_state(value, param, name, copied=is_unnamed(value, part) or value.is_copy)


def name_state(state: FixedPointTensor, param: Tensor, name: str, *, copied: bool) -> None:
    """Let ``state`` be the state ``name`` of ``param``; ``copied``: whether it is a copy of it."""
    state.stream = substream(stored_part(param).stream, name)
    state.label, state.is_copy = _label(param, name), copied


def is_unnamed(state: FixedPointTensor, part: FixedPointTensor) -> bool:
    """Whether ``state`` is what the optimizer has cloned from the parameter ``part``, and not named yet."""
    return state.stream == part.stream


def _label(param: Tensor, name: str) -> str:
    """What state ``name`` of ``param`` is called, after the parameter if that has a name."""
    return f"{name_of(param)}.{name}".removeprefix(".")


def is_stored(optimizer: Adopted, param: Tensor, name: str, value: Any) -> bool:
    """Whether ``optimizer`` holds ``value``, its state ``name`` of ``param``, in fixed-point."""
    if name == "step" or not is_elementwise(value, param):
        return False
    # One number may be a count, unless an update is known to take it for a moment.
    return param.numel() > 1 or optimizer.float_class in FUSED


def _by_name(optimizer: Adopted, param: Tensor, name: str) -> FixedPointFormat | None:
    return state_format(optimizer, param, name) if optimizer.float_class in FUSED else None


def squared_states_of(optimizer: torch.optim.Optimizer) -> tuple[str, ...] | None:
    """The names of the states that ``optimizer`` declares to be sums or means of squares, as an attribute of it or of
    its class; ``None``: it declares nothing.
    """
    declared = getattr(optimizer, "squared_states", None)
    return None if declared is None else tuple(declared)


def format_by_values(optimizer: Adopted, part: FixedPointTensor, name: str, negative: bool) -> FixedPointFormat:
    """The format of state ``name``, which is not a copy of its parameter; ``negative``: whether a number of it is."""
    declared = squared_states_of(optimizer)
    squared = not negative if declared is None else bool({name, name.rpartition(".")[2]} & set(declared))
    return _format(part.format, optimizer.fixed_point, squared)


def _wanted(optimizer: Adopted, param: Tensor, name: str, value: FixedPointTensor) -> FixedPointFormat:
    """The format that fixed-point ``value`` of a state is to have."""
    named, part = _by_name(optimizer, param, name), stored_part(param)
    if named is not None:
        return named
    return part.format if value.is_copy else _format(part.format, optimizer.fixed_point, value.format.squared)


def _own(
    optimizer: Adopted,
    tensor: FixedPointTensor,
    param: Tensor,
    name: str,
    dtype: torch.dtype,
    copied: bool = False,
) -> Tensor:
    """Give state ``tensor`` the place, sharding and random stream of state ``name`` of ``param``."""
    part = stored_part(param)
    owned = tensor._like(
        tensor.blocks, dtype=dtype, rounding=optimizer.fixed_point.rounding, first_row=part.first_row,
        stream=substream(part.stream, name), label=_label(param, name),
        geometry=part._geometry,
    )  # fmt: skip
    owned.whole_rows, owned.is_copy = part.whole_rows, copied or tensor.is_copy
    return in_place_of(owned, param)


def is_held_elsewhere(place: Place) -> bool:
    """Whether more than ``place`` refers to the tensor there, or to its memory: it would not see what replaces it."""
    holder, key, _ = place
    if sys.getrefcount(holder[key]) > 2:  # the holder, and the argument
        return True
    value = local_part(holder[key])
    whole = value.untyped_storage().nbytes() == value.numel() * value.element_size()
    return is_used_elsewhere(value) or not whole


def store_states(*optimizers: Adopted, exact: bool = False) -> None:
    """Hold the state of fixed-point parameters as the settings say, rounded to nearest; all of it, or none.

    Args:
        exact: what is in another format already is not rounded.

    Raises:
        ValueError: for state that is not finite, or not ``exact``.
    """
    stored: list[tuple[Any, Any, Any]] = []
    for optimizer, param, state in ((each, *item) for each in optimizers for item in each.state.items()):
        if not isinstance(param, Tensor) or fixed_part(param) is None:
            continue
        for place in places(state):
            holder, key, name = place
            left = not exact and optimizer.float_class not in FUSED  # what is loaded is held by whoever gave it
            if left and fixed_part(holder[key]) is None and is_held_elsewhere(place):
                continue  # until a step finds that it is not any more
            value, part, own = holder[key], fixed_part(holder[key]), stored_part(param)
            if part is not None:
                if part._shared is own._shared:
                    continue  # the parameter itself, by another object
                # Another format is what the settings ask for; a checkpoint in one, by contrast, has to be exact. And
                # what was cloned from the parameter may have become anything since.
                if is_unnamed(part, own) or (not exact and part.format != _wanted(optimizer, param, name, part)):
                    value = as_floats(value)
            stored.append((holder, key, store_state(optimizer, param, name, value)))
    for holder, key, value in stored:
        holder[key] = value
