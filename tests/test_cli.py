"""The command line: LightningCLI on the configurations that are shipped."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from pkgutil import resolve_name

import pytest
import torch

import lowprec_plugin
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


OTHER_FILES = {
    "text": b"hello: [world",
    "zeros": bytes(100),
    "latin": "model: \xe9".encode("latin1"),
    "binary": b"PK\x80",
}


@pytest.mark.parametrize(
    "command",
    [["cost", "--input_shape=[4]"], ["plan"], ["poc", "--output=out"], ["tune", "--output=out"], ["fit"]],
    ids=lambda command: command[0],
)  # fmt: skip
def test_a_configuration_that_cannot_be_read_is_named_in_a_line(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in OTHER_FILES.items():
        if command == ["fit"] and name in ("text", "zeros"):
            continue  # jsonargparse names them, behind its usage
        (tmp_path / name).write_bytes(content)
        for given in ([f"--config={name}"], ["--config", name]):
            assert main([*command, *given]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert f"{name}' cannot be read: " in line or f"{name} cannot be read: " in line


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--trainer.accelerator=nan", "You selected an invalid accelerator name: `accelerator='nan'`."),
        ("--trainer.plugins={class_path: lowprec_plugin.FixedPointPrecision, init_args: {word_length: 40}}",
         "word_length=40 is not supported: choose 2 to 24 bits (float32 itself has 24 significant bits)"),
    ],
)  # fmt: skip
def test_what_fit_cannot_start_with_is_told_in_a_line(
    option: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([each for each in quick("digits.yaml", tmp_path) if "accelerator" not in each] + [option]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"lowprec fit: {told}")


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


#: What others bring along, and this command line has no use for until something is trained.
OF_LIGHTNING = {
    "lightning", "pytorch_lightning", "torchmetrics", "transformers", "matplotlib", "optuna", "deepspeed", "wandb",
}  # fmt: skip


@pytest.mark.parametrize(
    ("commands", "without"),
    [
        (["--help", "--version", "frobnicate"], {"jsonargparse"} | OF_LIGHTNING),
        (
            ["poc report nothing", "inspect nothing", "plan --parameters=7e9", "bench --help", "cost --help",
             "export --to=c --checkpoint=nothing --out=c.h"],
            OF_LIGHTNING,
        ),
    ],
)  # fmt: skip
def test_commands_import_what_they_need(commands: list[str], without: set[str]) -> None:
    """In a process of its own: what is imported here says nothing."""
    program = (
        "import contextlib, sys\n"
        "from lowprec_plugin.cli.main import main\n"
        "for command in sys.argv[1:]:\n"
        "    with contextlib.suppress(SystemExit): main(command.split())\n"
        "print(*sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", program, *commands], capture_output=True, text=True, check=True)
    imported = {name.partition(".")[0] for name in found.stdout.splitlines()[-1].split()}
    assert not imported & without


def test_every_command_has_a_function() -> None:
    assert all(callable(resolve_name(path)) for path, _ in OWN.values())


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("poc --seeds=0", "lowprec poc: --seeds=0 must be at least 1"),
        ("poc --data=a.B", "lowprec poc: --data='a.B' needs a module to train: give --model, or a config with both"),
        ("plan", "lowprec plan: nothing is given to plan: give --module, --config or --parameters"),
        ("plan --parameters=7e9 --ranks=2", "lowprec plan: --ranks=2 and --sharding='none' do not go together"),
        ("plan --parameters=7e9 --word_length=40", "lowprec plan: --word_length=40 is not supported: choose 2"),
        ("plan --parameters=7e9 --comm_error_feedback=true", "lowprec plan: --comm_error_feedback=True costs a byte "
         "per parameter, and at 16 bits mends nothing: use --comm_word_length=8 or 4"),
        ("plan --parameters=2 --layers=3", "lowprec plan: --parameters=2 in --layers=3: give at least one"),
        ("plan --parameters=7e9 --module=a.b", "lowprec plan: --parameters=7e+09 beside --module or --config"),
        ("plan --module=torch.nn.Identity", "lowprec plan: Identity has no parameters"),
        ("plan --module=torch.nn.ReLU6 --config=b", "lowprec plan: --module='torch.nn.ReLU6' and --config='b': "),
        ("plan --module=torch.nn.Linear", "lowprec plan: torch.nn.Linear is called without arguments, and answers: "
         "Linear.__init__() missing 2 required positional arguments: 'in_features' and 'out_features'. Write a "
         "function that passes them, or give --config"),
        ("tune --seeds=2", "lowprec tune: --seeds=2: a confirmation needs at least 4"),
        ("tune --tolerance=none", "lowprec tune: --tolerance='none' is not a positive number"),
        ("tune --weights=[float32]", "lowprec tune: --weights='float32': only activations, errors, kept may be left in "
         "float32; weights of single layers may with --layers=[...]"),
        ("tune --weights=[40]", "lowprec tune: --weights=40: word_length=40 is not supported"),
        ("tune --weights=[null]", "lowprec tune: --weights=None: only activations, errors, kept may be left in"),
        ("tune --kept=[8,1]", "lowprec tune: --kept=1: word_length=1 is not supported: choose 2 to 24"),
        ("tune --errors=[x]", "lowprec tune: --errors='x': 'x' is not a fixed-point format"),
        ("tune --wire=[5]", "lowprec tune: --wire=5 is not one of (4, 8, 12, 16), the bits"),
        ("cost --input_shape=[4] --module=torch.nn.ReLU --batch_size=0", "lowprec cost: --batch_size=0 must be at"),
        ("cost --input_shape=[4] --module=torch.nn.ReLU --clock_mhz=0", "lowprec cost: --clock_mhz=0.0 must be "),
        ("export --to=c --checkpoint=a --out=b.h --network=x", "lowprec export: --network, --input_shape and "
         "--activations are of a network: give --module or --config too"),
        ("export --to=float --checkpoint=a --out=b --network=c", "lowprec export: --network='c' is of no use"),
        ("poc --variants=[99]", "lowprec poc: --variants='99' is not one of 'float32', "),
        ("plan --parameters=7e9 --units+=x", "lowprec plan: --keep_float and --units name parts of a module"),
        ("plan --parameters=7e9 --state_fraction_length=3", "lowprec plan: --state_fraction_length=3 needs "
         "--state_word_length, which"),
        ("bench --rounds=0", "lowprec bench: --rounds=0 must be at least 1"),
        ("bench --elements=0", "lowprec bench: --elements=0 must be at least 1"),
        ("bench emulation --batch_size=0", "lowprec bench emulation: --batch_size=0 must be at least 1"),
        ("bench emulation --threads=-1", "lowprec bench emulation: --threads=-1 must be at least 1"),
        ("bench allreduce --rounds=0", "lowprec bench allreduce: --rounds=0 must be at least 1"),
        ("bench allreduce --processes=0", "lowprec bench allreduce: --processes=0 must be at least 1"),
        ("bench allreduce --megabytes=0", "lowprec bench allreduce: --megabytes=0.0 is not in [0.0009765625, inf)"),
        ("inspect nothing", "lowprec inspect: there is no checkpoint nothing"),
    ],
)  # fmt: skip
def test_commands_speak_of_their_options(command: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command.split()) == 2
    assert capsys.readouterr().err.startswith(told)


def of_a_user() -> None:
    raise ValueError("config=3 is none of mine")


def that_others_refuse() -> None:
    torch.optim.SGD([])


def test_what_a_user_raises_is_told_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--module=tests.test_cli.of_a_user"]) == 2
    line = of_a_user.__code__.co_firstlineno + 1
    assert capsys.readouterr().err == f"lowprec plan: config=3 is none of mine (test_cli.py, line {line})\n"
    assert main(["plan", "--module=tests.test_cli.that_others_refuse"]) == 2
    line = that_others_refuse.__code__.co_firstlineno + 1
    assert capsys.readouterr().err.endswith(f" (test_cli.py, line {line})\n")


def test_help_version_and_unknown_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == 0
    assert "lowprec COMMAND" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__
    assert main(["frobnicate"]) == 2
    assert "there is no command 'frobnicate'" in capsys.readouterr().err


def test_names_that_are_imported_when_asked_for_are_listed() -> None:
    assert set(lowprec_plugin.__all__) <= set(dir(lowprec_plugin))


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


def test_a_command_without_standard_output_ends_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)  # as Python has it where a shell was told >&-
    assert main(["--version"]) == 0


def broken(checkpoint: str) -> None:
    raise BrokenPipeError("a connection of the command's own")


def test_another_pipe_that_breaks_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(OWN, "inspect", ("tests.test_cli:broken", ""))
    with (tmp_path / "out.txt").open("w") as out:
        monkeypatch.setattr("sys.stdout", out)
        with pytest.raises(BrokenPipeError, match="of the command's own"):
            main(["inspect", "a.pt"])
