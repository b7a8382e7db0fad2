"""The inside of a module sharded by FSDP2 (``torch.distributed.fsdp.fully_shard``).

A *group* is a set of parameters that FSDP2 gathers together. torch 2.10 and 2.11 have at most one for each call of
``fully_shard``; from 2.12 on there may be several.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule

from lowprec_plugin.compat.lookup import TORCH, look_up


def state_of(module: FSDPModule) -> Any:
    """FSDP2's own state of ``module``; modules that were sharded in one call share it.

    Raises:
        ValueError: if this torch hides it elsewhere; so do all functions here.
    """
    return look_up(module, "_get_fsdp_state", host=TORCH, feature="to see how FSDP2 shards a module")()


def mixed_precision_of(module: FSDPModule) -> Any:
    """The ``MixedPrecisionPolicy`` that ``module`` was sharded with."""
    return look_up(state_of(module), "_mp_policy", host=TORCH, feature="to know the dtype that gradients travel in")


def reset_shards(module: nn.Module) -> None:
    """Have FSDP2 look at the shards of ``module`` now; it would keep those it knows until the first forward pass."""
    for group in _groups(module):
        for param in look_up(group, "fsdp_params", host=TORCH, feature=_SHARDS):
            look_up(param, "reset_sharded_param", host=TORCH, feature=_SHARDS)()


def has_gathered(module: nn.Module) -> bool:
    """Whether FSDP2 has gathered parameters of ``module`` before; from then on it does not look at its shards again."""
    feature = "to refuse quantize_ after the first batch of FSDP2"
    return any(look_up(group, "_reset_sharded_params", host=TORCH, feature=feature) for group in _groups(module))


def reducers_of(module: nn.Module) -> list[Any]:
    """What scatters the gradients of each group of ``module``."""
    feature = "to let gradients travel as floats again"
    return [look_up(group, "_reduce_scatter_comm", host=TORCH, feature=feature) for group in _groups(module)]


_SHARDS = "to let go of the float shards of FSDP2"


def _groups(module: nn.Module) -> list[Any]:
    """The groups of ``module`` and of the modules in it."""
    found: list[Any] = []
    for part in module.modules():
        if isinstance(part, FSDPModule):
            names = ("_fsdp_param_groups", "_fsdp_param_group")
            held = look_up(state_of(part), *names, host=TORCH, feature="to see which parameters FSDP2 gathers")
            found += held if isinstance(held, list) else [] if held is None else [held]
    return found
