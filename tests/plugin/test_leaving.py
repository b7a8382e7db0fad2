"""``leave_float``, and what else of a run is wanted in ordinary floats."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from lowprec_plugin import FixedPointPrecision, FixedPointTensor, optim
from tests.cases import planes
from tests.comm import ranks
from tests.optim.test_unquantize import elsewhere
from tests.plugin import users


class Seen(Callback):
    """What the parameters are while training, at its end, and at the end of the fit."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.training = {type(param) for param in pl_module.parameters()}

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.planes = [plane.clone() for plane in planes(pl_module, trainer.optimizers[0])]

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.after = {type(param) for param in pl_module.parameters()}


def trainer_of(tmp_path: Path, plugin: FixedPointPrecision, steps: int = 4, **options: Any) -> Trainer:
    seed_everything(0, verbose=False)
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return Trainer(
        accelerator="cpu", default_root_dir=tmp_path, max_steps=steps, max_epochs=-1, plugins=plugin,
        **(quiet | {"enable_checkpointing": False} | options),
    )  # fmt: skip


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.NAdam])
def test_a_fit_leaves_floats_and_all_that_follows_works(tmp_path: Path, optimizer: Any) -> None:
    """A test, a checkpoint saved by hand, a second fit from it: as of a run that leaves codes, and to the bit.

    But for state that is rounded in place: codes say how often it was, which keys its random bits, and floats do not.
    """

    def run(leave_float: bool) -> tuple[Any, Seen, Seen, dict[str, Any]]:
        seed_everything(0, verbose=False)
        module = users.Regressor(lambda params: optimizer(params, 1e-2))
        plugin, seen, again = FixedPointPrecision(leave_float=leave_float), Seen(), Seen()
        trainer = trainer_of(tmp_path, plugin, callbacks=[seen])
        trainer.fit(module, users.vectors())
        path = tmp_path / f"{optimizer.__name__}{leave_float}.ckpt"
        trainer.save_checkpoint(path)
        tested = trainer.test(module, users.vectors(), verbose=False)
        assert {type(param) for param in module.parameters()} == seen.after
        kinds = {type(value) for state in trainer.optimizers[0].state.values() for value in state.values()}
        assert (FixedPointTensor in kinds) is not leave_float
        assert (type(trainer.optimizers[0]) is optimizer) is leave_float
        assert plugin.skipped_steps == plugin.saturated == 0
        second = trainer_of(tmp_path, plugin, 8, callbacks=[again])
        second.fit(module, users.vectors(), ckpt_path=path, weights_only=False)
        return module, seen, again, tested[0]

    left, seen, again, tested = run(True)
    _, kept, expected, metrics = run(False)
    assert seen.training == again.training == kept.training == {FixedPointTensor}
    assert seen.after == again.after == {nn.Parameter}
    assert kept.after == {FixedPointTensor}
    assert tested == metrics
    assert same(seen.planes, kept.planes)
    assert same(again.planes, expected.planes) is (optimizer is torch.optim.AdamW)
    assert all(type(param) is nn.Parameter for param in left.parameters())


def test_the_last_checkpoint_is_in_codes_and_resumes(tmp_path: Path) -> None:
    """ModelCheckpoint saves before the floats are left."""
    save = ModelCheckpoint(tmp_path, "last", save_top_k=1, every_n_train_steps=4)
    trainer = trainer_of(tmp_path, FixedPointPrecision(leave_float=True), callbacks=[save], enable_checkpointing=True)
    trainer.fit(users.Regressor(), users.vectors())
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert all(isinstance(value, FixedPointTensor) for value in saved["state_dict"].values())


