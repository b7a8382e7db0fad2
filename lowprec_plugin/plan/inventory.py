"""What there is to store: the parameters of a module, or of so many weights, and what FSDP2 gathers together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import nn

from lowprec_plugin.optim.naming import patterns_of
from lowprec_plugin.optim.plain import left_of
from lowprec_plugin.optim.quantize import kept_of
from lowprec_plugin.text.option_error import Option, OptionError

#: The length of a row of weights that are given by their number alone.
ROW = 256


class Parameter(NamedTuple):
    """One parameter, counted once where it is tied.

    Attributes:
        name: in the module.
        shape: of the whole tensor, not of a shard.
        itemsize: bytes of a number of it, as the module was made.
        trainable: whether it has a gradient.
        kept: whether it is kept in float.
        unit: the path of the module that FSDP2 gathers it with; empty for the root.
    """

    name: str
    shape: tuple[int, ...]
    itemsize: int = 4
    trainable: bool = True
    kept: bool = False
    unit: str = ""

    @property
    def elements(self) -> int:
        """Numbers in it."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class Inventory:
    """All that is stored.

    Attributes:
        parameters: in the module's order.
        buffers: bytes of buffers, which every GPU holds whole.
        assumptions: what had to be assumed, in words.
        narrow_buffers: bytes of buffers where the module is cast to bfloat16.
    """

    parameters: tuple[Parameter, ...]
    buffers: int
    assumptions: tuple[str, ...]
    narrow_buffers: int = 0

    @property
    def elements(self) -> int:
        """Numbers in all parameters."""
        return sum(param.elements for param in self.parameters)

    @property
    def trainable(self) -> tuple[Parameter, ...]:
        """Those with a gradient."""
        return tuple(param for param in self.parameters if param.trainable)

    def units(self) -> dict[str, list[Parameter]]:
        """The parameters by what FSDP2 gathers together."""
        found: dict[str, list[Parameter]] = {}
        for param in self.parameters:
            found.setdefault(param.unit, []).append(param)
        return found


def of_module(module: nn.Module, keep_float: Iterable[str] = (), units: Iterable[str] | None = None) -> Inventory:
    """The inventory of a module, which may be on the meta device.

    Args:
        keep_float: as :func:`lowprec_plugin.optim.quantize_`'s.
        units: names or patterns of the modules that ``fully_shard`` is called on, the root aside; ``None``: each
            element of an ``nn.ModuleList``.

    Raises:
        ValueError: for a pattern that matches nothing, or parameters that are not made yet.
    """
    params = dict(module.named_parameters())
    if not params:
        raise ValueError(f"{type(module).__name__} has no parameters (are they made in configure_model?)")
    kept = left_of(module) | kept_of(params, keep_float)
    for name, param in params.items():
        if isinstance(param, nn.UninitializedParameter):
            raise ValueError(f"parameter {name!r} is lazy: give a module that has run once")
    paths = _units(module, units)
    return Inventory(
        tuple(
            Parameter(
                name, (param.numel(),) if param.is_nested else tuple(param.shape), param.element_size(),
                param.requires_grad, name in kept,
                max((path for path in paths if name.startswith(f"{path}.")), key=len, default=""),
            )
            for name, param in params.items()
        ),
        sum(buffer.nbytes for buffer in module.buffers()),
        ("fully_shard is called on each element of an nn.ModuleList and on the whole",) if units is None else (),
        sum(2 * buffer.numel() if buffer.is_floating_point() else buffer.nbytes for buffer in module.buffers()),
    )  # fmt: skip


def _units(module: nn.Module, patterns: Iterable[str] | None) -> list[str]:
    paths = [path for path, _ in module.named_modules() if path]
    if patterns is None:
        lists = (path for path, part in module.named_modules() if isinstance(part, nn.ModuleList))
        return [f"{path}.{index}".lstrip(".") for path in lists for index in range(len(module.get_submodule(path)))]  # type: ignore[arg-type]
    found: list[str] = []
    for pattern in patterns_of(patterns, "units"):
        matches = [path for path in paths if fnmatchcase(path, pattern)]
        if not matches:
            raise OptionError(Option.given("units", pattern), f" matches no module; there are {', '.join(paths)}")
        found += matches
    return found


def of_count(elements: int, layers: int) -> Inventory:
    """The inventory of so many weights in equal layers, each in rows of 256.

    Raises:
        ValueError: for fewer than one weight or layer, or fewer weights than layers.
    """
    if layers < 1 or elements < layers:
        raise OptionError(
            Option("parameters", f"{elements:,}"), " in ", Option.given("layers", layers),
            ": give at least one layer, and a weight for each",
        )  # fmt: skip
    parameters: list[Parameter] = []
    for layer in range(layers):
        size = elements // layers + (layer < elements % layers)
        rows, rest = divmod(size, ROW)
        shapes: Sequence[tuple[int, int]] = [(rows, ROW)] * (rows > 0) + [(1, rest)] * (rest > 0)
        parameters += [Parameter(f"{layer}.{at}", shape, unit=str(layer)) for at, shape in enumerate(shapes)]
    said = f"all weights are in rows of {ROW} (longer ones take less), in {layers} equal layers, each sharded by itself"
    return Inventory(tuple(parameters), 0, (said,))
