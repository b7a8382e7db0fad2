"""Lightning under its other name: the same flag, monitor and commands, with both imported in any order, and alone."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
import yaml

from lowprec_plugin import FixedPointMonitor, FixedPointPrecision, WordLengthRamp
from lowprec_plugin.cli.main import main
from lowprec_plugin.compat import bases, lightnings
from lowprec_plugin.compat.lightnings import LIGHTNINGS
from lowprec_plugin.deepspeed import FixedPointDeepSpeedPrecision
from lowprec_plugin.experiments.lightnings import lightning_of_config
from lowprec_plugin.experiments.unlogged import Unlogged
from lowprec_plugin.plugin.resuming import WholeCheckpointIO
from lowprec_plugin.poc.command import run_poc
from lowprec_plugin.poc.run.logger import RunLogger
from lowprec_plugin.tasks import DigitsDataModule
from lowprec_plugin.tune import tune
from tests.compat import users

BOTH = [lightning.pytorch, pytorch_lightning]
RUN = Path(__file__).with_name("one_run.py")
CONFIG: dict[str, Any] = {
    "seed_everything": 0,
    "trainer": {
        "max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "plugins": [{"class_path": "lowprec_plugin.FixedPointPrecision"}],
        "callbacks": [
            {"class_path": "pytorch_lightning.callbacks.EarlyStopping", "init_args": {"monitor": "val_loss"}},
        ],
    },
    "model": {"class_path": "tests.compat.users.Net", "init_args": {"width": 8}},
    "data": {"class_path": "tests.compat.users.Data"},
}  # fmt: skip


class LightningNet(users.Learning, lightning.pytorch.LightningModule):
    """The same as ``users.Net``, by the other name."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.net = users.network(width)


def _net(pl: Any) -> Any:
    return users.Net() if pl is pytorch_lightning else LightningNet()


def _loader() -> Any:
    data = users.Data()
    data.setup("fit")
    return data.train_dataloader()


def _trainer(pl: Any, plugin: Any, **options: Any) -> Any:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(accelerator="cpu", plugins=plugin, **{**quiet, "max_epochs": 1, **options})


def _weights(module: Any) -> list[Any]:
    return [each.dequantize().tolist() for each in module.parameters()]


@pytest.mark.parametrize("pl", BOTH, ids=lambda pl: pl.__name__)
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (FixedPointPrecision, "plugins.precision.Precision"),
        (FixedPointDeepSpeedPrecision, "plugins.precision.DeepSpeedPrecision"),
        (FixedPointMonitor, "Callback"),
        (WholeCheckpointIO, "plugins.io.TorchCheckpointIO"),
        (RunLogger, "loggers.Logger"),
        (Unlogged, "loggers.Logger"),
        (DigitsDataModule, "LightningDataModule"),
    ],
)
def test_what_derives_from_lightning_derives_from_both(pl: Any, ours: type, theirs: str) -> None:
    (of,) = (each for each in LIGHTNINGS if each.name == pl.__name__)
    assert issubclass(ours, of.get(theirs))


@pytest.fixture(scope="module")
def expected() -> list[Any]:
    """The weights of ``one_run.py``, under ``lightning.pytorch``."""
    module = LightningNet()
    ramp = WordLengthRamp(at={0: 12, 4: 16}, unit="step")
    _trainer(lightning.pytorch, FixedPointPrecision(12, ramp=ramp), gradient_clip_val=0.01).fit(module, _loader())
    return _weights(module)


def _run(first: str, folder: Path, devices: int = 1) -> list[dict[str, Any]]:
    """What each process of ``one_run.py`` says."""
    subprocess.run([sys.executable, str(RUN), first, str(folder), str(devices)], check=True, capture_output=True)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(devices)]


