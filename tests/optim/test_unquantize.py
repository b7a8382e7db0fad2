"""``to_float_``: a module and its optimizers are what torch would have, and nothing of this package is left on them."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from lowprec_plugin import FixedPointTensor, optim
from lowprec_plugin.tensor.dtensor import fixed_part
from tests.comm import ranks
from tests.optim import habits

Make = Callable[[Any], torch.optim.Optimizer]
#: What loads a file in a process that has no ``lowprec_plugin``.
ELSEWHERE = """
import sys
sys.modules["lowprec_plugin"] = None  # importing it, or a module of it, is a ModuleNotFoundError
import torch
loaded = torch.load(sys.argv[1], weights_only=False)
torch.save(loaded["module"](loaded["x"]).detach(), sys.argv[2])
"""


class Net(nn.Module):
    """Tied weights, an LSTM with its flat weights, a buffer and a list that hold copies of a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.head = nn.Linear(8, 10, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(x))[0])  # type: ignore[no-any-return]


def net(format: str = "fixed16", dtype: torch.dtype | None = None) -> Net:
    module = Net()
    optim.quantize_(module, format, dtype=dtype)
    return module


def loss_of(module: nn.Module, step: int) -> Tensor:
    x = torch.randint(0, 10, (4, 6), generator=torch.Generator().manual_seed(step))
    return nn.functional.cross_entropy(module(x)[:, :-1].flatten(0, 1), x[:, 1:].flatten())


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss_of(module, step).backward()
        optimizer.step()


@given(
    format=st.sampled_from(["fixed16", "fixed8", "fixed24", "<4,12>", "fixed12:64"]),
    shape=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    seed=st.integers(0, 2**30),
)
@settings(max_examples=30)
def test_floats_are_the_stored_numbers_and_come_back_as_the_codes(format: str, shape: list[int], seed: int) -> None:
    module = nn.Module()
    module.weight = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))
    optim.quantize_(module, format)
    stored = copy.deepcopy(module.weight)
    assert isinstance(stored, FixedPointTensor)
    assert optim.to_float_(module) is module
    assert type(module.weight) is nn.Parameter
    assert torch.equal(module.weight, stored.dequantize())
    optim.quantize_(module, format)
    again: Any = module.weight
    assert all(torch.equal(a, b) for a, b in zip(again.blocks.planes, stored.blocks.planes, strict=True))


def test_objects_ties_gradients_hooks_and_attributes_stay() -> None:
    module = net()
    weight: Any = module.head.weight
    weight.mark = "mine"
    seen: list[str] = []
    weight.register_hook(lambda grad: seen.append("hook"))
    handle = weight.register_post_accumulate_grad_hook(lambda param: seen.append("after"))
    loss_of(module, 0).backward()
    before, gradient, expected = list(module.parameters()), weight.grad, module(torch.arange(6)[None]).detach()
    ids = [id(param) for param in before]
    optim.to_float_(module)
    assert [id(param) for param in module.parameters()] == ids
    assert all(type(param) is nn.Parameter for param in before)
    assert module.head.weight is module.embedding.weight is weight
    assert weight.grad is gradient
    assert vars(weight) == {"mark": "mine"}
    assert torch.equal(module(torch.arange(6)[None]), expected)
    seen.clear()
    loss_of(module, 1).backward()
    assert seen == ["hook", "after"]
    handle.remove()
    loss_of(module, 1).backward()
    assert seen == ["hook", "after", "hook"]
    module.to(torch.float64)
    assert {param.dtype for param in before} == {torch.float64}


def test_what_is_hung_on_modules_becomes_float_too() -> None:
    module: Any = net()
    module.register_buffer("copied", module.head.weight.detach().clone())
    module.lstm.shadow = {"of": [param.detach().clone() for param in module.lstm.parameters()]}
    kept = module.copied
    assert isinstance(kept, FixedPointTensor)
    optim.to_float_(module)
    assert module.copied is kept
    assert type(kept) is Tensor
    assert all(type(tensor) is Tensor for tensor in module.lstm.shadow["of"])
    assert b"lowprec_plugin" not in pickle.dumps(module).replace(b"tests.optim.test_unquantize", b"")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    """The one that operations saw, or the one that is asked for; gradients follow."""
    module = net(dtype=dtype).to(dtype)
    stored = module.head.weight.dequantize(torch.float32)  # type: ignore[attr-defined]
    loss_of(module, 0).backward()
    exact = copy.deepcopy(module)
    exact.head.weight.grad = module.head.weight.grad
    optim.to_float_(module)
    assert {param.dtype for param in module.parameters()} == {dtype}
    assert torch.equal(module.head.weight, stored.to(dtype))
    optim.to_float_(exact, dtype=torch.float32)
    assert torch.equal(exact.head.weight, stored)
    assert exact.head.weight.grad is not None
    assert exact.head.weight.grad.dtype == torch.float32


