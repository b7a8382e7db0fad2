"""Averages of a run's weights, which Lightning's callbacks keep, held in codes.

An average moves by less than any short word resolves: at a decay of 0.9999 by a ten-thousandth of what is left. So it
is held in 16 bits at least, in blocks, and rounded stochastically, whatever the weights are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from lowprec_plugin.arithmetic.random_bits import substream
from lowprec_plugin.compat.averages import Average, averages_of
from lowprec_plugin.compute_dtype import Computing
from lowprec_plugin.formats import FixedPointFormat
from lowprec_plugin.optim.options import PluginOptions
from lowprec_plugin.optim.quantize import quantize_
from lowprec_plugin.plugin.strategies import trainer_of
from lowprec_plugin.tensor import FixedPointTensor
from lowprec_plugin.tensor.casting import casts_share_codes
from lowprec_plugin.tensor.copying import exchange_codes
from lowprec_plugin.tensor.widen import narrow_, widen_

#: Bits of an average's numbers, if the weights have no more.
FEWEST_BITS = 16


def averages_in(module: nn.Module | None) -> list[Average]:
    """What callbacks of the Trainer that has ``module`` keep as averages of it."""
    trainer = trainer_of(module)
    return [] if trainer is None else averages_of(trainer)


def format_of_average(format: FixedPointFormat) -> FixedPointFormat:
    """The format of averages of weights in ``format``: a radix point per block, and 16 bits or the weights' more."""
    return FixedPointFormat(max(FEWEST_BITS, format.word_length), block_size=format.block_size)


def hold_averages_(module: nn.Module, format: FixedPointFormat, options: PluginOptions, computing: Computing) -> None:
    """Store the averages of ``module``, whose weights are in ``format``, as codes, in place.

    What ``options`` keep in float stays in float. Where operations see weights in fewer bits than float32's, averages
    are float32 to them, and take the weights as such.
    """
    for average in averages_in(module):
        narrow = torch.finfo(computing.dtype).bits < 32
        quantize_(
            average.module,
            format_of_average(format),
            keep_float=lambda name, _: any(fnmatchcase(name, pattern) for pattern in options.keep_float),
            dtype=torch.float32 if narrow else computing.seen(average.module),
            seed=options.seed,
        )
        if computing.dtype != torch.float32:
            average.module.to(torch.promote_types(computing.dtype, torch.float32))
        for part in _coded(average.module):
            part.stream = substream(part.stream, "average")
        if average.is_swapped:
            average.swap_by(Swap(average.module))
        if narrow:
            take_in_float32(average.updater)


def fit_averages_(module: nn.Module | None, format: FixedPointFormat) -> None:
    """Have averages of ``module`` follow weights that are in ``format`` now, in place, every value kept exactly.

    Raises:
        ValueError: if fewer bits do not hold them. A restored average is held by the bits that it was saved in.
    """
    bits = format_of_average(format).word_length
    for average in averages_in(module):
        for part in _coded(average.module):
            if part.format.word_length < bits:
                widen_(part, bits)
            elif part.format.word_length > bits:
                narrow_(part, bits)


def restore_averages_(module: nn.Module | None, checkpoint: Mapping[str, Any]) -> None:
    """Load the averages of ``module`` from ``checkpoint`` once more, in place, now that they are codes.

    The callbacks have loaded them into floats, or into narrower words of a module that was fixed-point before, and
    without the counts that key their random bits.
    """
    for average in averages_in(module):
        saved = average.saved_in(checkpoint)
        if saved is not None:
            average.module.load_state_dict(saved, strict=False)


def said_of_averages(module: nn.Module) -> str:
    """A line for each, to be logged."""
    lines = []
    for average in averages_in(module):
        formats = sorted({str(part.format) for part in _coded(average.module)})
        how = f"{', '.join(formats)}, stochastic rounding" if formats else "float"
        lines.append(f"\naverage of {type(average.callback).__name__}: {how}")
    return "".join(lines)


class Swap:
    """Exchanges the weights of a module and its average: called once, and once again to undo it, it changes nothing.

    Lightning copies each into the other, which rounds where formats differ, and what was rounded comes back. Here codes
    are exchanged, so that the module has the average's own meanwhile; floats are copied, and the average's kept aside.
    """

    def __init__(self, average: nn.Module) -> None:
        self._average = average
        self._kept: dict[int, Tensor] = {}  # of the average in floats, while the module has it

    @torch.no_grad()
    def __call__(self, module: nn.Module) -> None:
        before, self._kept = self._kept, {}
        for at, (average, weight) in enumerate(zip(_numbers(self._average), _numbers(module), strict=False)):
            if exchange_codes(average, weight):
                continue
            aside = average.data.clone()
            average.data.copy_(weight.data)
            weight.data.copy_(aside)
            if at in before:
                average.data.copy_(before[at])
            else:
                self._kept[at] = aside


class InFloat32:
    """What ``update_parameters`` of an average reads of a module, in float32: of codes nothing is copied."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def parameters(self) -> Iterator[Tensor]:
        """The module's parameters."""
        return map(_in_float32, self._module.parameters())

    def buffers(self) -> Iterator[Tensor]:
        """The module's buffers."""
        return map(_in_float32, self._module.buffers())


def take_in_float32(updater: Any) -> None:
    """Have ``updater.update_parameters`` read the modules that it is given as float32, in place."""
    vars(updater).pop("update_parameters", None)  # of a fit before
    updater.update_parameters = partial(_update, updater.update_parameters)


def _update(update: Callable[..., None], *given: Any) -> None:
    update(*(InFloat32(each) if isinstance(each, nn.Module) else each for each in given))


def _in_float32(tensor: Tensor) -> Tensor:
    with casts_share_codes():
        return tensor.detach().float() if tensor.is_floating_point() else tensor


def _numbers(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())


def _coded(module: nn.Module) -> Iterator[FixedPointTensor]:
    return (param for param in module.parameters() if isinstance(param, FixedPointTensor))
