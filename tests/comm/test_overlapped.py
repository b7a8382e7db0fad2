"""Gradients in codes under DDP, on processes that talk over gloo."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from lowprec_plugin import comm, optim
from lowprec_plugin.comm import overlapped
from lowprec_plugin.tensor.dtensor import stored_part
from lowprec_plugin.tensor.gradient import FixedPointGradient
from tests.comm import ranks


class Net(nn.Module):
    """Three large matrices, of which one may go unused, and small parameters that stay with DDP."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(60, 90), nn.Linear(90, 300), nn.Linear(300, 64)
        self.spare = nn.Linear(60, 300)

    def forward(self, x: Tensor, spare: bool = False) -> Tensor:
        hidden = self.second(torch.relu(self.first(x)))
        return self.third(torch.relu(hidden + self.spare(x) if spare else hidden))


def make(bits: int | None, **options: Any) -> tuple[DistributedDataParallel, comm.DDPState | None]:
    torch.manual_seed(0)
    net = Net()
    optim.quantize_(net, "fixed16", gradient_word_length=bits)
    if bits is not None:
        comm.leave_out_of_ddp(net)
    model = DistributedDataParallel(net, find_unused_parameters=True)
    if bits is None:
        return model, None
    state = comm.DDPState(model, 16, **options)
    model.register_comm_hook(state, comm.ddp_hook)
    return model, state


def backward(model: DistributedDataParallel, rank: int, step: int, *, spare: bool, accumulate: int = 1) -> None:
    data = torch.Generator().manual_seed(1000 * step + rank)
    for index in range(accumulate):
        x = torch.randn(8, 60, generator=data)
        with model.no_sync() if index < accumulate - 1 else nullcontext():
            (model(x, spare=spare)[:, :60] - x.sin()).square().mean().div(accumulate).backward()


def grads(model: DistributedDataParallel) -> dict[str, Tensor | None]:
    """Of every parameter the numbers of its gradient; and its codes, to compare ranks."""
    found: dict[str, Tensor | None] = {}
    for name, param in model.module.named_parameters():
        grad = param.grad
        if isinstance(grad, FixedPointGradient):
            found[f"{name}, codes"] = grad.codes.clone()
        found[name] = None if grad is None else grad.float().clone()
    return found


def _averages(rank: int, bits: int, accumulate: int, bucket: int) -> Any:
    overlapped.BUCKET, overlapped._SMALLEST = bucket, bucket
    found = []
    for given in (None, bits):
        model, state = make(given)
        found.append([])
        for step in range(3):
            backward(model, rank, step, spare=True, accumulate=accumulate)
            found[-1].append(grads(model))
            model.zero_grad()
    assert state is not None
    return *found, state.report(), str(state)


@pytest.mark.parametrize(
    ("count", "bits", "accumulate", "bucket"), [(2, 16, 1, 1 << 20), (2, 8, 3, 1 << 16), (4, 16, 2, 1)]
)
def test_gradients_are_averages(count: int, bits: int, accumulate: int, bucket: int) -> None:
    every = ranks.run(count, _averages, bits, accumulate, bucket)
    for exact, found, report, said in every:
        for step, (floats, codes) in enumerate(zip(exact, found, strict=True)):
            for name in ("first.weight", "second.weight", "third.weight", "spare.weight"):
                assert torch.equal(codes[f"{name}, codes"], every[0][1][step][f"{name}, codes"])  # on every rank
                largest = float(floats[name].abs().max())
                limit = (2 + accumulate) * largest * 2.0 ** (2 - bits)
                assert float((codes[name] - floats[name]).abs().max()) <= limit
            for name in ("first.bias", "third.bias"):
                torch.testing.assert_close(codes[name], floats[name], rtol=0, atol=1e-4)
        assert report["steps"] == 3
        assert "bytes of floats wait" in said


def _unused(rank: int) -> Any:
    model, _ = make(16)
    found = []
    for step, spare in enumerate((True, rank == 0, False, True)):
        backward(model, rank, step, spare=spare)
        found.append(grads(model))
        model.zero_grad()
    return found


def test_what_only_some_ranks_use_is_averaged_and_what_none_uses_has_no_gradient() -> None:
    one, other = ranks.run(2, _unused)
    for step in (0, 1, 3):
        assert torch.equal(one[step]["spare.weight, codes"], other[step]["spare.weight, codes"])
        assert float(one[step]["spare.weight"].abs().max()) > 0
    assert one[2]["spare.weight"] is None
    assert other[2]["spare.weight"] is None
    assert one[2]["second.weight"] is not None


