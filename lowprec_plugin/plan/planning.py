"""The plan: one model, one optimizer, so many GPUs; ours beside what else there is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from lowprec_plugin.arithmetic import wire_ops
from lowprec_plugin.comm.ddp import check_feedback
from lowprec_plugin.compute_dtype import ComputeDtype, Computing
from lowprec_plugin.formats import FixedPointFormat, check_integer, check_kind
from lowprec_plugin.optim.fused import named_algorithms
from lowprec_plugin.optim.quantize import patterns_of
from lowprec_plugin.optim.settings import StepSettings
from lowprec_plugin.plan.amounts import Amounts, Storage, on_one, under_ddp, under_fsdp2
from lowprec_plugin.plan.inventory import of_count, of_module
from lowprec_plugin.plan.storages import fixed_point, float32, others
from lowprec_plugin.plan.zero import LIVE, PERSISTENT, under_zero

if TYPE_CHECKING:
    Optimizer = str
else:  # the command line shows and checks them
    Optimizer = Literal[tuple(named_algorithms())]
Sharding = Literal["none", "ddp", "fsdp2", "zero1", "zero2", "zero3"]
SHARDINGS = ("none", "ddp", "fsdp2", "zero1", "zero2", "zero3")


@dataclass(frozen=True)
class Plan:
    """What a run will hold and send, predicted.

    Attributes:
        parameters: numbers in all parameters of the model.
        optimizer, ranks, sharding: as they were given.
        ours: this package's, per GPU.
        others: what else there is.
        assumptions: what was assumed, in words.
    """

    parameters: int
    optimizer: str
    ranks: int
    sharding: str
    ours: Amounts
    others: tuple[Amounts, ...]
    assumptions: tuple[str, ...]

    @property
    def float32(self) -> Amounts:
        """The same in float32."""
        return self.others[0]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: bytes, with the sums."""

        def amounts(each: Amounts) -> dict[str, Any]:
            return asdict(each) | {"held": each.held, "sent": each.sent}

        return asdict(self) | {"ours": amounts(self.ours), "others": [amounts(each) for each in self.others]}


