"""Checkpoints are written whole, and a damaged one is refused before a run goes on from it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.io import AsyncCheckpointIO

from lowprec_plugin import FixedPointPrecision
from lowprec_plugin.plugin.resuming import WholeCheckpointIO
from lowprec_plugin.version import __version__
from tests.plugin.users import Regressor, vectors

pytestmark = pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")


def trainer_of(epochs: int = 1, plugins: Any = None) -> Trainer:
    return Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, plugins=plugins or FixedPointPrecision(keep_float="net.2.*"),
    )  # fmt: skip


def trained() -> Trainer:
    torch.manual_seed(0)
    trainer = trainer_of()
    trainer.fit(Regressor(), vectors())
    return trainer


def test_a_checkpoint_says_which_version_wrote_it(tmp_path: Path) -> None:
    trained().save_checkpoint(tmp_path / "x.ckpt")
    saved = torch.load(tmp_path / "x.ckpt", weights_only=False)["FixedPointPrecision"]
    assert (saved["version"], saved["layout"]) == (__version__, 1)


def test_a_later_layout_is_refused(tmp_path: Path) -> None:
    trained().save_checkpoint(tmp_path / "x.ckpt")
    saved = torch.load(tmp_path / "x.ckpt", weights_only=False)
    saved["FixedPointPrecision"].update(layout=2, version="9.9")
    torch.save(saved, tmp_path / "later.ckpt")
    with pytest.raises(ValueError, match=r"written by version 9\.9 of this package, in a layout .* update it"):
        trainer_of(2).fit(Regressor(), vectors(), ckpt_path=tmp_path / "later.ckpt", weights_only=False)


@pytest.mark.parametrize(
    "changed",
    [
        {"skipped_steps": 3}, {"skipped_steps": [-5]}, {"skipped_steps": ["x"]}, {"roundings": [1]},
        {"roundings": {"net.0.weight": 1.5}}, {"layout": "x"}, {"wire": 3}, {"ramp": []}, {"format": None},
    ],
    ids=str,
)  # fmt: skip
def test_what_no_plugin_saves_is_refused(changed: dict[str, Any]) -> None:
    saved = FixedPointPrecision().state_dict()
    FixedPointPrecision().load_state_dict(saved)
    with pytest.raises(ValueError, match="is not what a plugin saves"):
        FixedPointPrecision().load_state_dict(saved | changed)


@pytest.mark.parametrize("prefix", ["", "file://", "local://"])
def test_a_file_of_this_machine_by_any_name_is_checked(tmp_path: Path, prefix: str) -> None:
    trainer = trained()
    path = tmp_path / "x.ckpt"
    trainer.save_checkpoint(path)
    content = bytearray(path.read_bytes())
    module: Any = trainer.lightning_module
    content[content.find(module.net[2].weight.detach().numpy().tobytes())] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.ckpt is damaged"):
        trainer_of(2).fit(Regressor(), vectors(), ckpt_path=f"{prefix}{path}", weights_only=False)


@pytest.mark.parametrize("what", ["codes", "a float", "a count of steps", "the plugin's own"])
@pytest.mark.parametrize("use", ["fit", "test"])
def test_a_flipped_bit_is_refused(tmp_path: Path, what: str, use: str) -> None:
    """Not only of tensors that carry a digest."""
    path = tmp_path / "x.ckpt"
    trainer = trained()
    trainer.save_checkpoint(path)
    module: Any = trainer.lightning_module
    content = bytearray(path.read_bytes())
    sought: dict[str, bytes] = {
        "codes": module.net[0].weight.codes.numpy().tobytes(),
        "a float": module.net[2].weight.detach().numpy().tobytes(),
        "a count of steps": torch.tensor(4.0).numpy().tobytes(),
        "the plugin's own": b"skipped_steps",
    }
    content[content.find(sought[what]) + 1] ^= 4
    path.write_bytes(content)
    go_on = trainer_of(2)
    with pytest.raises(ValueError, match="damaged"):
        getattr(go_on, use)(Regressor(), vectors(), ckpt_path=path, weights_only=False)
    assert go_on.global_step == 0


@pytest.mark.parametrize("writer", [None, AsyncCheckpointIO(), "a user's"])
def test_lightnings_own_writer_alone_is_replaced(writer: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Lightning gives another that passes checkpoints on a new one of its own at every use. It is said then."""

    class Users(TorchCheckpointIO):
        pass

    given = Users() if isinstance(writer, str) else writer
    trainer = trainer_of(plugins=[FixedPointPrecision(), *([] if given is None else [given])])
    with caplog.at_level("INFO"):
        trainer.fit(Regressor(), vectors())
    assert type(trainer.strategy.checkpoint_io) is (WholeCheckpointIO if given is None else type(given))
    said = f"checkpoints are written by {type(given).__name__}, and not by this plugin, which would write them whole"
    assert (said in caplog.text) == (given is not None)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("converted", [False, True], ids=["a new module", "one in codes"])
