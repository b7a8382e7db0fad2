"""What the step refuses, keeps in float, saves and loads."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

from lowprec_plugin import FixedPointTensor, optim
from lowprec_plugin.optim import NonFiniteGradientError
from tests.cases import planes


def network(**options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 300), nn.ReLU(), nn.Linear(300, 1))
    optim.quantize_(module, **options)
    return module


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(32, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (module(x) - x.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


MAKERS = {
    "sgd": lambda params: optim.SGD(params, 0.01, momentum=0.9),
    "adamw 16/8": lambda params: optim.AdamW(params, 0.01, state_word_length=8),
    "lion": lambda params: optim.Lion(params, 0.001),
    "amsgrad": lambda params: optim.Adam(params, 0.01, amsgrad=True),
    "generic": lambda params: optim.adopt(torch.optim.RMSprop(params, 0.001, momentum=0.9)),
}


@pytest.mark.parametrize("name", MAKERS)
def test_resume_is_bit_for_bit(name: str) -> None:
    """20 steps are 10, a save through ``weights_only`` files, and 10 more."""
    straight = network()
    optimizer = MAKERS[name](straight.parameters())
    train(straight, optimizer, range(20))
    expected = planes(straight, optimizer)

    first = network()
    optimizer = MAKERS[name](first.parameters())
    train(first, optimizer, range(10))
    file = io.BytesIO()
    torch.save({"module": first.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    torch.manual_seed(99)
    second = nn.Sequential(nn.Linear(8, 300), nn.ReLU(), nn.Linear(300, 1))
    optim.quantize_(second)
    second.load_state_dict(saved["module"])
    optimizer = MAKERS[name](second.parameters())
    optimizer.load_state_dict(saved["optimizer"])
    train(second, optimizer, range(10, 20))
    assert same(planes(second, optimizer), expected)


def test_another_seed_is_another_run() -> None:
    """The control of the test above."""
    runs = []
    for seed in (0, 1):
        module = network(seed=seed)
        optimizer = optim.AdamW(module.parameters(), 0.01)
        train(module, optimizer, range(5))
        runs.append(planes(module, optimizer))
    assert not same(*runs)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_nonfinite_gradient_is_refused_whole(bad: float) -> None:
    module = network()
    optimizer = optim.AdamW(module.parameters(), 0.01)
    train(module, optimizer, range(2))
    before = [plane.clone() for plane in planes(module, optimizer)]
    for param in module.parameters():
        param.grad = torch.ones(param.shape)
    module[2].weight.grad[0, 17] = bad
    with pytest.raises(NonFiniteGradientError, match=r"gradient of parameter '2\.weight' holds a NaN or an infinity"):
        optimizer.step()
    assert same(planes(module, optimizer), before)


def test_nonfinite_gradient_can_be_skipped_and_counted() -> None:
    module = network()
    optimizer = optim.AdamW(module.parameters(), 0.01, nonfinite="skip")
    train(module, optimizer, range(2))
    before = [plane.clone() for plane in planes(module, optimizer)]
    for param in module.parameters():
        param.grad = torch.full(param.shape, torch.nan)
    optimizer.step()
    assert optimizer.fixed_point.skipped_steps == 1
    assert same(planes(module, optimizer), before)
    train(module, optimizer, range(2, 3))
    assert not same(planes(module, optimizer), before)


def test_sparse_gradient_says_what_to_do() -> None:
    module = nn.Embedding(10, 4, sparse=True)
    optim.quantize_(module)
    optimizer = optim.SGD(module.parameters(), 0.1)
    module(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ValueError, match="use sparse=False"):
        optimizer.step()


@pytest.mark.parametrize("kind", [optim.SGD, optim.AdamW, optim.Lion])
def test_kept_float_parameters_take_the_float_step(kind: Any) -> None:
    module = network(keep_float=["2.*"])
    twin = copy.deepcopy(module)
    optimizer, float_optimizer = kind(module.parameters(), 0.01), kind.float_class(twin[2].parameters(), 0.01)
    for param, other in zip(module[2].parameters(), twin[2].parameters(), strict=True):
        assert not isinstance(param, FixedPointTensor)
        param.grad = torch.ones_like(param)
        other.grad = torch.ones_like(other)
    optimizer.step()
    float_optimizer.step()
    for param, other in zip(module[2].parameters(), twin[2].parameters(), strict=True):
        assert torch.equal(param, other)


def test_parameters_without_gradient_stay() -> None:
    module = network()
    before = module[0].weight.codes.clone()
    optimizer = optim.AdamW(module.parameters(), 0.1)
    module[2].weight.grad = torch.ones(1, 300)
    optimizer.step()
    assert torch.equal(module[0].weight.codes, before)
    assert module[0].weight not in optimizer.state


def test_takes_up_float_state_and_gives_it_back() -> None:
    """A float32 run continues in fixed-point and returns; the moments survive both ways."""
    torch.manual_seed(0)
    floats = nn.Sequential(nn.Linear(8, 300), nn.ReLU(), nn.Linear(300, 1))
    float_optimizer = torch.optim.AdamW(floats.parameters(), 0.01)
    train(floats, float_optimizer, range(5))

    module = network()
    module.load_state_dict(floats.state_dict())
    optimizer = optim.AdamW(module.parameters(), 0.01)
    optimizer.load_state_dict(float_optimizer.state_dict())
    state = optimizer.state[module[0].weight]
    assert isinstance(state["exp_avg_sq"], FixedPointTensor)
    original = float_optimizer.state[floats[0].weight]
    torch.testing.assert_close(state["exp_avg_sq"].dequantize(), original["exp_avg_sq"], rtol=1e-3, atol=1e-9)

    train(module, optimizer, range(5, 10))
    train(floats, float_optimizer, range(5, 10))
    back = nn.Sequential(nn.Linear(8, 300), nn.ReLU(), nn.Linear(300, 1))
    back.load_state_dict(optim.float_state_dict(module))
    back_optimizer = torch.optim.AdamW(back.parameters(), 0.01)
    back_optimizer.load_state_dict(optim.plain_optimizer_state(optimizer))
    for one, other in zip(back.parameters(), floats.parameters(), strict=True):
        assert type(one) is nn.Parameter
        torch.testing.assert_close(one, other, rtol=0, atol=5e-3)  # five steps of up to 1e-2
        assert int(back_optimizer.state[one]["step"]) == 10
        torch.testing.assert_close(
            back_optimizer.state[one]["exp_avg"], float_optimizer.state[other]["exp_avg"], rtol=0.02, atol=1e-3
        )
    train(back, back_optimizer, range(10, 12))


def test_state_of_another_format_is_converted_if_exact() -> None:
    module = network()
    optimizer = optim.AdamW(module.parameters(), 0.01, state_word_length=8)
    train(module, optimizer, range(3))
    wider = optim.AdamW(module.parameters(), 0.01, state_word_length=16)
    wider.load_state_dict(optimizer.state_dict())
    weight = module[0].weight
    assert torch.equal(wider.state[weight]["exp_avg"].dequantize(), optimizer.state[weight]["exp_avg"].dequantize())
    train(module, wider, range(3, 6))
    with pytest.raises(ValueError, match="stored as fixed16 is not exact as fixed8"):
        optimizer.load_state_dict(wider.state_dict())


@pytest.mark.parametrize("name", ["adamw 16/8", "generic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_other_settings_store_the_state_anew(name: str, dtype: torch.dtype) -> None:
    """Rounded to nearest, once, whatever dtype operations see; without settings nothing changes."""
    module = network(dtype=dtype)
    optimizer = optim.adopt(MAKERS[name](module.parameters()), optim.StepSettings(16))
    for param in module.parameters():
        param.grad = torch.randn(param.shape).to(dtype)
    optimizer.step()
    before = {param: dict(state) for param, state in optimizer.state.items()}
    assert optim.adopt(optimizer) is optimizer
    assert all(value is before[param][key] for param in before for key, value in optimizer.state[param].items())

    optim.adopt(optimizer, optim.StepSettings(12, rounding="nearest"))
    changed = 0
    for param, state in optimizer.state.items():
        for key, value in state.items():
            if not isinstance(value, FixedPointTensor):
                assert value is before[param][key]
                continue
            old, changed = before[param][key], changed + 1
            assert (value.format.squared, value.rounding) == (old.format.squared, "nearest")
            assert value.format.word_length == 12
            floats = old.dequantize(torch.float32)
            expected = FixedPointTensor.quantize(floats, value.format, rounding="nearest")
            assert torch.equal(value.codes, expected.codes)
            assert value.label == old.label
    assert changed >= 4
    optimizer.step()


def test_schedulers_stay_bound() -> None:
    """Made before the optimizer is adopted, as Lightning's order has it."""
    module = network()
    optimizer = torch.optim.SGD(module.parameters(), 1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    assert optim.adopt(optimizer) is optimizer
    assert isinstance(optimizer, torch.optim.SGD)
    train(module, optimizer, range(1))
    schedule.step()  # warns, and so fails, if the step has not been noticed
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_replaced_step_is_refused() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], 1.0)
    optimizer.step = lambda closure=None: None  # type: ignore[method-assign,assignment]
    with pytest.raises(ValueError, match="has been replaced"):
        optim.adopt(optimizer)


