"""A process group and a thread for gradients alone, so that their order does not mix with other collectives'."""

from __future__ import annotations

import weakref

import torch
import torch.distributed as dist

from lowprec_plugin.comm.worker import Worker
from lowprec_plugin.compat.process_group import timeout_of

_groups: weakref.WeakKeyDictionary[dist.ProcessGroup, dict[str, dist.ProcessGroup]] = weakref.WeakKeyDictionary()
_workers: weakref.WeakKeyDictionary[dist.ProcessGroup, weakref.ref[Worker]] = weakref.WeakKeyDictionary()


def own_group(
    group: dist.ProcessGroup, device: torch.device, what: str = "buckets"
) -> tuple[dist.ProcessGroup, Worker]:
    """A group of the ranks, backend and time-out of ``group``, and the thread that does its exchanges, of ``what``.

    Called by every rank of ``group``, and by no others. Every model of one group gets the same: a new group for each
    would stay behind, since torch names groups by their ranks and number, and a name that comes again after a group
    was destroyed finds the store's entries of the old one. The thread ends when nobody holds its worker.
    """
    of_group = _groups.setdefault(group, {})
    if what not in of_group:
        made = dist.new_group(
            dist.get_process_group_ranks(group),
            timeout=timeout_of(group, device),
            backend=dist.get_backend(group),
            use_local_synchronization=True,  # ranks of other groups are elsewhere, or make theirs
        )
        assert isinstance(made, dist.ProcessGroup)
        of_group[what] = made
    own = of_group[what]
    worker = _workers[own]() if own in _workers else None
    if worker is None:
        worker = Worker("lowprec wire")
        _workers[own] = weakref.ref(worker)
    return own, worker
