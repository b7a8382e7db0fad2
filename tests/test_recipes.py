"""The recipes that train on several processes: they run, and go on where a checkpoint is."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import runpy
import subprocess
import sys
import time
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.comm import ranks

ROOT = Path(__file__).parent.parent
needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.py")), ids=lambda path: path.stem)
def test_help_says_what_a_recipe_is_for_and_runs_nothing(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(recipe.parent))
    monkeypatch.setattr(sys, "argv", [str(recipe), "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_path(str(recipe), run_name="__main__")
    said = capsys.readouterr().out
    assert "usage:" in said
    assert (ast.get_docstring(ast.parse(recipe.read_text())) or "nothing") in said


def _recipe(name: str, rank: int) -> Any:
    """A recipe's module, its network made small, in the process group that is there."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo", "DEEPSPEED_LOG_LEVEL": "error"}
    warnings.simplefilter("ignore")  # DeepSpeed's and FSDP2's, in these processes alone
    sys.path.insert(0, str(ROOT / "recipes"))
    small = importlib.import_module("bytes_transformer")
    small.CONTEXT, small.WIDTH, small.LAYERS = 16, 64, 1
    module = importlib.import_module(name)
    module.dist.init_process_group = module.dist.destroy_process_group = lambda *_: None
    return module


def _runs(rank: int, name: str, folder: Path) -> list[dict[str, Any]]:
    """Results of a run, of one that its last checkpoint is taken from, of one with another seed."""
    module, out, checkpoints = _recipe(name, rank), folder / "runs.jsonl", folder / "checkpoints"

    def run(*more: str) -> None:
        sys.argv = [name, "--variant", "16/8", "--steps", "4", "--every", "2", "--out", str(out), *more]
        module.main()
        module.dist.barrier()

    run("--checkpoints", str(checkpoints))
    if rank == 0 and name == "zero_transformer":  # as if the run had died before its last checkpoint was complete
        assert (checkpoints / "latest").read_text() == "step4"
        (checkpoints / "latest").write_text("step2")
    elif rank == 0:
        (checkpoints / "4" / ".metadata").unlink()
    module.dist.barrier()
    run("--checkpoints", str(checkpoints))
    run("--seed", "1")
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.parametrize("name", [pytest.param("zero_transformer", marks=needs_deepspeed), "fsdp2_transformer"])
def test_a_run_goes_on_from_its_last_complete_checkpoint(name: str, tmp_path: Path) -> None:
    straight, resumed, other = ranks.run(2, _runs, name, tmp_path)[0]
    assert resumed["val_loss"] == straight["val_loss"]
    assert straight["bytes_per_parameter"] == pytest.approx(4.1, abs=0.1)
    assert other["val_loss"] != straight["val_loss"]


def _saves(rank: int, folder: str) -> dict[str, str]:
    """What the checkpoint that is named the latest is, as the slowest process begins to write its own part."""
    recipe = _recipe("zero_transformer", rank)
    from tests.deepspeed import engines

    engine = engines.engine(rank, 2)
    engines.train(engine, 1)
    seen: list[str] = []
    write = engine.checkpoint_engine.save

    def slowly(*args: Any, **given: Any) -> Any:
        if rank == 1:
            time.sleep(1)
            seen.append(latest.read_text() if latest.exists() else "none")
        return write(*args, **given)

    engine.checkpoint_engine.save = slowly
    found, ways = {}, {"DeepSpeed": engine.save_checkpoint, "recipe": lambda folder: recipe.save(engine, folder)}
    for name, save in ways.items():
        latest = Path(folder) / name / "latest"
        save(Path(folder) / name)
        recipe.dist.barrier()
        found[name] = "".join(seen)
        found[f"{name}, then"] = latest.read_text()
        seen.clear()
    return found


@needs_deepspeed
def test_a_checkpoint_of_zero_is_the_latest_when_every_process_has_written(tmp_path: Path) -> None:
    found = ranks.run(2, _saves, str(tmp_path))[1]
    assert found["recipe"] == "none"
    assert found["recipe, then"] == "step1"
    assert "global_step1" in found["DeepSpeed"]  # the control: named before it is complete


def test_sixteen_processes_have_rows_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "recipes")
    recipe = importlib.import_module("bytes_transformer")
    data, generator = torch.arange(1000), torch.Generator()
    rows = {ranks: len(recipe.batch_of(data, generator, ranks)[0]) for ranks in (1, 2, 3, 8, 16)}
    assert rows == {1: 8, 2: 8, 3: 9, 8: 8, 16: 16}


@pytest.mark.parametrize(("steps", "seeds"), [(60, 2), pytest.param(2000, 4, marks=pytest.mark.slow)])
def test_averages_in_codes_go_float32s_way(
    steps: int, seeds: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where codes rounded to nearest do not, and bfloat16's most numbers never move."""
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(ROOT / "recipes")
    out = tmp_path / "ema.json"
    monkeypatch.setattr(sys, "argv", ["ema.py", "--steps", str(steps), "--seeds", str(seeds), "--out", str(out)])
    importlib.import_module("ema").main()
    found = {each["kind"]: each for each in json.loads(out.read_text())["averages"]}
    codes, nearest, narrow = (found[kind] for kind in ("16 bits, stochastic", "16 bits, nearest", "bfloat16"))
    assert codes["share"] == pytest.approx(1, abs=0.003)
    assert codes["off"] < 0.5 * nearest["off"] < 0.25 * narrow["off"]
    assert narrow["unmoved"] > 0.9 > 0.5 > codes["unmoved"]
    if seeds > 2:
        assert codes["share, above float32"]["within two"]
        assert codes["loss, above float32"]["within two"]
        assert not nearest["share, above float32"]["within two"]
        assert not narrow["loss, above float32"]["within two"]


@pytest.mark.parametrize(
    ("script", "given", "env", "expected"),
    [
        (
            "slurm_torchrun.sbatch", ["recipes/zero_transformer.py", "--variant", "16/8"], {"SLURM_GPUS_ON_NODE": "8"},
            "--cpus-per-task 64 torchrun --nnodes 2 --nproc-per-node 8 .* --rdzv-endpoint node1:29500 "
            "recipes/zero_transformer.py --variant 16/8$",
        ),
        ("slurm_torchrun.sbatch", ["recipe.py"], {"PROCESSES": "1"}, "--nproc-per-node 1 .* recipe.py$"),
        ("slurm_torchrun.sbatch", [], {"PROCESSES": "1"}, "^$"),
        (
            "slurm_ddp.sbatch", ["--trainer.accelerator=cpu"], {},
            "--trainer.num_nodes=2 --trainer.devices=3 --trainer.accelerator=cpu$",
        ),
    ],
)  # fmt: skip
def test_what_slurm_is_told(script: str, given: list[str], env: dict[str, str], expected: str, tmp_path: Path) -> None:
    for name, does in {"srun": 'echo "$@"', "scontrol": "echo node1; echo node2"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "3", "SLURM_CPUS_PER_TASK": "64", "SLURM_JOB_ID": "7"}
    path = f"{tmp_path}:{os.environ['PATH']}"
    command = ["bash", str(ROOT / "recipes" / script), *given]
    said = subprocess.run(command, env=slurm | env | {"PATH": path}, capture_output=True, text=True, check=False)
    assert re.search(expected, said.stdout.strip()), said.stdout + said.stderr
    assert (said.returncode == 0) == bool(given)
