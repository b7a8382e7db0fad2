"""From the command line to the configuration: a case whose right answer is known."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from lowprec_plugin import tune as package
from lowprec_plugin.cli.main import main
from lowprec_plugin.experiments import read_config, with_plugin
from lowprec_plugin.text.files import alone_in
from lowprec_plugin.tune import Found, tune
from lowprec_plugin.tune.records import Run
from lowprec_plugin.tune.training import train

pytestmark = pytest.mark.usefixtures("no_command_line")
CONFIG: dict[str, Any] = {
    "trainer": {
        "max_epochs": 4, "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
        # A user's own, which trials do without: they write no checkpoints.
        "callbacks": [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"}],
    },
    "model": {"class_path": "tests.tune.users.Regression", "init_args": {"lr": 0.3}},
    "data": {"class_path": "tests.tune.users.Factors"},
}  # fmt: skip
ARGUMENTS: dict[str, Any] = {
    "metric": "val_error", "mode": "min", "tolerance": 0.01, "weights": [4, 8, 12, 16], "state": [], "runs": 10,
    "rounding": ["stochastic"], "progress": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("config") / "user.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tuned")


@pytest.fixture(scope="module")
def found(config: str, folder: Path) -> Found:
    """One search, which the tests share."""
    return tune(config, output=str(folder), **ARGUMENTS)


def test_the_right_answer(found: Found) -> None:
    """Weights of 4 and 8 bits scatter by more than the tolerance, those of 12 by a third of it."""
    assert found.best is not None
    assert found.best.setting == {"weights": "fixed12", "rounding": "stochastic"}
    assert found.best.confirmed
    outcomes = {trial.setting["weights"]: trial.passed for trial in found.trials}
    assert outcomes["fixed8"] is False
    assert not outcomes.get("fixed4", False)
    assert len(found.trials) <= 4


def test_hopeless_runs_are_stopped(found: Found) -> None:
    """At the rungs of successive halving, a quarter and half of four epochs."""
    stopped = {trial.setting["weights"]: trial.run.stopped for trial in found.trials if not trial.passed}
    assert stopped
    assert set(stopped.values()) <= {1, 2}


def test_the_configuration_gives_the_trials_figure_exactly(found: Found, folder: Path, tmp_path: Path) -> None:
    """Read by ``lowprec fit`` as it is, with the user's own callbacks, logger and checkpoints."""
    assert found.best is not None
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(tmp_path)}}
    more = [f"--trainer.logger={json.dumps(logger)}", f"--trainer.default_root_dir={tmp_path}"]
    assert main(["fit", "--config", str(folder / "tuned.yaml"), *more]) == 0
    (metrics,) = tmp_path.glob("lightning_logs/*/metrics.csv")
    rows = csv.DictReader(metrics.read_text().splitlines())
    values = [row["val_error"] for row in rows if row["val_error"]]
    assert [float(value) for value in values] == found.best.run.curve
    assert float(values[-1]) == found.best.run.value
    tuned = (folder / "tuned.yaml").read_text()
    assert str(found.best.run.value) in tuned
    assert tuned.startswith(f"# lowprec fit --config {folder / 'tuned.yaml'}\n")


def test_the_files_say_what_was_found(found: Found, folder: Path) -> None:
    record = json.loads((folder / "trials.json").read_text())
    assert [trial["run"]["setting"] for trial in record["trials"]] == [trial.setting for trial in found.trials]
    points = [
        (trial["bits"]["cost"], trial["worse"]) for trial in record["trials"] if trial["worse"] is not None
    ]  # by its definition
    for trial in record["trials"]:
        mine = (trial["bits"]["cost"], trial["worse"])
        beaten = trial["worse"] is None or any(
            other != mine and other[0] <= mine[0] and other[1] <= mine[1] for other in points
        )
        assert trial["frontier"] is not beaten
    (best,) = [trial for trial in record["trials"] if trial["best"]]
    table = (folder / "table.md").read_text()
    (row,) = [line for line in table.splitlines() if line.startswith("| weights fixed12")]
    assert f"| {best['bits']['per_parameter']:.2f} " in row
    assert f"{best['run']['value']:.6g}" in row
    assert f"yes, {best['confirmation']['difference']:+.3g}" in row
    plot = (folder / "frontier.svg").read_text()
    assert plot.lstrip().startswith("<?xml")
    assert "confirmed" in plot


