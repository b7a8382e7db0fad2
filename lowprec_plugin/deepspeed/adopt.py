"""Put fixed-point in place of a DeepSpeed engine's float32 master weights and optimizer state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from lowprec_plugin import optim
from lowprec_plugin.arithmetic import ops
from lowprec_plugin.comm.handshake import shake_hands
from lowprec_plugin.compat.deepspeed import EngineParts, open_engine
from lowprec_plugin.deepspeed.gradients import ZeroWire, plan_wire
from lowprec_plugin.formats import FixedPointFormat
from lowprec_plugin.optim.options import PluginOptions
from lowprec_plugin.optim.settings import StepSettings
from lowprec_plugin.optim.state import format_of_state, is_elementwise
from lowprec_plugin.optim.step import FixedPointStep
from lowprec_plugin.telemetry.storage_table import Row, as_text, describe, group_row
from lowprec_plugin.tensor import FixedPointTensor
from lowprec_plugin.tensor.dtensor import fixed_part
from lowprec_plugin.text.option_error import Option, OptionError
from lowprec_plugin.version import __version__


@dataclass(frozen=True)
class AdoptedEngine:
    """What :func:`adopt_engine` did.

    Attributes:
        stage: of ZeRO.
        partitions: this process's master weights: its flat partitions; in stage 0 the module's parameters.
        optimizer: the user's optimizer, which steps them.
        wire: how gradients travel, and what has travelled; ``None`` if DeepSpeed sends them as floats.
        rows: the table of what this process stores how.
        said: the table as text, and what travels how.
    """

    stage: int
    partitions: list[FixedPointTensor]
    optimizer: FixedPointStep
    wire: ZeroWire | None
    rows: list[Row]
    said: str

    @property
    def saturated(self) -> int:
        """Numbers that were out of their format's range when this process's updates were rounded, so far."""
        return self.optimizer.fixed_point.saturated


def adopt_engine(
    engine: Any,
    format: FixedPointFormat | str = "fixed16",
    *,
    state_word_length: int | None = None,
    comm_word_length: int | Literal["auto"] | None = "auto",
    rounding: str = "stochastic",
    seed: int = 0,
    log: Callable[[str], None] | None = None,
) -> AdoptedEngine:
    """Store the master weights and the optimizer state of ``engine`` in ``format``. Called on every process alike.

    Each of this process's flat float32 partitions is replaced by codes, whose blocks are of consecutive elements, and
    the engine's optimizer by one that updates codes, the same object. The engine goes on to step, clip, accumulate,
    gather and save as it did. Its own parameters and gradients stay what they are: floats of the engine's dtype. In
    stage 0 there are no partitions: :func:`lowprec_plugin.optim.quantize_` stores the module's parameters themselves,
    before ``deepspeed.initialize``, and this function does the rest.

    A NaN or infinite gradient makes DeepSpeed skip the step, on every process alike (``engine.skipped_steps``); in
    stage 0 it is refused with :class:`~lowprec_plugin.optim.finite.NonFiniteGradientError`.

    Args:
        engine: from ``deepspeed.initialize``, with a ``torch.optim`` optimizer. Changed in place. May have made steps
            or loaded a checkpoint: its values are rounded to nearest, which is exact for what came out of ``format``.
        format: of the weights: a format or its text.
        state_word_length: bits of the optimizer state; ``None``: as the weights.
        comm_word_length: bits of a gradient between processes: 4, 8, 12 or 16; ``"auto"``: 16; ``None``: as DeepSpeed
            sends them.
        rounding: ``"stochastic"`` or ``"nearest"``.
        seed: keys the random bits.
        log: called on every process with what is stored how, as text; ``None``: the first process prints it.

    Raises:
        ValueError: for an argument outside its limits, or an engine that keeps floats that cannot be replaced (see
            docs/deepspeed.md). The engine is then as it was.
    """
    format = FixedPointFormat.parse(format)
    if format.squared:
        raise OptionError(
            Option.given("format", str(format)), " is for squares alone, an optimizer's second moments: write "
            f"'{replace(format, squared=False)}'",
        )  # fmt: skip
    options = PluginOptions.of(
        locals(), word_length=format.word_length, fraction_length=format.fraction_length, block_size=format.block_size
    )
    return adopt(engine, options, log)


def adopt(engine: Any, options: PluginOptions, log: Callable[[str], None] | None = None) -> AdoptedEngine:
    """:func:`adopt_engine`, with the options of a plugin. Of ``nonfinite`` the plugin takes care itself.

    Raises:
        ValueError: as :func:`adopt_engine`.
    """
    format = options.format
    parts = open_engine(engine)
    _check_not_stored(parts, format)
    shake_hands({"package version": __version__, "weights": str(format), **options.terms()}, parts.group)
    plan = plan_wire(parts, options.comm_bits, options.rounding, options.seed)
    partitions = _partitions(parts, options)
    settings = StepSettings.of(options, nonfinite="raise")
    optimizer = optim.adopt(parts.optimizer, settings)  # refuses what cannot be adopted before anything is replaced
    if not isinstance(optimizer, FixedPointStep):
        raise ValueError(f"{type(optimizer).__name__} cannot update fixed-point partitions: use another of torch.optim")
    parts.replace_masters(partitions)
    optim.adopt(optimizer, settings)  # its state too, now that it belongs to codes
    if plan is not None:
        plan.connect()
    held = [param for param in _held(parts) if isinstance(param, FixedPointTensor)]
    rows = _rows(parts, optimizer)
    sent = str(plan) if plan else f"{engine.communication_data_type}, as DeepSpeed sends them"
    said = (
        f"lowprec_plugin: DeepSpeed ZeRO {parts.stage} (weights {format}, {options.rounding} rounding, seed "
        f"{options.seed}); this process's share:\n{as_text(rows, wire=sent)}"
    )
    (log or _print)(said)
    return AdoptedEngine(parts.stage, held, optimizer, plan, rows, said)


def _check_not_stored(parts: EngineParts, format: FixedPointFormat) -> None:
    """Refuse what is in fixed-point already; in stage 0, where nothing is replaced, refuse floats."""
    are_fixed = any(isinstance(param, FixedPointTensor) for param in _held(parts))
    if parts.stage == 0 and not are_fixed:
        raise ValueError(
            "without ZeRO (stage 0) the parameters themselves are stored, and DeepSpeed refers to them by now: "
            f"call lowprec_plugin.optim.quantize_(model, {str(format)!r}) before deepspeed.initialize"
        )
    if isinstance(parts.optimizer, FixedPointStep) and are_fixed:
        raise ValueError(
            "the engine stores fixed-point already: adopt it once, after deepspeed.initialize, and in stage 0 give "
            "that a torch.optim optimizer"
        )
    if parts.stage > 0 and any(isinstance(param, FixedPointTensor) for param in parts.engine.module.parameters()):
        raise ValueError(
            f"ZeRO {parts.stage} holds floats beside parameters stored by optim.quantize_: drop quantize_(model), it "
            "is for stage 0; here the engine's partitions are stored"
        )


def _partitions(parts: EngineParts, options: PluginOptions) -> list[FixedPointTensor]:
    """The master weights in fixed-point, their state having been tried: once they are replaced nothing may be refused.

    Raises:
        ValueError: on every process, if one of them cannot store what it has.
    """
    rank = dist.get_rank(parts.group)
    parts.clear_padding()
    partitions, refused, what = [], None, "the master weights"
    try:
        for index, master in enumerate(parts.masters):
            label, what = f"ZeRO partition {index}", "the master weights"
            partitions.append(flat_partition(master, options.format, options.rounding, options.seed, label, rank))
            for name, value in parts.optimizer.state.get(master, {}).items():
                if fixed_part(value) is None and is_elementwise(value, master):  # codes of a checkpoint are finite
                    what = f"state {name!r}"
                    ops.quantize(value, format_of_state(options.format, options, name))
    except ValueError as error:
        refused = f"{what} of process {rank}: {error}"
    _raise_everywhere(refused, parts.group)
    return partitions


def _raise_everywhere(refused: str | None, group: dist.ProcessGroup | None) -> None:
    """What one process refuses, all do: the others would wait for it in the next step."""
    every: list[str | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(every, refused, group=group)
    for said in every:
        if said is not None:
            raise ValueError(said)


def flat_partition(
    x: Tensor, format: FixedPointFormat, rounding: str, seed: int, label: str, rank: int
) -> FixedPointTensor:
    """A flat tensor in blocks of consecutive elements, rounded to nearest: see docs/decisions/0009-zero-partitions.md.

    Args:
        x: one-dimensional.
        rank: which of the equal partitions ``x`` is; keys the random bits of its elements.
    """
    codes = FixedPointTensor.quantize(
        x.detach().view(1, -1), format, rounding="nearest", seed=seed, label=label, dtype=torch.float32, first_row=rank
    )
    codes.rounding = rounding
    return torch.nn.Parameter(codes.view(-1), x.requires_grad)  # type: ignore[return-value]


def _held(parts: EngineParts) -> list[Tensor]:
    return list(parts.engine.module.parameters()) if parts.stage == 0 else list(parts.masters)


def _rows(parts: EngineParts, optimizer: FixedPointStep) -> list[Row]:
    if parts.stage == 0:
        return describe(parts.engine.module, [optimizer])
    rows = []
    for index, partition in enumerate(parts.masters):
        group = parts.group_of(index)
        name = f"{optimizer.float_class.__name__} {group}"
        rows.append(group_row(name, [partition], optimizer, optimizer.param_groups[group]))
    params = list(parts.engine.module.parameters())
    elements = sum(getattr(param, "ds_numel", param.numel()) for param in params)
    itemsize = params[0].element_size()
    here = -(-elements // dist.get_world_size(parts.group)) if parts.stage == 3 else elements
    dtype = str(params[0].dtype).removeprefix("torch.")
    return [*rows, Row("engine", dtype, "-", dtype, here, here * itemsize, 4 * here, "DeepSpeed's own parameters")]


def _print(text: str) -> None:
    from deepspeed.utils.logging import print_dist

    print_dist(text, ranks=[0])  # DeepSpeed's log is silent below warnings
