"""The command line: LightningCLI on the configurations that are shipped."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from lowprec_plugin import __version__
from lowprec_plugin.cli.main import OWN, main

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.fixture(autouse=True)
def _no_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """LightningCLI warns where it is given arguments beside a command line, here pytest's own."""
    monkeypatch.setattr("sys.argv", ["lowprec"])


def quick(config: str, tmp_path: Path, *more: str) -> list[str]:
    return [
        "fit", "--config", str(CONFIGS / config), "--trainer.fast_dev_run=3", "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false", f"--trainer.default_root_dir={tmp_path}", *more,
    ]  # fmt: skip


def test_fit_digits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main(quick("digits.yaml", tmp_path)) == 0
    assert "AdamW 0  fixed16  fixed16, fixed16^2" in caplog.text


def test_fit_mnist(tmp_path: Path, mnist_root: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main(quick("mnist.yaml", tmp_path, f"--data.root={mnist_root}")) == 0
    assert "fixed8, fixed8^2" in caplog.text


def test_the_flag_on_the_command_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As in any LightningCLI project: by class path, with its options after it."""
    flag = ["--trainer.plugins=lowprec_plugin.FixedPointPrecision", "--trainer.plugins.word_length=12"]
    assert main(quick("digits.yaml", tmp_path, *flag)) == 0
    assert "weights fixed12" in caplog.text


def test_import_paths_begin_where_the_command_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the script that pip installs too, whose folder is not the user's."""
    (tmp_path / "their_own.py").write_text("from torch import nn\n\ndef network():\n    return nn.Linear(8, 8)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in sys.path if path])
    monkeypatch.setattr("sys.argv", ["lowprec", "plan", "--module=their_own.network"])
    assert main() == 0


def test_every_configuration_is_tested() -> None:
    in_tests_deepspeed = {"deepspeed.yaml"}
    assert {path.name for path in CONFIGS.glob("*.yaml")} == {"digits.yaml", "mnist.yaml"} | in_tests_deepspeed


def test_help_version_and_unknown_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == 0
    assert "lowprec COMMAND" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__
    assert main(["frobnicate"]) == 2
    assert "there is no command 'frobnicate'" in capsys.readouterr().err


def unread(*command: str, env: Mapping[str, str]) -> tuple[int, str]:
    """Exit status and standard error of a command whose reader has gone before it writes."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        ended = subprocess.run(
            [sys.executable, "-m", "lowprec_plugin.cli.main", *command], stdout=pipe, stderr=subprocess.PIPE, text=True,
            env=env,
        )  # fmt: skip
    return ended.returncode, ended.stderr


def test_a_reader_that_has_gone_ends_a_command_silently(tmp_path: Path) -> None:
    """As ``lowprec inspect ... | head`` does, whether output waits until the end or not."""
    torch.save({"a": torch.ones(3)}, tmp_path / "a.pt")
    inspect = ["inspect", str(tmp_path / "a.pt")]
    for command, unbuffered in ((inspect, ""), (inspect, "1"), (["plan", "--help"], "")):
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        assert unread(*command, env=environment) == (141, ""), (command, unbuffered)


def test_another_pipe_that_breaks_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(checkpoint: str) -> None:
        raise BrokenPipeError("a connection of the command's own")

    monkeypatch.setitem(OWN, "inspect", (broken, ""))
    with (tmp_path / "out.txt").open("w") as out:
        monkeypatch.setattr("sys.stdout", out)
        with pytest.raises(BrokenPipeError, match="of the command's own"):
            main(["inspect", "a.pt"])
