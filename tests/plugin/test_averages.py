"""Averages that Lightning's callbacks keep are codes, and seeing one in a validation changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    LearningRateFinder,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from lowprec_plugin import FixedPointPrecision, FixedPointTensor, WordLengthRamp, memory
from lowprec_plugin.compat.hooks import has_gradient_hook
from lowprec_plugin.tensor.gradient_hook import narrow_gradient
from tests.comm import ranks
from tests.plugin import test_distributed, users

pytestmark = pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
Facts = dict[str, tuple[Any, ...]]


WIDE = 700


class Normed(users.Regressor):
    """With buffers, parameters to be kept in float, and a weight large enough for gradients in codes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(12, WIDE), nn.BatchNorm1d(WIDE), nn.Tanh(), nn.Linear(WIDE, 1))


def trainer_of(callbacks: list[Callback], plugin: FixedPointPrecision, **options: Any) -> Trainer:
    given = {"max_epochs": 3, "enable_checkpointing": False} | options
    return Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        callbacks=callbacks, plugins=plugin, **given,
    )  # fmt: skip


def facts(module: nn.Module) -> Facts:
    """All that there is of a module's numbers, to the bit."""
    found: Facts = {}
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        if isinstance(value, FixedPointTensor):
            planes = [plane.clone() for plane in value.blocks.planes]
            found[name] = (planes, value.format, value.roundings, value.stream, value.dtype)
        else:
            found[name] = ([value.detach().clone()], value.dtype)
    return found


def same(one: Facts, other: Facts) -> bool:
    return one.keys() == other.keys() and all(
        one[name][1:] == other[name][1:] and all(map(torch.equal, one[name][0], other[name][0])) for name in one
    )


def average_of(callback: Any) -> nn.Module:
    kept = callback._average_model
    return kept if isinstance(callback, StochasticWeightAveraging) else kept.module


KEEPERS: dict[str, Callable[[], Callback]] = {
    "EMA": lambda: EMAWeightAveraging(decay=0.9),
    "mean": WeightAveraging,
    "mean, without buffers": lambda: WeightAveraging(use_buffers=False),
    "SWA": lambda: StochasticWeightAveraging(1e-2, swa_epoch_start=1),
}
#: Options, and the format of the averages.
OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({}, "fixed16"),
    ({"word_length": 8, "keep_float": "net.3.*"}, "fixed16"),
    ({"word_length": 12, "rounding": "nearest", "gradient_word_length": 8}, "fixed16"),
    ({"word_length": 12, "fraction_length": 8}, "fixed16"),
    ({"word_length": 20, "block_size": 64}, "fixed20:64"),
    ({"word_length": 12, "keep_float": "net.3.*", "compute_dtype": torch.bfloat16}, "fixed16"),
    ({"word_length": 12, "keep_float": "net.3.*", "compute_dtype": torch.float64}, "fixed16"),
]


@pytest.mark.parametrize("name", KEEPERS)
@pytest.mark.parametrize(("options", "format"), OPTIONS, ids=str)
def test_averages_are_codes_and_a_validation_changes_nothing(name: str, options: Any, format: str) -> None:
    """What a validation sees are the average's own numbers."""
    seen: list[str] = []

    class Look(Callback):
        def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
            seen.append(str(pl_module.net[0].weight.gradient_word_length))
            self.weights, self.average = facts(pl_module), facts(average_of(averaging))

        def on_validation_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            expected = self.weights if name == "SWA" else self.average
            for each, value in (*pl_module.named_parameters(), *pl_module.named_buffers()):
                planes = value.blocks.planes if isinstance(value, FixedPointTensor) else [value.detach()]
                for one, other in zip(planes, expected[each][0], strict=True):
                    assert torch.equal(one, other.to(one.dtype))  # floats beside codes may be bfloat16
            seen.append("during")

        def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
            assert same(self.weights, facts(pl_module))
            assert same(self.average, facts(average_of(averaging)))
            seen.append("after")

    seed_everything(0, verbose=False)
    module, averaging = Normed(), KEEPERS[name]()
    weights = {id(param) for param in module.parameters()}
    trainer = trainer_of([averaging, Look()], FixedPointPrecision(**options))
    trainer.fit(module, users.vectors(), users.vectors())
    trainer.validate(module, users.vectors(), verbose=False)
    assert len(seen) >= 5 * 4
    assert {id(param) for param in module.parameters()} == weights
    for each, param in average_of(averaging).named_parameters():
        kept = each.startswith("net.3") and "keep_float" in options
        assert isinstance(param, FixedPointTensor) != kept
        if isinstance(param, FixedPointTensor):
            assert (str(param.format), param.rounding) == (format, "stochastic")
            assert param.stream != module.get_parameter(each).stream
            assert param.gradient_word_length is None
        assert param.grad is None
        assert not has_gradient_hook(param, narrow_gradient)


