"""Gradients of a DeepSpeed engine between its processes, in fixed-point.

DeepSpeed averages gradients bucket by bucket, in the order in which the backward pass makes them, the same on every
process. Its reduction of one bucket is replaced: in stages 0, 1 and 2 an all-reduce, in stage 3 a reduce-scatter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lowprec_plugin.arithmetic.random_bits import stream_of
from lowprec_plugin.comm.exchange import Exchange, Gradient, Traffic, keys, reduce_scatter
from lowprec_plugin.compat.deepspeed import EngineParts


class ZeroWire:
    """How the gradients of one engine travel, and what has travelled.

    Random bits are keyed by the engine's step and the bucket's place in it, so a resumed run has those it would have
    had.

    Attributes:
        traffic: what this process has sent, and what float32 would have.
    """

    def __init__(self, parts: EngineParts, word_length: int, rounding: str, seed: int) -> None:
        self.word_length, self.rounding, self.seed = word_length, rounding, seed
        self._parts = parts
        self._exchange = Exchange(word_length, rounding, parts.group, mean=False)
        self._step, self._bucket, self._steps = -1, 0, 0

    @property
    def traffic(self) -> Traffic:
        """What this process has sent so far, and what float32 would have."""
        return self._exchange.traffic

    def report(self) -> dict[str, float]:
        """What this process sends per step, in bytes, what float32 would, and in how many steps. Gradients alone."""
        return self.traffic.per_step(self._steps) | {"steps": self._steps}

    def __str__(self) -> str:
        kind = "reduce-scatter" if self._parts.stage == 3 else "all-reduce"
        return f"{self.word_length} bits, {self.rounding} rounding, by {kind}; weights travel as DeepSpeed sends them"

    def connect(self) -> None:
        """Replace the engine's reduction of gradients."""
        if self._parts.stage == 3:
            self._parts.set_scatter(self.scatter)
        else:
            self._parts.set_all_reduce(self.mean_in_engine if self._parts.stage == 0 else self.mean_in_zero)

    def _next(self) -> tuple[str, int]:
        """The name of this bucket, and the step."""
        step = int(self._parts.engine.global_steps)
        self._bucket, self._steps = (self._bucket + 1, self._steps) if step == self._step else (0, self._steps + 1)
        self._step = step
        return f"ZeRO bucket {self._bucket}", step

    def sum_(self, flat: Tensor) -> None:
        """Replace ``flat`` by its sum over the processes, in place."""
        name, step = self._next()
        key, sum_key = keys(stream_of(self.seed, name), step, dist.get_rank(self._parts.group))
        self._exchange.run([Gradient(flat, key, sum_key)])

    def mean_in_zero(
        self,
        bucket: Sequence[Tensor],
        communication_data_type: torch.dtype,
        rank: int | None = None,
        log: Any = None,
        divide: bool = True,
        process_group: Any = None,
    ) -> Tensor:
        """``allreduce_bucket`` of ZeRO 1 and 2: the flattened bucket, summed, and divided if not done before."""
        flat: Tensor = self._parts.zero.flatten(bucket)
        self.sum_(flat)
        if divide and self._parts.zero.gradient_average:
            flat.div_(dist.get_world_size(self._parts.group))
        return flat

    def mean_in_engine(self, bucket: Sequence[Tensor], dp_group: Any, dp_world_size: float | None = None) -> Tensor:
        """``allreduce_bucket`` of an engine without ZeRO: the flattened bucket, averaged."""
        flat: Tensor = self._parts.engine.flatten(bucket)
        self.sum_(flat)
        if self._parts.engine.gradient_average:
            flat.div_(dist.get_world_size(self._parts.group))
        return flat

    def scatter(self, params: Sequence[Any], communication_data_type: torch.dtype) -> list[Tensor]:
        """The reduction of ZeRO 3: this process's part of every parameter's average gradient.

        A gradient is cut into one part per process, the last ones shorter or empty; the parts for one process travel
        as one.
        """
        ranks, rank = dist.get_world_size(self._parts.group), dist.get_rank(self._parts.group)
        sizes = [-(-param.grad.numel() // ranks) for param in params]
        share = torch.zeros(ranks, sum(sizes), dtype=communication_data_type, device=params[0].grad.device)
        at = 0
        for param, size in zip(params, sizes, strict=True):
            flat = param.grad.detach().reshape(-1)
            for row in range(ranks):
                values = flat[row * size : (row + 1) * size]
                share[row, at : at + values.numel()] = values
            at += size
        name, step = self._next()
        mean = torch.empty(share.shape[1], dtype=self._parts.zero.gradient_accumulation_dtype, device=share.device)
        exchange = Exchange(self.word_length, self.rounding, self._parts.group, traffic=self.traffic)
        reduce_scatter(mean, share, exchange, stream_of(self.seed, name), step)
        own = [max(0, min(size, param.grad.numel() - rank * size)) for param, size in zip(params, sizes, strict=True)]
        return [piece[:kept] for piece, kept in zip(torch.split(mean, sizes), own, strict=True)]


def plan_wire(parts: EngineParts, word_length: int | None, rounding: str, seed: int) -> ZeroWire | None:
    """How the engine's gradients are to travel; ``None`` as it sends them itself, or if there is one process.

    Raises:
        ValueError: if the engine reduces gradients in a way that cannot be replaced.
    """
    if word_length is None or dist.get_world_size(parts.group) == 1:
        return None
    engine = parts.engine
    unfit = {
        "zero_optimization.reduce_scatter is false": parts.stage > 0 and not engine.zero_reduce_scatter(),
        "zero_optimization.use_multi_rank_bucket_allreduce is false": parts.stage in (1, 2)
        and not engine.zero_multi_rank_bucket_allreduce(),
        "prescale_gradients is true": not engine.postscale_gradients(),
        "gradient_predivide_factor is not 1": engine.gradient_predivide_factor() != 1.0,
    }
    for setting, is_set in unfit.items():
        if is_set:
            raise ValueError(
                f"{setting}, with which gradients do not pass through the reduction that is replaced: leave it at its "
                "default, or say comm_word_length=None"
            )
    return ZeroWire(parts, word_length, rounding, seed)