def plan(
    model: nn.Module | int,
    *,
    optimizer: Optimizer = "adamw",
    word_length: int = 16,
    fraction_length: int | None = None,
    state_word_length: int | None = None,
    state_fraction_length: int | None = None,
    comm_word_length: int | Literal["auto"] | None = "auto",
    comm_error_feedback: bool = False,
    block_size: int = 256,
    compute_dtype: ComputeDtype | None = None,
    keep_float: Iterable[str] = (),
    ranks: int = 1,
    sharding: Sharding = "none",
    rank: int = 0,
    units: Iterable[str] | None = None,
    layers: int = 32,
    bucket_view: bool = False,
    reduce_bucket_size: int = 500_000_000,
    persistent: int = PERSISTENT,
    activations: int = 0,
) -> Plan:
    """Predict the bytes that each GPU holds and sends, without allocating a weight.

    Args:
        model: a module, which may be on the meta device; or a number of weights, taken to be in rows of 256.
        optimizer: one that has a fused update, in small letters; ``"sgd-momentum"`` is SGD with momentum.
        word_length, fraction_length, state_word_length, state_fraction_length, comm_word_length, comm_error_feedback,
            block_size, keep_float: as :class:`~lowprec_plugin.FixedPointPrecision`'s.
        compute_dtype: as the plugin's; ``None``: its default, which is float32, and bfloat16 under ZeRO.
        ranks: GPUs, each with a process of its own.
        sharding: ``"none"`` (one GPU), ``"ddp"``, ``"fsdp2"``, ``"zero1"``, ``"zero2"`` or ``"zero3"``.
        rank: of which GPU under FSDP2; the first holds the most.
        units: FSDP2: names or patterns of the modules that ``fully_shard`` is called on, the whole aside; ``None``:
            each element of an ``nn.ModuleList``.
        layers: of a model that is given by its number of weights.
        bucket_view: DDP: ``gradient_as_bucket_view``.
        reduce_bucket_size, persistent: ZeRO: ``reduce_bucket_size`` and ``stage3_param_persistence_threshold``, in
            elements.
        activations: bytes that a run has been measured to hold for the backward pass. They are not predicted.

    Raises:
        ValueError: for a value outside its limits, or options that do not go together.
    """
    format = FixedPointFormat(word_length, fraction_length, block_size)
    StepSettings(state_word_length, state_fraction_length=state_fraction_length)  # refuses bad values
    bits = 16 if comm_word_length == "auto" else comm_word_length
    if bits is not None:
        wire_ops.check_word_length(bits, "comm_word_length")
    check_feedback(bits, comm_error_feedback, "comm_")
    algorithms = named_algorithms()
    if not isinstance(optimizer, str) or optimizer not in algorithms:
        raise ValueError(f"optimizer={optimizer!r} is not one of {', '.join(algorithms)}")
    _check_ranks(sharding, ranks, rank)
    for name, elements, least in (("reduce_bucket_size", reduce_bucket_size, 1), ("persistent", persistent, 0)):
        check_integer(elements, name)
        if elements < least:
            raise ValueError(f"{name}={elements} is less than {least}: give DeepSpeed's own setting, in elements")
    check_integer(activations, "activations")
    if activations < 0:
        raise ValueError(f"activations={activations} bytes are less than 0: give what a run has been measured to hold")
    check_kind(bucket_view, bool, "bucket_view")
    check_integer(layers, "layers")
    zero = sharding.startswith("zero")
    if compute_dtype is None:
        compute_dtype = torch.bfloat16 if zero else torch.float32
    itemsize = Computing(compute_dtype).dtype.itemsize
    if zero and compute_dtype in ("bf16-mixed",):
        itemsize = 2  # what DeepSpeed makes of it
    if comm_error_feedback and sharding != "ddp":
        raise ValueError(f"comm_error_feedback=True is of DDP, not of sharding={sharding!r}: leave it out")
    if state_fraction_length is not None and zero:
        raise ValueError(
            f"state_fraction_length={state_fraction_length}: state under ZeRO has a radix point per block: leave it out"
        )
    if isinstance(model, nn.Module):
        inventory = of_module(model, keep_float, units)
    elif not patterns_of(keep_float) and units is None:
        check_integer(model, "model")
        inventory = of_count(model, layers)
    else:
        raise ValueError("keep_float and units name parts of a module: give the module in place of a number")
    if zero and any(param.kept for param in inventory.parameters):
        raise ValueError("under ZeRO all master weights are in one flat partition: leave keep_float out")
    algorithm = algorithms[optimizer]
    as_fixed_point = partial(
        fixed_point, format, state_word_length, algorithm, word_length=bits, feedback=comm_error_feedback,
        state_fraction_length=state_fraction_length,
    )  # fmt: skip
    ours = as_fixed_point(itemsize=itemsize)

    def amounts(storage: Storage, itemsize: int | None = None) -> Amounts:
        itemsize = itemsize or storage.sent
        held = inventory if itemsize == 4 else replace(inventory, buffers=inventory.narrow_buffers)
        if sharding == "none":
            return on_one(storage, held, activations)
        if sharding == "ddp":
            return under_ddp(storage, held, activations, ranks, bucket_view)
        if sharding == "fsdp2":
            return under_fsdp2(storage, held, activations, ranks, rank)
        stage = int(sharding[-1])
        return under_zero(storage, held, activations, ranks, stage, itemsize, reduce_bucket_size, persistent)

    if zero:  # what differs is the engine's own dtype: masters and state are float32
        masters = replace(float32(algorithm), source="float32 masters and state beside the engine's own parameters")
        beside = [amounts(replace(masters, name=name), size) for name, size in (("float32", 4), ("bf16 mixed", 2))]
    else:
        beside = [amounts(storage) for storage in others(algorithm)]
        if itemsize == 4:
            beside.append(
                amounts(replace(as_fixed_point(itemsize=2), name=f"{ours.name}, bf16", source="compute_dtype=bfloat16"))
            )
    said = [] if activations else ["activations are not planned: give what a run has been measured to hold"]
    said.append("the allocator's gaps and what CUDA and its libraries hold are not planned")
    said += inventory.assumptions if sharding == "fsdp2" or not isinstance(model, nn.Module) else ()
    said += _assumptions(sharding, bucket_view, itemsize, reduce_bucket_size)
    return Plan(inventory.elements, optimizer, ranks, sharding, amounts(ours), tuple(beside), tuple(said))


def _check_ranks(sharding: str, ranks: int, rank: int) -> None:
    if sharding not in SHARDINGS:
        raise ValueError(f"sharding={sharding!r} is not one of {', '.join(SHARDINGS)}")
    check_integer(ranks, "ranks")
    check_integer(rank, "rank")
    if ranks < 1 or (ranks > 1) == (sharding == "none"):
        raise ValueError(
            f"ranks={ranks} and sharding={sharding!r} do not go together: sharding='none' is one GPU, and everything "
            "else two or more"
        )
    if not 0 <= rank < ranks:
        raise ValueError(f"rank={rank} is not one of {ranks}, counted from 0")


def _assumptions(sharding: str, bucket_view: bool, itemsize: int, bucket: int) -> list[str]:
    said = []
    if sharding == "ddp" and not bucket_view:
        said.append("DDP's buckets hold the gradients a second time (gradient_as_bucket_view=True avoids it)")
    if sharding == "fsdp2":
        said.append("gathered at once: what belongs to no unit, the largest unit, and one more that is fetched ahead")
    if sharding.startswith("zero"):
        said.append(
            f"DeepSpeed's own parameters and gradients take {itemsize} bytes a number, and it allocates "
            f"reduce_bucket_size={bucket:,} of them; one parameter group"
        )
    if sharding == "zero3":
        said.append(f"DeepSpeed may keep up to {LIVE:,} parameters gathered (stage3_max_live_parameters)")
    return said
