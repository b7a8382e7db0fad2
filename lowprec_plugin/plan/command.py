"""``lowprec plan``."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from lowprec_plugin.checkpoints.load import described_module
from lowprec_plugin.plan.planning import Optimizer, Plan, Sharding, plan
from lowprec_plugin.plan.table import as_text
from lowprec_plugin.plan.zero import PERSISTENT
from lowprec_plugin.text.files import whole_text


def run_plan(
    module: str | None = None,
    config: str | None = None,
    parameters: float | None = None,
    optimizer: Optimizer = "adamw",
    word_length: int = 16,
    fraction_length: int | None = None,
    state_word_length: int | None = None,
    state_fraction_length: int | None = None,
    comm_word_length: int | Literal["auto"] | None = "auto",
    comm_error_feedback: bool = False,
    block_size: int = 256,
    compute_dtype: Literal["float32", "bfloat16", "bf16-mixed"] | None = None,
    keep_float: Sequence[str] = (),
    ranks: int = 1,
    sharding: Sharding = "none",
    units: Sequence[str] | None = None,
    layers: int = 32,
    bucket_view: bool = False,
    reduce_bucket_size: int = 500_000_000,
    persistent: int = PERSISTENT,
    activations_gib: float = 0.0,
    allocate: bool = False,
    json_file: str | None = None,
) -> Plan:
    """Predict the bytes that each GPU holds and sends, beside float32 and others.

    Args:
        module: package.function or package.Class that makes the network without arguments; made without its weights.
        config: instead, a LightningCLI configuration with the network under model.
        parameters: instead, a number of weights, such as 7e9, taken to be in rows of 256 and equal layers.
        optimizer: one that has a fused update; sgd-momentum is SGD with momentum.
        word_length: bits of a weight.
        fraction_length: bits behind the radix point, the same for every weight; a radix point per block if not given.
        state_word_length: bits of optimizer state; as the weights if not given.
        state_fraction_length: bits behind the radix point of all state; a radix point per block if not given.
        comm_word_length: bits of a gradient between GPUs: 4, 8, 12 or 16; null for floats.
        comm_error_feedback: keep what the rounding of gradients lost (ddp).
        block_size: consecutive weights that share a radix point.
        compute_dtype: what operations see; float32 if not given, bfloat16 under ZeRO.
        keep_float: names or patterns of parameters that stay float.
        ranks: GPUs.
        sharding: none, ddp, fsdp2, zero1, zero2 or zero3.
        units: fsdp2: modules that fully_shard is called on; each element of an nn.ModuleList if not given.
        layers: equal layers that parameters are taken to be in.
        bucket_view: ddp with gradient_as_bucket_view=True.
        reduce_bucket_size: ZeRO's, in elements.
        persistent: stage3_param_persistence_threshold, in elements.
        activations_gib: what a run has been measured to hold for the backward pass; it is not predicted.
        allocate: make the network with its weights in this machine's memory, if it cannot be made without.
        json_file: also write the figures, in bytes, to this file.

    Raises:
        ValueError: for a value outside its limits, or options that do not go together.
    """
    if not 0 <= activations_gib < math.inf:
        raise ValueError(
            f"activations_gib={activations_gib} is negative or not finite: give what a run has been measured to hold"
        )
    model: nn.Module | int
    if module is None and config is None and parameters is None:
        raise ValueError("nothing is given to plan: give module=, config= or parameters=")
    if parameters is None:
        model = _made(module, config, allocate)
    elif module is not None or config is not None:
        raise ValueError(f"parameters={parameters:g} beside module= or config=: give one of the three")
    elif not (math.isfinite(parameters) and parameters == int(parameters)):
        raise ValueError(f"parameters={parameters} is not a whole number")
    else:
        model = int(parameters)
    planned = plan(
        model, optimizer=optimizer, word_length=word_length, fraction_length=fraction_length,
        state_word_length=state_word_length, state_fraction_length=state_fraction_length,
        comm_word_length=comm_word_length, comm_error_feedback=comm_error_feedback, block_size=block_size,
        compute_dtype=compute_dtype, keep_float=keep_float, ranks=ranks, sharding=sharding, units=units, layers=layers,
        bucket_view=bucket_view, reduce_bucket_size=reduce_bucket_size, persistent=persistent,
        activations=round(activations_gib * 2**30),
    )  # fmt: skip
    print(as_text(planned))
    if json_file is not None:
        whole_text(json_file, json.dumps(planned.as_dict(), indent=1) + "\n")
    return planned


def _made(module: str | None, config: str | None, allocate: bool) -> nn.Module:
    if allocate:
        return described_module(module, config)
    try:
        with torch.device("meta"):
            return described_module(module, config)
    except (RuntimeError, ValueError) as error:
        cause = error.__cause__ if isinstance(error, ValueError) else error
        if not isinstance(cause, RuntimeError):
            raise
        raise ValueError(
            f"{module or config} cannot be made without memory for its weights ({str(cause).splitlines()[0]}): "
            "allocate=true makes it with them, in this machine's memory"
        ) from cause
