"""The wire of FSDP2, on processes that talk over gloo."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lowprec_plugin import FixedPointTensor, comm, optim
from lowprec_plugin.comm.fsdp import release
from lowprec_plugin.tensor.dtensor import local_part, stored_part
from lowprec_plugin.tensor.gradient import FixedPointGradient
from tests.comm import ranks


def model(mesh: Any = None, fixed: bool = True) -> nn.Module:
    torch.manual_seed(0)
    result = nn.Sequential(nn.Linear(300, 37), nn.Tanh(), nn.Linear(37, 5))
    options = {} if mesh is None else {"mesh": mesh}
    fully_shard(result[0], **options)
    fully_shard(result, **options)
    if fixed:
        optim.quantize_(result)
    return result


def batch() -> Tensor:
    return torch.randn(8, 300, generator=torch.Generator().manual_seed(dist.get_rank()))


def gradients(module: nn.Module) -> list[Tensor]:
    module.reshard()  # type: ignore[operator]  # after evaluation the root's parameters are gathered
    for param in module.parameters():
        param.grad = None
    module(batch()).square().mean().backward()
    return [param.grad.full_tensor().clone() for param in module.parameters()]  # type: ignore[union-attr]


def _averages(rank: int, replicated: bool) -> Any:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard")) if replicated else None
    plain = model(mesh)
    plain.set_force_sum_reduction_for_comms(True)  # type: ignore[operator]
    plain[0].set_force_sum_reduction_for_comms(True)
    exact, found, reports = gradients(plain), {}, {}
    for word_length in (16, 12, 8, 4):
        sent = model(mesh)
        state = comm.FSDPState(sent, word_length)
        found[word_length] = gradients(sent)
        reports[word_length] = (state.report(), str(state), state.state_dict())
    return exact, found, reports


@pytest.mark.parametrize("replicated", [False, True])
def test_gradients_are_averages_within_what_the_word_length_allows(replicated: bool) -> None:
    every = ranks.run(4 if replicated else 3, _averages, replicated)
    for exact, found, reports in every:
        for word_length, given in found.items():
            for one, other, first in zip(exact, given, every[0][1][word_length], strict=True):
                assert torch.equal(other, first)  # the same on every rank
                largest = max(float(each.abs().max()) for each in exact)
                assert (one - other).abs().max() <= 4 * largest * 2.0 ** (1 - word_length)
                assert not torch.equal(one, other)  # a wire that was not active would fail here
            report, said, _ = reports[word_length]
            assert report["steps"] == 1
            assert said.startswith(f"{word_length} bits, stochastic rounding")
            assert ("between replicas as FSDP2 sends them" in said) == replicated


def test_bytes_are_counted() -> None:
    """One reduction, one gather of the inner group in either direction, one of the root's."""
    count = 3
    inner, outer = 13 * 300 + 13, 2 * 37 + 2  # the largest shard of each group, in elements
    codes = [13 * (300 * 2 + 2) + 13 * 3, 2 * (37 * 2 + 1) + 2 * 3]
    for _, _, reports in ranks.run(count, _averages, False):
        for word_length, (report, _, _) in reports.items():
            blocks = -(-inner // 256) + -(-outer // 256)
            packed = sum(-(-n // 256) * (32 * word_length + 1) for n in (inner, outer))
            assert packed <= report["bytes_sent_per_step"] / (count - 1) <= packed + 32 * blocks
            assert report["float32_bytes_per_step"] == (count - 1) * 4 * (inner + outer)
            assert report["weight_bytes_sent_per_step"] == (count - 1) * (2 * codes[0] + codes[1])
            assert report["float32_weight_bytes_per_step"] == (count - 1) * 4 * (2 * inner + outer)


def _resumed(rank: int) -> bool:
    one = model()
    state = comm.FSDPState(one, 8)
    gradients(one)
    saved = state.state_dict()
    expected = gradients(one)
    other = model()
    resumed = comm.FSDPState(other, 8)
    resumed.load_state_dict(saved)
    assert saved["step"] == 1
    same = all(torch.equal(a, b) for a, b in zip(expected, gradients(other), strict=True))
    assert resumed.report()["steps"] == 1
    fresh = model()
    comm.FSDPState(fresh, 8)
    assert not all(torch.equal(a, b) for a, b in zip(expected, gradients(fresh), strict=True))
    return same


def test_a_resumed_wire_rounds_as_it_would_have() -> None:
    assert all(ranks.run(2, _resumed))


def _nan_on_one_rank(rank: int) -> bool:
    sharded = model()
    comm.FSDPState(sharded)
    x = batch()
    if rank == 1:
        x[0, 0] = float("inf")
    sharded(x).square().mean().backward()
    optimizer = optim.AdamW(sharded.parameters())
    with pytest.raises(ValueError, match="holds a NaN or an infinity"):
        optimizer.step()
    return True


def test_a_nan_on_one_rank_stops_every_rank() -> None:
    assert ranks.run(2, _nan_on_one_rank) == [True, True]


def _in_order(*names: str) -> nn.Module:
    result = nn.Sequential(OrderedDict((name, nn.Linear(30, 30)) for name in names))
    fully_shard(result)
    return result


def _refused(rank: int) -> list[str]:
    said = []
    for make in (
        lambda: comm.FSDPState(model(), 16, seed=rank),
        lambda: comm.FSDPState(model(), 5),
        lambda: comm.FSDPState(nn.Linear(2, 2)),
        lambda: comm.FSDPState(model(), rounding="up"),
        lambda: comm.FSDPState(model(fixed=False).double()),
        lambda: comm.FSDPState(_in_order(*("ab" if rank == 0 else "ba"))),
    ):
        with pytest.raises(ValueError) as info:  # noqa: PT011
            make()
        said.append(str(info.value))
    return said


def test_refusals() -> None:
    for said in ranks.run(2, _refused):
        assert "the ranks disagree on seed: rank 0 has 0, rank 1 has 1" in said[0]
        assert "word_length=5" in said[1]
        assert "no part of this Linear is sharded: call fully_shard on it first" in said[2]
        assert "rounding='up'" in said[3]
        assert "gradients of the root are reduced in torch.float64, and only float32, bfloat16 and float16" in said[4]
        assert "disagree on parameter 0: rank 0 has 'a.weight: shape (30, 30), torch.float32, trained'" in said[5]


def _evaluated(rank: int) -> Any:
    sharded = model()
    state = comm.FSDPState(sharded)
    gradients(sharded)
    before = state.report()
    sharded.eval()
    with torch.no_grad():
        for _ in range(3):
            sharded(batch())
    after = state.report()
    state.load_state_dict({"step": 5})
    gone_back = state.report()
    release(sharded)
    exact = model()
    exact.set_force_sum_reduction_for_comms(True)  # type: ignore[operator]
    exact[0].set_force_sum_reduction_for_comms(True)
    same = all(torch.equal(a, b) for a, b in zip(gradients(sharded), gradients(exact), strict=True))
    return before, after, gone_back, same, str(state)


def test_evaluation_is_not_counted_and_a_released_wire_carries_floats() -> None:
    for before, after, gone_back, same, said in ranks.run(2, _evaluated):
        assert before == after
        assert before["weight_bytes_sent_per_step"] > 0
        assert gone_back == after
        assert same
        assert said.startswith("as floats")


def _said(rank: int) -> list[str]:
    module = model(fixed=False)
    state = comm.FSDPState(module)
    found = [str(state)]
    optim.quantize_(module, keep_float=["2.*"])
    return [*found, str(state)]


def test_it_says_what_weights_are_gathered_as() -> None:
    floats, some = ranks.run(2, _said)[0]
    assert floats.endswith("weights gathered as floats")
    assert some.endswith("weights gathered as codes (2 of 4 parameters)")


def _coded(rank: int, before: bool, wire: bool) -> Any:
    """Gradients in codes, whole, after two micro-batches; and the weights after three steps."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(300, 96), nn.Tanh(), nn.Linear(96, 128), nn.Tanh(), nn.Linear(128, 8))
    if before:
        optim.quantize_(module, "fixed16", gradient_word_length=8)
    for part in (module[0], module[2], module):
        fully_shard(part)
    if not before:
        optim.quantize_(module, "fixed16", gradient_word_length=8)
    if wire:
        comm.FSDPState(module, 16)
    optimizer = optim.AdamW(module.parameters(), 1e-2)
    found = []
    for step in range(3):
        for index in range(2):
            x = torch.randn(8, 300, generator=torch.Generator().manual_seed(10 * step + index))
            module(x).square().mean().backward()
        kinds = [type(local_part(param.grad)) for param in module.parameters()]  # type: ignore[arg-type]
        assert kinds == [FixedPointGradient, Tensor, FixedPointGradient, Tensor, Tensor, Tensor]
        found += [_whole(stored_part(module[at].weight.grad)) for at in (0, 2)]  # type: ignore[arg-type]
        optimizer.step()
        optimizer.zero_grad()
    return [*found, *(_whole(stored_part(param)) for param in module.parameters())]


def _whole(part: FixedPointTensor) -> Tensor:
    """The codes of all ranks' rows."""
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, part.codes.clone())
    return torch.cat(every)


@pytest.mark.parametrize("before", [False, True])
def test_gradients_in_codes_are_the_same_on_any_number_of_ranks(before: bool) -> None:
    one, two, four = (ranks.run(count, _coded, before, False) for count in (1, 2, 4))
    for other in (two[0], two[1], four[0], four[3]):
        assert all(torch.equal(a, b) for a, b in zip(one[0], other, strict=True))


def test_gradients_in_codes_behind_a_wire_are_the_same_on_all_ranks() -> None:
    one, other = ranks.run(2, _coded, False, True)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
