"""How the wire of DDP begins, ends and fails: groups, threads, time-outs, processes that leave."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lowprec_plugin import comm
from tests.comm import ranks


def hooked(net: nn.Module, **options: Any) -> DistributedDataParallel:
    model = DistributedDataParallel(net, **options)
    model.register_comm_hook(comm.DDPState(model), comm.ddp_hook)
    return model


def backward(model: nn.Module, scale: float = 1.0) -> None:
    model(torch.full((4, 60), scale)).sum().backward()


def _hangs(rank: int) -> tuple[str, float]:
    model = hooked(nn.Linear(60, 60))
    for _ in range(3):  # in the second, DDP lays out its buckets anew, in the model's own group
        backward(model)
    start = time.monotonic()
    if rank == 1:
        time.sleep(16)
        return "slept", 0.0
    try:
        backward(model)
    except RuntimeError as error:
        return str(error), time.monotonic() - start
    return "no error", 0.0


def test_the_time_out_is_that_of_the_models_group(tmp_path: Path) -> None:
    said, seconds = ranks.run_one_of(2, _hangs, tmp_path, timeout=6.0)
    assert "imed out" in said
    assert "cast" not in said
    assert seconds < 12


def _subgroups(rank: int) -> list[float]:
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    model = hooked(nn.Linear(60, 60), process_group=groups[rank // 2])
    backward(model, float(rank))
    grad = model.module.weight.grad
    return [float(grad.min()), float(grad.max())]


def test_models_of_disjoint_groups_do_not_meet() -> None:
    for rank, got in enumerate(ranks.run(4, _subgroups)):
        mean = 4 * (0.5 if rank < 2 else 2.5)
        assert all(abs(value - mean) < 0.01 for value in got), (rank, got)


def test_a_process_that_raises_ends_with_its_own_code(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.comm.leaves"]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=50)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [3, 3], said


def threads() -> int:
    return sum(thread.name == "lowprec wire" for thread in threading.enumerate())


def _again(rank: int) -> list[tuple[int, int]]:
    counted = []
    for _ in range(3):
        backward(hooked(nn.Linear(60, 60)))
        gc.collect()
        end = time.monotonic() + 5
        while threads() and time.monotonic() < end:
            time.sleep(0.01)
        counted.append((threads(), len(dist.distributed_c10d._world.pg_map)))
    one, other = hooked(nn.Linear(60, 60)), hooked(nn.Linear(60, 60))
    (one(torch.ones(4, 60)) + other(torch.ones(4, 60))).sum().backward()
    return [*counted, (threads(), len(dist.distributed_c10d._world.pg_map))]


def test_threads_and_groups_do_not_pile_up() -> None:
    for counted in ranks.run(2, _again):
        assert counted == [(0, 2)] * 3 + [(1, 2)]


def _fails(rank: int) -> str:
    model = hooked(nn.Linear(60, 60))

    def refuse(*given: Any, **more: Any) -> None:
        raise ValueError("no room for the exchange")

    dist.all_to_all_single = refuse
    try:
        backward(model)
    except RuntimeError as error:
        return str(error)
    return "no error"


def test_an_error_on_the_thread_is_told_as_it_was() -> None:
    for said in ranks.run(2, _fails):
        assert "ValueError: no room for the exchange" in said
        assert "cast" not in said
