"""The plugin under DDP, two processes over gloo."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy

from lowprec_plugin import FixedPointPrecision, FixedPointTensor
from lowprec_plugin.optim import NonFiniteGradientError
from lowprec_plugin.plugin import gradients as wiring_module
from lowprec_plugin.plugin import precision as plugin_module
from tests.comm import ranks
from tests.plugin import users


class Said(Callback):
    """What the plugin's wire reports at the end."""

    report: dict[str, float] | None = None
    said: str = ""

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        wire = trainer.precision_plugin.wire
        self.report, self.said = (wire.report(), str(wire)) if wire else (None, "")
        self.residuals, self.step = (sorted(wire._residuals), wire.step) if wire else ([], 0)


def fit(
    rank: int, folder: str | None = None, resume: str | None = None, epochs: int = 2, **given: Any
) -> dict[str, Any]:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0",
        "MASTER_ADDR": "localhost", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "test", "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    trainer_options = given.pop("trainer", {})
    seed_everything(0)
    said, module = Said(), given.pop("module", None) or users.Regressor()
    callbacks: list[Callback] = [said, *given.pop("callbacks", [])]
    if folder:
        callbacks.append(ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1))
    plugin = given.pop("plugin", None) or FixedPointPrecision(**given)
    trainer = Trainer(
        accelerator="cpu", devices=2, max_epochs=epochs, logger=False, enable_progress_bar=False,
        enable_checkpointing=folder is not None, callbacks=callbacks, plugins=plugin,
        **{"strategy": "ddp", **trainer_options},
    )  # fmt: skip
    trainer.fit(module, users.vectors(), ckpt_path=resume)
    planes = []
    for param in module.parameters():
        assert isinstance(param, FixedPointTensor)
        planes += [plane.clone() for plane in param.blocks.planes]
    trainer.test(module, users.vectors(), verbose=False)
    assert plugin.wire is None  # nothing travels in a test
    held = {"residuals": said.residuals, "step": said.step}
    return {"planes": planes, "report": said.report, "said": said.said, **held}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one["planes"], other["planes"], strict=True))


def _settings(rank: int) -> dict[str, Any]:
    return {
        "auto": fit(rank),
        "16": fit(rank, comm_word_length=16),
        "none": fit(rank, comm_word_length=None),
        "8, feedback": fit(rank, comm_word_length=8, comm_error_feedback=True),
        "unused": fit(rank, trainer={"strategy": "ddp_find_unused_parameters_true"}),
        "accumulated": fit(rank, trainer={"accumulate_grad_batches": 2}),
    }


def test_the_hook_is_active_and_every_rank_has_the_same_codes() -> None:
    one, other = ranks.run(2, _settings)
    for name in one:
        assert same(one[name], other[name]), name
    assert same(one["auto"], one["16"])
    assert not same(one["auto"], one["none"])  # a hook that was not registered would fail here
    assert not same(one["auto"], one["8, feedback"])
    assert one["none"]["report"] is None
    assert one["auto"]["report"]["steps"] > one["accumulated"]["report"]["steps"] > 0
    assert one["auto"]["report"]["bytes_sent_per_step"] > 0
    assert one["auto"]["said"].startswith("16 bits, stochastic rounding; as float32, being smaller than a block")
    assert "net.0.bias" in one["auto"]["said"]
    assert "error feedback" in one["8, feedback"]["said"]


def _resumed(rank: int, folder: str) -> tuple[dict[str, Any], dict[str, Any]]:
    given = {"comm_word_length": 8, "comm_error_feedback": True}
    straight = fit(rank, folder, epochs=2, **given)
    return straight, fit(rank, resume=f"{folder}/epoch=0.ckpt", epochs=2, **given)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_resume_is_bit_for_bit(tmp_path: Path) -> None:
    """On as many processes; on one alone, where nothing travels, what is lost is said."""
    for straight, resumed in ranks.run(2, _resumed, str(tmp_path)):
        assert same(straight, resumed)
    plugin = FixedPointPrecision(comm_word_length=8, comm_error_feedback=True)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    alone = Trainer(accelerator="cpu", max_epochs=2, logger=False, plugins=plugin, **quiet)
    path = tmp_path / "epoch=0.ckpt"
    with pytest.warns(UserWarning, match="earlier rounding of 1 gradients lost is dropped: in this run none travel"):
        alone.fit(users.Regressor(), users.vectors(), ckpt_path=path)
    alone.test(users.Regressor(), users.vectors(), ckpt_path=path, verbose=False)


class SickOnOneRank(users.Regressor):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        return super().training_step((x * torch.nan if self.global_rank == 1 else x, y), batch_idx)


def _sick(rank: int, folder: str) -> str:
    with pytest.raises(NonFiniteGradientError) as raised:
        fit(rank, module=SickOnOneRank(), trainer={"default_root_dir": folder})
    return str(raised.value)


def test_a_rank_whose_data_are_not_finite_says_so(tmp_path: Path) -> None:
    one, other = ranks.run(2, _sick, str(tmp_path))
    assert "All was finite on this process when the step was run again" in one
    assert "what went into module 'net' was not finite: look at the data" in other
    assert len(list(tmp_path.glob("nonfinite-step0-rank?.json"))) == 2


class DiesInTheSecondEpoch(Callback):
    """Rank 1 leaves without a farewell, as if killed, in the middle of a step."""

    def on_before_backward(self, trainer: Trainer, pl_module: Any, loss: torch.Tensor) -> None:
        if trainer.current_epoch == 1 and trainer.global_rank == 1:
            os._exit(0)


