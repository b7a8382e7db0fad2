from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lowprec_plugin import FixedPointTensor, optim


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))


def test_swaps_in_place_and_keeps_identity() -> None:
    module = network()
    before = dict(module.named_parameters())
    values = {name: param.detach().clone() for name, param in before.items()}
    module[0].weight.note = "mine"
    module[0].weight.requires_grad_(False)
    module[2].bias.grad = torch.ones(2)
    kept = optim.quantize_(module, "fixed16")
    assert kept == {}
    for name, param in module.named_parameters():
        assert param is before[name]
        assert isinstance(param, FixedPointTensor)
        assert isinstance(param, nn.Parameter)
        assert param.label == name
        torch.testing.assert_close(param.dequantize(), values[name], rtol=0, atol=2e-5)
    assert module[0].weight.note == "mine"
    assert not module[0].weight.requires_grad
    assert torch.equal(module[2].bias.grad, torch.ones(2))
    assert module[1].running_mean.dtype == torch.float32


def test_a_gradient_follows_its_parameter_into_another_dtype() -> None:
    module = network()
    module(torch.ones(2, 8)).sum().backward()
    module[2].weight.grad = torch.ones(2, 8)
    optim.quantize_(module, dtype=torch.bfloat16)
    assert module[2].weight.dtype == torch.bfloat16
    assert torch.equal(module[2].weight.grad, torch.ones(2, 8, dtype=torch.bfloat16))


def test_hooks_of_the_gradient_stay() -> None:
    """In their order, on a frozen parameter and after a refusal too; and what removed them before still does."""
    module, calls = network(), []
    weight = module[2].weight
    handles = [
        weight.register_hook(lambda grad: calls.append("first")),
        weight.register_hook(lambda grad: (calls.append("second"), 0 * grad)[1]),
        weight.register_post_accumulate_grad_hook(lambda param: calls.append("accumulated")),
    ]

    def backward() -> list[str]:
        calls.clear()
        weight.grad = None
        weight.requires_grad_(True)
        module(torch.randn(4, 8)).sum().backward()
        return calls

    held = module[2].bias.square().sum()
    with pytest.raises(ValueError, match=r"'2.bias' is held by an autograd graph"):
        optim.quantize_(module)
    assert held.grad_fn is not None
    assert not isinstance(weight, FixedPointTensor)
    assert backward() == ["first", "second", "accumulated"]
    del held
    weight.requires_grad_(False)
    optim.quantize_(module)
    assert isinstance(weight, FixedPointTensor)
    assert backward() == ["first", "second", "accumulated"]
    assert weight.grad.eq(0).all()
    for handle in handles:
        handle.remove()
    assert backward() == []
    assert not weight.grad.eq(0).all()