def _trained(rank: int, again: bool) -> Any:
    model, state = make(8, error_feedback=False, seed=1)
    assert state is not None
    optimizer = optim.AdamW(model.parameters(), 1e-2)
    for step in range(6):
        if again and step == 3:
            saved = model.module.state_dict(), optimizer.state_dict(), state.state_dict()
            model, state = make(8, seed=1)
            assert state is not None
            model.module.load_state_dict(saved[0])
            optimizer = optim.AdamW(model.parameters(), 1e-2)
            optimizer.load_state_dict(saved[1])
            state.load_state_dict(saved[2])
        backward(model, rank, step, spare=True, accumulate=2)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
    return [stored_part(param).codes.clone() for param in model.parameters()]


def test_ranks_train_alike_and_a_resumed_run_ends_as_one_that_was_not() -> None:
    (whole, other), (resumed, _) = ranks.run(2, _trained, False), ranks.run(2, _trained, True)
    assert all(torch.equal(a, b) for a, b in zip(whole, other, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


def _started_apart(rank: int) -> Any:
    torch.manual_seed(rank)
    net = Net()
    optim.quantize_(net, "fixed16", gradient_word_length=8)
    comm.leave_out_of_ddp(net)
    model = DistributedDataParallel(net)
    comm.DDPState(model, 16)
    return [stored_part(param).codes.clone() for param in net.parameters()]


def test_all_ranks_begin_with_the_first_rank_s_weights() -> None:
    one, other = ranks.run(2, _started_apart)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def _refused(rank: int) -> Any:
    torch.manual_seed(0)
    net = Net()
    optim.quantize_(net, "fixed16", gradient_word_length=8)
    with pytest.raises(ValueError, match="leave_out_of_ddp"):
        comm.DDPState(DistributedDataParallel(net), 16)
    return None


def test_a_module_that_ddp_holds_floats_for_is_refused() -> None:
    ranks.run(2, _refused)


def _unprepared(rank: int, view: bool) -> Any:
    torch.manual_seed(0)
    net = Net()
    optim.quantize_(net, "fixed16", gradient_word_length=8)
    model = DistributedDataParallel(net, gradient_as_bucket_view=view, find_unused_parameters=True)
    optimizer = optim.AdamW(net.parameters(), 1e-3)
    backward(model, rank, 0, spare=True)
    kinds = {type(param.grad) for param in net.parameters() if param.numel() >= 4096}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        optimizer.step()
    return kinds, [str(each.message) for each in said], [stored_part(param).codes.clone() for param in net.parameters()]


@pytest.mark.parametrize("view", [False, True])
def test_ddp_that_was_not_prepared_trains_alike_and_it_is_said_where_floats_stay(view: bool) -> None:
    (kinds, said, codes), (_, _, others) = ranks.run(2, _unprepared, view)
    assert all(torch.equal(a, b) for a, b in zip(codes, others, strict=True))
    assert kinds == {Tensor if view else FixedPointGradient}
    assert any("leave_out_of_ddp" in each for each in said) == view


def _twice(rank: int) -> Any:
    model, _ = make(16)
    x = torch.randn(8, 60, requires_grad=True)

    def part(x: Tensor) -> Tensor:
        return model.module.first(x)  # type: ignore[operator, union-attr]

    hidden = checkpoint(part, x, use_reentrant=True) + checkpoint(part, 2 * x, use_reentrant=True)
    with pytest.raises(RuntimeError, match="use_reentrant"):
        model.module.second(hidden).sum().backward()  # type: ignore[operator, union-attr]
    return None


def test_a_gradient_that_comes_twice_is_refused() -> None:
    ranks.run(1, _twice)


def _broken(rank: int) -> Any:
    model, _ = make(16)

    def fail(grad: Tensor) -> None:
        raise ZeroDivisionError

    hook = model.module.first.weight.register_hook(fail)  # type: ignore[union-attr]
    with pytest.raises(ZeroDivisionError):
        backward(model, rank, 0, spare=True)
    hook.remove()
    # By DDP, which has the small parameters, or by what exchanges the others: whichever sees a gradient first.
    with pytest.raises(RuntimeError, match=r"mark a variable ready only once|start the processes again"):
        model.module(torch.randn(8, 60)).sum().backward()
    return None


def test_a_pass_after_one_that_an_error_ended_is_refused() -> None:
    ranks.run(1, _broken)


def test_ddp_keeps_one_parameter_at_least() -> None:
    module = nn.Sequential(nn.Linear(64, 128, bias=False), nn.Linear(128, 128, bias=False))
    optim.quantize_(module, "fixed16", gradient_word_length=8)
    assert comm.leave_out_of_ddp(module) == ["1.weight"]
    assert stored_part(module[0].weight).gradient_word_length is None
    module(torch.randn(3, 64)).sum().backward()
    assert type(module[0].weight.grad) is Tensor
    assert type(module[1].weight.grad) is FixedPointGradient