ADOPTED: dict[str, Make] = {
    "AdamW": lambda params: optim.adopt(torch.optim.AdamW(params, 1e-2)),
    "SGD": lambda params: optim.adopt(torch.optim.SGD(params, 1e-2, momentum=0.9)),
    "amsgrad": lambda params: optim.adopt(torch.optim.Adam(params, 1e-2, amsgrad=True)),
    "NAdam": lambda params: optim.adopt(torch.optim.NAdam(params, 1e-2)),
    "RMSprop": lambda params: optim.adopt(torch.optim.RMSprop(params, 1e-2, momentum=0.9, centered=True)),
    "ours": lambda params: optim.AdamW(params, 1e-2, state_word_length=8),
    "our Lion": lambda params: optim.Lion(params, 1e-2),
}


@pytest.mark.parametrize("make", ADOPTED.values(), ids=list(ADOPTED))
def test_an_optimizer_is_of_its_own_class_with_plain_state_and_goes_on(make: Make) -> None:
    """From there on it does what a fresh one of that class does, given the same floats and state."""
    module = net()
    optimizer: Any = make(module.parameters())
    train(module, optimizer, range(3))
    state, float_class = optim.plain_optimizer_state(optimizer), optimizer.float_class
    fresh = Net()
    fresh.load_state_dict(optim.float_state_dict(module))
    defaults = {name: value for name, value in optimizer.defaults.items() if name in optimizer.param_groups[0]}
    expected = object.__new__(float_class)
    torch.optim.Optimizer.__init__(expected, list(fresh.parameters()), defaults)
    expected.load_state_dict(copy.deepcopy(state))
    optim.to_float_(module, optimizer)
    assert type(optimizer) is float_class
    assert not hasattr(optimizer, "fixed_point")
    assert not any(isinstance(value, FixedPointTensor) for each in optimizer.state.values() for value in each.values())
    own = optimizer.state_dict()
    for number, values in state["state"].items():
        for name, value in values.items():
            assert torch.equal(torch.as_tensor(own["state"][number][name]), torch.as_tensor(value)), name
    train(module, optimizer, range(3, 6))
    train(fresh, expected, range(3, 6))
    for param, other in zip(module.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(param, other)


def test_what_an_optimizer_holds_elsewhere_becomes_float_too() -> None:
    """In lists of its own, and counts under a name where its state has parameters stay counts."""
    for kind in (habits.SlowWeightsInAList, habits.CountsUnderAName):
        module = net()
        optimizer: Any = optim.adopt(kind(module.parameters()))
        train(module, optimizer, range(6))
        slow = [each.dequantize() for each in getattr(optimizer, "slow", [])]
        optim.to_float_(module, optimizer)
        assert b"lowprec_plugin" not in pickle.dumps([vars(optimizer), module])
        assert all(torch.equal(*pair) for pair in zip(slow, getattr(optimizer, "slow", []), strict=True))
        train(module, optimizer, range(6, 12))


def test_ours_become_torchs() -> None:
    module = nn.Linear(4, 4)
    optim.quantize_(module)
    pairs = [(optim.SGD, torch.optim.SGD), (optim.Adam, torch.optim.Adam), (optim.AdamW, torch.optim.AdamW)]
    made = [ours(module.parameters(), 1e-2) for ours, _ in pairs]
    optim.to_float_(module, made)
    assert [type(each) for each in made] == [theirs for _, theirs in pairs]


@pytest.mark.parametrize("scheduled_first", [True, False])
def test_schedulers_stay_bound(scheduled_first: bool) -> None:
    module = net()
    optimizer: Any = torch.optim.AdamW(module.parameters(), 1.0)
    if not scheduled_first:
        optim.adopt(optimizer)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    optim.adopt(optimizer)
    train(module, optimizer, range(1))
    scheduler.step()
    optim.to_float_(module, optimizer)
    before = module.head.weight.detach().clone()
    train(module, optimizer, range(1))
    scheduler.step()  # a warning, which is an error here, if no step was counted before it
    assert not torch.equal(module.head.weight, before)
    assert optimizer.param_groups[0]["lr"] == 0.25


def test_back_and_forth() -> None:
    module = net()
    optimizer: Any = optim.adopt(torch.optim.AdamW(module.parameters(), 1e-2))
    train(module, optimizer, range(2))
    codes = [tensor.blocks for tensor in copy.deepcopy([*module.parameters()])]  # type: ignore[attr-defined]
    optim.to_float_(module, optimizer)
    optim.quantize_(module)
    optim.adopt(optimizer)
    for param, blocks in zip(module.parameters(), codes, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(param.blocks.planes, blocks.planes, strict=True))  # type: ignore[attr-defined]
    train(module, optimizer, range(2, 4))
    assert isinstance(optimizer.state[module.head.weight]["exp_avg"], FixedPointTensor)


def test_a_float_module_is_left_as_it_is() -> None:
    module = Net()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    before = copy.deepcopy(module.state_dict())
    optim.to_float_(module, optimizer)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_what_is_refused_leaves_everything_as_it_was() -> None:
    module, other = net(), net()
    optimizer = optim.AdamW([*module.parameters(), *other.parameters()], 1e-2)
    module.head.weight.grad = torch.ones(10, 8)
    with pytest.raises(ValueError, match=r"updates a fixed-point parameter 'embedding.weight'.*not in the module"):
        optim.to_float_(module, optimizer)
    output = module(torch.arange(6)[None])
    with pytest.raises(ValueError, match=r"is held by an autograd graph.*drop losses and outputs"):
        optim.to_float_(module)
    del output
    reference = weakref.ref(module.lstm.weight_hh_l0)
    for bad in (torch.int32, "float32"):
        with pytest.raises(ValueError, match="dtype"):
            optim.to_float_(module, dtype=bad)  # type: ignore[arg-type]
    assert all(isinstance(param, FixedPointTensor) for param in module.parameters())
    assert type(optimizer) is optim.AdamW
    assert module.head.weight.grad is not None
    optim.to_float_(module)
    assert reference() is module.lstm.weight_hh_l0


def _sharded(rank: int) -> list[Any]:
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    module = nn.Linear(6, 5)
    for name, param in list(module.named_parameters()):
        setattr(module, name, nn.Parameter(distribute_tensor(param.detach(), mesh, [Shard(0)])))
    optim.quantize_(module)
    held: Any = module.weight
    stored = fixed_part(held)
    assert stored is not None
    optimizer = optim.adopt(torch.optim.AdamW(module.parameters(), 1e-2))
    module.weight.grad, module.bias.grad = torch.ones_like(held), None
    optimizer.step()
    expected = stored.dequantize()
    optim.to_float_(module, optimizer)
    assert module.weight is held
    assert isinstance(held, nn.Parameter)
    assert isinstance(held, DTensor)
    assert torch.equal(held.to_local(), expected)
    assert type(held.to_local()) is Tensor
    optimizer.step()
    wrapped = nn.Sequential(nn.Linear(6, 5))
    fully_shard(wrapped, mesh=mesh)
    optim.quantize_(wrapped)
    with pytest.raises(ValueError, match=r"FSDP2 holds the tensors that its shards are: .*float_state_dict"):
        optim.to_float_(wrapped)
    ddp = nn.parallel.DistributedDataParallel(net())
    with pytest.raises(ValueError, match=r"DistributedDataParallel holds the tensors .*ddp\.module"):
        optim.to_float_(ddp)
    assert all(isinstance(param, FixedPointTensor) for param in ddp.parameters())
    whole: Any = held
    return [whole.full_tensor().detach()]


def test_shards_and_wrappers() -> None:
    """Shards of a DTensor stay shards; what FSDP2 and DDP hold is refused."""
    (one,), (other,) = ranks.run(2, _sharded)
    assert torch.equal(one, other)


def elsewhere(saved: dict[str, Any], tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Load what ``saved`` holds in a process without this package, and run its module."""
    torch.save(saved, tmp_path / "saved.pt")
    arguments = [sys.executable, "-c", ELSEWHERE, str(tmp_path / "saved.pt"), str(tmp_path / "output.pt")]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=120)


def test_a_pickle_loads_where_this_package_is_not_installed(tmp_path: Path) -> None:
    """And does not before: the control."""
    module = nn.Sequential(nn.Embedding(10, 8), nn.Flatten(), nn.Linear(48, 4))
    optim.quantize_(module)
    optimizer = optim.AdamW(module.parameters(), 1e-2)
    x = torch.randint(0, 10, (3, 6))
    module(x).sum().backward()
    optimizer.step()
    saved = {"module": module, "optimizer": optimizer, "x": x}
    assert "No module named 'lowprec_plugin" in elsewhere(saved, tmp_path).stderr
    optim.to_float_(module, optimizer)
    done = elsewhere(saved, tmp_path)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "output.pt"), module(x))