def test_an_interrupted_search_ends_alike(
    found: Found, config: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it wrote a line: what is done is not done again, and the rest is the same."""
    lines = (folder / "runs.jsonl").read_text().splitlines(keepends=True)
    kept = 1 + 10 + 2  # what is searched, float32 with its twins, two settings
    (tmp_path / "runs.jsonl").write_text("".join(lines[:kept]) + lines[kept][:20])
    trained: list[Run] = []

    def counting(*args: Any, **kwargs: Any) -> Run:
        trained.append(train(*args, **kwargs))
        return trained[-1]

    monkeypatch.setattr(package.command, "train", counting)
    again = tune(config, output=str(tmp_path), **ARGUMENTS)
    assert len(trained) == len(lines) - kept

    def timeless(found: Found) -> list[Any]:
        return [replace(trial, run=replace(trial.run, seconds=0.0)) for trial in found.trials]

    assert timeless(again) == timeless(found)
    assert again.config == found.config
    trained.clear()
    shutil.copytree(folder, tmp_path / "whole")
    before = (folder / "table.md").read_text()
    tune(config, output=str(tmp_path / "whole"), **ARGUMENTS)
    assert trained == []
    assert (tmp_path / "whole" / "table.md").read_text() == before


def test_another_tolerance_takes_up_the_runs_that_are_there(
    found: Found, config: str, folder: Path, tmp_path: Path
) -> None:
    """Allowed 0.1, eight bits do: what was stopped is run to its end, what was complete is not run again."""
    shutil.copytree(folder, tmp_path / "tuned")
    before = (folder / "runs.jsonl").read_text()
    wider = tune(config, output=str(tmp_path / "tuned"), **{**ARGUMENTS, "tolerance": 0.1})
    assert wider.best is not None
    assert wider.best.setting["weights"] == "fixed8"
    after = (tmp_path / "tuned" / "runs.jsonl").read_text()
    assert after.startswith(before)
    added = [json.loads(line) for line in after.removeprefix(before).splitlines()]
    assert added
    assert all(run["setting"]["weights"] in ("fixed4", "fixed8") for run in added)


def test_a_folder_of_something_else_is_left_alone(found: Found, config: str, folder: Path) -> None:
    before = (folder / "runs.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"holds runs with config\.trainer\.max_epochs="):
        tune(config, output=str(folder), epochs=3, **ARGUMENTS)
    assert (folder / "runs.jsonl").read_bytes() == before


def test_a_folder_that_another_search_is_in_is_refused(config: str, tmp_path: Path) -> None:
    with alone_in(tmp_path), pytest.raises(ValueError, match="another process is at work"):
        tune(config, output=str(tmp_path), **ARGUMENTS)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_says_how_to_go_on(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lightning makes an exit of it, without a word on what was done."""

    def interrupted(*args: Any, **kwargs: Any) -> Run:
        raise SystemExit(1)

    monkeypatch.setattr(package.command, "train", interrupted)
    with pytest.raises(SystemExit, match="130"):
        tune(config, output=str(tmp_path), **ARGUMENTS)
    assert "interrupted: the same command goes on" in capsys.readouterr().err


def test_a_metric_that_is_validated_too_rarely(tmp_path: Path) -> None:
    """The rehearsal validates whatever the configuration says."""
    path = tmp_path / "user.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, "trainer": {**CONFIG["trainer"], "check_val_every_n_epoch": 5}}))
    with pytest.raises(ValueError, match="but not within the 4 epochs of a run: validate more"):
        tune(str(path), output=str(tmp_path), **ARGUMENTS)


def test_a_configuration_that_fit_has_saved_can_be_tuned(config: str, tmp_path: Path) -> None:
    """With every option of the plugin written out, and with an emulation by its class, as LightningCLI reads both."""
    plugin = {"class_path": "lowprec_plugin.FixedPointPrecision", "init_args": {"word_length": 12}}
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(tmp_path)}}
    more = {"trainer.plugins": plugin, "trainer.logger": logger, "trainer.max_epochs": 1, "seed_everything": 0}
    assert main(["fit", "--config", config, *(f"--{name}={json.dumps(value)}" for name, value in more.items())]) == 0
    (saved,) = tmp_path.glob("lightning_logs/*/config.yaml")
    assert "compute_dtype: torch.float32" in saved.read_text()
    content = yaml.safe_load(saved.read_text())
    emulation = {"class_path": "lowprec_plugin.Emulation", "init_args": {"activations": "<6,10>"}}
    content["trainer"]["plugins"]["init_args"]["emulation"] = emulation
    saved.write_text(yaml.safe_dump(content))
    found = tune(str(saved), output=str(tmp_path / "tuned"), **{**ARGUMENTS, "weights": [16], "tolerance": 1})
    assert found.config is not None
    (options,) = found.config["trainer"]["plugins"]
    assert options["init_args"]["emulation"] == {"activations": "<6,10>"}
    assert options["init_args"]["word_length"] == 16


def test_a_run_that_diverges_is_a_failed_trial() -> None:
    config = read_config(None, "tests.tune.users.Regression", "tests.tune.users.Factors", 2)
    config["model"]["init_args"] = {"explode_below": 8}
    config["trainer"]["accelerator"] = "cpu"
    setting = {"weights": "fixed6", "rounding": "stochastic"}
    run = train(with_plugin(config, {"word_length": 6}, 0), setting, 0, "val_error")
    assert run.value is None
    assert run.diverged is not None
    assert "layer.weight" in run.diverged
    run = train(with_plugin(config, {"word_length": 8}, 0), setting, 0, "val_error")
    assert run.value is not None
    config["model"]["init_args"] = {"lr": 1e20}
    run = train(with_plugin(config, None, 0), None, 0, "val_error")
    assert (run.value, run.diverged) == (None, "val_error is not finite")


