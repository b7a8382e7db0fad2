"""Averages of weights go float32's way, by whatever operation they are written: docs/decisions/0012-copies-round.md."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn, update_bn
from torch.utils.data import DataLoader, TensorDataset

from lowprec_plugin import FixedPointPrecision, FixedPointTensor, optim
from lowprec_plugin.tensor.dtensor import local_part
from tests.comm import ranks

DECAY, STEPS = 0.9999, 300
ROWS, COLUMNS = 4, 300
#: One update of ``average``'s weight towards that of ``net``.
Update = Callable[[nn.Module, nn.Module], Any]


def mixed(average: Tensor, net: Tensor) -> Tensor:
    return DECAY * average + (1 - DECAY) * net


def assign(average: nn.Module, net: nn.Module) -> None:
    average.weight.data = average.weight.data * DECAY + net.weight.data * (1.0 - DECAY)


def assign_a_copy_of_its_own(average: nn.Module, net: nn.Module) -> None:
    average.weight.data = average.weight.data.clone().mul_(DECAY).add_(net.weight.data, alpha=1 - DECAY)


def assign_a_copy_of_the_net(average: nn.Module, net: nn.Module) -> None:
    average.weight.data = net.weight.data.clone().mul_(1 - DECAY).add_(average.weight.data, alpha=DECAY)


def load_copies(average: nn.Module, net: nn.Module) -> None:
    state = copy.deepcopy(average.state_dict())
    for name, value in state.items():
        value.mul_(DECAY).add_(net.state_dict()[name], alpha=1 - DECAY)
    average.load_state_dict(state)


def copies_of_the_net(average: nn.Module, net: nn.Module) -> None:
    twin = copy.deepcopy(net)
    twin.weight.lerp_(average.weight, DECAY)
    average.load_state_dict(twin.state_dict())


def rows(average: nn.Module, net: nn.Module) -> None:
    for row in range(ROWS):
        average.weight[row] = mixed(average.weight[row], net.weight[row])


def columns(average: nn.Module, net: nn.Module) -> None:
    for start in range(2):
        average.weight.data[:, start::2] = mixed(average.weight[:, start::2], net.weight[:, start::2])


def slices(average: nn.Module, net: nn.Module) -> None:
    for start in range(0, ROWS, 3):
        average.weight[start : start + 3] = mixed(average.weight, net.weight)[start : start + 3]


def masked(average: nn.Module, net: nn.Module) -> None:
    mask = torch.arange(ROWS * COLUMNS).view(ROWS, COLUMNS) % 3 == 0
    after = mixed(average.weight, net.weight)
    average.weight[mask] = after[mask]
    average.weight.masked_scatter_(~mask, after[~mask])


def vectors(average: nn.Module, net: nn.Module) -> None:
    both = (parameters_to_vector(module.parameters()) for module in (average, net))
    vector_to_parameters(mixed(*both), average.parameters())


def foreach_copies(average: nn.Module, net: nn.Module) -> None:
    torch._foreach_copy_([average.weight], [mixed(average.weight, net.weight)])


def foreach_sums(average: nn.Module, net: nn.Module) -> None:
    torch._foreach_mul_([average.weight], DECAY)
    torch._foreach_add_([average.weight], [net.weight], alpha=1 - DECAY)


UPDATES: dict[str, Update] = {
    "mul_, add_": lambda a, w: a.weight.mul_(DECAY).add_(w.weight, alpha=1 - DECAY),
    "sub_": lambda a, w: a.weight.sub_((a.weight - w.weight).mul_(1 - DECAY)),
    "lerp_": lambda a, w: a.weight.lerp_(w.weight, 1 - DECAY),
    "copy_": lambda a, w: a.weight.copy_(mixed(a.weight, w.weight)),
    "copy_ from float64": lambda a, w: a.weight.copy_(mixed(a.weight.double(), w.weight)),
    "copy_ of what it is already": lambda a, w: a.weight.copy_(a.weight.clone().lerp_(w.weight, 1 - DECAY)),
    "data.copy_": lambda a, w: a.weight.data.copy_(mixed(a.weight.data, w.weight.data)),
    "data =": assign,
    "data = a copy of its own": assign_a_copy_of_its_own,
    "data = a copy of the net's": assign_a_copy_of_the_net,
    "load_state_dict of floats": lambda a, w: a.load_state_dict({"weight": mixed(a.weight, w.weight)}),
    "load_state_dict of copies": load_copies,
    "load_state_dict of the net's copy": copies_of_the_net,
    "view(-1).copy_": lambda a, w: a.weight.view(-1).copy_(mixed(a.weight, w.weight).view(-1)),
    "t().copy_": lambda a, w: a.weight.t().copy_(mixed(a.weight, w.weight).t()),
    "rows": rows,
    "columns": columns,
    "slices": slices,
    "all of it": lambda a, w: a.weight.data.__setitem__(..., mixed(a.weight, w.weight)),
    "index_copy_": lambda a, w: a.weight.index_copy_(0, torch.arange(ROWS), mixed(a.weight, w.weight)),
    "masks": masked,
    "vectors": vectors,
    "foreach lerp_": lambda a, w: torch._foreach_lerp_([a.weight], [w.weight], 1 - DECAY),
    "foreach copy_": foreach_copies,
    "foreach mul_, add_": foreach_sums,
    "Lightning's SWA": lambda a, w: StochasticWeightAveraging.update_parameters(
        a, w, torch.tensor(10_000), lambda average, net, _: mixed(average, net)
    ),
}
#: What keeps an average itself, made around what it is to start from.
KEEPERS: dict[str, Callable[[nn.Module], AveragedModel]] = {
    "AveragedModel": AveragedModel,
    "avg_fn": lambda start: AveragedModel(start, avg_fn=lambda average, net, _: mixed(average, net)),
    "avg_fn in place": lambda start: AveragedModel(
        start, avg_fn=lambda a, w, _: a.mul_(DECAY).add_(w, alpha=1 - DECAY)
    ),
    "get_ema_avg_fn": lambda start: AveragedModel(start, avg_fn=get_ema_avg_fn(DECAY)),
    "get_ema_multi_avg_fn": lambda start: AveragedModel(start, multi_avg_fn=get_ema_multi_avg_fn(DECAY)),
    "with buffers": lambda start: AveragedModel(start, avg_fn=get_ema_avg_fn(DECAY), use_buffers=True),
}


def modules(format: str | None, format_of_average: str | None = None, rounding: str = "stochastic") -> list[nn.Module]:
    """An average's start and a net: every row has the number 1, so that a code is the same throughout."""
    made: list[nn.Module] = []
    for seed, each in enumerate((format_of_average or format, format)):
        module = nn.Linear(COLUMNS, ROWS, bias=False)
        with torch.no_grad():
            module.weight.copy_(torch.rand(ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed)))
            module.weight[:, ::256] = 1.0
        if each is not None:
            optim.quantize_(module, each, rounding=rounding)
        made.append(module)
    return made