@pytest.mark.parametrize("name", MAKERS)
def test_a_float_parameter_that_is_added_later_is_warned_of(name: str) -> None:
    module, later = network(keep_float="2.bias"), nn.Linear(3, 5)
    optimizer = MAKERS[name](module.parameters())  # what is kept in float from the start is not
    message = r"shape \(5, 3\) and 1 more in float.* optim\.quantize_\(module\) before"
    with pytest.warns(UserWarning, match=message) as caught:
        optimizer.add_param_group({"params": list(later.parameters())})
    assert len(caught) == 1
    assert caught[0].filename == __file__
    converted = nn.Linear(3, 5)
    optim.quantize_(converted)
    optimizer.add_param_group({"params": list(converted.parameters())})
    for param in (*module.parameters(), *later.parameters(), *converted.parameters()):
        param.grad = torch.ones(param.shape)
    optimizer.step()


def test_floats_among_floats_are_not_warned_of() -> None:
    optimizer = optim.AdamW(nn.Linear(2, 2).parameters())
    optimizer.add_param_group({"params": list(nn.Linear(2, 2).parameters())})


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_state_with_one_radix_point(rounding: str) -> None:
    """Momentum in <6,10> is what float64 gives, rounded once a step; a copy from a checkpoint goes on with the same."""
    module = network()
    optimizer = optim.SGD(
        module.parameters(), 0.01, momentum=0.9, state_word_length=16, state_fraction_length=10, rounding=rounding
    )
    train(module, optimizer, range(1))
    param = module[0].weight
    for step in range(1, 4):
        before = optimizer.state[param]["momentum_buffer"].dequantize().double()
        train(module, optimizer, range(step, step + 1))
        buffer = optimizer.state[param]["momentum_buffer"]
        assert str(buffer.format) == "<6,10>"
        assert buffer.exponents is None
        off = (buffer.dequantize().double() - (0.9 * before + param.grad.double())).abs() * 2**10
        assert off.max() <= (0.5 if rounding == "nearest" else 1.0) + 1e-3
        assert off.max() > 0.4
    again = copy.deepcopy(module)
    resumed = optim.SGD(
        again.parameters(), 0.01, momentum=0.9, state_word_length=16, state_fraction_length=10, rounding=rounding
    )
    resumed.load_state_dict(optimizer.state_dict())
    for each, other in ((module, optimizer), (again, resumed)):
        train(each, other, range(5, 7))
    assert same(planes(module, optimizer), planes(again, resumed))


