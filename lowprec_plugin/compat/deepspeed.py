"""The inside of a DeepSpeed engine. Nothing here imports DeepSpeed: an engine brings it along.

:func:`open_engine` looks at every name that the rest uses before anything is changed, and refuses an engine that lacks
one, or whose settings keep float copies that cannot be replaced. Read it beside ``stage_1_and_2.py`` and ``stage3.py``
of ``deepspeed/runtime/zero``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lowprec_plugin.compat.lookup import DEEPSPEED, check_names, look_up

_FEATURE = "to replace its master weights"
_ENGINE = (
    "basic_optimizer", "optimizer", "module", "global_steps", "zero_optimization_stage", "zero_offload_optimizer",
    "zero_offload_param", "zero_elastic_checkpoint", "load_universal_checkpoint", "zero_reduce_scatter",
    "zero_multi_rank_bucket_allreduce", "has_moe_layers", "pipeline_parallelism", "allreduce_bucket", "get_data_types",
    "postscale_gradients", "gradient_predivide_factor", "data_parallel_group",
)  # fmt: skip
_STAGE_1_AND_2 = (
    "single_partition_of_fp32_groups", "master_weights_and_grads_dtype", "real_dp_process_group", "check_grad_overflow",
    "compute_grad_norm", "_link_all_hp_params", "_hp_optimizer_states_linked", "allreduce_bucket", "flatten",
    "gradient_average", "dp_process_group", "dtype", "overflow",
)  # fmt: skip
#: The reduction of ZeRO 3, whose name Python mangles.
_SCATTER = "_DeepSpeedZeroOptimizer_Stage3__avg_scatter_grads"
_STAGE_3 = (
    "fp32_partitioned_groups_flat", "master_weights_and_grads_dtype", "sub_group_to_group_id", "dp_process_group",
    "fp16_groups", "gradient_accumulation_dtype", "dtype", "overflow", _SCATTER,
)  # fmt: skip
_CLASSES = {1: "DeepSpeedZeroOptimizer", 2: "DeepSpeedZeroOptimizer", 3: "DeepSpeedZeroOptimizer_Stage3"}


@dataclass(frozen=True)
class EngineParts:
    """What is used of one engine.

    Attributes:
        engine: the engine.
        stage: of ZeRO, 0 to 3.
        zero: ZeRO's own optimizer; the user's in stage 0.
        optimizer: the user's ``torch.optim`` optimizer.
        group: the processes that share the partitions and average their gradients.
    """

    engine: Any
    stage: int
    zero: Any
    optimizer: torch.optim.Optimizer
    group: dist.ProcessGroup | None

    @property
    def masters(self) -> list[Tensor]:
        """This process's flat partitions of the master weights, in the list that the engine steps; stage 0 has none."""
        name = "fp32_partitioned_groups_flat" if self.stage == 3 else "single_partition_of_fp32_groups"
        return [] if self.stage == 0 else getattr(self.zero, name)

    def group_of(self, index: int) -> int:
        """The parameter group that partition ``index`` belongs to."""
        return int(self.zero.sub_group_to_group_id[index]) if self.stage == 3 else index

    @torch.no_grad()
    def clear_padding(self) -> None:
        """Zero what pads the parameters' parts in the partitions.

        In stage 3 it is memory that nobody has written, and whatever is there would share a block's exponent with
        weights. Its gradient is zero, so that it stays zero.
        """
        if self.stage != 3:
            return
        for params, master in zip(self.zero.fp16_groups, self.masters, strict=True):
            at, rank = 0, dist.get_rank(self.group)
            for param in params:
                length = param.partition_numel()
                own = max(0, min(length, param.ds_numel - rank * length))
                master[at + own : at + length].zero_()
                at += length

    def replace_masters(self, new: list[Any]) -> None:
        """Put ``new`` in place of the partitions, in the engine and in the user's optimizer with its state."""
        for index, (old, partition) in enumerate(zip(list(self.masters), new, strict=True)):
            for name, value in vars(old).items():
                setattr(partition, name, value)
            partition.grad = old.grad
            self.masters[index] = partition
            if old in self.optimizer.state:
                self.optimizer.state[partition] = self.optimizer.state.pop(old)
            if self.stage < 3:  # in stage 3 a group has its partition during its step only
                self.optimizer.param_groups[index]["params"] = [partition]
        if self.stage in (1, 2):
            # What safe_get_full_fp32_param and its like read: views of the old partitions, which keep them alive.
            self.zero._link_all_hp_params()
            self.zero._hp_optimizer_states_linked = False  # done anew after the next step

    def set_all_reduce(self, function: Callable[..., Tensor]) -> None:
        """Reduce buckets by ``function``: of the engine's signature in stage 0, of the optimizer's in 1 and 2."""
        (self.engine if self.stage == 0 else self.zero).allreduce_bucket = function

    def set_scatter(self, function: Callable[..., list[Tensor]]) -> None:
        """Average and scatter the gradients of ZeRO 3 by ``function(params, dtype) -> partitions``."""
        setattr(self.zero, _SCATTER, function)