def twins(format: str | None) -> list[nn.Module]:
    """:func:`modules` in 16 bits, or for ``None`` floats of the same numbers."""
    made = modules(format)
    if format is None:
        for module, other in zip(made, modules("fixed16"), strict=True):
            module.load_state_dict(optim.float_state_dict(other))
    return made


@torch.no_grad()
def averaged(average: nn.Module, net: nn.Module, update: Update) -> Tensor:
    """The average after ``STEPS`` updates, with a step of the net's optimizer before each that leaves it as it is."""
    optimizer = optim.SGD(net.parameters(), lr=0.0)
    net.weight.grad = torch.zeros(ROWS, COLUMNS)
    for _ in range(STEPS):
        optimizer.step()
        update(average, net)
    kept = average.module if isinstance(average, AveragedModel) else average
    return kept.weight.detach()


def errors(found: Tensor, floats: Tensor) -> Tensor:
    """In codes, without the numbers that give every block its exponent."""
    assert isinstance(found, FixedPointTensor)
    code = math.ldexp(1.0, 2 - found.format.word_length)
    return ((found.dequantize() - floats) / code)[:, torch.arange(COLUMNS) % 256 != 0]


def check(found: Tensor, floats: Tensor, towards: Tensor, steps: int = STEPS, roundings: int = 1) -> None:
    """The error is that of unbiased roundings alone: of each at most half a code, squared, in the mean.

    It is looked at for all elements, and for those of the smallest and the largest way alone.
    """
    error = errors(found, floats)
    bound = 0.5 * math.sqrt(steps * roundings)
    assert float(error.square().mean().sqrt()) < 1.05 * bound + 0.5
    way = errors(found, towards)
    for part in (way.abs() >= 0, way.abs() < way.abs().median(), way.abs() > way.abs().quantile(0.8)):
        backwards = (error * way.sign())[part]
        assert abs(float(backwards.mean())) < 5 * bound / math.sqrt(len(backwards))


