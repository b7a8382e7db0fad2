from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lowprec_plugin import comm, optim
from tests.comm import ranks


class Net(nn.Module):
    """Layers of several sizes, one of them smaller than a block and one that may go unused."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(60, 90), nn.Linear(90, 300)
        self.last, self.spare = nn.Linear(300, 5), nn.Linear(60, 5)

    def forward(self, x: torch.Tensor, spare: bool = False) -> torch.Tensor:
        y = self.last(torch.relu(self.second(torch.relu(self.first(x)))))
        return y + self.spare(x) if spare else y


def fit(
    rank: int,
    steps: int,
    word_length: int | None = 16,
    *,
    feedback: bool = False,
    unused: bool = False,
    accumulate: int = 1,
    fixed: bool = False,
    start: tuple[dict[str, Any], dict[str, Any]] | None = None,
    first: int = 0,
    **options: Any,
) -> tuple[DistributedDataParallel, comm.DDPState | None]:
    """Train a Net on rank-dependent data from step ``first`` on."""
    torch.manual_seed(0)
    net = Net()
    if fixed:
        optim.quantize_(net, "fixed16")
    if start is not None:
        net.load_state_dict(start[0])
    model = DistributedDataParallel(net, find_unused_parameters=unused, **options)
    state = None
    if word_length is not None:
        state = comm.DDPState(model, word_length, error_feedback=feedback, seed=1)
        if start is not None:
            state.load_state_dict(start[1])
        model.register_comm_hook(state, comm.ddp_hook)
    optimizer = optim.SGD(net.parameters(), lr=0.05) if fixed else torch.optim.SGD(net.parameters(), lr=0.05)
    for step in range(first, first + steps):
        data = torch.Generator().manual_seed(1000 * step + rank)
        for index in range(accumulate):
            x = torch.randn(8, 60, generator=data)
            target = x[:, :5].sin()
            with model.no_sync() if index < accumulate - 1 else torch.enable_grad():
                nn.functional.mse_loss(model(x, spare=not unused), target).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, state


def digest(model: nn.Module) -> str:
    planes = b"".join(p.detach().dequantize().numpy().tobytes() if hasattr(p, "codes") else p.detach().numpy().tobytes()
                      for p in model.parameters())  # fmt: skip
    return hashlib.sha256(planes).hexdigest()


def _hashes(rank: int) -> dict[str, str]:
    cases: dict[str, dict[str, Any]] = {
        "plain": {"word_length": None},
        "16": {},
        "small buckets": {"bucket_cap_mb": 0.01},
        "large buckets": {"bucket_cap_mb": 100},
        "views": {"gradient_as_bucket_view": True},
        "static graph": {"static_graph": True},
        "fixed-point weights": {"fixed": True},
        "8": {"word_length": 8},
        "8, small buckets": {"word_length": 8, "bucket_cap_mb": 0.01},
        "8, feedback": {"word_length": 8, "feedback": True},
        "8, feedback, small buckets": {"word_length": 8, "feedback": True, "bucket_cap_mb": 0.01},
        "12": {"word_length": 12},
        "4, feedback": {"word_length": 4, "feedback": True},
        "unused": {"unused": True},
        "accumulated": {"accumulate": 3},
    }
    return {
        name: digest(fit(rank, 200 if name in ("16", "small buckets") else 30, **case)[0])
        for name, case in cases.items()
    }


def test_every_rank_has_the_same_weights_whatever_the_buckets() -> None:
    one, other = ranks.run(2, _hashes)
    assert one == other
    assert one["16"] == one["small buckets"]
    assert one["large buckets"] == one["views"] == one["static graph"]
    assert one["8"] == one["8, small buckets"]
    assert one["8, feedback"] == one["8, feedback, small buckets"]
    assert len({one[name] for name in ("plain", "views", "8", "8, feedback", "12", "4, feedback", "unused")}) == 7


def _three(rank: int) -> tuple[str, list[torch.Tensor], list[torch.Tensor]]:
    weights = [[p.detach().clone() for p in fit(rank, 30, wl)[0].parameters()] for wl in (16, None)]
    return digest(fit(rank, 30)[0]), *weights


def test_three_ranks_end_near_float32() -> None:
    every = ranks.run(3, _three)
    assert len({each[0] for each in every}) == 1
    for ours, floats in zip(*every[0][1:], strict=True):
        assert torch.allclose(ours, floats, atol=2e-3)
        assert ours.numel() < 256 or not torch.equal(ours, floats)  # a hook that does nothing fails here


def _resumed(rank: int) -> tuple[str, str]:
    straight, _ = fit(rank, 20, 8, feedback=True)
    half, state = fit(rank, 10, 8, feedback=True)
    assert state is not None
    saved = ({k: v.clone() for k, v in half.module.state_dict().items()}, state.state_dict())
    return digest(straight), digest(fit(rank, 10, 8, feedback=True, start=saved, first=10)[0])


def test_training_resumes_bit_for_bit() -> None:
    for straight, resumed in ranks.run(2, _resumed):
        assert straight == resumed


def _residuals(rank: int, saved: Any) -> dict[str, list[torch.Tensor]]:
    _, state = fit(rank, 3, 8, feedback=True)
    assert state is not None
    if saved is not None:
        state.load_state_dict(saved)
    return state.state_dict()


def test_residuals_of_another_number_of_ranks_are_averaged() -> None:
    from lowprec_plugin.arithmetic import ops
    from lowprec_plugin.arithmetic.blocks import Blocks
    from lowprec_plugin.arithmetic.reference.wire import RESIDUAL

    def mean(saved: Any, name: str) -> torch.Tensor:
        codes, exponents = saved["residuals"][name]
        return torch.stack(
            [ops.dequantize(Blocks(c, None, e), RESIDUAL) for c, e in zip(codes, exponents, strict=True)]
        ).mean(dim=0)

    two = ranks.run(2, _residuals, None)[0]
    three = ranks.run(3, _residuals, two)[0]
    assert "second.weight" in two["residuals"]
    assert "last.bias" not in two["residuals"]  # it travels as float32
    for name in two["residuals"]:
        assert torch.allclose(mean(two, name), mean(three, name), atol=float(mean(two, name).abs().max()) / 60)


def _traffic(rank: int) -> tuple[dict[str, float], dict[str, float], list[str]]:
    _, state = fit(rank, 5)
    assert state is not None
    report = state.report()
    state.load_state_dict({"step": 2})
    return report, state.report(), state.plain


def test_traffic_is_counted_and_what_stays_plain_named() -> None:
    report, gone_back, plain = ranks.run(2, _traffic)[0]
    assert report["steps"] == 5
    assert gone_back == report  # what has been sent stays sent
    assert 0.5 < report["bytes_sent_per_step"] / report["float32_bytes_per_step"] < 0.52
    assert plain == ["first.bias", "last.bias", "spare.bias"]


def _not_finite(rank: int) -> list[bool]:
    model, _ = fit(rank, 1, fixed=True)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    before = digest(model)
    x = torch.randn(8, 60)
    if rank == 1:
        x[3, 4] = torch.nan
    model(x, spare=True).sum().backward()
    refused = False
    try:
        optimizer.step()
    except ValueError:
        refused = True
    return [refused, digest(model) == before]


def test_all_ranks_refuse_what_one_finds_not_finite() -> None:
    assert ranks.run(2, _not_finite) == [[True, True]] * 2


def _named(*names: str) -> nn.Module:
    return nn.ModuleDict({name: nn.Linear(30, 30) for name in names})


def _with_frozen(name: str) -> nn.Module:
    net = _named("a", "b")
    net[name].requires_grad_(False)  # type: ignore[index]
    return net


def _stored(format: str) -> nn.Module:
    net = _named("a")
    optim.quantize_(net, format)
    return net


#: What each of two ranks gives DDPState, and what both then say.
DISAGREE: list[tuple[tuple[dict[str, Any], dict[str, Any]], str]] = [
    (({"word_length": 16}, {"word_length": 8}), "comm word length: rank 0 has 16, rank 1 has 8"),
    (({"seed": 0}, {"seed": 7}), "seed: rank 0 has 0, rank 1 has 7"),
    (({"terms": {"blocks": 256}}, {"terms": {"blocks": 128}}), "blocks: rank 0 has 256, rank 1 has 128"),
]  # fmt: skip
#: The same of modules. DDP itself would add gradients of one parameter to those of another, or of another dtype.
OTHER_MODULES: list[tuple[tuple[Callable[[], nn.Module], Callable[[], nn.Module]], str]] = [
    ((lambda: _named("a", "b"), lambda: _named("b", "a")), "parameter 0: rank 0 has 'a.weight: shape (30, 30),"),
    ((lambda: _with_frozen("a"), lambda: _with_frozen("b")), "torch.float32, frozen', rank 1 has 'a.weight: shape"),
    ((lambda: _named("a"), lambda: _named("a").bfloat16()), "torch.float32, trained', rank 1 has 'a.weight: shape"),
    ((lambda: _stored("<4,12>"), lambda: _stored("<8,8>")), "stored as <4,12>, trained', rank 1 has 'a.weight: shape"),
]  # fmt: skip


def _disagree(rank: int) -> list[str]:
    said = []
    given = [(nn.Linear(30, 30), arguments[rank]) for arguments, _ in DISAGREE]
    given += [(modules[rank](), {}) for modules, _ in OTHER_MODULES]
    for net, arguments in given:
        with pytest.raises(ValueError, match="the ranks disagree") as info:
            comm.DDPState(DistributedDataParallel(net, init_sync=False), **arguments)
        said.append(str(info.value))
    return said


def test_ranks_that_disagree_are_refused() -> None:
    ours, theirs = ranks.run(2, _disagree)
    assert ours == theirs
    for said, (_, message) in zip(ours, [*DISAGREE, *OTHER_MODULES], strict=True):
        assert message in said


def _killed(rank: int) -> str:
    if rank == 1:
        torch.set_num_threads(1)
    model, _ = fit(rank, 2)
    if rank == 1:
        import os

        dist.barrier()
        os._exit(0)  # as if killed: no farewell
    dist.barrier()
    try:
        model(torch.randn(8, 60), spare=True).sum().backward()
    except RuntimeError as error:
        return f"error: {error}"
    return "no error"


def test_a_killed_rank_is_an_error_for_the_others_in_time(tmp_path: Any) -> None:
    assert ranks.run_one_of(2, _killed, tmp_path, timeout=15.0).startswith("error: ")


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="word_length=5 is not one of"):
        comm.DDPState(None, 5)  # type: ignore[arg-type]