def test_by_import_path_with_formats_by_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the command line, one setting per kind: layers have formats of their own, and no setting passes."""
    arguments = [
        "tune", "--model=tests.tune.users.Regression", "--data=tests.tune.users.Factors", "--metric=val_error",
        "--mode=min", "--tolerance=20%", "--weights=[4]", "--state=[]", "--activations=[4]", "--errors=[4,null]",
        '--layers=["layer"]', "--rounding=[nearest]", "--runs=1", "--epochs=1", f"--output={tmp_path}",
        "--progress=false",
    ]  # fmt: skip
    assert main(arguments) == 0
    assert "No setting was confirmed" in capsys.readouterr().out
    assert not (tmp_path / "tuned.yaml").exists()
    (trial,) = json.loads((tmp_path / "trials.json").read_text())["trials"]
    assert trial["run"]["setting"] == {
        "weights": "fixed4", "activations": "fixed4", "errors": "float32", "weights@layer": "float32",
        "activations@layer": "fixed4", "errors@layer": "float32", "rounding": "nearest",
    }  # fmt: skip
    assert trial["bits"]["per_activation"] == (4 + 32) / 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metric=val_loss"], "metric='val_loss' is not logged while fitting; the module logs val_error"),
        (["--mode=more"], "mode"),
        (["--tolerance=-1"], "tolerance=-1.0 is not a positive number"),
        (["--tolerance=small"], "tolerance='small'"),
        (["--seeds=3"], "seeds=3: a confirmation needs at least 4"),
        (["--runs=0"], "runs=0"),
        (["--epochs=0"], "epochs=0"),
        (["--weights=[]"], "nothing to tune"),
        (["--weights=[1]"], "word_length=1"),
        (["--wire=[8]"], "one process sends nothing"),
        (["--importance.weights=2"], "importance"),
        (["--layers=[laye]"], "--layers='laye' is no module with parameters; there are layer"),
        (["--model=tests.tune.users.Nobody"], "Nobody"),
        (["--config=nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_trained(
    arguments: list[str], message: str, config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(package.command, "train", lambda *args, **kwargs: pytest.fail("trained"))
    common = [f"--config={config}", "--metric=val_error", "--weights=[8]", "--state=[]", "--progress=false"]
    try:
        status = main(["tune", *common, *arguments])
    except SystemExit as exit_:  # what the command's parser refuses
        status = exit_.code  # type: ignore[assignment]
    assert status == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "bf16-mixed"}, "trainer.precision='bf16-mixed'"),
        ({"devices": 2, "strategy": "ddp"}, "strategy='ddp' with 2 processes"),
        ({"devices": 2, "strategy": "ddp_fork"}, "strategy='ddp_fork' with 2 processes"),
        ({"max_epoch": 3}, "max_epoch"),
        ({"plugins": {"class_path": "lowprec_plugin.FixedPointPrecision",
                      "init_args": {"ramp": {"class_path": "lowprec_plugin.WordLengthRamp"}}}}, "ramp"),
    ],
)  # fmt: skip
def test_configurations_that_cannot_be_tuned(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "user.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, "trainer": {**CONFIG["trainer"], **change}}))
    with pytest.raises(ValueError, match=message):
        tune(str(path), output=str(tmp_path), **ARGUMENTS)


def test_without_optuna_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"lowprec-plugin\[tune\]"):
        tune()


@pytest.mark.slow
def test_digits(tmp_path: Path) -> None:
    """The command without any argument, as recorded in docs/results/tune_digits."""
    found = tune(output=str(tmp_path), progress=False)
    assert found.best is not None
    assert found.best.bits.per_parameter < 48  # 16 bits everywhere
    assert found.best.confirmation is not None
    assert found.best.confirmation.within(found.tolerance, higher_is_better=True)


@pytest.mark.slow
def test_the_wire_is_tuned_between_real_processes(tmp_path: Path) -> None:
    path = tmp_path / "user.yaml"
    spawned = {"devices": 2, "strategy": "ddp_spawn", "max_epochs": 2}
    model = {**CONFIG["model"], "init_args": {"outputs": 64}}  # small gradients travel as float32
    data = {**CONFIG["data"], "init_args": {"outputs": 64}}
    config = {"trainer": {**CONFIG["trainer"], **spawned}, "model": model, "data": data}
    path.write_text(yaml.safe_dump(config))
    found = tune(
        str(path), output=str(tmp_path), **{**ARGUMENTS, "weights": [], "wire": [4, 16], "runs": 2, "tolerance": 0.05}
    )
    assert found.best is not None
    assert found.config is not None
    (plugin,) = found.config["trainer"]["plugins"]
    assert plugin["init_args"]["comm_word_length"] == int(found.best.setting["wire"].removeprefix("fixed"))
    assert len({trial.run.value for trial in found.trials}) == len(found.trials)