@pytest.mark.parametrize(
    ("first", "imported"),
    [
        ("lowprec_plugin", []),
        ("lightning.pytorch", ["lightning"]),
        ("pytorch_lightning", ["pytorch_lightning"]),
        ("without", []),
    ],
)
def test_the_flag_the_monitor_and_a_ramp_whatever_is_imported_first(
    first: str, imported: list[str], tmp_path: Path, expected: list[Any]
) -> None:
    """In a process of its own. The bits are those of ``lightning.pytorch``, with clipped gradients and wider words."""
    (said,) = _run(first, tmp_path)
    assert said["imported"] == imported
    assert said["weights"] == expected
    assert [each["word_length"] for each in said["widened"]] == [16]
    assert said["layers"] == 4
    header = next(tmp_path.rglob("metrics.csv")).read_text().splitlines()[0]
    assert "lowprec/held_gib" in header
    assert "word_length" in header


def test_gradients_travel_in_codes_between_processes(tmp_path: Path) -> None:
    one, other = _run("lowprec_plugin", tmp_path, devices=2)
    assert one["weights"] == other["weights"]
    assert one["sent"] > 0
    assert [each["word_length"] for each in one["widened"]] == [16]


@pytest.mark.parametrize("pl", BOTH, ids=lambda pl: pl.__name__)
def test_gradients_are_clipped_by_the_lightning_that_trains(pl: Any) -> None:
    """The other's ``Precision`` would not know the module, and leave its gradients as they are, without a word."""
    seen = []

    class Clipping(type(_net(pl))):  # type: ignore[misc]
        def on_before_zero_grad(self, optimizer: Any) -> None:
            grads = [each.grad for each in self.parameters() if each.grad is not None]
            if grads:
                seen.append(float(torch.nn.utils.get_total_norm(grads)))

    plugin = FixedPointPrecision()
    _trainer(pl, plugin, gradient_clip_val=0.01).fit(Clipping(), _loader())
    assert seen
    assert max(seen) <= 0.0101


def test_one_plugin_serves_one_lightning_after_the_other() -> None:
    """A copy of it, and one that was pickled, too."""
    plugin, weights = FixedPointPrecision(), []
    for pl in (*BOTH, *BOTH):
        module = _net(pl)
        _trainer(pl, plugin, gradient_clip_val=0.01).fit(module, _loader())
        weights.append(_weights(module))
    assert weights == [weights[0]] * 4
    fresh = FixedPointPrecision()
    for each in (copy.deepcopy(fresh), pickle.loads(pickle.dumps(fresh))):
        module = users.Net()
        _trainer(pytorch_lightning, each, gradient_clip_val=0.01).fit(module, _loader())
        assert _weights(module) == weights[0]


@pytest.mark.parametrize("pl", BOTH, ids=lambda pl: pl.__name__)
def test_a_checkpoint_of_one_goes_on_under_either(pl: Any, tmp_path: Path) -> None:
    """Bit for bit, and it is written whole."""
    whole, half = LightningNet(), LightningNet()
    _trainer(lightning.pytorch, FixedPointPrecision(), max_epochs=2).fit(whole, _loader())
    trainer = _trainer(lightning.pytorch, FixedPointPrecision())
    trainer.fit(half, _loader())
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed, again = _net(pl), _trainer(pl, FixedPointPrecision(), max_epochs=2)
    again.fit(resumed, _loader(), ckpt_path=str(tmp_path / "half.ckpt"), weights_only=False)
    assert again.global_step == 16
    assert isinstance(again.strategy.checkpoint_io, WholeCheckpointIO)
    assert _weights(resumed) == _weights(whole)


def test_the_monitor_asks_for_a_logger_in_the_trainers_own_words() -> None:
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    trainer = _trainer(pytorch_lightning, FixedPointPrecision(), callbacks=[FixedPointMonitor()])
    with pytest.raises(MisconfigurationException, match="Cannot use `FixedPointMonitor` callback"):
        trainer.fit(users.Net(), _loader())