#: All but those that would give the average another format, or round it to the net's before its own.
CASES = [
    (name, average)
    for name in UPDATES
    for average in ("fixed16", "<2,10>")
    if "net's" not in name or average == "fixed16"
]


@pytest.mark.parametrize(("name", "format"), CASES)
def test_an_average_goes_float32s_way(name: str, format: str) -> None:
    start, net = modules("fixed16", format)
    before = start.weight.dequantize()
    floats = [copy.deepcopy(module) for module in modules(None)]
    for one, other in zip(floats, (start, net), strict=True):
        one.load_state_dict(optim.float_state_dict(other))
    expected = averaged(*floats, UPDATES[name])
    found = averaged(start, net, UPDATES[name])
    assert (expected - before).abs().max() > 0.02
    twice = name in ("mul_, add_", "data = a copy of its own", "load_state_dict of copies", "foreach mul_, add_")
    check(found, expected, net.weight.dequantize(), roundings=2 if twice else 1)
    assert str(found.format) == format


@pytest.mark.parametrize("name", KEEPERS)
def test_a_kept_average_goes_float32s_way(name: str) -> None:
    ends = []
    for format in ("fixed16", None):
        start, net = twins(format)
        keeper = KEEPERS[name](start)
        keeper.n_averaged += 9_999  # of a mean of all, each further one is a ten-thousandth then
        ends.append(averaged(keeper, net, lambda average, net: average.update_parameters(net)))
    check(ends[0], ends[1], modules("fixed16")[1].weight.dequantize(), roundings=2 if "in place" in name else 1)


