"""Gradients in bfloat16, and released ones, under DDP and FSDP2, on processes that talk over gloo."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from lowprec_plugin import comm, optim
from lowprec_plugin.optim import NonFiniteGradientError
from tests.comm import ranks


def network(dtype: torch.dtype | None, sharded: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(300, 37), nn.Tanh(), nn.Linear(37, 5))
    if sharded:
        fully_shard(module[0])
        fully_shard(module)
    optim.quantize_(module, gradient_dtype=dtype)
    return module


def backward(module: nn.Module, rank: int, step: int) -> None:
    x = torch.randn(8, 300, generator=torch.Generator().manual_seed(10 * step + rank))
    module(x).square().mean().backward()


def local(module: nn.Module) -> list[Tensor]:
    """What this rank holds of gradients, in order."""
    grads: list[Any] = [param.grad for param in module.parameters()]
    return [grad.to_local() if hasattr(grad, "to_local") else grad for grad in grads]


def _under_ddp(rank: int) -> list[list[Tensor]]:
    """Gradients of two steps, of which the second adds up two micro-batches; of floats, and in bfloat16."""
    found = []
    for dtype in (None, torch.bfloat16):
        module = network(dtype)
        comm.leave_out_of_ddp(module)
        model = DistributedDataParallel(module)
        state = comm.DDPState(model, 16)
        model.register_comm_hook(state, comm.ddp_hook)
        optimizer = optim.AdamW(model.parameters(), 0.01)
        grads: list[Tensor] = []
        for step in range(2):
            for batch in range(step + 1):
                with model.no_sync() if batch < step else nullcontext():
                    backward(model, rank, 2 * step + batch)
            grads += [grad.clone() for grad in local(module)]
            if step == 0:
                for param in module.parameters():  # both go on from the same weights
                    param.grad = None
        optimizer.step() if dtype else None
        found.append([*grads, *(plane.clone() for param in module.parameters() for plane in param.blocks.planes)])
    return found


def test_ddp_hands_over_the_means_that_the_wire_has_averaged() -> None:
    one, other = ranks.run(2, _under_ddp)
    (floats, narrow), (_, again) = one, other
    assert all(torch.equal(a, b) for a, b in zip(narrow, again, strict=True))  # gradients and weights of both ranks
    for index, (exact, grad) in enumerate(zip(floats[:8], narrow[:8], strict=True)):
        kept = index % 4 == 3  # the smallest stays with DDP, which needs one
        assert grad.dtype == (torch.float32 if kept else torch.bfloat16)
        if index < 4:
            assert torch.equal(exact.to(grad.dtype), grad)
        else:  # the first micro-batch was rounded before it travelled
            assert torch.allclose(exact, grad.float(), rtol=0.02, atol=float(exact.abs().max()) / 100)


def _without_leaving_out(rank: int) -> str:
    model = DistributedDataParallel(network(torch.bfloat16))
    with pytest.raises(ValueError, match="of another dtype or released") as info:
        comm.DDPState(model, 16)
    with pytest.raises(RuntimeError, match=r"BFloat16|bfloat16"):  # nor does DDP alone take it for a float
        backward(model, rank, 0)
    return str(info.value)


def test_ddp_that_does_not_leave_parameters_out_is_refused() -> None:
    for said in ranks.run(2, _without_leaving_out):
        assert "call comm.leave_out_of_ddp(module) before wrapping the module" in said


def _under_fsdp2(rank: int, wire: bool) -> list[list[Tensor]]:
    found = []
    for dtype in (None, torch.bfloat16):
        module = network(dtype, sharded=True)
        if wire:
            comm.FSDPState(module, 16)
        optimizer = optim.AdamW(module.parameters(), 0.01)
        grads = []
        for step in range(3):
            for batch in range(2):
                backward(module, rank, 2 * step + batch)
                module.reshard()  # type: ignore[operator]
                if batch == 0:
                    grads += [grad.clone() for grad in local(module)]
            if dtype is None:
                for param in module.parameters():
                    param.grad = None
            else:
                assert {grad.dtype for grad in local(module)} == {torch.bfloat16}
                optimizer.step() if step == 2 else None
                optimizer.zero_grad()
        found.append(grads)
    return found


@pytest.mark.parametrize("wire", [False, True])
@pytest.mark.parametrize("processes", [1, 2])
def test_fsdp2_hands_over_shards(processes: int, wire: bool) -> None:
    for floats, narrow in ranks.run(processes, _under_fsdp2, wire):
        assert len(floats) == 12
        for exact, grad in zip(floats, narrow, strict=True):
            assert torch.equal(exact.bfloat16(), grad)


class Parts(nn.Module):
    """Parts of which one is used on the second rank alone, and one on none."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(300, 64), nn.Linear(64, 300)
        self.sometimes, self.never = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor, sometimes: bool) -> Tensor:
        hidden = self.first(x).tanh()
        return self.last(self.sometimes(hidden) if sometimes else hidden)