def test_an_optimizer_made_before_keeps_its_references() -> None:
    module = network()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    optim.quantize_(module)
    optim.adopt(optimizer)
    codes = module[0].weight.codes.clone()
    module(torch.randn(4, 8)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(module[0].weight.codes, codes)


@pytest.mark.parametrize("keep", [["1.*", "2.bias"], lambda name, param: name.startswith("1.") or name == "2.bias"])
def test_keep_float(keep: object) -> None:
    module = network()
    kept = optim.quantize_(module, keep_float=keep)  # type: ignore[arg-type]
    assert set(kept) == {"1.weight", "1.bias", "2.bias"}
    stored = {name for name, param in module.named_parameters() if isinstance(param, FixedPointTensor)}
    assert stored == {"0.weight", "0.bias", "2.weight"}


def test_keep_float_by_one_pattern() -> None:
    assert set(optim.quantize_(network(), keep_float="2.*")) == {"2.weight", "2.bias"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounding": "up"}, "rounding='up' is not one of"),
        ({"format": None}, "None is not a fixed-point format"),
        ({"seed": 1.5}, "^seed=1.5 is not an integer"),
        ({"seed": None}, "^seed=None is not an integer"),
        ({"keep_float": None}, "keep_float=None is not a name or several"),
        ({"keep_float": [0]}, r"keep_float=\[0\] is not a name or several"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    module = network()
    with pytest.raises(ValueError, match=message):
        optim.quantize_(module, **options)
    assert not any(isinstance(param, FixedPointTensor) for param in module.parameters())


def test_twice_is_once() -> None:
    module = network()
    optim.quantize_(module)
    codes = module[0].weight.codes
    optim.quantize_(module)
    assert module[0].weight.codes is codes


def test_recurrent_modules_keep_their_references() -> None:
    module = nn.LSTM(4, 4)
    optim.quantize_(module)
    assert all(isinstance(weight, FixedPointTensor) for weight in module._flat_weights)
    module.to("cpu")
    module(torch.randn(3, 2, 4))[0].sum().backward()
    assert module.weight_ih_l0.grad is not None


def test_a_live_graph_is_refused_and_nothing_changed() -> None:
    module = network()
    held = (module(torch.randn(4, 8)) * module[2].weight.sum()).sum()
    with pytest.raises(ValueError, match="held by an autograd graph"):
        optim.quantize_(module)
    assert not any(isinstance(param, FixedPointTensor) for param in module.parameters())
    assert held.grad_fn is not None


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
def test_old_norms_are_refused_and_say_what_to_use(norm: str) -> None:
    module = nn.Sequential(nn.Linear(8, 8), getattr(nn.utils, norm)(nn.Linear(8, 8)))
    module(torch.randn(4, 8))
    message = (
        rf"parameter '1\.weight_\w+' is held .*: torch\.nn\.utils\.{norm} leaves '1\.weight' .*"
        rf"Use torch\.nn\.utils\.parametrizations\.{norm}, or .*keep_float=\['1\.weight_\*'\]"
    )
    with pytest.raises(ValueError, match=message):
        optim.quantize_(module)
    assert not any(isinstance(param, FixedPointTensor) for param in module.parameters())
    optim.quantize_(module, keep_float=["1.weight_*"])
    module(torch.randn(4, 8)).sum().backward()
    module = nn.Sequential(getattr(nn.utils.parametrizations, norm)(nn.Linear(8, 8)))
    module(torch.randn(4, 8))
    optim.quantize_(module)
    module(torch.randn(4, 8)).sum().backward()
    assert all(param.grad is not None for param in module.parameters())


def test_lazy_modules_are_refused_until_they_have_run() -> None:
    module = nn.LazyLinear(3)
    with pytest.raises(ValueError, match="'weight' is not initialised yet"):
        optim.quantize_(module)
    module(torch.randn(2, 5))
    optim.quantize_(module)
    assert isinstance(module.weight, FixedPointTensor)


class Tied(nn.Module):
    """Two parameters that are windows on one memory: ``two`` is made of ``one``."""

    def __init__(self, two: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.randn(4, 6))
        self.alone = nn.Parameter(torch.randn(4))
        self.two = nn.Parameter(two(self.one.detach()))


@pytest.mark.parametrize("two", [torch.Tensor.t, lambda one: one[1:3], lambda one: one.view(-1)])
def test_tied_views_are_refused(two: Callable[[torch.Tensor], torch.Tensor]) -> None:
    module = Tied(two)
    for kept in ([], ["one"], ["two"]):
        with pytest.raises(ValueError, match=r"'(one|two)' and '(one|two)' overlap in memory .* make them one Param"):
            optim.quantize_(module, keep_float=kept)
        assert not any(isinstance(param, FixedPointTensor) for param in module.parameters())
    optim.quantize_(module, keep_float=["one", "two"])
    assert isinstance(module.alone, FixedPointTensor)
    assert torch.equal(two(module.one.detach()), module.two.detach())


def test_neighbours_in_one_memory_are_not_tied() -> None:
    """As ``vector_to_parameters``, and recurrent layers on a GPU, lay parameters out."""
    module = network()
    params = list(module.parameters())
    nn.utils.vector_to_parameters(torch.randn(sum(param.numel() for param in params)), params)
    assert len({param.untyped_storage().data_ptr() for param in params}) == 1
    optim.quantize_(module)
    assert all(isinstance(param, FixedPointTensor) for param in params)


def test_one_parameter_in_two_places_stays_one() -> None:
    module = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10, bias=False))
    module[1].weight = module[0].weight
    optim.quantize_(module)
    assert module[1].weight is module[0].weight
    assert isinstance(module[1].weight, FixedPointTensor)
    optim.quantize_(module)


def test_what_saturates_at_conversion_is_said() -> None:
    module = nn.LayerNorm(300)
    with pytest.warns(UserWarning, match=r"parameter 'weight': 300 of 300 values are out of <0,16>'s range, -0.5 to"):
        optim.quantize_(module, "<0,16>")
