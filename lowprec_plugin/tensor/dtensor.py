"""Sharded parameters: DTensors whose shard on this rank is a fixed-point tensor.

Rows (indices of dimension 0) are shared out, as FSDP2 does. Blocks end with their rows and random bits are keyed by an
element's place in the whole tensor, so that any number of ranks holds the same codes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from lowprec_plugin.compat.dtensor import shard_of
from lowprec_plugin.tensor.tensor import FixedPointTensor


def local_part(tensor: Tensor) -> Tensor:
    """What this rank holds of ``tensor``: its shard of a DTensor, else the tensor itself. Not a copy."""
    return shard_of(tensor) if isinstance(tensor, DTensor) else tensor


def fixed_part(tensor: object) -> FixedPointTensor | None:
    """What this rank holds of ``tensor``, if that is fixed-point; else ``None``."""
    local = local_part(tensor) if isinstance(tensor, Tensor) else None
    return local if isinstance(local, FixedPointTensor) else None


def stored_part(tensor: Tensor) -> FixedPointTensor:
    """:func:`fixed_part` of a tensor that is known to be fixed-point."""
    part = fixed_part(tensor)
    assert part is not None
    return part


def place(tensor: Tensor) -> None:
    """Have a fixed-point shard know its place in the whole, if ``tensor`` is sharded.

    Shards that are made, gathered, copied or loaded here know it; those that others made of a tensor, and put together
    as a DTensor, do from when an optimizer has them.

    Raises:
        ValueError: if it is sharded in another way than by rows.
    """
    part = fixed_part(tensor)
    if part is not None and isinstance(tensor, DTensor):
        part.first_row, part.whole_rows = place_of(tensor), tensor.shape[0] if tensor.dim() else None


def as_floats(value: Any) -> Any:
    """A fixed-point tensor as float32, sharded as it is; anything else as it is."""
    part = fixed_part(value)
    return value if part is None else in_place_of(part.dequantize(torch.float32), value)


def in_place_of(local: Tensor, whole: Tensor) -> Tensor:
    """``local`` as a tensor sharded as ``whole`` is; ``local`` itself if that is not sharded."""
    if not isinstance(whole, DTensor):
        return local
    return DTensor.from_local(
        local, whole.device_mesh, whole.placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )


def place_of(tensor: DTensor) -> int:
    """The row of the whole tensor at which this rank's shard starts.

    Raises:
        ValueError: if it is sharded along another dimension than 0, or in strides.
    """
    rows, start = tensor.shape[0] if tensor.dim() else 1, 0
    for dim, placement in enumerate(tensor.placements):
        if placement.is_replicate():
            continue
        if type(placement) is not Shard or placement.dim != 0:  # not the strided kind of tensor parallelism either
            raise ValueError(
                f"a parameter of shape {tuple(tensor.shape)} is placed as {placement}: fixed-point blocks lie within "
                "rows, so it can be sharded along dimension 0 only, and not by FSDP2 over tensor parallelism. Use "
                "Shard(0) and Replicate(), or keep_float for it"
            )
        mesh = tensor.device_mesh
        first, rows = share_of(rows, mesh.size(dim), mesh.get_local_rank(dim))
        start += first
    return start


def share_of(rows: int, ranks: int, rank: int) -> tuple[int, int]:
    """The first row of a rank's share, and how many it has: equal shares, of which the last are shorter or empty."""
    share = -(-rows // ranks)
    first = min(rows, share * rank)
    return first, min(share, rows - first)


def on_any_rank(here: bool, tensors: Iterable[Tensor]) -> bool:
    """Whether ``here`` holds on any of the ranks that ``tensors`` are shared out over. Called by all of them alike."""
    return each_on_any_rank([here], tensors)[0]


def each_on_any_rank(here: list[bool], tensors: Iterable[Tensor]) -> list[bool]:
    """:func:`on_any_rank` of several at once."""
    for mesh in {tensor.device_mesh: None for tensor in tensors if isinstance(tensor, DTensor)}:
        # Not where the tensors are: that may be the meta device, or a CPU to which FSDP2 offloads them from a GPU.
        flags = torch.tensor(here, dtype=torch.float32, device=mesh.device_type)
        for dim in range(mesh.ndim):
            dist.all_reduce(flags, dist.ReduceOp.MAX, group=mesh.get_group(dim))
        here = flags.bool().tolist()
    return here
