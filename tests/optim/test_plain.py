"""Parameters that are no plain tensors of floats are left as they are, and listed; the others are stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._pytree import tree_map_only

from lowprec_plugin import FixedPointTensor, memory, optim
from lowprec_plugin.arithmetic import ops
from lowprec_plugin.plan.inventory import of_module
from lowprec_plugin.telemetry.storage_table import as_text, describe


class Halves(Tensor):
    """Stored as float16 and seen as float32, as frozen weights in fewer bits are: no memory is behind its address."""

    halves: Tensor

    @staticmethod
    def __new__(cls, halves: Tensor) -> Halves:
        made = Tensor._make_wrapper_subclass(cls, halves.shape, dtype=torch.float32)
        made.halves = halves
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["halves"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], context: None, size: Any, stride: Any) -> Halves:
        return Halves(inner["halves"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].halves)
        args, kwargs = tree_map_only(cls, lambda each: each.halves.float(), (args, kwargs or {}))
        return func(*args, **kwargs)


class OnManifold(nn.Parameter):
    """A parameter whose class says to its optimizer where it may go."""


class WithFunctions(nn.Parameter):
    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_function__(func, types, args, kwargs or {})


class Annotated(Tensor):
    pass


def _square() -> Tensor:
    return torch.linspace(-1, 1, 64).view(8, 8)


#: Parameters and why they are left.
LEFT: dict[str, tuple[Callable[[], nn.Parameter], str]] = {
    "wrapper, frozen": (lambda: nn.Parameter(Halves(_square().half()), False), "its class is Halves"),
    "wrapper": (lambda: nn.Parameter(Halves(_square().half())), "its class is Halves"),
    "two tensors": (lambda: nn.Parameter(TwoTensor(_square(), _square()), False), "its class is TwoTensor"),  # type: ignore[no-untyped-call]
    "subclass of Parameter": (lambda: OnManifold(_square()), "its class is OnManifold"),
    "with __torch_function__": (lambda: WithFunctions(_square()), "its class is WithFunctions"),
    "subclass without a dispatch": (
        lambda: nn.Parameter(_square().as_subclass(Annotated)), "its class is Annotated",
    ),
    "jagged": (
        lambda: nn.Parameter(torch.nested.nested_tensor([_square()], layout=torch.jagged)), "its class is NestedTensor",
    ),
    "nested": (lambda: nn.Parameter(torch.nested.nested_tensor([_square()])), "it is nested"),
    "COO": (lambda: nn.Parameter(_square().to_sparse()), "its layout is sparse_coo"),
    "CSR": (lambda: nn.Parameter(_square().to_sparse_csr()), "its layout is sparse_csr"),
    "CSC": (lambda: nn.Parameter(_square().to_sparse_csc()), "its layout is sparse_csc"),
    "complex": (lambda: nn.Parameter(_square().to(torch.complex64)), "its dtype is complex64"),
    "float8": (lambda: nn.Parameter(_square().to(torch.float8_e4m3fn), False), "its dtype is float8_e4m3fn"),
    "integers": (lambda: nn.Parameter(_square().to(torch.uint8), False), "its dtype is uint8"),
    "quantized": (
        lambda: nn.Parameter(torch.quantize_per_tensor(_square(), 0.1, 0, torch.qint8), False), "its dtype is qint8",
    ),
    "expanded": (lambda: nn.Parameter(_square()[:1].expand(8, 8)), "its elements share memory"),
    "windows that overlap": (
        lambda: nn.Parameter(torch.arange(12.0).as_strided((8, 5), (1, 1))), "its elements share memory",
    ),
}  # fmt: skip

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(nested tensors is in prototype|Sparse CSR|Sparse CSC|quantize_per_tensor|torch.ao).*",
    "ignore:.*is deprecated.*",
)


class Beside(nn.Module):
    """A network that is trained, and a parameter that it may not read."""

    def __init__(self, param: nn.Parameter) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1))
        self.other = param

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", LEFT)
def test_what_is_not_plain_is_left_and_listed(kind: str) -> None:
    make, reason = LEFT[kind]
    module = Beside(make())
    before, of_class = module.other, type(module.other)
    assert [param.name for param in of_module(module).parameters if param.kept] == ["other"]
    for _ in range(2):  # the second time, too
        assert optim.quantize_(module) == {"other": reason}
    assert module.other is before
    assert type(module.other) is of_class
    assert all(isinstance(param, FixedPointTensor) for param in module.net.parameters())
    optimizer = optim.adopt(torch.optim.AdamW(module.net.parameters(), lr=0.1))
    codes = module.net[0].weight.codes.clone()
    module(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    assert not torch.equal(module.net[0].weight.codes, codes)
    assert f"left as it is: other ({reason})" in as_text(describe(module, [optimizer]), {"other": reason})
    assert memory.report(module).weights > 0
    assert optim.quantize_(module, keep_float="other") == {"other": "keep_float='other'"}


def test_a_frozen_base_under_adapters_computes_as_before() -> None:
    base = nn.Linear(8, 8)
    base.weight = nn.Parameter(Halves(base.weight.detach().half()), requires_grad=False)
    module = nn.Sequential(base, nn.Linear(8, 1))
    x = torch.randn(4, 8)
    before = module(x).detach()
    optim.quantize_(module)
    torch.testing.assert_close(module(x).detach(), before, rtol=0, atol=1e-3)
    optimizer = optim.AdamW([param for param in module.parameters() if param.requires_grad], lr=0.05)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        losses.append(module(x).square().mean())
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 4
    rows = {row.weights: row for row in describe(module, [optimizer])}
    assert rows["Halves"].nbytes == 2 * 64  # not the four bytes that its dtype speaks of


def test_many_of_one_reason_take_one_line() -> None:
    module = nn.ModuleList(nn.Linear(4, 4) for _ in range(12))
    for each in module:
        each.weight = OnManifold(each.weight.detach())
    text = as_text(describe(module), optim.quantize_(module))
    assert "left as it is: 12 parameters from 0.weight to 11.weight (its class is OnManifold)" in text


class Strict(nn.Linear):
    """Takes the attributes that it knows alone."""

    def __setattr__(self, name: str, value: object) -> None:
        if name not in ("in_features", "out_features", "weight", "bias", "training"):
            raise AttributeError(name)
        super().__setattr__(name, value)


class Slotted(nn.Linear):
    __slots__ = ("extra",)


def _of_a_view() -> nn.Module:
    module = nn.Linear(8, 8)
    module.weight = nn.Parameter(torch.randn(16, 8)[4:12])
    return module


def _transposed() -> nn.Module:
    module = nn.Linear(8, 8)
    module.weight = nn.Parameter(torch.randn(8, 8).t())
    return module


def _negated() -> nn.Module:
    module = nn.Linear(8, 8)
    module.weight = nn.Parameter(torch.randn(8, 8, dtype=torch.complex64).conj().imag)
    return module


def _in_a_list() -> nn.Module:
    module = nn.Linear(8, 8)
    module.several = [module.weight]  # type: ignore[assignment]
    return module


def _pruned() -> nn.Module:
    module = nn.Linear(8, 8)
    with torch.no_grad():
        nn.utils.prune.l1_unstructured(module, "weight", 0.5)
    return module


def _made_for_inference() -> nn.Module:
    with torch.inference_mode():
        return nn.Linear(8, 8)


PLAIN: dict[str, Callable[[], nn.Module]] = {
    "strict about attributes": lambda: Strict(8, 8),
    "with slots": lambda: Slotted(8, 8),
    "on a part of a tensor": _of_a_view,
    "transposed": _transposed,
    "whose memory is negated": _negated,
    "in a list too": _in_a_list,
    "orthogonal": lambda: nn.utils.parametrizations.orthogonal(nn.Linear(8, 8)),
    "of spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)).eval(),
    "of weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)),
    "pruned": _pruned,
    "made for inference": _made_for_inference,
}


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_ones_are_stored_wherever_they_are_held(kind: str) -> None:
    module = PLAIN[kind]()
    x = torch.randn(4, 8)
    with torch.no_grad():
        before = module(x)
    assert optim.quantize_(module) == {}
    assert all(isinstance(param, FixedPointTensor) for param in module.parameters())
    with torch.no_grad():
        torch.testing.assert_close(module(x), before, rtol=0, atol=1e-3)
    module(x).sum().backward()
    assert all(param.grad is not None for param in module.parameters())
    module.to(torch.float64)
    assert all(param.dtype == torch.float64 for param in module.parameters())


def test_a_list_holds_the_parameter_that_was_stored() -> None:
    module: Any = _in_a_list()
    optim.quantize_(module)
    assert module.several[0] is module.weight


def test_pruning_that_left_a_graph_is_refused_and_says_what_to_do() -> None:
    module = nn.Sequential(nn.Linear(8, 8))
    nn.utils.prune.l1_unstructured(module[0], "weight", 0.5)
    message = (
        r"'0\.weight_orig' is held by .*torch\.nn\.utils\.prune leaves '0\.weight'.*keep_float=\['0\.weight_orig'\]"
    )
    with pytest.raises(ValueError, match=message):
        optim.quantize_(module)
    assert not any(isinstance(param, FixedPointTensor) for param in module.parameters())
    assert set(optim.quantize_(module, keep_float=["0.weight_orig"])) == {"0.weight_orig"}


@pytest.mark.parametrize("compiled", [torch.jit.script, lambda part: torch.jit.trace(part, torch.ones(1, 8))])
def test_what_torchscript_compiled_is_left(compiled: Callable[[nn.Module], nn.Module]) -> None:
    module = nn.Sequential(compiled(nn.Linear(8, 8)), nn.Linear(8, 1))
    weight = module[0].weight.detach().clone()
    why = "TorchScript has compiled '0'"
    assert optim.quantize_(module) == {"0.weight": why, "0.bias": why}
    assert isinstance(module[1].weight, FixedPointTensor)
    optimizer = optim.adopt(torch.optim.SGD(module.parameters(), 0.1))
    module(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    assert not torch.equal(module[0].weight, weight)


def test_parameters_that_a_compiled_part_shares_are_left_too() -> None:
    """TorchScript has hold of their tensors, and would go on with floats that nobody trains."""
    module: Any = nn.Module()
    module.net = nn.Linear(8, 8)
    module.scripted = torch.jit.script(module.net)
    assert set(optim.quantize_(module).values()) == {"TorchScript has compiled 'scripted'"}
    module.net.several = [torch.jit.script(module.net)]  # where no module tells of it
    del module.scripted
    with pytest.raises(ValueError, match=r"'net\.weight' is held by .* TorchScript"):
        optim.quantize_(module)
    assert type(module.net.weight) is nn.Parameter


@pytest.mark.parametrize("part", [lambda weight: weight.data, lambda weight: weight.data[1:3], lambda weight: weight])
def test_a_buffer_on_the_memory_of_a_parameter_is_refused(part: Callable[[Tensor], Tensor]) -> None:
    module = nn.Linear(8, 8)
    module.register_buffer("follower", part(module.weight))
    with pytest.raises(ValueError, match=r"parameter 'weight' and buffer 'follower' overlap .*keep_float=\['weight'\]"):
        optim.quantize_(module)
    assert type(module.weight) is nn.Parameter
    optim.quantize_(module, keep_float=["weight"])
    module.follower = module.weight.detach().clone()
    optim.quantize_(module)
    assert isinstance(module.weight, FixedPointTensor)


def test_what_a_user_asked_of_the_gradient_and_the_memory_stays() -> None:
    module = nn.Linear(8, 8).share_memory()
    module.weight.grad_dtype = torch.bfloat16
    optim.quantize_(module)
    module(torch.ones(2, 8)).sum().backward()
    assert module.weight.is_shared()
    assert module.weight.grad.dtype == torch.bfloat16
    assert module.bias.grad.dtype == torch.float32


def test_numbers_that_are_in_no_memory_are_refused_before_a_kernel_reads_them() -> None:
    wrapped = Halves(torch.ones(300).half())
    two: Any = TwoTensor(torch.ones(300), torch.ones(300))  # type: ignore[no-untyped-call]
    for given in (wrapped, two):
        with pytest.raises(ValueError, match=f"numbers of this {type(given).__name__} lie in no memory"):
            FixedPointTensor.quantize(given.detach(), "fixed16")
    assert ops.first_nonfinite([torch.ones(3), wrapped, Halves(torch.tensor([torch.inf]).half())]) == 2
    stored = FixedPointTensor.quantize(torch.zeros(300), "fixed16")
    stored.copy_(wrapped)
    assert torch.equal(stored.dequantize(), torch.ones(300))

    def under_vmap(x: Tensor) -> Tensor:
        FixedPointTensor.quantize(x, "fixed16")
        return x

    with pytest.raises(ValueError, match="under vmap"):
        torch.func.vmap(under_vmap)(torch.ones(2, 3))
