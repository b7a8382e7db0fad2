"""A forward and a backward pass on the meta device, where tensors have shapes and no memory."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowprec_plugin.arithmetic.blocks import unwritten_blocks
from lowprec_plugin.compat.trees import tree_leaves, tree_map_only
from lowprec_plugin.formats import FixedPointFormat
from lowprec_plugin.memory import MemoryTracker, Timeline
from lowprec_plugin.optim.gradients import stays_float
from lowprec_plugin.optim.options import PluginOptions
from lowprec_plugin.tensor import FixedPointTensor


@dataclass(frozen=True)
class Rehearsed:
    """What the passes take.

    Attributes:
        timeline: of them, without state.
    """

    timeline: Timeline

    def over(self, activations: int) -> int:
        """The most at once, over weights and buffers, where a run holds so many bytes of activations.

        These are what they are on the meta device, but that attention keeps its matrix of scores there.
        """
        first, ratio = self.timeline.moments[0].total, activations / max(1, self.timeline.activations)
        return round(max(each.total - first + (ratio - 1) * each.activations for each in self.timeline.moments))


def rehearse(module: nn.Module, batch: Any, options: PluginOptions, kept: set[str]) -> Rehearsed:
    """What a forward and a backward pass of ``module`` take with parameters and gradients stored as ``options`` say.

    Args:
        module: on any device; it is neither run nor changed.
        batch: what it is called with: a tensor, or a tuple of arguments. Of tensors the shapes are taken.
        kept: names of the parameters that stay float.

    Raises:
        ValueError: if it cannot run on the meta device.
    """
    stand_in = _without_memory(module, options, kept)
    given = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), batch if isinstance(batch, tuple) else (batch,))
    try:
        with torch.device("meta"), MemoryTracker(stand_in) as tracker, torch.enable_grad():
            results = [leaf for leaf in tree_leaves(stand_in(*given)) if isinstance(leaf, Tensor)]
            sum(result.square().mean() for result in results if result.requires_grad).backward()  # type: ignore[union-attr]
    except Exception as error:
        raise ValueError(
            f"{type(module).__name__} cannot run on the meta device with the given batch: "
            f"{str(error).splitlines()[0]}. Leave batch out, and give the bytes that a run has been "
            "measured to hold as activations"
        ) from error
    return Rehearsed(tracker.timeline())


def _without_memory(module: nn.Module, options: PluginOptions, kept: set[str]) -> nn.Module:
    """A copy on the meta device, whose parameters are stored as ``options`` say."""
    instead: dict[int, Any] = {id(buffer): torch.empty_like(buffer, device="meta") for buffer in module.buffers()}
    dtype = options.computing.dtype
    for name, param in module.named_parameters():
        if name in kept:
            kind = param.dtype if dtype == torch.float32 else dtype
            instead[id(param)] = nn.Parameter(torch.empty(param.shape, dtype=kind, device="meta"), param.requires_grad)
        else:
            blocks = unwritten_blocks(param.shape, options.format, torch.device("meta"))
            stored = FixedPointTensor(blocks, options.format, dtype=dtype, label=name)
            instead[id(param)] = nn.Parameter(stored, param.requires_grad)
            _narrow_gradient(instead[id(param)], options)
    stand_in: nn.Module = copy.deepcopy(module, instead)
    return stand_in


def _narrow_gradient(param: nn.Parameter, options: PluginOptions) -> None:
    """Have something of the size of codes take the place of the gradient of ``param`` as in a run, or nothing."""
    bits = options.gradient_word_length
    if stays_float(param.shape, bits) or not param.requires_grad:
        return
    held = []

    def take(param: Tensor) -> None:
        if isinstance(bits, int):
            format = FixedPointFormat(bits, block_size=options.block_size)
            held.append(unwritten_blocks(param.shape, format, param.device))
        param.grad = None

    param.register_post_accumulate_grad_hook(take)  # type: ignore[no-untyped-call]
