"""What DDPState holds, saves and refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lowprec_plugin import comm
from tests.comm import ranks

KEY = "0.weight"


def made(
    *, freeze: bool = False, word_length: int = 8, feedback: bool = True, steps: int = 0, **options: Any
) -> tuple[DistributedDataParallel, comm.DDPState]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(60, 60), nn.Linear(60, 60))
    model = DistributedDataParallel(net, find_unused_parameters=freeze, **options)
    if freeze:
        net[0].requires_grad_(False)
    state = comm.DDPState(model, word_length, error_feedback=feedback)
    model.register_comm_hook(state, comm.ddp_hook)
    train(model, steps)
    return model, state


def train(model: nn.Module, steps: int) -> None:
    for step in range(steps):
        x = torch.randn(4, 60, generator=torch.Generator().manual_seed(step))
        model(x).square().sum().backward()


def _frozen(rank: int) -> tuple[str, list[str]]:
    _, state = made(freeze=True, steps=3)
    net = nn.Sequential(nn.Linear(60, 60), nn.Linear(60, 60))
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(net, ["1.bias"])
    ignoring = DistributedDataParallel(net)
    return str(state), comm.DDPState(ignoring).plain


def test_parameters_may_be_frozen_after_wrapping_and_only_what_travels_is_named() -> None:
    for said, plain in ranks.run(2, _frozen):
        assert said.endswith("block of 256: 1.bias")
        assert plain == ["0.bias"]


def bad(saved: dict[str, Any], change: str) -> dict[str, Any]:
    bad = copy.deepcopy(saved)
    codes, exponents = bad["residuals"][KEY]
    bad["residuals"][KEY] = {
        "shape": [codes[:, :2], exponents[:, :2]],
        "dtype": [codes.int(), exponents],
        "ranks": [codes, exponents[:1]],
        "planes": [codes],
        "kind": "codes",
        "range": [codes, torch.full_like(exponents, 127)],
        "name": [codes, exponents],
    }[change]
    if change == "name":
        bad["residuals"]["other.weight"] = bad["residuals"].pop(KEY)
    return bad


def _loaded(rank: int) -> dict[str, Any]:
    saved = made(steps=3)[1].state_dict()
    before = copy.deepcopy(saved)
    model, state = made()
    said: dict[str, Any] = {}
    for change in ("shape", "dtype", "ranks", "planes", "kind", "range", "name"):
        with pytest.raises(ValueError, match="residual") as info:
            state.load_state_dict(bad(saved, change))
        said[change] = str(info.value)
        assert state.state_dict() == {"step": 0, "residuals": {}}  # nothing has changed
    state.load_state_dict(saved)
    held = state._residuals[KEY].codes.untyped_storage().nbytes()
    assert held == state._residuals[KEY].codes.numel(), "this rank's part alone"
    train(model, 2)
    for name, planes in before["residuals"].items():
        assert all(torch.equal(a, b) for a, b in zip(saved["residuals"][name], planes, strict=True)), "the caller's own"
    _, frozen = made(freeze=True)
    frozen.load_state_dict(saved)
    said["frozen"] = sorted(frozen.state_dict()["residuals"])
    plain, off = made(feedback=False)
    if rank == 0:
        with pytest.warns(UserWarning, match="of 2 gradients lost is dropped: error feedback is off"):
            off.load_state_dict(saved)
    else:
        off.load_state_dict(saved)
    train(plain, 1)
    said["off"] = off.state_dict()
    return said


def test_residuals_are_checked_before_anything_changes() -> None:
    for said in ranks.run(2, _loaded):
        assert "the saved residual of '0.weight' is [((2, 2, 256)" in said["shape"]
        assert "[((2, 15, 256), torch.int8), ((2, 15, 1), torch.int8)] is needed: load a checkpoint" in said["shape"]
        assert "torch.int32" in said["dtype"]
        assert "'0.weight' is no list of tensors" in said["kind"]
        assert "'0.weight' is damaged: an exponent is 127, and fixed8 has -110 to 121" in said["range"]
        assert "other.weight" in said["name"]
        assert said["frozen"] == ["1.weight"]
        assert said["off"] == {"step": 4, "residuals": {}}


def _refused(rank: int) -> list[str]:
    said = []
    for net in (
        nn.Linear(60, 60).double(),
        nn.Linear(60, 60).to(torch.complex64),
        nn.Sequential(nn.Embedding(100, 60, sparse=True), nn.Linear(60, 60)),
    ):
        with pytest.raises(ValueError, match="can travel in fixed-point") as info:
            comm.DDPState(DistributedDataParallel(net))
        said.append(str(info.value))
    return said


def test_what_cannot_travel_is_refused_at_once() -> None:
    for double, complex_, sparse in ranks.run(2, _refused):
        assert "the gradient of weight is torch.float64, and only float32" in double
        assert "convert the parameter, freeze it, or send gradients as floats" in double
        assert "complex64" in complex_
        assert "the gradient of 0.weight is sparse" in sparse


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(60, 60), nn.Linear(60, 60, dtype=torch.bfloat16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.narrow(self.wide(x).bfloat16())


def _of_two_dtypes(rank: int) -> list[tuple[int, list[torch.Tensor]]]:
    found = []
    for saved in (None, {"step": 2}):
        torch.manual_seed(0)
        model = DistributedDataParallel(Mixed(), static_graph=True)
        state = comm.DDPState(model, 8)
        model.register_comm_hook(state, comm.ddp_hook)
        if saved is not None:
            state.load_state_dict(saved)
        for _ in range(3 if saved is None else 1):
            model.zero_grad()
            train(model, 1)
        found.append((state.step, [param.grad.clone() for param in model.parameters()]))
    return found


def test_a_static_graph_of_two_dtypes_resumes_bit_for_bit() -> None:
    for (steps, straight), (same_steps, resumed) in ranks.run(2, _of_two_dtypes):
        assert steps == same_steps == 3
        assert all(torch.equal(a, b) for a, b in zip(straight, resumed, strict=True))


def _of_another(rank: int) -> str:
    model = DistributedDataParallel(nn.Linear(60, 60))
    model.register_comm_hook(made(feedback=False)[1], comm.ddp_hook)
    with pytest.raises(ValueError, match="DDPState") as info:
        train(model, 1)
    return str(info.value)


def test_the_state_of_another_model_is_refused() -> None:
    for said in ranks.run(2, _of_another):
        assert "is of no parameter that the module had when this DDPState was made: make one for each" in said


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.always, self.sometimes = nn.Linear(60, 60), nn.Linear(60, 60)

    def forward(self, x: torch.Tensor, both: bool) -> torch.Tensor:
        y = self.always(x)
        return y + self.sometimes(x) if both else y


def _unused_here(rank: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model = DistributedDataParallel(Two(), find_unused_parameters=True)
    model.register_comm_hook(comm.DDPState(model, 8, error_feedback=True), comm.ddp_hook)
    for _ in range(3):
        model.zero_grad()
        model(torch.ones(4, 60), both=rank == 0).sum().backward()
    return [param.grad for param in model.parameters() if param.grad is not None]


def test_a_parameter_that_some_ranks_do_not_use() -> None:
    one, other = ranks.run(2, _unused_here)
    assert len(one) == 4
    for ours, theirs in zip(one, other, strict=True):
        assert torch.equal(ours, theirs)
    assert [round(float(grad.mean()), 1) for grad in one] == [4, 4, 2, 2]


def test_error_feedback_is_for_few_bits() -> None:
    for word_length in (12, 16):
        with pytest.raises(ValueError, match=rf"at {word_length} bits mends nothing: use word_length=8 or 4"):
            comm.DDPState(None, word_length, error_feedback=True)  # type: ignore[arg-type]
