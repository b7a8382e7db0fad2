"""What two tensors are is exchanged; objects, weak references to them among others, stay."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from lowprec_plugin import FixedPointTensor, optim
from lowprec_plugin.compat.exchanging import exchange, holder_of


def test_everything_but_identity_and_what_users_hung_there_is_exchanged() -> None:
    one, other = nn.Parameter(torch.ones(3)), nn.Parameter(FixedPointTensor.quantize(torch.zeros(2, 2), "fixed16"))
    one.note, reference, ids = "mine", weakref.ref(one), (id(one), id(other))
    exchange(one, other)
    assert (id(one), id(other)) == ids
    assert reference() is one
    assert isinstance(one, FixedPointTensor)
    assert one.shape == (2, 2)
    assert type(other) is nn.Parameter
    assert one.note == "mine"
    assert one.label == ""
    exchange(one, other)
    assert torch.equal(one, torch.ones(3))
    assert one.note == "mine"


def test_what_cannot_be_exchanged_is_left_as_it_was() -> None:
    one, other = nn.Parameter(torch.ones(3)), nn.Parameter(FixedPointTensor.quantize(torch.zeros(3), "fixed16"))
    held = torch._C._WeakTensorRef(one)  # by C++, to whom the object is nothing
    with pytest.raises(RuntimeError):
        exchange(one, other)
    assert not held.expired()
    assert type(one) is nn.Parameter
    assert torch.equal(one, torch.ones(3))
    module = nn.Linear(2, 2)
    held = torch._C._WeakTensorRef(module.bias)
    with pytest.raises(ValueError, match="'bias' is held by C\\+\\+ code"):
        optim.quantize_(module)
    assert {type(param) for param in module.parameters()} == {nn.Parameter}
    del held
    optim.quantize_(module)


def test_weak_references_stay_good_through_a_conversion() -> None:
    module = nn.LSTM(4, 4)
    references = [weakref.ref(param) for param in module.parameters()]
    averages: Any = WeakIdKeyDictionary({param: index for index, param in enumerate(module.parameters())})
    optim.quantize_(module)
    assert all(reference() is param for reference, param in zip(references, module.parameters(), strict=True))
    assert all(isinstance(reference(), FixedPointTensor) for reference in references)
    assert [averages[param] for param in module.parameters()] == list(range(4))
    optimizer = optim.SGD(module.parameters(), 0.1)
    module(torch.ones(2, 1, 4))[0].sum().backward()
    optimizer.step()
    assert torch.equal(references[0]().dequantize(), module.weight_ih_l0.dequantize())


def test_weak_references_and_hooks_stay_on_the_way_to_another_kind_of_device() -> None:
    module = nn.Linear(4, 4)
    optim.quantize_(module)
    reference = weakref.ref(module.weight)
    handle = module.weight.register_hook(lambda grad: 2 * grad)
    loss = module(torch.ones(1, 4)).sum()
    with pytest.raises(ValueError, match=r"'weight' stays on cpu: it is held by an autograd graph"):
        module.to("meta")
    assert loss.requires_grad
    del loss
    module.to("meta")
    assert reference() is module.weight
    assert reference().is_meta
    assert len(module.weight._backward_hooks) == 1
    handle.remove()
    assert len(module.weight._backward_hooks) == 0


def test_holders_are_told_apart() -> None:
    leaf = nn.Parameter(torch.ones(3))
    references = [weakref.ref(leaf), weakref.proxy(leaf)]
    assert holder_of(leaf) == ""
    loss = leaf.square().sum()
    assert "graph" in holder_of(leaf)
    del loss
    assert holder_of(leaf) == ""
    node = leaf.expand_as(leaf).grad_fn.next_functions[0][0]  # type: ignore[union-attr]
    assert "DistributedDataParallel" in holder_of(leaf)
    assert "TorchScript" not in holder_of(leaf)
    del node
    assert holder_of(leaf) == ""
    frozen = nn.Parameter(torch.ones(3), requires_grad=False)
    view = frozen[1:]
    assert "view" in holder_of(frozen)
    assert view.numel() == 2
    assert len(references) == 2


def test_hooks_on_the_node_of_a_gradient_would_never_run_again_and_are_refused() -> None:
    """As those of ``DistributedDataParallel`` and of optimizers that step within the backward pass."""
    module, calls = nn.Linear(2, 2), []
    node: Any = module.weight.expand_as(module.weight).grad_fn.next_functions[0][0]  # type: ignore[union-attr]
    node.register_hook(lambda *_: calls.append("ran"))
    with pytest.raises(ValueError, match=r"'weight' is held by .* hooks on AccumulateGrad nodes, afterwards"):
        optim.quantize_(module)
    assert {type(param) for param in module.parameters()} == {nn.Parameter}
    module(torch.ones(1, 2)).sum().backward()
    assert calls == ["ran"]