@pytest.mark.parametrize("make", [optim.AdamW, lambda params, **given: adopted(torch.optim.NAdam(params), **given)])
def test_squares_have_no_radix_point_of_the_users(make: Any) -> None:
    module = network()
    before = weights(module)
    with pytest.raises(ValueError, match=r"state_fraction_length=10: .* squares, which has to have a radix point"):
        train(module, make(module.parameters(), state_word_length=16, state_fraction_length=10), range(1))
    assert same(weights(module), before)


def weights(module: nn.Module) -> list[torch.Tensor]:
    return [plane.clone() for param in module.parameters() for plane in param.blocks.planes]  # type: ignore[union-attr]


def adopted(optimizer: torch.optim.Optimizer, **given: Any) -> torch.optim.Optimizer:
    return optim.adopt(optimizer, optim.StepSettings(**given))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounding": "up"}, "rounding='up' is not one of"),
        ({"nonfinite": "ignore"}, "nonfinite='ignore' is not one of"),
        ({"state_word_length": 32}, "state_word_length=32 is not supported"),
        ({"state_fraction_length": 10}, "state_fraction_length=10 needs state_word_length"),
        ({"state_word_length": 8, "state_fraction_length": 999}, "fraction_length=999"),
    ],
)
def test_bad_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        optim.AdamW([nn.Parameter(torch.ones(1))], **options)


@pytest.mark.parametrize("name", MAKERS)
def test_a_backward_pass_through_former_weights_is_refused(name: str) -> None:
    module = network()
    optimizer = MAKERS[name](module.parameters())
    loss = module(torch.randn(4, 8)).sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    ("dtype", "good", "bad"),
    [(torch.float64, 1e60, torch.nan), (torch.complex64, 1j, complex(0, torch.nan))],
    ids=["float64", "complex64"],
)
def test_gradients_of_other_dtypes_are_looked_at_as_they_are(dtype: torch.dtype, good: Any, bad: Any) -> None:
    module = nn.Module()
    module.weight = nn.Parameter(torch.ones(3))
    module.other = nn.Parameter(torch.ones(3, dtype=dtype))
    optim.quantize_(module, keep_float="other")
    optimizer = optim.Adam(module.parameters(), 0.1)
    module.weight.grad = torch.ones(3)
    module.other.grad = torch.full((3,), good, dtype=dtype)
    optimizer.step()
    assert bool((module.other != 1).all())
    module.other.grad = torch.full((3,), bad, dtype=dtype)
    with pytest.raises(NonFiniteGradientError):
        optimizer.step()
