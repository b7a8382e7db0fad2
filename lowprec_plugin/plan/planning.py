"""The plan: one model, one optimizer, so many GPUs; ours beside what else there is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from lowprec_plugin.arithmetic.formulas import Algorithm
from lowprec_plugin.compute_dtype import ComputeDtype
from lowprec_plugin.formats import check_integer, check_kind
from lowprec_plugin.optim.fused import named_algorithms
from lowprec_plugin.optim.options import PluginOptions
from lowprec_plugin.plan import storages
from lowprec_plugin.plan.amounts import Amounts, Storage, on_one, under_ddp, under_fsdp2
from lowprec_plugin.plan.inventory import Inventory, of_count, of_module
from lowprec_plugin.plan.rehearsal import Rehearsed, rehearse
from lowprec_plugin.plan.storages import fixed_point, float32
from lowprec_plugin.plan.zero import LIVE, PERSISTENT, under_zero
from lowprec_plugin.text.option_error import Option, OptionError

if TYPE_CHECKING:
    Optimizer = str
else:  # the command line shows and checks them
    Optimizer = Literal[tuple(named_algorithms())]
Sharding = Literal["none", "ddp", "fsdp2", "zero1", "zero2", "zero3"]
#: ZeRO's stages, from 1 on.
ZEROS = ("zero1", "zero2", "zero3")
#: ``gradient_word_length`` in the leanest settings, which are shown whatever is asked for.
LEANEST: tuple[int | Literal["release"], ...] = (8, "release")
#: Those where each GPU holds the whole: gradients may be released, and the peak is looked for.
UNSHARDED = ("none", "ddp")
SHARDINGS = (*UNSHARDED, "fsdp2", *ZEROS)


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
            return asdict(each) | {"held": each.held, "peak": each.peak, "sent": each.sent}

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
    gradient_word_length: int | Literal["release"] | None = None,
    block_size: int = 256,
    compute_dtype: ComputeDtype | None = None,
    keep_float: str | Iterable[str] = (),
    ranks: int = 1,
    sharding: Sharding = "none",
    rank: int = 0,
    units: Iterable[str] | None = None,
    layers: int = 32,
    bucket_view: bool = False,
    reduce_bucket_size: int = 500_000_000,
    persistent: int = PERSISTENT,
    activations: int = 0,
    batch: Any = None,
) -> Plan:
    """Predict the bytes that each GPU holds and sends, without allocating a weight.

    Formats, the wire and the compute dtype are those of :class:`~lowprec_plugin.FixedPointPrecision`. The command
    ``lowprec plan`` shows what the arguments are as its help.

    Args:
        model: a module, which may be on the meta device; or a number of weights, taken to be in rows of 256.
        optimizer: one that has a fused update, in small letters; sgd-momentum is SGD with momentum.
        word_length: bits of a weight.
        fraction_length: bits behind the radix point, the same for every weight; a radix point per block if not given.
        state_word_length: bits of optimizer state; as the weights if not given.
        state_fraction_length: bits behind the radix point of all state; a radix point per block if not given.
        comm_word_length: bits of a gradient between GPUs: 4, 8, 12 or 16; "auto" is 16; none for floats.
        comm_error_feedback: keep what the rounding of gradients lost (ddp).
        gradient_word_length: bits of a gradient from the backward pass to the step, or "release": none is kept (none,
            ddp); floats if not given. Vectors' and small ones stay floats.
        block_size: consecutive weights that share a radix point.
        compute_dtype: what operations see; float32 if not given, bfloat16 under ZeRO.
        keep_float: names or patterns of parameters that stay float.
        ranks: GPUs, each with a process of its own.
        sharding: none (one GPU), ddp, fsdp2, zero1, zero2 or zero3.
        rank: fsdp2: of which GPU, counted from 0; the first holds the most.
        units: fsdp2: names or patterns of the modules that fully_shard is called on, the whole aside; each element of
            an nn.ModuleList if not given.
        layers: equal layers that a model is taken to be in which is given by its number of weights.
        bucket_view: ddp with gradient_as_bucket_view=True.
        reduce_bucket_size: ZeRO's, in elements.
        persistent: ZeRO's stage3_param_persistence_threshold, in elements.
        activations: bytes that a run has been measured to hold for the backward pass, as
            :attr:`lowprec_plugin.memory.Timeline.activations` has them. They are not predicted from parameters alone.
        batch: what the module is called with, a tensor or a tuple of arguments: a forward and a backward pass on the
            meta device then say what activations there are, if they are not given, and what the peak is.

    Raises:
        ValueError: for a value outside its limits, or options that do not go together.
    """
    if compute_dtype is None:
        compute_dtype = torch.bfloat16 if sharding in ZEROS else torch.float32
    options = PluginOptions.of(locals())
    algorithms = named_algorithms()
    if not isinstance(optimizer, str) or optimizer not in algorithms:
        raise OptionError(Option.given("optimizer", optimizer), f" is not one of {', '.join(algorithms)}")
    _check_ranks(sharding, ranks, rank)
    for name, elements, least in (("reduce_bucket_size", reduce_bucket_size, 1), ("persistent", persistent, 0)):
        check_integer(elements, name)
        if elements < least:
            raise OptionError(
                Option.given(name, elements), f" is less than {least}: give DeepSpeed's own setting, in elements"
            )
    check_integer(activations, "activations")
    if activations < 0:
        raise OptionError(
            Option.given("activations", activations),
            " bytes are less than 0: give what a run has been measured to hold",
        )
    check_kind(bucket_view, bool, "bucket_view")
    check_integer(layers, "layers")
    zero = sharding in ZEROS
    _check_sharded(options, sharding)
    itemsize = 2 if zero and options.computing.autocast else options.computing.dtype.itemsize  # as DeepSpeed has it
    inventory = _inventory(model, options, units, layers)
    if zero and any(param.kept for param in inventory.parameters):
        raise OptionError("under ZeRO all master weights are in one flat partition: leave out ", Option("keep_float"))
    algorithm = algorithms[optimizer]
    stored = in_float = None
    if batch is not None:
        if not isinstance(model, nn.Module):
            raise OptionError(Option("batch"), " is what a module is called with: give a module in place of a number")
        kept = {param.name for param in inventory.parameters if param.kept}
        stored = rehearse(model, batch, options, kept)
        in_float = rehearse(model, batch, PluginOptions(), {param.name for param in inventory.parameters})
        activations = activations or stored.timeline.activations

    def amounts(storage: Storage, itemsize: int) -> Amounts:
        held = inventory if itemsize == 4 else replace(inventory, buffers=inventory.narrow_buffers)
        if sharding == "none":
            return on_one(storage, held, activations)
        if sharding == "ddp":
            return under_ddp(storage, held, activations, ranks, bucket_view)
        if sharding == "fsdp2":
            return under_fsdp2(storage, held, activations, ranks, rank)
        stage = 1 + ZEROS.index(sharding)
        return under_zero(storage, held, activations, ranks, stage, itemsize, reduce_bucket_size, persistent)

    def rehearsed(found: Amounts, storage: Storage, passes: Rehearsed | None) -> Amounts:
        if passes is None or sharding not in UNSHARDED:
            return found
        over = max(passes.over(activations), found.gradients + storage.update(inventory.trainable))
        return replace(found, at_once=found.weights + found.state + found.buffers + over + found.wire)

    own = fixed_point(options, algorithm, itemsize, options.gradient_word_length)
    ours = rehearsed(amounts(own, itemsize), own, stored)
    baseline, *rest = _others(options, algorithm, itemsize, sharding)
    others = (rehearsed(amounts(*baseline), baseline[0], in_float), *(amounts(*each) for each in rest))
    said = [] if activations else ["activations are not planned: give what a run has been measured to hold"]
    said += _assumed_of_peak(sharding, batch is not None)
    said.append("the allocator's gaps and what CUDA and its libraries hold are not planned")
    said += inventory.assumptions if sharding == "fsdp2" or not isinstance(model, nn.Module) else ()
    said += _assumptions(sharding, bucket_view, itemsize, reduce_bucket_size)
    return Plan(inventory.elements, optimizer, ranks, sharding, ours, others, tuple(said))


def _inventory(model: nn.Module | int, options: PluginOptions, units: Iterable[str] | None, layers: int) -> Inventory:
    if isinstance(model, nn.Module):
        return of_module(model, options.keep_float, units)
    if options.keep_float or units is not None:
        raise OptionError(
            Option("keep_float"), " and ", Option("units"),
            " name parts of a module: give a module in place of a number",
        )  # fmt: skip
    check_integer(model, "model")
    return of_count(model, layers)


def _others(options: PluginOptions, algorithm: Algorithm, itemsize: int, sharding: str) -> list[tuple[Storage, int]]:
    """What to compare with, each with the bytes of a number that operations see; the leanest of ours among it."""
    if sharding in ZEROS:  # what differs is the engine's own dtype: masters and state are float32
        masters = replace(float32(algorithm), source="float32 masters and state beside the engine's own parameters")
        return [(replace(masters, name="float32"), 4), (replace(masters, name="bf16 mixed"), 2)]
    release = sharding in UNSHARDED  # FSDP2 reduces the gradients of a unit together
    found = [(storage, storage.sent) for storage in storages.others(algorithm, sharding == "none")]
    asked = options.gradient_word_length
    if itemsize == 4:
        narrow = fixed_point(options, algorithm, 2, asked)
        found.append((replace(narrow, name=f"{narrow.name}, bf16", source="compute_dtype=bfloat16"), 2))
    lean = replace(options, state_word_length=8) if options.state_word_length is None else options
    for gradients in LEANEST:
        if (options, asked) != (lean, gradients) and (release or gradients != "release"):
            source = f"state_word_length={lean.state_word_length}, gradient_word_length={gradients}"
            found.append((replace(fixed_point(lean, algorithm, itemsize, gradients), source=source), itemsize))
    return found


def _check_ranks(sharding: str, ranks: int, rank: int) -> None:
    if sharding not in SHARDINGS:
        raise OptionError(Option.given("sharding", sharding), f" is not one of {', '.join(SHARDINGS)}")
    check_integer(ranks, "ranks")
    check_integer(rank, "rank")
    if ranks < 1 or (ranks > 1) == (sharding == "none"):
        raise OptionError(
            Option.given("ranks", ranks), " and ", Option.given("sharding", sharding), " do not go together: ",
            Option.given("sharding", "none"), " is one GPU, and everything else two or more",
        )  # fmt: skip
    if not 0 <= rank < ranks:
        raise OptionError(Option.given("rank", rank), f" is not one of {ranks}, counted from 0")


def _check_sharded(options: PluginOptions, sharding: str) -> None:
    """Refuse options that a run with this ``sharding`` does not have."""
    if options.comm_error_feedback and sharding != "ddp":
        raise OptionError(
            Option.given("comm_error_feedback", True), " is of DDP, not of ", Option.given("sharding", sharding),
            ": leave it out",
        )  # fmt: skip
    if options.gradient_word_length is not None and sharding in ZEROS:
        raise OptionError(
            Option.given("gradient_word_length", options.gradient_word_length),
            ": gradients under ZeRO are the engine's own floats: leave it out",
        )
    if options.gradient_word_length == "release" and sharding not in UNSHARDED:
        raise OptionError(
            Option.given("gradient_word_length", "release"), " does not go together with ",
            Option.given("sharding", sharding), ": use ", Option.given("gradient_word_length", 8),
        )  # fmt: skip
    if options.state_fraction_length is not None and sharding in ZEROS:
        raise OptionError(
            Option.given("state_fraction_length", options.state_fraction_length),
            ": state under ZeRO has a radix point per block: leave it out",
        )


def _assumed_of_peak(sharding: str, rehearsed: bool) -> list[str]:
    if sharding not in UNSHARDED:
        return ["peak: all kinds together, though they need not be there at the same time"]
    said = ["peak: torch.optim updates one parameter at a time (foreach=True takes more)"]
    if rehearsed:
        return [
            *said,
            "peak: a pass with the batch says what ours and float32 take, and shapes alone what the others do",
            "activations: where they are not given, attention keeps its matrix of scores",
        ]
    return [
        *said,
        "peak: a parameter's float copy and float gradient are there at the same time, and activations are freed as "
        "the backward pass passes parameters (a batch says when: plan(module, batch=...))",
    ]


def _assumptions(sharding: str, bucket_view: bool, itemsize: int, bucket: int) -> list[str]:
    said = []
    if sharding == "ddp" and not bucket_view:
        said.append("DDP's buckets hold the gradients a second time (gradient_as_bucket_view=True avoids it)")
    if sharding == "fsdp2":
        said.append("gathered at once: what belongs to no unit, the largest unit, and one more that is fetched ahead")
    if sharding in ZEROS:
        said.append(
            f"DeepSpeed's own parameters and gradients take {itemsize} bytes a number, and it allocates "
            f"reduce_bucket_size={bucket:,} of them; one parameter group"
        )
    if sharding == "zero3":
        said.append(f"DeepSpeed may keep up to {LIVE:,} parameters gathered (stage3_max_live_parameters)")
    return said
