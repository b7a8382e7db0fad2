"""The collectives of torch.distributed, given fixed-point tensors: right, or refused, never the end of a process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn import functional as differentiable

from lowprec_plugin.tensor import FixedPointTensor
from tests.comm import ranks


def _floats(rank: int, rows: int = 4) -> Tensor:
    return torch.randn(rows, 300, generator=torch.Generator().manual_seed(rank))


def _stored(rank: int, rows: int = 4) -> FixedPointTensor:
    return FixedPointTensor.quantize(_floats(rank, rows), "fixed16", label="weight")


def _numbers(rank: int) -> Tensor:
    return _stored(rank).dequantize()


def _empty(rows: int = 4) -> Tensor:
    return torch.empty(rows, 300)


def _broadcast(rank: int) -> Any:
    dist.broadcast(tensor := _stored(rank), 0)
    return torch.equal(tensor.codes, _stored(0).codes)


def _all_gather(rank: int) -> Any:
    dist.all_gather(every := [_empty(), _empty()], _stored(rank))
    return torch.equal(every[1], _numbers(1))


def _all_gather_into_tensor(rank: int) -> Any:
    dist.all_gather_into_tensor(every := _empty(8), _stored(rank))
    return torch.equal(every[4:], _numbers(1))


def _gather(rank: int) -> Any:
    every = [_empty(), _empty()] if rank == 0 else None
    dist.gather(_stored(rank), every, dst=0)
    return every is None or torch.equal(every[1], _numbers(1))


def _all_gather_into_codes(rank: int) -> Any:
    """Of a stored tensor's numbers, so that its own format has them exactly."""
    dist.all_gather(every := [_stored(2), _empty()], _numbers(rank))
    return torch.equal(every[0], _numbers(0)) and torch.equal(every[1], _numbers(1))


def _gather_into_codes(rank: int) -> Any:
    every: list[Tensor] | None = [_empty(), _stored(2)] if rank == 0 else None
    dist.gather(_numbers(rank), every, dst=0)
    return every is None or torch.equal(every[1], _numbers(1))


def _objects(rank: int) -> Any:
    dist.all_gather_object(every := [None, None], _stored(rank))
    dist.scatter_object_list(one := [None], [_stored(0), _stored(1)] if rank == 0 else None, src=0)
    return torch.equal(every[1], _numbers(1)) and torch.equal(one[0], _numbers(rank))  # type: ignore[arg-type]


RIGHT = [
    _broadcast, _all_gather, _all_gather_into_tensor, _gather, _all_gather_into_codes, _gather_into_codes, _objects,
]  # fmt: skip

#: Each refused before anything is sent, so that one process may call it alone.
REFUSED: dict[str, Callable[[int], object]] = {
    "allreduce": lambda rank: dist.all_reduce(_stored(rank)),
    "allreduce_coalesced": lambda rank: dist.all_reduce_coalesced([_empty(), _stored(rank)]),
    "reduce": lambda rank: dist.reduce(_stored(rank), 0),
    "reduce_scatter, in a list": lambda rank: dist.reduce_scatter(_empty(), [_empty(), _stored(rank)]),
    "reduce_scatter, into codes": lambda rank: dist.reduce_scatter(_stored(rank), [_empty(), _empty()]),
    "reduce_scatter, differentiable": lambda rank: differentiable.reduce_scatter(_empty(), [_stored(0), _stored(1)]),
    "reduce_scatter_base": lambda rank: dist.reduce_scatter_tensor(_empty(), _stored(rank, 8)),
    "reduce_scatter_base, into codes": lambda rank: dist.reduce_scatter_tensor(_stored(rank), _empty(8)),
    "allgather_base, into codes": lambda rank: dist.all_gather_into_tensor(_stored(rank, 8), _empty()),
    "alltoall": lambda rank: dist.all_to_all([_empty(), _empty()], [_stored(0), _stored(1)]),
    "alltoall, into codes": lambda rank: dist.all_to_all([_stored(0), _stored(1)], [_empty(), _empty()]),
    "alltoall_base": lambda rank: dist.all_to_all_single(_empty(8), _stored(rank, 8)),
    "scatter, in a list": lambda rank: rank or dist.scatter(_empty(), [_stored(0), _stored(1)], src=0),
    "scatter, one in a list": lambda rank: rank or dist.scatter(_empty(), [_empty(), _stored(1)], src=0),
    "scatter, rows": lambda rank: rank or dist.scatter(_empty(2), list(_stored(0).split(2)), src=0),
    "scatter, into codes": lambda rank: dist.scatter(_stored(0), [_empty(), _empty()] if rank == 0 else None, src=0),
    "scatter, differentiable": lambda rank: rank or differentiable.scatter([_stored(0), _stored(1)], 0),
    "send": lambda rank: dist.send(_stored(rank), 1 - rank),
    "recv": lambda rank: dist.recv(_stored(rank), 1 - rank),
}


def _all(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {each.__name__: each(rank) for each in RIGHT}
    for name, call in REFUSED.items():
        try:
            found[name] = call(rank)
        except ValueError as error:
            found[name] = str(error)
    dist.scatter(mine := _empty(), [_floats(0), _floats(1)] if rank == 0 else None, src=0)
    dist.reduce_scatter(mean := _empty(), [_floats(0), _floats(1)])
    return found | {"floats": torch.equal(mine, _floats(rank)) and torch.allclose(mean, 2 * _floats(rank))}


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    return ranks.run(2, _all)


@pytest.mark.parametrize("name", [*(each.__name__ for each in RIGHT), "floats"])
def test_what_is_read_or_copied_is_right(name: str, found: list[dict[str, Any]]) -> None:
    assert [each[name] for each in found] == [True, True]


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_lost_is_refused_by_name(name: str, found: list[dict[str, Any]]) -> None:
    said = [each[name] for each in found]
    assert said[0].startswith(f"{name.partition(',')[0]} of a fixed-point tensor: reduce floats")
    assert said[1] in (said[0], 1)  # 1: the process that sends nothing


def test_codes_of_another_format_are_not_taken_for_ones_own() -> None:
    said = ranks.run(2, _broadcast_to_another_format)
    assert said[0] == ""
    assert (
        said[1] == "broadcast to fixed-point tensor 'weight' in <6,10> of one in <4,12>, whose codes are other numbers"
    )


def _broadcast_to_another_format(rank: int) -> str:
    tensor = FixedPointTensor.quantize(_floats(rank), ("<4,12>", "<6,10>")[rank], label="weight")
    before = tensor.codes.clone()
    try:
        dist.broadcast(tensor, 0)
    except ValueError as error:
        assert torch.equal(tensor.codes, before)
        for _ in tensor.blocks.planes:  # what the sender sends all the same
            dist.broadcast(torch.empty(tensor.nbytes, dtype=torch.uint8), 0)
        return str(error).partition(":")[0]
    return ""


def test_under_inference_mode_too() -> None:
    assert ranks.run(2, _inferred) == ["scatter", 1]


def _inferred(rank: int) -> Any:
    with torch.inference_mode():
        try:
            return rank or dist.scatter(_empty(), [_stored(0), _stored(1)], src=0)
        except ValueError as error:
            return str(error).partition(" ")[0]
