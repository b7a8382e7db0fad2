"""``lowprec plan``."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from lowprec_plugin.cli.main import main
from lowprec_plugin.plan import plan
from tests.plan.models import Odd

CONFIGS = Path(__file__).parent.parent.parent / "configs"
ODD = "--module=tests.plan.models.Odd"


def run(*options: str) -> int:
    return main(["plan", *options])


def test_a_module(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "plan.json"
    assert run(ODD, "--state_word_length=8", "--keep_float+=norm.*", f"--json_file={file}") == 0
    printed = capsys.readouterr().out
    planned = plan(Odd(), state_word_length=8, keep_float=["norm.*"])
    assert json.loads(file.read_text()) == json.loads(json.dumps(planned.as_dict()))
    assert f"{planned.parameters:,} parameters, adamw, 1 GPU" in printed
    row = re.search(r"^lowprec 16/8 +([\d.]+) +([\d.]+) +([\d.]+)", printed, re.MULTILINE)
    assert row is not None
    for given, kind in zip(row.groups(), ("weights", "state", "gradients"), strict=True):
        assert float(given) == pytest.approx(getattr(planned.ours, kind) / 2**20, abs=0.0006)
    for said in ("arXiv 2602.23349", "arXiv 2502.20566", "activations are not planned", "MiB"):
        assert said in printed


def test_nothing_is_made_of_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"--config={CONFIGS / 'mnist.yaml'}", "--ranks=4", "--sharding=ddp") == 0
    assert "37,610 parameters, adamw, each of 4 GPUs, ddp" in capsys.readouterr().out


def test_a_number_and_what_it_fits_in(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--parameters=7e9", "--ranks=8", "--sharding=fsdp2") == 0
    printed = capsys.readouterr().out
    assert "7,000,000,000 parameters, adamw, each of 8 GPUs, fsdp2" in printed
    planned = plan(7 * 10**9, ranks=8, sharding="fsdp2")
    sixteen = re.search(r"^16 +(\S+) +(\S+)", printed, re.MULTILINE)
    assert sixteen is not None
    for each, cell in zip((planned.ours, planned.float32), sixteen.groups(), strict=True):
        left = 16 - each.peak / 2**30
        assert cell == (f"{left:.1f}" if left >= 0 else "no")
    assert run("--parameters=7e9", "--activations_gib=8") == 0
    assert "activations are not planned" not in capsys.readouterr().out


def test_what_needs_memory_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--module=tests.plan.models.NeedsMemory") == 2
    assert "cannot be made without memory for its weights" in capsys.readouterr().err
    assert run("--module=tests.plan.models.NeedsMemory", "--allocate=true") == 0
    assert "20 parameters" in capsys.readouterr().out
    assert torch.empty(0).device.type == "cpu"


def test_what_needs_memory_says_so_of_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("model: {class_path: tests.plan.models.LightningNeedsMemory}")
    assert run(f"--config={config}") == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r".*config.yaml cannot be made without memory .*\): --allocate=true makes it .*\n", said)
    assert run(f"--config={config}", "--allocate=true") == 0
    assert "20 parameters" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing is given to plan: give --module, --config or --parameters"),
        ([ODD, "--parameters=7"], "beside --module or --config: give one of the three"),
        (["--parameters=7.5"], "parameters=7.5 is not a whole number"),
        (["--parameters=.inf"], "parameters=inf is not a whole number"),
        (["--parameters=.nan"], "parameters=nan is not a whole number"),
        (["--parameters=7e9", "--activations_gib=.inf"], "activations_gib=inf is negative or not finite"),
        (["--parameters=7e9", "--activations_gib=.nan"], "activations_gib=nan is negative or not finite"),
        ([ODD, "--activations_gib=-1"], "activations_gib=-1.0 is negative"),
        ([ODD, "--ranks=2"], "ranks=2 and --sharding='none' do not go together"),
        (["--module=torch.nn.Linear"], "is called without arguments, and answers"),
    ],
)
def test_refused(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*options) == 2
    assert message in capsys.readouterr().err