class Predictor:
    """What a library keeps of a training, and pickles."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network


def test_a_library_pickles_the_trained_network(tmp_path: Path) -> None:
    """As gluonts does; the file loads where this package is not installed."""
    module = users.Regressor()
    trainer_of(tmp_path, FixedPointPrecision(leave_float=True)).fit(module, users.vectors())
    x = torch.randn(3, 12)
    done = elsewhere({"module": module.net, "x": x}, tmp_path)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "output.pt"), module.net(x))


def test_a_loss_that_lives_on_is_no_obstacle(tmp_path: Path) -> None:
    class Keeps(users.Regressor):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            self.loss = super().training_step(batch, batch_idx)
            return self.loss

    module = Keeps()
    trainer_of(tmp_path, FixedPointPrecision(leave_float=True)).fit(module, users.vectors())
    assert all(type(param) is nn.Parameter for param in module.parameters())


def test_what_cannot_be_left_in_float_warns(tmp_path: Path) -> None:
    class Keeps(users.Regressor):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            self.output = self(batch[0])  # with its graph, of which no backward pass frees anything
            return super().training_step(batch, batch_idx)

    module = Keeps()
    trainer = trainer_of(tmp_path, FixedPointPrecision(leave_float=True))
    with pytest.warns(
        UserWarning, match=r"leave_float=True: the module stays in fixed-point, for parameter .* held by"
    ):
        trainer.fit(module, users.vectors())
    assert all(isinstance(param, FixedPointTensor) for param in module.parameters())


def _two(rank: int, folder: str) -> tuple[list[str], list[torch.Tensor], list[torch.Tensor]]:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0",
        "MASTER_ADDR": "localhost", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "test", "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    module, seen = users.Regressor(), Seen()
    plugin = FixedPointPrecision(leave_float=True)
    trainer_of(Path(folder), plugin, callbacks=[seen], strategy="ddp", devices=2).fit(module, users.vectors())
    first = [param.detach().clone() for param in module.parameters()]
    trainer_of(Path(folder), plugin, 8, strategy="ddp", devices=2).fit(module, users.vectors())
    kinds = {type(param).__name__ for param in module.parameters()} | {each.__name__ for each in seen.after}
    return sorted(kinds), first, [param.detach() for param in module.parameters()]


def test_under_ddp(tmp_path: Path) -> None:
    one, other = ranks.run(2, _two, str(tmp_path))
    assert one[0] == other[0] == ["Parameter"]
    assert same(one[1], other[1])
    assert same(one[2], other[2])
    assert not same(one[1], one[2])


class Recurrent(users.Regressor):
    """With what ``torch.jit.trace`` records in different ways: a convolution, an LSTM, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.lstm = nn.Conv1d(1, 4, 3, padding=1), nn.LSTM(4, 4, batch_first=True)
        self.head = nn.Linear(4, 1)
        self.example_input_array = torch.randn(2, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(self.convolution(x[:, None]).transpose(1, 2))[0][:, -1])  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_graph_is_logged_and_training_is_as_without(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def run(**options: Any) -> list[torch.Tensor]:
        seen = Seen()
        trainer = trainer_of(tmp_path, FixedPointPrecision(), callbacks=[seen], **options)
        trainer.fit(Recurrent(), users.vectors())
        return seen.planes

    logger = TensorBoardLogger(tmp_path, log_graph=True)
    logged = run(logger=logger)
    graph = EventAccumulator(logger.log_dir).Reload().Graph()
    assert any("convolution" in node.op for node in graph.node)
    assert same(logged, run())


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_other_ways_to_record_a_trained_module_say_what_to_do(tmp_path: Path) -> None:
    """And what they say works."""
    module = Recurrent()
    trainer_of(tmp_path, FixedPointPrecision()).fit(module, users.vectors())
    with pytest.raises(ValueError, match=r"torch\.jit\.trace cannot record fixed-point weights.*optim\.to_float_"):
        module.to_torchscript(method="trace")
    floats = optim.to_float_(module)
    traced = floats.to_torchscript(tmp_path / "traced.pt", method="trace")  # type: ignore[operator]
    x = torch.randn(2, 12)
    assert torch.allclose(traced(x), module(x), atol=1e-6)
