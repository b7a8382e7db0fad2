"""Runs a function on several processes that talk over gloo, and returns what each returned."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

# Processes are forked from one that has imported torch and has no threads yet: importing it takes seconds each.
multiprocessing.set_forkserver_preload(["torch", "lowprec_plugin"])


def run(ranks: int, function: Callable[..., Any], *args: Any, timeout: float = 120.0, over: bool = False) -> list[Any]:
    """``[function(rank, *args) for rank in range(ranks)]``, each in a process of its own with a process group.

    ``over``: the function destroys the group itself.
    """
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            _enter, (ranks, Path(folder), function, args, timeout, over), ranks, start_method="forkserver"
        )
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(ranks)]


def _enter(
    rank: int,
    ranks: int,
    folder: Path,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    timeout: float,
    over: bool,
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks,
        timeout=datetime.timedelta(seconds=timeout),
    )  # fmt: skip
    result = function(rank, *args)
    torch.save(result, folder / f"{rank}.pt")
    if not over:
        dist.barrier()
        dist.destroy_process_group()


def run_one_of(ranks: int, function: Callable[..., Any], folder: Path, timeout: float) -> Any:
    """What ``function`` returns on rank 0, whatever becomes of the others."""
    context = multiprocessing.get_context("forkserver")
    processes = [
        context.Process(target=_enter_alone, args=(rank, ranks, folder, function, timeout)) for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=4 * timeout)
        assert process.exitcode is not None, "a process hangs"
    return torch.load(folder / "0.pt", weights_only=False)


def _enter_alone(rank: int, ranks: int, folder: Path, function: Callable[..., Any], timeout: float) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks,
        timeout=datetime.timedelta(seconds=timeout),
    )  # fmt: skip
    result = function(rank)
    torch.save(result, folder / f"{rank}.pt")
    os._exit(0)