@pytest.mark.usefixtures("no_command_line")
class TestCommands:
    """On a module, data and callbacks of ``pytorch_lightning``, in a process that has imported both."""

    @pytest.fixture
    def config(self, tmp_path: Path) -> str:
        path = tmp_path / "user.yaml"
        path.write_text(yaml.safe_dump(CONFIG))
        return str(path)

    def test_poc(self, tmp_path: Path) -> None:
        """The model is a function's, as its annotation says."""
        runs = run_poc(
            model="tests.compat.users.make", data="tests.compat.users.Data", variants=["16"], seeds=1, epochs=1,
            output=str(tmp_path / "poc"), progress=False,
        )  # fmt: skip
        assert [each.status for each in runs] == ["finished"] * 3
        assert "pytorch-lightning" in runs[0].environment
        assert "lightning" not in runs[0].environment
        assert len(runs[2].layers) == 4

    def test_tune(self, config: str, tmp_path: Path) -> None:
        found = tune(
            config, metric="val_loss", mode="min", tolerance="50%", weights=[12, 16], state=[], runs=2, seeds=4,
            rounding=["stochastic"], output=str(tmp_path / "tuned"), progress=False,
        )  # fmt: skip
        assert found.best is not None

    def test_fit(self, config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        made = []
        monkeypatch.setattr(pytorch_lightning.Trainer, "fit", lambda trainer, *_, **__: made.append(trainer))
        assert main(["fit", f"--config={config}", "--model.init_args.width=12"]) == 0
        assert isinstance(made[0].precision_plugin, FixedPointPrecision)

    def test_plan(self, config: str, capsys: pytest.CaptureFixture[str]) -> None:
        for given in ("--module=tests.compat.users.make", f"--config={config}"):
            assert main(["plan", given]) == 0
            assert "90" in capsys.readouterr().out  # 8 * 8 + 8 + 8 * 2 + 2 parameters

    @pytest.mark.parametrize("command", ["fit", "poc"])
    def test_two_lightnings_in_one_configuration(
        self, command: str, config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        mixed = copy.deepcopy(CONFIG)
        mixed["trainer"]["callbacks"][0]["class_path"] = "lightning.pytorch.callbacks.EarlyStopping"
        Path(config).write_text(yaml.safe_dump(mixed))
        output = [f"--output={tmp_path / 'poc'}"] if command == "poc" else []
        assert main([command, f"--config={config}", *output]) == 2
        model = "model" if command == "fit" else "--model"
        assert (
            f"lowprec {command}: trainer.callbacks='lightning.pytorch.callbacks.EarlyStopping' is a class of "
            f"lightning.pytorch, and {model}='tests.compat.users.Net' of pytorch_lightning, to whose Trainer it is a "
            "stranger: import it from pytorch_lightning too\n"
        ) in capsys.readouterr().err


def test_a_configurations_lightning_is_its_models() -> None:
    ours, theirs = LIGHTNINGS
    assert lightning_of_config(CONFIG) == theirs
    assert lightning_of_config({"model": "tests.compat.users.make"}) == theirs
    assert lightning_of_config({"model": {"class_path": f"{__name__}.LightningNet"}}) == ours
    assert lightning_of_config({"data": "tests.compat.users.Data"}) == theirs
    assert lightning_of_config({"model": "Net", "data": "nowhere.Data"}) == ours, "nothing tells: the one in use"
    data = {"model": "tests.compat.users.Net", "data": "lowprec_plugin.tasks.DigitsDataModule"}
    assert lightning_of_config(data) == theirs, "ours are of both"
    with pytest.raises(ValueError, match=r"^data='tests\.compat\.users\.Data' is .* import Lightning there from light"):
        lightning_of_config({"model": f"{__name__}.LightningNet", "data": "tests.compat.users.Data"})


def test_a_lightning_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bases, "_made", {"Precision": type("Precision", (bases._Plain,), {})})
    monkeypatch.setitem(bases._KINDS, "Precision", bases._Kind("plugins.precision.Gone", bases._Plain))
    with pytest.warns(UserWarning, match=r"^pytorch_lightning \d\S+ has no plugins\.precision\.Gone: .* 2\.6 or later"):
        bases._stand_on("Precision", LIGHTNINGS[1])


def test_without_any_lightning_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="pip install lightning or pytorch-lightning"):
        lightnings.in_use()
