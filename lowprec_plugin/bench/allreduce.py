"""Measure one's own network: how long gradients take in float32, in 16-bit floats and in fixed-point, and what is sent.

Run by ``torchrun`` on the hosts in question, or alone for processes of this machine. The sides take turns; a round's
time is that of the slowest process; medians are reported. Bytes are those that the operating system counts, of all
interfaces and all processes of the first rank's host.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import FileStore  # type: ignore[attr-defined]
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook, fp16_compress_hook
from torch.multiprocessing.spawn import spawn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from lowprec_plugin import comm
from lowprec_plugin.arithmetic.backends import fastest_device
from lowprec_plugin.arithmetic.devices import accelerated
from lowprec_plugin.arithmetic.reference.wire import WORD_LENGTHS
from lowprec_plugin.bench.models import Transformer
from lowprec_plugin.bench.timing import FLOAT32, in_turns, seconds
from lowprec_plugin.formats import check_integer, check_number
from lowprec_plugin.text.files import whole_text
from lowprec_plugin.version import __version__

Side = Callable[[int], Any]


def run_allreduce(
    megabytes: float = 64.0, rounds: int = 7, processes: int = 2, step: bool = True, output: str = ""
) -> dict[str, Any] | None:
    """Print and return a table of times and bytes: one all-reduce, and a training step under DDP.

    Args:
        megabytes: MiB of float32 gradients in the all-reduce.
        rounds: turns of each side.
        processes: of this machine, unless torchrun has started several.
        step: measure a training step of a 10-million-parameter transformer as well.
        output: a JSON file to write.

    Returns:
        the record, on rank 0 where torchrun started this; ``None`` elsewhere.

    Raises:
        OptionError: for a number below 1, or less than a KiB.
    """
    check_number(megabytes, "megabytes", 2**-10, math.inf)
    check_integer(rounds, "rounds", 1)
    check_integer(processes, "processes", 1)
    if "RANK" in os.environ:
        return _measure(megabytes, rounds, step, output)
    with TemporaryDirectory() as folder:  # a TCPStore would listen on every network of this machine
        given = (processes, f"{folder}/store", megabytes, rounds, step, output)
        spawn(_local, given, processes)  # type: ignore[no-untyped-call]
    return json.loads(Path(output).read_text()) if output else None


def _local(rank: int, processes: int, store: str, *given: Any) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    dist.init_process_group(_backend(), store=FileStore(store, processes), rank=rank, world_size=processes)
    _measure(*given)


def _backend() -> str:
    return dist.get_default_backend_for_device(fastest_device())


def _measure(megabytes: float, rounds: int, step: bool, output: str) -> dict[str, Any] | None:
    if not dist.is_initialized():
        dist.init_process_group(_backend(), timeout=datetime.timedelta(minutes=10))
    device = fastest_device()
    if accelerated(device):
        device = torch.device(device.type, int(os.environ.get("LOCAL_RANK", 0)))
        torch.accelerator.set_device_index(device)
    elements = int(megabytes * 2**18)
    record: dict[str, Any] = {
        "version": __version__, "torch": torch.__version__, "processes": dist.get_world_size(),
        "backend": dist.get_backend(), "threads": torch.get_num_threads(), "megabytes": megabytes,
    }  # fmt: skip
    _say(", ".join(f"{name} {value}" for name, value in record.items()))
    given = torch.randn(elements, generator=torch.Generator().manual_seed(dist.get_rank())).to(device)
    gradient = torch.empty_like(given)
    record["all_reduce"] = _report(
        f"all-reduce of {megabytes:g} MiB", collectives(gradient), rounds, device, lambda: gradient.copy_(given)
    )
    if step:
        record["step"] = _report("training step under DDP, 10 M transformer", steps(device), rounds, device)
    rank = dist.get_rank()
    if rank == 0 and output:
        whole_text(output, json.dumps(record, indent=1) + "\n")
    dist.barrier()
    dist.destroy_process_group()
    return record if rank == 0 else None


def collectives(gradient: Tensor) -> dict[str, Side]:
    """All-reduces of one gradient, in place, by what it travels as."""

    def narrowed(dtype: torch.dtype) -> Side:
        def reduce(index: int) -> Tensor:  # as torch's compression hooks do it
            narrow = gradient.to(dtype).div_(dist.get_world_size())
            dist.all_reduce(narrow)
            return gradient.copy_(narrow)

        return reduce

    sides: dict[str, Side] = {
        FLOAT32: lambda index: dist.all_reduce(gradient),
        "fp16_compress_hook": narrowed(torch.float16),
        "bf16_compress_hook": narrowed(torch.bfloat16),
    }
    for word_length in reversed(WORD_LENGTHS):
        sides[f"lowprec {word_length}"] = partial(_in_fixed_point, gradient, word_length)
    return sides


def _in_fixed_point(gradient: Tensor, word_length: int, index: int) -> Tensor:
    return comm.all_reduce(gradient, word_length=word_length, step=index)


def steps(device: torch.device) -> dict[str, Side]:
    """Training steps under DDP, by the hook that its gradients go through."""
    ids = torch.randint(256, (4, 65), device=device)

    def side(hook: Any, word_length: int | None = None) -> Side:
        model = DistributedDataParallel(Transformer().to(device))
        if word_length is not None:
            model.register_comm_hook(comm.DDPState(model, word_length), comm.ddp_hook)
        elif hook is not None:
            model.register_comm_hook(None, hook)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)

        def step(index: int) -> None:
            optimizer.zero_grad()
            cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        return step

    sides = {FLOAT32: side(None), "fp16_compress_hook": side(fp16_compress_hook)}
    if device.type == "cuda":  # on the CPU torch refuses it
        sides["bf16_compress_hook"] = side(bf16_compress_hook)
    return sides | {f"lowprec {word_length}": side(None, word_length) for word_length in (16, 8)}


def _report(
    title: str,
    sides: dict[str, Side],
    rounds: int,
    device: torch.device,
    prepare: Callable[[], Any] = lambda: None,
) -> dict[str, dict[str, float | None]]:
    """Time every side in turn, each after an untimed ``prepare``."""

    def measured(side: Side, index: int) -> tuple[float, int]:
        prepare()
        dist.barrier()
        before = _bytes_sent()
        slowest = torch.tensor(seconds(partial(side, index), device), device=device)
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        return float(slowest), _bytes_sent() - before

    found = in_turns(sides, rounds, measured)
    base, base_sent = statistics.median(time for time, _ in found[FLOAT32]), min(sent for _, sent in found[FLOAT32])
    _say(f"\n{title} (MiB sent: by this host, all its processes and other traffic together)")
    _say(f"  {'':20} {'ms':>9} {'faster':>8} {'MiB sent':>9} {'of float32':>10}")
    result: dict[str, dict[str, float | None]] = {}
    for name, rounds_of in found.items():
        median = statistics.median(time for time, _ in rounds_of)
        least = min(sent for _, sent in rounds_of)  # other traffic only adds
        share = least / base_sent if base_sent else None  # the system does not count
        result[name] = {
            "ms": 1e3 * median,
            "times_faster": base / median,
            "MiB_sent": least / 2**20,
            "of_float32": share,
        }
        said = "-" if share is None else f"{share:.3f}"
        _say(f"  {name:20} {1e3 * median:9.1f} {base / median:7.2f}x {least / 2**20:9.2f} {said:>10}")
    return result


def _bytes_sent() -> int:
    """Bytes that this host's network interfaces have sent, as the operating system counts them; 0 where it does not."""
    counters = Path("/sys/class/net").glob("*/statistics/tx_bytes")
    return sum(int(counter.read_text()) for counter in counters)


def _say(text: str) -> None:
    if dist.get_rank() == 0:
        print(text, flush=True)
