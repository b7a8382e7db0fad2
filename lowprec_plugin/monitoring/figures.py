"""The figures of all processes at one step, under the names by which they are logged."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lowprec_plugin.activations.packed import KeptBytes
from lowprec_plugin.arithmetic.devices import counts_memory
from lowprec_plugin.arithmetic.update_counts import UpdateCounts, total
from lowprec_plugin.memory import Kinds, Moment, report, side_by_side
from lowprec_plugin.memory.kinds import TOTAL
from lowprec_plugin.memory.timeline import KINDS
from lowprec_plugin.monitoring.watched import Watched
from lowprec_plugin.telemetry import block_exponents, counts_by_name, exponent_spread, held
from lowprec_plugin.telemetry.exponents import EXPONENTS
from lowprec_plugin.tensor.dtensor import fixed_part, local_part

PREFIX = "lowprec/"
GIB, MIB = 2**30, 2**20
HELD = (*Kinds._fields, "held", "float32", "bf16_mixed", "predicted")
#: What is not logged: less than anything that is.
NOTHING = -math.inf


class Captured(NamedTuple):
    """What there was before the optimizers' steps.

    Attributes:
        gradients: bytes of gradients when they took most, and what float32 would.
        kept: activations kept for the backward pass; ``None`` where they are not stored narrow.
        peak: most bytes of device memory so far, or resident memory; ``None`` where nobody knows.
    """

    gradients: tuple[int, int]
    kept: KeptBytes | None
    peak: int | None


class StepFigures(NamedTuple):
    """Of one step, the same on every process.

    Attributes:
        scalars: by the names under which they are logged.
        counts: of each parameter's update, by name, summed over the processes; those that were not counted are left
            out.
        exponents: as :func:`lowprec_plugin.telemetry.block_exponents` gives them, summed over the processes.
    """

    scalars: dict[str, float]
    counts: dict[str, UpdateCounts]
    exponents: Tensor


def figures(run: Watched, captured: Captured, at_peak: Moment | None, device: torch.device) -> StepFigures:
    """The figures of this step. Called by all processes alike.

    Bytes are those of the process that has most, and counts are summed over the processes.

    Args:
        at_peak: when most was held in this step; ``None`` where that was not followed.
        device: where processes exchange numbers.
    """
    most = _most(run, captured, at_peak, device)
    largest = dict(zip(most, _over_processes(list(most.values()), dist.ReduceOp.MAX, device), strict=True))
    names = [name for name, _ in run.module.named_parameters()]
    own = counts_by_name(run.module, run.fixed)
    counted = [number for name in names for number in own.get(name, UpdateCounts())]
    sums = _over_processes(
        [*_elements(run), *block_exponents(run.module).tolist(), *counted], dist.ReduceOp.SUM, device
    )  # fmt: skip
    elements, in_float = sums[:2]
    exponents = torch.tensor(sums[2 : 2 + EXPONENTS], dtype=torch.int64)
    rows = torch.tensor(sums[2 + EXPONENTS :], dtype=torch.float64).view(len(names), -1).tolist()
    counts = {name: UpdateCounts(*map(int, row[:5]), *row[5:]) for name, row in zip(names, rows, strict=True) if row[0]}
    scalars = _scalars(largest, in_float / max(1.0, elements), total(list(counts.values())), exponents)
    return StepFigures(scalars, counts, exponents)


def _most(run: Watched, captured: Captured, at_peak: Moment | None, device: torch.device) -> dict[str, float]:
    """Of this process, what the process with most is logged for; minus infinity where there is nothing to log."""
    now, beside = report(run.module, run.optimizers), run.beside
    kinds = held(now, captured.gradients, captured.kept)
    more = (0, 0, 0) if beside is None else (beside.nbytes, beside.float32_nbytes, 2 * beside.elements)
    words = [part.format.word_length for param in run.module.parameters() if (part := fixed_part(param)) is not None]
    traffic = run.traffic
    ours, float32, bf16_mixed = (of._replace(weights=of.weights + own) for of, own in zip(kinds, more, strict=True))
    return {
        "weights": ours.weights, "state": ours.state, "gradients": NOTHING if beside is not None else ours.gradients,
        "activations": NOTHING if captured.kept is None else ours.activations, "buffers": ours.buffers,
        "held": ours.total, "float32": float32.total, "bf16_mixed": bf16_mixed.total,
        "predicted": _or_nothing(run.planned),
        "peak": _or_nothing(captured.peak if at_peak is None or counts_memory(device) else at_peak.total),
        "followed": NOTHING if at_peak is None else at_peak.total,
        **{f"peak_{kind}": NOTHING if at_peak is None else at_peak.by_kind[kind] for kind in KINDS},
        "sent": _sum(traffic, "bytes_sent_per_step", "weight_bytes_sent_per_step"),
        "float32_sent": _sum(traffic, "float32_bytes_per_step", "float32_weight_bytes_per_step"),
        **_shares(ours, float32, beside is not None),
        "word_length": max(words, default=NOTHING), "skipped_steps": run.skipped_steps,
    }  # fmt: skip


def _shares(ours: Kinds, float32: Kinds, unseen: bool) -> dict[str, float]:
    """Shares of float32's bytes, as every tool counts them.

    Args:
        unseen: whether the gradients are an engine's own.
    """
    found = {name: part.share for name, part in side_by_side(ours, float32).items()}
    return {
        "weights_and_state_share": _or_nothing(found["weights and state"]),
        "gradients_share": NOTHING if unseen else _or_nothing(found.get("gradients")),
        "activations_share": _or_nothing(found.get("activations")), "held_share": _or_nothing(found[TOTAL]),
    }  # fmt: skip


def _or_nothing(number: float | None) -> float:
    return NOTHING if number is None else number


def _sum(traffic: Mapping[str, float], *names: str) -> float:
    return sum(traffic.get(name, 0.0) for name in names) if traffic else NOTHING


def _elements(run: Watched) -> tuple[int, int]:
    """All numbers in parameters, and those kept in float."""
    params = list(run.module.parameters())
    in_float = [param for param in params if fixed_part(param) is None]
    return sum(local_part(param).numel() for param in params), sum(local_part(param).numel() for param in in_float)


def _over_processes(numbers: list[float], op: Any, device: torch.device) -> list[float]:
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return numbers
    reduced = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.all_reduce(reduced, op)
    return reduced.tolist()


def _scalars(most: Mapping[str, float], in_float: float, counts: UpdateCounts, exponents: Tensor) -> dict[str, float]:
    found = {f"{name}_gib": most[name] / GIB for name in HELD}
    found |= {name: most[name] for name in most if name.endswith("_share")}
    found["saved_fraction"] = 1 - most["held"] / max(1.0, most["float32"])
    found["peak_gib"] = most["peak"] / GIB
    if most["followed"] != NOTHING:
        found |= {f"peak_{kind}": most[f"peak_{kind}"] / max(1.0, most["followed"]) for kind in KINDS}
    found |= {f"{name}_mib": most[name] / MIB for name in ("sent", "float32_sent")}
    found |= {"word_length": most["word_length"], "kept_in_float": in_float}
    if counts.elements:
        found |= {
            "saturated": counts.saturated_share, "lost": counts.lost_share, "unchanged": counts.unchanged_share,
            "noise_to_update": counts.noise_to_update,
        }  # fmt: skip
    spread = exponent_spread(exponents)
    found |= {"exponent_spread": _or_nothing(spread), "skipped_steps": most["skipped_steps"]}
    return {f"{PREFIX}{name}": float(value) for name, value in found.items() if value != NOTHING}
