"""What :mod:`lowprec_plugin.plan` says that a run should hold, to be shown beside what it does hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from lowprec_plugin.arithmetic.formulas import SGD, Algorithm
from lowprec_plugin.formats import FixedPointFormat
from lowprec_plugin.memory import bytes_of
from lowprec_plugin.optim.fused import fused_update
from lowprec_plugin.optim.options import PluginOptions
from lowprec_plugin.optim.plain import left_of
from lowprec_plugin.optim.quantize import kept_of
from lowprec_plugin.optim.settings import StepSettings
from lowprec_plugin.optim.step import FixedPointStep
from lowprec_plugin.plan.amounts import Storage, on_one, under_fsdp2
from lowprec_plugin.plan.inventory import Inventory, Parameter
from lowprec_plugin.plan.storages import fixed_point


def predicted(
    module: nn.Module,
    optimizers: Iterable[torch.optim.Optimizer],
    format: FixedPointFormat | None = None,
    keep_float: Sequence[str] = (),
    gradients: int | Literal["release"] | None = None,
) -> int | None:
    """Bytes of weights, state, gradients and buffers that this process is planned to hold.

    The plan is of what was asked for: a parameter that is in float for another reason makes what is held differ.

    Args:
        module: on one process, under DDP or sharded by FSDP2.
        optimizers: of its parameters.
        format: that the weights were to have; ``None``: floats of the parameters' own dtypes.
        keep_float: the parameters that were to stay in float.
        gradients: bits of gradients in codes, as ``gradient_word_length``.

    Returns:
        ``None`` where there is no plan: for an optimizer without a fused update, beside tensor parallelism, and where
        parameters are left as they are because they are no plain tensors of floats.
    """
    params = dict(module.named_parameters())
    places = {_place(param) for param in params.values()}
    stored = _storages(params, optimizers, format, gradients)
    if stored is None or None in places or len(places) != 1 or left_of(module):
        return None
    (place,) = places
    assert place is not None
    kept = set(params) if format is None else set(kept_of(params, keep_float))
    total = sum(map(bytes_of, module.buffers()))
    for storage, names in stored:
        inventory = Inventory(
            tuple(
                Parameter(name, tuple(param.shape), param.dtype.itemsize, param.requires_grad, name in kept)
                for name, param in params.items() if name in names
            ), 0, (),
        )  # fmt: skip
        amounts = on_one(storage, inventory, 0) if place == (1, 0) else under_fsdp2(storage, inventory, 0, *place)
        total += amounts.held
    return total


def _storages(
    params: dict[str, nn.Parameter],
    optimizers: Iterable[torch.optim.Optimizer],
    format: FixedPointFormat | None,
    gradients: int | Literal["release"] | None,
) -> list[tuple[Storage, set[str]]] | None:
    """How each parameter group is to be stored, and the names of its parameters."""
    names = {id(param): name for name, param in params.items()}
    loose = set(params)
    found = []
    for optimizer in optimizers:
        own_class, settings = type(optimizer), StepSettings()
        if isinstance(optimizer, FixedPointStep):
            own_class, settings = optimizer.float_class, optimizer.fixed_point
        for group in optimizer.param_groups:
            update, _ = fused_update(own_class, group)
            if update is None:
                return None
            own = {names[id(param)] for param in group["params"] if id(param) in names}
            algorithm, those = update.algorithm(group), [params[name] for name in own]
            found.append((_storage(format, settings, algorithm, those, gradients), own))
            loose -= own
    if loose:  # weights that no optimizer has
        found.append((_storage(format, StepSettings(), SGD, [params[name] for name in loose], gradients), loose))
    return found


def _storage(
    format: FixedPointFormat | None,
    settings: StepSettings,
    algorithm: Algorithm,
    params: Sequence[Tensor],
    gradients: int | Literal["release"] | None,
) -> Storage:
    itemsize = max((param.dtype.itemsize for param in params), default=4)
    asked = format or FixedPointFormat(16)  # of which there is nothing where all is kept in float
    options = PluginOptions.of_format(asked, **settings.given(), comm_word_length=None)
    return fixed_point(options, algorithm, itemsize, gradients)


def _place(param: Tensor) -> tuple[int, int] | None:
    """Among how many processes the rows are shared out, and which this one is; ``None``: otherwise than by FSDP2."""
    if not isinstance(param, DTensor):
        return 1, 0
    dims = [dim for dim, placement in enumerate(param.placements) if not placement.is_replicate()]
    if len(dims) != 1 or type(param.placements[dims[0]]) is not Shard or param.placements[dims[0]] != Shard(0):
        return None
    return param.device_mesh.size(dims[0]), param.device_mesh.get_local_rank(dims[0])