@pytest.mark.parametrize("name", KEEPERS)
def test_two_bytes_a_parameter_and_no_floats(name: str) -> None:
    elements = 12 * WIDE
    found: list[int] = []

    class Look(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
            trainer.optimizers[0].zero_grad()
            found.append(sum(4 * elements <= size for size, _ in memory.live_storages().values()))

        on_validation_start = on_validation_end = on_train_epoch_end

    before = sum(4 * elements <= size for size, _ in memory.live_storages().values())
    averaging = KEEPERS[name]()
    trainer = trainer_of([averaging, Look()], FixedPointPrecision(), max_epochs=2)
    trainer.fit(Normed(), users.vectors(), users.vectors())
    assert max(found) == before
    weight = next(average_of(averaging).parameters())
    assert weight.nbytes <= 2.2 * elements


@pytest.mark.parametrize("name", ["EMA", "mean", "SWA"])
@pytest.mark.parametrize(
    "options", [{}, {"word_length": 8}, {"word_length": 12, "compute_dtype": torch.bfloat16}], ids=str
)
@pytest.mark.parametrize("before", [False, True], ids=["new", "fixed-point before"])
def test_twenty_steps_are_ten_a_checkpoint_and_ten(name: str, options: Any, before: bool, tmp_path: Path) -> None:
    """The average too, with the count that keys its bits; whether Lightning loads it into floats or narrower codes."""
    saved: dict[str, Any] = {}

    class Save(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                saved["at"] = facts(average_of(averaging))
                trainer.save_checkpoint(tmp_path / "x.ckpt")

    def run(path: Path | None) -> tuple[Facts, Facts]:
        seed_everything(0, verbose=False)
        module = Normed()
        if path is not None and before:
            trainer_of([], FixedPointPrecision(**options)).validate(module, users.vectors(), verbose=False)
        callbacks: list[Callback] = [averaging] if path else [averaging, Save()]
        trainer = trainer_of(callbacks, FixedPointPrecision(**options), max_epochs=4)
        trainer.fit(module, users.vectors(), ckpt_path=path, weights_only=False)
        return facts(module), facts(average_of(averaging))

    averaging = KEEPERS[name]()
    module, average = run(None)
    averaging = KEEPERS[name]()
    assert not same(saved["at"], average)
    again, average_again = run(tmp_path / "x.ckpt")
    assert same(average, average_again)
    assert same(module, again)


def test_a_compiled_module_computes_with_the_average() -> None:
    """Though its words are others while it is validated; and with the weights afterwards."""
    outputs: list[Tensor] = []

    class Look(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, *args: Any) -> None:
            training = pl_module.training
            with torch.no_grad():
                pl_module.eval()
                outputs.append(compiled(batch[0]))
                torch.testing.assert_close(outputs[-1], pl_module.net(batch[0]))
            pl_module.train(training)

        on_validation_batch_start = on_train_batch_start

    seed_everything(0, verbose=False)
    module = Normed()
    compiled = torch.compile(module.net, backend="aot_eager", fullgraph=True)
    trainer = trainer_of([EMAWeightAveraging(decay=0.5), Look()], FixedPointPrecision(8))
    trainer.fit(module, users.vectors(), users.vectors())
    assert len(outputs) == 3 * 2 * 4
    assert not torch.allclose(outputs[4], outputs[8], rtol=1e-3)  # the average and the weights


def test_a_second_fit_begins_from_the_weights_and_holds_its_own() -> None:
    averaging, module = EMAWeightAveraging(decay=0.9), Normed()
    for _ in range(2):
        trainer_of([averaging], FixedPointPrecision(8)).fit(module, users.vectors(), users.vectors())
        assert {str(param.format) for param in average_of(averaging).parameters()} == {"fixed16"}
        assert {str(param.format) for param in module.parameters()} == {"fixed8"}


def test_a_ramp_widens_averages_beyond_16_bits_and_a_checkpoint_goes_on(tmp_path: Path) -> None:
    found: list[str] = []

    class Look(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
            found.append(str(next(average_of(averaging).parameters()).format))
            if trainer.current_epoch == 2:
                trainer.save_checkpoint(tmp_path / "x.ckpt")

    def run(path: Path | None) -> Facts:
        seed_everything(0, verbose=False)
        module = Normed()
        plugin = FixedPointPrecision(12, ramp=WordLengthRamp(at={1: 16, 2: 20}))
        callbacks: list[Callback] = [averaging, *([] if path else [Look()])]
        trainer = trainer_of(callbacks, plugin, max_epochs=4)
        trainer.fit(module, users.vectors(), users.vectors(), ckpt_path=path, weights_only=False)
        return facts(average_of(averaging))

    averaging = EMAWeightAveraging(decay=0.9)
    once = run(None)
    assert found == ["fixed16", "fixed16", "fixed20", "fixed20"]
    averaging = EMAWeightAveraging(decay=0.9)
    assert same(once, run(tmp_path / "x.ckpt"))


def test_rates_are_looked_for_with_an_average(tmp_path: Path) -> None:
    """Lightning goes back to a checkpoint of its own then; the average is as if it had not looked."""

    class Look(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            self.module, self.average = facts(pl_module), facts(average_of(averaging))

    found = []
    for finders in ([], [LearningRateFinder(num_training_steps=8, early_stop_threshold=None)]):
        averaging, look = EMAWeightAveraging(decay=0.5), Look()
        seed_everything(0, verbose=False)
        callbacks = [averaging, look, *finders]
        options = {"max_epochs": 1, "enable_checkpointing": True, "default_root_dir": tmp_path}
        trainer = trainer_of(callbacks, FixedPointPrecision(8), **options)
        trainer.fit(users.LearningRateByAttribute(), users.vectors())
        found.append(look)
    assert same(found[0].average, found[1].average)
    assert same(found[0].module, found[1].module)


def test_a_fit_leaves_averages_in_floats(tmp_path: Path) -> None:
    averaging, module = EMAWeightAveraging(decay=0.9), Normed()
    trainer = trainer_of([averaging], FixedPointPrecision(8, leave_float=True))
    trainer.fit(module, users.vectors())
    assert not any(isinstance(param, FixedPointTensor) for param in average_of(averaging).parameters())
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    saved = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert all(type(value) is Tensor for value in (saved["state_dict"] | saved["current_model_state"]).values())
    before = facts(average_of(averaging))
    trainer.fit_loop.max_epochs = 4
    trainer.fit(module, users.vectors(), users.vectors())
    assert not same(before, facts(average_of(averaging)))


def test_a_users_own_exchange_stays() -> None:
    """And Lightning's, which copies, is the control of this file: of narrow weights it leaves another average."""
    before: list[Facts] = []

    class Users(EMAWeightAveraging):
        def _swap_models(self, pl_module: Any) -> None:
            before.append(facts(average_of(self)))
            super()._swap_models(pl_module)

    class Look(Callback):
        def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
            assert not same(before[-2], facts(average_of(averaging)))

    averaging = Users(decay=0.9)
    trainer_of([averaging, Look()], FixedPointPrecision(8)).fit(Normed(), users.vectors(), users.vectors())
    assert len(before) == 6


def test_an_average_of_a_part_is_held_too() -> None:
    class OfAPart(EMAWeightAveraging):
        def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
            self._average_model = AveragedModel(pl_module.net, avg_fn=get_ema_avg_fn(0.9))

        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            self._average_model.update_parameters(pl_module.net)

        def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
            pass

    averaging = OfAPart()
    trainer_of([averaging], FixedPointPrecision(8, keep_float="net.3.*")).fit(Normed(), users.vectors())
    assert {str(getattr(param, "format", "")) for param in average_of(averaging).parameters()} == {"fixed16"}


class Drifting(users.Regressor):
    """A weight that goes towards another place, a hundredth of what is left in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(8, 300, generator=torch.Generator().manual_seed(0)) + 0.5)
        self.aim = self.weight.detach().flip(0).clone()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (self.weight - self.aim.to(self.weight.dtype)).float().square().sum() / 2

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([self.weight], 1e-2)


@pytest.mark.parametrize("averaging", [EMAWeightAveraging, WeightAveraging])
@pytest.mark.parametrize(
    "options", [{}, {"word_length": 8}, {"compute_dtype": torch.bfloat16}, {"word_length": 16, "fraction_length": 14}],
    ids=str,
)  # fmt: skip
def test_an_average_is_of_the_weights_that_there_were(
    averaging: type[WeightAveraging], options: dict[str, Any]
) -> None:
    """Within the noise of unbiased roundings of the float64 average of the weights that there were."""
    module = Drifting()
    decay = 0.9999 if averaging is EMAWeightAveraging else None
    exact: list[Tensor] = []

    class Follow(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            weight = pl_module.weight.dequantize(torch.float64)
            share = 1 / trainer.global_step if decay is None else 1 - decay if exact else 1.0
            exact[:] = [weight if not exact else exact[0].lerp(weight, share)]

    callback = averaging() if decay is None else averaging(decay=decay)
    steps = 300
    data = DataLoader(TensorDataset(torch.zeros(steps, 1)), batch_size=1)
    trainer_of([callback, Follow()], FixedPointPrecision(**options), max_epochs=1).fit(module, data)
    found = average_of(callback).weight
    way = exact[0] - FixedPointTensor.quantize(module.aim.flip(0), "fixed16").dequantize(torch.float64)
    assert way.abs().max() > 0.02
    error = (found.dequantize(torch.float64) - exact[0]) * 2.0**14
    assert error.square().mean().sqrt() < 0.5 * steps**0.5
    assert (error * way.sign()).mean().abs() < 4 * error.std() / error.numel() ** 0.5


def _ranks_average(rank: int) -> dict[str, Any]:
    averaging = EMAWeightAveraging(decay=0.9)
    found = test_distributed.fit(rank, callbacks=[averaging], word_length=8, gradient_word_length=8, module=Normed())
    average = facts(average_of(averaging))  # buffers are each rank's own, until DDP hands out the first rank's
    return {"trained": found, "average": {name: fact for name, fact in average.items() if len(fact) > 2}}


def test_ranks_keep_the_same_average() -> None:
    one, other = ranks.run(2, _ranks_average)
    assert same(one["average"], other["average"])
    assert test_distributed.same(one["trained"], other["trained"])