def _released(rank: int, every: bool) -> list[list[Tensor]]:
    """Planes of weights and state after ten steps: of gradients that DDP averages, and of released ones."""
    found = []
    for kept in (None, "release"):
        torch.manual_seed(0)
        module = Parts()
        optim.quantize_(module, gradient_word_length=kept)
        comm.leave_out_of_ddp(module)
        model = DistributedDataParallel(module, find_unused_parameters=True)
        state = comm.DDPState(model, 16)
        model.register_comm_hook(state, comm.ddp_hook)
        optimizer = optim.AdamW(model.parameters(), 0.01, state_word_length=8)
        for step in range(10):
            x = torch.randn(8, 300, generator=torch.Generator().manual_seed(10 * step + rank))
            model(x, every or (rank == 1 and step % 3 > 0)).square().mean().backward()
            large = [param for param in module.parameters() if param.numel() >= 4096]
            assert kept is None or all(param.grad is None for param in large)
            optimizer.step()
            optimizer.zero_grad()
        planes = []
        for name, param in module.named_parameters():
            assert (param in optimizer.state) == ("never" not in name)
            for value in [param, *optimizer.state.get(param, {}).values()]:
                planes += value.blocks.planes if hasattr(value, "blocks") else [value]
        found.append([plane.clone() for plane in planes])
    return found


@pytest.mark.parametrize("every", [True, False])
def test_released_gradients_are_averaged_first(every: bool) -> None:
    """The codes are those of a run that keeps gradients, on both ranks, whichever has used what."""
    (kept, released), (_, other) = ranks.run(2, _released, every)
    assert len(kept) == len(released) > 20
    assert all(torch.equal(a, b) for a, b in zip(released, other, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(kept, released, strict=True))


def _released_otherwise(rank: int) -> list[str]:
    said = []

    def model(leave_out: bool = True, wire: bool = True) -> tuple[DistributedDataParallel, Any]:
        module = nn.Sequential(nn.Linear(300, 37), nn.Linear(37, 300))
        optim.quantize_(module, gradient_word_length="release")
        if leave_out:
            comm.leave_out_of_ddp(module)
        wrapped = DistributedDataParallel(module)
        optimizer = optim.AdamW(wrapped.parameters(), 0.01)
        if wire:
            state = comm.DDPState(wrapped, 16)
            wrapped.register_comm_hook(state, comm.ddp_hook)
        return wrapped, optimizer

    with pytest.raises(ValueError, match="released") as info:
        model(leave_out=False)
    said.append(str(info.value))
    for leave_out in (False, True):
        wrapped, optimizer = model(leave_out, wire=False)
        with pytest.raises(RuntimeError) as error:
            backward(wrapped, rank, 0)
        assert not optimizer.state
        said.append(str(error.value))
    wrapped, optimizer = model()
    with wrapped.no_sync(), pytest.raises(RuntimeError) as error:
        backward(wrapped, rank, 0)
    assert not optimizer.state
    return [*said, str(error.value)]


def test_released_gradients_that_nobody_averages_are_refused_before_anything_is_changed() -> None:
    for held, alone, left_out, accumulated in ranks.run(2, _released_otherwise):
        assert "call comm.leave_out_of_ddp(module) before wrapping the module" in held
        for said in (alone, left_out):
            assert "nobody averages it over the processes before: call comm.leave_out_of_ddp(module)" in said
        assert "came within no_sync" in accumulated


def _sick(rank: int) -> str:
    module = Parts()
    optim.quantize_(module, gradient_word_length="release")
    comm.leave_out_of_ddp(module)
    model = DistributedDataParallel(module, find_unused_parameters=True)
    state = comm.DDPState(model, 16)
    model.register_comm_hook(state, comm.ddp_hook)
    optimizer = optim.AdamW(model.parameters(), 0.01)
    x = torch.randn(8, 300)
    loss = model(x / 0 if rank == 1 else x, False).square().mean()
    with pytest.raises(NonFiniteGradientError) as info:
        loss.backward()
    assert not optimizer.state
    return str(info.value)


def test_all_ranks_refuse_a_released_gradient_that_is_not_finite_on_one() -> None:
    one, other = ranks.run(2, _sick)
    assert one == other
    assert "holds a NaN or an infinity, and its update was refused. Nothing has been written in this step" in one


def _sharded(rank: int) -> str:
    module = network(None, sharded=True)
    optim.quantize_(module, gradient_word_length="release")
    with pytest.raises(ValueError, match="is sharded") as info:
        optim.AdamW(module.parameters(), 0.01)
    return str(info.value)


def test_shards_are_not_released() -> None:
    (said,) = ranks.run(1, _sharded)
    assert "does not go together with gradient_word_length='release': use gradient_word_length=8" in said