@pytest.mark.parametrize("format", ["fixed8", "<2,6>"])
def test_a_copy_of_narrow_weights_is_stored_anew_in_16_bits(format: str) -> None:
    """What ``quantize_`` is for: the copy has the weights' own few bits."""
    start, net = modules(format)
    floats = [nn.Linear(COLUMNS, ROWS, bias=False) for _ in range(2)]
    for one, other in zip(floats, (start, net), strict=True):
        one.load_state_dict(optim.float_state_dict(other))
    ends = []
    for first, second in ((start, net), floats):
        keeper = AveragedModel(first, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
        keeper.n_averaged += 1
        if first is start:
            optim.quantize_(keeper.module, "fixed16")
        ends.append(averaged(keeper, second, lambda average, net: average.update_parameters(net)))
    check(ends[0], ends[1], floats[1].weight.detach())
    assert str(start.weight.format) == format


def test_statistics_of_an_average_are_computed_anew() -> None:
    """``update_bn`` runs the average forward, in training mode: its weights stay, and no gradient is kept."""
    data = [torch.randn(16, COLUMNS, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    found = []
    for format in ("fixed16", None):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(COLUMNS, 64), nn.BatchNorm1d(64))
        if format is not None:
            optim.quantize_(net, format, gradient_word_length=8)
        average = AveragedModel(net)
        average.update_parameters(net)
        before = [getattr(param, "codes", param).clone() for param in average.parameters()]
        update_bn(data, average)
        found.append(average.module[1])
        assert all(param.grad is None for param in average.parameters())
        after = [getattr(param, "codes", param) for param in average.parameters()]
        assert all(map(torch.equal, before, after))
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(found[0], name), getattr(found[1], name), rtol=1e-3, atol=1e-3)


def test_one_that_rounds_to_nearest_does_not() -> None:
    """The control of this file, and what ``rounding="nearest"`` means."""
    start, net = modules("fixed12", rounding="nearest")
    before = start.weight.dequantize()
    assert torch.equal(averaged(start, net, UPDATES["copy_"]).dequantize(), before)
    with pytest.raises(AssertionError):
        check(start.weight.detach(), before + 0.05 * (net.weight.dequantize() - before), net.weight.dequantize())


def test_the_net_behind_a_wider_ramp_is_still_followed() -> None:
    """Target networks that are no part of the module stay at the bits they had when a ramp widens it."""
    for way in ("load_state_dict", "data.copy_", "copy_"):
        net = nn.Linear(COLUMNS, ROWS)
        optim.quantize_(net, "fixed12")
        optimizer = optim.AdamW(net.parameters(), 1e-3)
        target = copy.deepcopy(net)
        optim.widen_(net, optimizer, 16)
        net(torch.randn(4, COLUMNS)).square().mean().backward()
        optimizer.step()
        if way == "load_state_dict":
            target.load_state_dict(net.state_dict())
        else:
            for one, other in zip(target.parameters(), net.parameters(), strict=True):
                with torch.no_grad():
                    one.data.copy_(other.data) if way == "data.copy_" else one.copy_(other)
        assert str(target.weight.format) == "fixed12"
        code = 2.0**-11 * float(net.weight.detach().abs().max())
        torch.testing.assert_close(target.weight.dequantize(), net.weight.dequantize(), rtol=0, atol=code)


def test_values_between_two_codes_are_kept_in_the_mean() -> None:
    """Whatever writes them: a tenth of a code is there in a tenth of the elements."""
    x = FixedPointTensor.quantize(torch.ones(1, 20_000), "<2,8>")
    value = 1 + 0.1 * 2.0**-8
    for write in (
        lambda: x.fill_(value),
        lambda: nn.init.constant_(x, value),
        lambda: x.copy_(torch.tensor(value)),
        lambda: x.copy_(torch.full_like(x, value)),
        lambda: x[0].copy_(torch.full_like(x, value)[0]),
    ):
        x.fill_(1.0)
        write()
        assert float((x.dequantize() - 1).mean()) * 2**8 == pytest.approx(0.1, abs=0.011)


class Pulled(LightningModule):
    """A weight that is pulled to another place in its second step; the average begins after the first."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = modules(None)[0].weight

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        pull = float(self.global_step > 0)
        return pull * (self.weight - modules(None)[1].weight.detach()).square().sum() / 2

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1.0)


@pytest.mark.parametrize("before", [False, True], ids=["copied in float", "copied in fixed-point"])
def test_lightnings_average_goes_float32s_way(before: bool) -> None:
    """The callback copies the module before a plugin converts it, unless it has been converted before."""
    ends = []
    for plugin in (FixedPointPrecision(), None):
        module, averaging = Pulled(), EMAWeightAveraging(decay=DECAY)
        if plugin is not None and before:
            optim.quantize_(module)
        trainer = Trainer(
            accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False, callbacks=[averaging],
            enable_checkpointing=False, enable_model_summary=False, plugins=plugin,
        )  # fmt: skip
        trainer.fit(module, DataLoader(TensorDataset(torch.zeros(STEPS, 1)), batch_size=1))
        kept = averaging._average_model.module.weight
        assert isinstance(kept, FixedPointTensor) == (plugin is not None)
        ends.append(module.weight.detach())  # the callback ends by copying the average into the module
    start, end = (module.weight.detach() for module in modules(None))
    assert (ends[1] - start).abs().max() > 0.02
    check(ends[0], ends[1], end)


SHARDED: list[Update] = [
    lambda a, w: a.weight.lerp_(w.weight, 1 - DECAY),
    lambda a, w: a.weight.copy_(mixed(a.weight, w.weight)),
    lambda a, w: a.weight.data.copy_(mixed(a.weight.data, w.weight.data)),
    lambda a, w: a.weight.mul_(DECAY).add_(w.weight, alpha=1 - DECAY),
    lambda a, w: a.load_state_dict({"weight": mixed(a.weight, w.weight)}),
]


def _sharded(rank: int) -> list[Tensor]:
    found = []
    for update in SHARDED:
        average, net = modules("fixed16")
        for module in (average, net):
            fully_shard(module)
        with torch.no_grad():
            for _ in range(20):
                update(average, net)
        found.append(local_part(average.weight.detach()).codes)
    return found


def test_shards_of_an_average_have_the_bits_of_the_whole() -> None:
    every = ranks.run(3, _sharded)
    for index, update in enumerate(SHARDED):
        average, net = modules("fixed16")
        with torch.no_grad():
            for _ in range(20):
                update(average, net)
        assert torch.equal(torch.cat([each[index] for each in every]), average.weight.codes)