def _survivor(rank: int, folder: str) -> str:
    try:
        fit(rank, folder, comm_word_length=8, comm_error_feedback=True, callbacks=[DiesInTheSecondEpoch()])
    except RuntimeError as error:
        return str(error)
    return "no error"


def _restarted(rank: int, folder: str) -> tuple[dict[str, Any], dict[str, Any]]:
    given = {"comm_word_length": 8, "comm_error_feedback": True}
    return fit(rank, resume=f"{folder}/epoch=0.ckpt", **given), fit(rank, **given)


def test_a_run_goes_on_from_its_checkpoint_after_a_rank_was_killed(tmp_path: Path) -> None:
    said = ranks.run_one_of(2, partial(_survivor, folder=str(tmp_path)), tmp_path, timeout=20.0)
    assert said != "no error"
    assert (tmp_path / "epoch=0.ckpt").exists()
    for restarted, straight in ranks.run(2, _restarted, str(tmp_path)):
        assert same(restarted, straight)


DISAGREE: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "seed": ({"seed": 0}, {"seed": 1}, "seed: rank 0 has 0, rank 1 has 1"),
    "word length": ({}, {"comm_word_length": None}, "comm_word_length: rank 0 has 'auto', rank 1 has None"),
    "compute": ({"compute_dtype": "bfloat16"}, {}, "compute_dtype: rank 0 has 'bfloat16', rank 1 has 'float32'"),
    "kept": ({}, {"keep_float": "*.bias"}, "keep_float: rank 0 has [], rank 1 has ['*.bias']"),
    "feedback": (
        {"comm_word_length": 8}, {"comm_word_length": 8, "comm_error_feedback": True},
        "comm_error_feedback: rank 0 has False, rank 1 has True",
    ),
}  # fmt: skip


def _refused(rank: int) -> dict[str, str]:
    said = {}
    for name, (*given, _) in DISAGREE.items():
        try:
            fit(rank, **given[rank])
        except ValueError as error:
            said[name] = str(error)
    return said


def test_ranks_with_other_arguments_are_refused_by_every_rank() -> None:
    for said in ranks.run(2, _refused):
        for name, (*_, message) in DISAGREE.items():
            assert f"the ranks disagree on {message}" in said[name]


class Freezing(users.Regressor):
    """Freezes a layer where DDP has wrapped the module already."""

    def configure_optimizers(self) -> Any:
        self.net[0].requires_grad_(False)
        return torch.optim.AdamW([param for param in self.parameters() if param.requires_grad], 1e-2)


def halved(state: Any, bucket: Any) -> Any:
    """A hook of a user's."""
    raise AssertionError("Lightning does not register it on the CPU")


def _users(rank: int) -> dict[str, Any]:
    said: dict[str, Any] = {}
    lines: list[str] = []
    for says in (plugin_module, wiring_module):
        says.rank_zero_info = lines.append  # type: ignore[attr-defined]
    frozen = fit(rank, module=Freezing(), trainer={"strategy": "ddp_find_unused_parameters_true"})
    said["frozen"], said["frozen planes"] = frozen["said"], frozen["planes"]
    lines.clear()
    hooked = fit(rank, trainer={"strategy": DDPStrategy(ddp_comm_hook=halved)})
    said["hook"], said["hook log"] = hooked["said"], "".join(lines)
    with pytest.raises(ValueError, match=r"ddp_comm_hook of its own \(halved\) beside comm_word_length=8: drop one"):
        fit(rank, comm_word_length=8, trainer={"strategy": DDPStrategy(ddp_comm_hook=halved)})
    lines.clear()
    plugin, module = FixedPointPrecision(comm_word_length=8, comm_error_feedback=True), users.Regressor()
    first, watch = fit(rank, plugin=plugin, module=module), Watch()
    fit(rank, plugin=plugin, module=module, callbacks=[watch])
    said["first"], said["second"] = (first["residuals"], first["step"]), (watch.residuals, watch.step)
    said["traffic lines"] = sum("bytes sent per step" in line for line in lines)
    return said


class Watch(Callback):
    """What the wire holds when training begins."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        wire = trainer.precision_plugin.wire
        self.residuals, self.step = sorted(wire._residuals), wire.step


def test_what_users_do_around_the_wire() -> None:
    one, other = ranks.run(2, _users)
    assert "net.2.weight, net.2.bias" in one["frozen"]
    assert "net.0" not in one["frozen"]
    assert all(torch.equal(a, b) for a, b in zip(one["frozen planes"], other["frozen planes"], strict=True))
    assert one["hook"] == ""
    why = "as floats, and not through halved, the strategy's own ddp_comm_hook, which Lightning registers on CUDA only"
    assert why in one["hook log"]
    assert one["first"] == one["second"]
    assert one["first"][0] == ["net.0.weight"]
    assert one["first"][1] > 0
    assert one["traffic lines"] == 2


@pytest.mark.parametrize("word_length", ["auto", 16, 12, None])
def test_error_feedback_is_for_few_bits(word_length: Any) -> None:
    with pytest.raises(ValueError, match=r"comm_error_feedback=True .* use comm_word_length=8 or 4"):
        FixedPointPrecision(comm_word_length=word_length, comm_error_feedback=True)


@pytest.mark.parametrize("word_length", [0, 5, 24, True, 16.0])
def test_bad_word_length(word_length: int) -> None:
    with pytest.raises(ValueError, match=f"comm_word_length={word_length} is not one of"):
        FixedPointPrecision(comm_word_length=word_length)