def test_wider_weights_are_refused_where_a_run_goes_on_from_them(tmp_path: Path, converted: bool) -> None:
    """A module's ``load_state_dict`` rounds them; a run that is resumed is exact, or not resumed."""
    trained().save_checkpoint(tmp_path / "x.ckpt")
    module, narrow = Regressor(), FixedPointPrecision(12, keep_float="net.2.*")
    go_on = trainer_of(2, narrow)
    if converted:
        go_on.fit(module, vectors())
        go_on = trainer_of(4, narrow)
    with pytest.raises(
        ValueError, match="weights are stored as fixed16, which fixed12 does not hold exactly: resume with"
    ):
        go_on.fit(module, vectors(), ckpt_path=tmp_path / "x.ckpt", weights_only=False)
    assert go_on.global_step == 0
    saved = torch.load(tmp_path / "x.ckpt", weights_only=False)["state_dict"]
    module.load_state_dict(saved)
    assert str(module.net[0].weight.format) == "fixed12"
    off = module.net[0].weight.dequantize() - saved["net.0.weight"].dequantize()
    assert 0 < off.abs().max() < 2.0**-10


def _write_for_ever(path: str) -> None:
    """Write a large checkpoint again and again."""
    io, checkpoint = WholeCheckpointIO(), {"weight": torch.zeros(4_000_000)}
    while True:
        io.save_checkpoint(checkpoint, path)


def test_a_kill_leaves_a_whole_file_whatever_the_temporary_folder(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    program = f"from tests.plugin.test_resuming import _write_for_ever; _write_for_ever({str(path)!r})"
    elsewhere = {**os.environ, "TMPDIR": "/dev/shm"} if os.path.isdir("/dev/shm") else dict(os.environ)
    for delay in (0.0, 0.02):
        path.unlink(missing_ok=True)
        child = subprocess.Popen([sys.executable, "-c", program], env=elsewhere)
        deadline = time.monotonic() + 300  # a busy machine takes a minute to import what it needs
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert torch.equal(torch.load(path)["weight"], torch.zeros(4_000_000))
    WholeCheckpointIO().save_checkpoint({"weight": torch.ones(3)}, path)
    assert list(tmp_path.iterdir()) == [path]  # what the killed ones left is gone


def test_a_full_disk_leaves_the_former_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    WholeCheckpointIO().save_checkpoint({"weight": torch.ones(3)}, path)

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        WholeCheckpointIO().save_checkpoint({"weight": torch.zeros(3)}, path)
    assert torch.equal(torch.load(path)["weight"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [path]


def test_other_file_systems_are_lightnings() -> None:
    import fsspec

    WholeCheckpointIO().save_checkpoint({"weight": torch.ones(3)}, "memory://folder/x.ckpt")
    with fsspec.open("memory://folder/x.ckpt", "rb") as file:
        assert torch.equal(torch.load(file)["weight"], torch.ones(3))
    with pytest.raises(TypeError, match="storage_options"):
        WholeCheckpointIO().save_checkpoint({}, "x.ckpt", {"key": 1})


def test_a_folder_that_is_being_removed_has_lost_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a kill meanwhile leaves none that looks whole; what it leaves is removed with the next."""
    for step in (1, 2):
        (tmp_path / f"step={step}.ckpt").mkdir()
        (tmp_path / f"step={step}.ckpt" / ".metadata").touch()
    with monkeypatch.context() as killed:
        killed.setattr("shutil.rmtree", lambda *_, **__: None)
        WholeCheckpointIO().remove_checkpoint(tmp_path / "step=1.ckpt")
    assert not (tmp_path / "step=1.ckpt").exists()
    assert len(list(tmp_path.glob("*.removed"))) == 1
    WholeCheckpointIO().remove_checkpoint(str(tmp_path / "step=2.ckpt"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seed": 7}, r"seed=7 \(there 0\)"),
        ({"rounding": "nearest"}, r"rounding=nearest \(there stochastic\)"),
        ({"compute_dtype": "bfloat16"}, r"compute_dtype=bfloat16 \(there float32\)"),
        ({"activation_word_length": 8, "keep_float": []}, r"keep_float=\[\] \(there \['net.2.\*'\]\), activation.*=8"),
    ],
    ids=str,
)
def test_other_arguments_than_the_checkpoints_are_said(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    """And the run goes on with its own; given the same, nothing is said."""
    trained().save_checkpoint(tmp_path / "x.ckpt")
    plugin = FixedPointPrecision(**{"keep_float": "net.2.*", **options})
    with pytest.warns(UserWarning, match=f"other arguments than the one that wrote the checkpoint: {said}"):
        trainer_of(2, plugin).fit(Regressor(), vectors(), ckpt_path=tmp_path / "x.ckpt", weights_only=False)
    trainer_of(2).fit(Regressor(), vectors(), ckpt_path=tmp_path / "x.ckpt", weights_only=False)
    trainer_of(2, plugin).test(Regressor(), vectors(), ckpt_path=tmp_path / "x.ckpt", weights_only=False, verbose=False)


def test_of_earlier_checkpoints_the_seed_is_said(tmp_path: Path) -> None:
    trained().save_checkpoint(tmp_path / "x.ckpt")
    saved = torch.load(tmp_path / "x.ckpt", weights_only=False)
    del saved["FixedPointPrecision"]["arguments"]
    torch.save(saved, tmp_path / "earlier.ckpt")
    plugin = FixedPointPrecision(seed=3, rounding="nearest", keep_float="net.2.*")
    with pytest.warns(UserWarning, match=r"wrote the checkpoint: seed=3 \(there 0\)\. The run"):
        trainer_of(2, plugin).fit(Regressor(), vectors(), ckpt_path=tmp_path / "earlier.ckpt", weights_only=False)
