"""Before numbers travel, all ranks must mean the same by the bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lowprec_plugin.comm.exchange import gather
from lowprec_plugin.tensor.dtensor import fixed_part

_DIGEST_BYTES = 16
_AT_START = "start every process with the same model, arguments and version of the package"
_AT_CALL = "call it on every rank with the same arguments"


def shake_hands(terms: Mapping[str, Any], group: dist.ProcessGroup | None, remedy: str = _AT_START) -> None:
    """Compare ``terms`` (name to value) with every rank's. Called by every rank of the group.

    Raises:
        ValueError: on every rank alike, if a rank's differ from the first rank's, with the first difference.
    """
    every: list[Mapping[str, Any]] = [{}] * dist.get_world_size(group)
    dist.all_gather_object(every, dict(terms), group=group)
    first = every[0]
    for rank, other in enumerate(every):
        for name in {**first, **other}:
            mine, its = first.get(name, "nothing"), other.get(name, "nothing")
            if mine != its:
                raise ValueError(
                    f"the ranks disagree on {name}: rank 0 has {mine!r}, rank {rank} has {its!r}; {remedy}"
                )


def parameter_terms(named: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    """What all ranks must have alike of every parameter: name, shape, dtype, how it is stored, whether it is trained.

    And their order, in which gradients travel: under other names, one's would be added to another's.
    """
    terms = {}
    for place, (name, param) in enumerate(named):
        fixed = fixed_part(param)
        stored = f"stored as {fixed.format}, " if fixed is not None else ""
        trained = "trained" if param.requires_grad else "frozen"
        terms[f"parameter {place}"] = f"{name}: shape {tuple(param.shape)}, {param.dtype}, {stored}{trained}"
    return terms


@contextmanager
def agreement(device: torch.device, group: dist.ProcessGroup | None) -> Iterator[dict[str, Any]]:
    """:func:`shake_hands` before one call of a collective, cheaply: 16 bytes travel, the terms only if they differ.

    The block checks this rank's arguments and adds to the terms that it is given. What one rank refuses there, all
    refuse: the others would wait for it. The terms are compared before any message whose length depends on them, for
    gloo ends a process that is sent another length than it expects. The host reads what came, so a GPU is waited for.

    Args:
        device: of the tensors that are to travel.

    Raises:
        ValueError: on every rank alike, if the ranks' terms differ, or one of them refuses its arguments.
    """
    terms: dict[str, Any] = {"what is refused": "nothing"}
    try:
        yield terms
    except ValueError as error:
        if dist.is_initialized():
            _compare({"what is refused": str(error)}, device, group)
        raise
    _compare(terms, device, group)


def _compare(terms: Mapping[str, Any], device: torch.device, group: dist.ProcessGroup | None) -> None:
    if dist.get_world_size(group) == 1:
        return
    digest = list(blake2b(repr(terms).encode(), digest_size=_DIGEST_BYTES).digest())
    every, work = gather(torch.tensor(digest, dtype=torch.uint8, device=device), group)
    work.wait()
    if any(other != digest for other in every.tolist()):
        shake_hands(terms, group, _AT_CALL)