def open_engine(engine: Any) -> EngineParts:
    """See inside ``engine``.

    Raises:
        ValueError: if it is not an engine, is of an unknown make, or is set up so that floats would stay.
    """
    if not hasattr(engine, "zero_optimization_stage"):
        raise ValueError(f"{type(engine).__name__} is not a DeepSpeedEngine: give what deepspeed.initialize returned")
    check_names(engine, _ENGINE, host=DEEPSPEED, feature=_FEATURE)
    if engine.optimizer is None or not isinstance(engine.basic_optimizer, torch.optim.Optimizer):
        raise ValueError(
            "the engine has no optimizer, so there is nothing to store: pass one to deepspeed.initialize(optimizer=...)"
        )
    stage = int(engine.zero_optimization_stage())
    _check_settings(engine, stage)
    optimizer, zero = engine.basic_optimizer, engine.optimizer
    if type(optimizer).__module__.split(".")[0] in ("deepspeed", "apex"):
        raise ValueError(
            f"{type(optimizer).__name__} updates floats in a kernel of its own. Pass a torch.optim optimizer to "
            'deepspeed.initialize(optimizer=...), or set "torch_adam": true in the config\'s optimizer.params'
        )
    if stage == 0:
        return EngineParts(engine, stage, zero, optimizer, engine.data_parallel_group)
    if type(zero).__name__ != _CLASSES[stage]:
        remedy = 'stage 2, or "data_types": {"grad_accum_dtype": "bf16"}' if stage == 1 else "the plain ZeRO optimizer"
        raise ValueError(
            f"ZeRO {stage} is run by {type(zero).__name__}, not by {_CLASSES[stage]}, and keeps float32 copies of its "
            f"own: use {remedy}"
        )
    check_names(zero, _STAGE_3 if stage == 3 else _STAGE_1_AND_2, host=DEEPSPEED, feature=_FEATURE)
    parts = EngineParts(engine, stage, zero, optimizer, zero.dp_process_group)
    if zero.master_weights_and_grads_dtype != torch.float32:
        raise ValueError(
            f"master weights are {zero.master_weights_and_grads_dtype}, rounded to nearest before they can be stored: "
            "drop bf16_master_weights_and_grads or fp16_master_weights_and_grads, for which fixed-point takes over"
        )
    if stage < 3 and not zero.check_grad_overflow and (zero.dtype == torch.bfloat16 or not zero.compute_grad_norm):
        raise ValueError(
            "bf16.check_grad_overflow is false: a NaN would stop one process and leave the others waiting. Leave it "
            "at true, and zero_optimization.compute_grad_norm as well"
        )
    return parts


def _check_settings(engine: Any, stage: int) -> None:
    offload = {"offload_optimizer": engine.zero_offload_optimizer(), "offload_param": engine.zero_offload_param()}
    for name, config in offload.items():
        feature = f"to see where zero_optimization.{name} moves floats"
        device = "none" if config is None else look_up(config, "device", host=DEEPSPEED, feature=feature)
        device = getattr(device, "value", device)  # a member of an enumeration of texts
        if device not in (None, "none"):
            raise ValueError(
                f"zero_optimization.{name} moves floats to the {device}, where fixed-point "
                f"cannot follow: drop {name} (codes take a third to a half of the floats that it makes room for)"
            )
    refused = {
        "zero_optimization.elastic_checkpoint": engine.zero_elastic_checkpoint(),
        "checkpoint.load_universal": engine.load_universal_checkpoint(),
        "a mixture of experts": engine.has_moe_layers,
        "pipeline parallelism": engine.pipeline_parallelism,
    }
    for name, is_set in refused.items():
        if is_set:
            raise ValueError(f"{name} is not supported with fixed-point: it would put floats in the codes' place")
    dtype = engine.get_data_types()[0]
    if stage == 0 and dtype != torch.float32:
        raise ValueError(
            f"without ZeRO (stage 0) DeepSpeed keeps float32 copies beside {dtype} parameters: drop the bf16 or fp16 "
            "section of the config (parameters are then the 16-bit codes themselves), or use stage 1, 2 or 3"
        )
