"""Other people's parameters: frozen bases in fewer bits, manifolds, adapters, and those who hold weak references."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowprec_plugin import FixedPointTensor, optim
from lowprec_plugin.telemetry.storage_table import as_text, describe

pytestmark = pytest.mark.filterwarnings("ignore")  # these packages' own, at their import

STEPS = 30


def losses(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[float]:
    """Of so many steps towards numbers that a network of this kind can learn."""
    generator, found = torch.Generator().manual_seed(1), []
    for _ in range(STEPS):
        x = torch.randn(32, 64, generator=generator)
        optimizer.zero_grad()
        loss = (module(x) - x[:, :8].sin()).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        found.append(loss.item())
    return found


def trainable(module: nn.Module) -> list[nn.Parameter]:
    return [param for param in module.parameters() if param.requires_grad]


def trained_alike(
    make: Callable[[], nn.Module], optimizer: Callable[[Any], torch.optim.Optimizer] | None = None
) -> tuple[nn.Module, dict[str, str]]:
    """A module in fixed-point, and what was left; its losses go the way of float32's."""
    optimizer = optimizer or (lambda params: torch.optim.AdamW(params, lr=1e-2))
    torch.manual_seed(0)
    floats = make()
    expected = losses(floats, optimizer(trainable(floats)))
    torch.manual_seed(0)
    module = make()
    left = optim.quantize_(module)
    adopted = optim.adopt(optimizer(trainable(module)))
    found = losses(module, adopted)
    assert expected[-1] < 0.9 * expected[0]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=0.02, atol=1e-3)
    text = as_text(describe(module, [adopted]), left)
    for name, reason in left.items():
        assert f"left as it is: {name} ({reason})" in text
    return module, left


@pytest.mark.parametrize("config", ["Int8WeightOnlyConfig", "Float8WeightOnlyConfig", "IntxWeightOnlyConfig"])
def test_torchao_base_is_left_and_what_lies_on_it_trains(config: str) -> None:
    quantization = pytest.importorskip("torchao.quantization")

    def make() -> nn.Module:
        base = nn.Linear(64, 64, bias=False)
        quantization.quantize_(base, getattr(quantization, config)())
        base.weight.requires_grad_(False)
        return nn.Sequential(base, nn.Tanh(), nn.Linear(64, 8))

    module, left = trained_alike(make)
    assert left == {"0.weight": f"its class is {type(module[0].weight).__name__}"}  # type: ignore[index]
    assert type(module[0].weight).__module__.startswith("torchao")  # type: ignore[index]


@pytest.mark.parametrize("layer", ["Linear4bit", "Linear8bitLt"])
def test_bitsandbytes_base_is_left_and_what_lies_on_it_trains(layer: str) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")

    def make() -> nn.Module:
        options = {"has_fp16_weights": False} if layer == "Linear8bitLt" else {}
        base = getattr(bitsandbytes.nn, layer)(64, 64, bias=False, **options)
        return nn.Sequential(base.to("cpu"), nn.Tanh(), nn.Linear(64, 8))  # which is when it is packed

    module, left = trained_alike(make)
    assert left == {"0.weight": f"its class is {type(module[0].weight).__name__}"}  # type: ignore[index]
    assert not module[0].weight.is_floating_point()  # type: ignore[index]


def test_geoopt_parameter_stays_on_its_manifold() -> None:
    geoopt = pytest.importorskip("geoopt")

    class OnSphere(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            square = torch.nn.init.orthogonal_(torch.empty(64, 64))
            self.square = geoopt.ManifoldParameter(square, manifold=geoopt.Stiefel())
            self.head = nn.Linear(64, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(x @ self.square))  # type: ignore[no-any-return]

    module, left = trained_alike(OnSphere, lambda params: geoopt.optim.RiemannianSGD(params, lr=0.1))
    square: Any = module.square
    assert left == {"square": "its class is ManifoldParameter"}
    assert isinstance(square, geoopt.ManifoldParameter)
    torch.testing.assert_close(square.T @ square, torch.eye(64), rtol=0, atol=1e-4)


@pytest.mark.parametrize("adapters_first", [True, False])
def test_peft_adapters_train_on_a_base_in_codes(adapters_first: bool) -> None:
    peft = pytest.importorskip("peft")

    class Base(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(64, 64), nn.Linear(64, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.outer(torch.tanh(self.inner(x)))  # type: ignore[no-any-return]

    def make() -> nn.Module:
        base = Base()
        if next(made) == "in fixed-point" and not adapters_first:
            optim.quantize_(base)
        return peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["inner", "outer"]))  # type: ignore[no-any-return]

    made = iter(["in float32", "in fixed-point"])
    module, left = trained_alike(make)
    assert left == {}
    assert all(isinstance(param, FixedPointTensor) for param in module.parameters())
    x = torch.randn(4, 64)
    before = module(x).detach()
    merged = module.merge_and_unload()  # type: ignore[operator]
    torch.testing.assert_close(merged(x).detach(), before, rtol=0, atol=5e-3)


def test_averages_of_torch_ema_made_before_the_conversion_follow() -> None:
    torch_ema = pytest.importorskip("torch_ema")
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8))
    average = torch_ema.ExponentialMovingAverage(module.parameters(), decay=0.5, use_num_updates=False)
    start = [param.detach().clone() for param in module.parameters()]
    optim.quantize_(module)
    losses(module, optim.adopt(torch.optim.AdamW(module.parameters(), lr=1e-2)))
    average.update()
    for shadow, first, param in zip(average.shadow_params, start, module.parameters(), strict=True):
        now: Any = param
        torch.testing.assert_close(shadow, (first + now.dequantize()) / 2, rtol=0, atol=1e-6)
    with average.average_parameters():
        assert all(isinstance(param, FixedPointTensor) for param in module.parameters())
        for shadow, param in zip(average.shadow_params, module.parameters(), strict=True):
            torch.testing.assert_close(param.dequantize(), shadow, rtol=0, atol=1e-4)  # type: ignore[operator]
