"""One row per parameter: how it is stored, and what rounding did to its updates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowprec_plugin.arithmetic.update_counts import UpdateCounts
from lowprec_plugin.memory import bytes_of
from lowprec_plugin.optim.step import FixedPointStep
from lowprec_plugin.telemetry.storage_table import storage_of
from lowprec_plugin.tensor.dtensor import fixed_part, local_part


@dataclass(frozen=True)
class LayerReport:
    """One parameter.

    Attributes:
        name: in the module.
        elements: numbers in it, on this process.
        weights, state: formats, as text; a dtype where it is kept in float.
        nbytes: weights and state held.
        saturated, lost, unchanged: shares over all counted steps; ``None`` where nothing was counted.
        noise_to_update: of the counted steps; ``None`` likewise.
    """

    name: str
    elements: int
    weights: str
    state: str
    nbytes: int
    saturated: float | None = None
    lost: float | None = None
    unchanged: float | None = None
    noise_to_update: float | None = None


def layers(
    module: nn.Module, optimizers: Iterable[torch.optim.Optimizer], counts: Mapping[str, UpdateCounts]
) -> list[LayerReport]:
    """A row per parameter of ``module``, in its order.

    Args:
        counts: by the parameters' names in ``module``.
    """
    state: dict[Tensor, list[Tensor]] = {}
    for optimizer in optimizers:
        for param, held in optimizer.state.items():
            state[param] = [value for name, value in held.items() if isinstance(value, Tensor) and name != "step"]
    rows = []
    for name, param in module.named_parameters():
        own = state.get(param, [])
        row = LayerReport(
            name, local_part(param).numel(), storage_of(param), ", ".join(dict.fromkeys(map(storage_of, own))) or "-",
            sum(bytes_of(local_part(tensor)) for tensor in [param, *own]),
        )  # fmt: skip
        rows.append(_counted(row, counts.get(name, UpdateCounts())))
    return rows


def _counted(row: LayerReport, counts: UpdateCounts) -> LayerReport:
    if counts.elements == 0:
        return row
    shares = (counts.saturated_share, counts.lost_share, counts.unchanged_share, counts.noise_to_update)
    return LayerReport(row.name, row.elements, row.weights, row.state, row.nbytes, *shares)


def counts_by_name(module: nn.Module, optimizers: Iterable[FixedPointStep]) -> dict[str, UpdateCounts]:
    """What the last counted step of each optimizer did to each parameter, by its name in ``module``.

    Optimizers know parameters by their labels; those of several that share one are left out.
    """
    named = ((name, fixed_part(param)) for name, param in module.named_parameters())
    labels = {name: part.label for name, part in named if part is not None}
    shared = Counter(labels.values())
    counts = {label: each for optimizer in optimizers for label, each in optimizer.fixed_point.counts.items()}
    return {name: counts[label] for name, label in labels.items() if label in counts and shared[label] == 1}
