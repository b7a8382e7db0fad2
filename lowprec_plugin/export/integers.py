"""A fixed-point tensor as the integers that it is, for files that others read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lowprec_plugin.arithmetic.blocks import from_planes
from lowprec_plugin.formats import FixedPointFormat, check_kind
from lowprec_plugin.optim.naming import patterns_of
from lowprec_plugin.tensor import FixedPointTensor
from lowprec_plugin.text.option_error import Option, OptionError

State = Mapping[str, Any]


@dataclass(frozen=True)
class Words:
    """``value = code * 2**exponent``: the codes of one tensor, right-aligned, and its exponents.

    Attributes:
        name: in the state dict.
        format: static or dynamic, not squared.
        codes: int32, of the tensor's shape, on the CPU.
        exponents: int8 of shape ``(rows, blocks per row)``, on the CPU; ``None`` for a static format.
    """

    name: str
    format: FixedPointFormat
    codes: Tensor
    exponents: Tensor | None

    @property
    def container(self) -> int:
        """Bits of the smallest C integer that holds a code: 8, 16 or 32."""
        return (8, 16, 32)[self.format.container_bytes - 1]


def exportable(name: str, tensor: Any) -> FixedPointTensor | None:
    """``tensor`` if it is fixed-point and all of itself; ``None`` if it is no fixed-point tensor.

    Raises:
        ValueError: for a shard, for a window on another tensor's codes, and for square roots.
    """
    if isinstance(tensor, DTensor):
        raise ValueError(
            f"{name!r} is one rank's shard of shape {tuple(tensor.to_local().shape)} of {tuple(tensor.shape)}: export "
            "from a checkpoint in one file (see docs/sharding.md), or after state_dict's full_tensor()"
        )
    if not isinstance(tensor, FixedPointTensor):
        return None
    if not tensor.is_whole or tensor.shape != tensor.codes.shape:
        raise ValueError(
            f"{name!r}, shape {tuple(tensor.shape)}, is a window on the codes of a tensor of shape "
            f"{tuple(tensor.codes.shape)}, and blocks are that one's: export that one, or "
            f"FixedPointTensor.quantize(tensor, {str(tensor.format)!r}, rounding='nearest')"
        )
    if tensor.format.squared:
        raise ValueError(
            f"{name!r} is in {tensor.format}, square roots of an optimizer's second moments, and weights alone are "
            "exported: optim.plain_optimizer_state(optimizer) gives the state as floats"
        )
    return tensor


def split(module_or_state: nn.Module | State) -> tuple[dict[str, Words], dict[str, Any]]:
    """What a module or a state dict stores in fixed-point, and the rest as it is.

    Raises:
        ValueError: if nothing is stored in fixed-point, or as :func:`exportable`.
    """
    state = module_or_state.state_dict() if isinstance(module_or_state, nn.Module) else module_or_state
    check_kind(state, Mapping, "module_or_state")
    words: dict[str, Words] = {}
    rest: dict[str, Any] = {}
    for name, value in state.items():
        tensor = exportable(name, value)
        if tensor is None:
            rest[name] = value
        else:
            blocks = tensor.blocks.map(lambda plane: plane.detach().cpu())
            words[name] = Words(name, tensor.format, from_planes(blocks, tensor.format), blocks.exponents)
    if not words:
        raise ValueError(
            f"none of the {len(rest)} entries is in fixed-point ({', '.join(list(rest)[:5]) or 'there are none'}): "
            "train with FixedPointPrecision, or call optim.quantize_(module, format) first"
        )
    return words, rest


def integers_only(module_or_state: nn.Module | State, leave_out: Iterable[str], kind: str) -> dict[str, Words]:
    """The fixed-point tensors, for a kind of file that holds nothing else.

    Args:
        leave_out: names, or shell patterns of names, of what not to write.
        kind: of the file, for messages.

    Raises:
        ValueError: for anything in float that is not left out, for tensors of no elements, and for a pattern that
            matches nothing.
    """
    words, rest = split(module_or_state)
    names = [*words, *rest]
    patterns = patterns_of(leave_out, "leave_out")
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise OptionError(Option.given("leave_out", pattern), f" matches nothing; there are {', '.join(names)}")
    left = {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}
    for name, value in rest.items():
        if name not in left:
            what = f"{value.dtype}" if isinstance(value, torch.Tensor) else type(value).__name__
            raise OptionError(
                f"{name!r} is {what} and {kind} holds fixed-point integers alone: store it in fixed-point (no "
                "keep_float), or ",
                Option.given("leave_out", [name]),
            )
    words = {name: each for name, each in words.items() if name not in left}
    for name, each in words.items():
        if each.codes.numel() == 0:
            raise OptionError(f"{name!r} has no elements, and an array needs one: ", Option.given("leave_out", [name]))
    return words
