"""The proof of concept on two processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lowprec_plugin.arithmetic.reference.wire import BLOCK
from lowprec_plugin.poc.command import run_poc
from lowprec_plugin.poc.run.study import RunRecord, load_study


@pytest.fixture(autouse=True)
def _user(no_command_line: None, tmp_path: Path) -> None:
    config = {
        "trainer": {"max_epochs": 1, "accelerator": "cpu"},
        "model": {"class_path": "tests.poc.users.Wide", "init_args": {"explode": 12}},
        "data": {"class_path": "tests.poc.users.Clouds"},
    }
    (tmp_path / "user.yaml").write_text(yaml.safe_dump(config))


def on_two(*variants: str) -> dict[str, RunRecord]:
    runs = run_poc("user.yaml", variants=variants, seeds=1, devices=2, output="poc", progress=False)
    return {run.variant: run for run in runs}


def test_two_processes() -> None:
    """As many for all variants, a refused step in both, and bytes sent by hand."""
    runs = on_two("<2,10>", "8-bit wire")
    study = load_study(Path("poc"))
    assert (list(study.variants), study.left_out, study.devices) == (list(runs), {}, 2)
    refused = runs.pop("<2,10>")
    assert (refused.status, refused.nonfinite) == ("diverged", "layers.0.weight")
    for run in runs.values():
        assert (run.status, run.devices, run.steps, run.examples) == ("finished", 2, 10, 15)
        assert study.steps == run.steps
        assert {"train_loss", "val_acc", "test_acc"} <= run.metrics.keys()
        assert run.float32_sent == 2 * 0.5 * 4 * run.parameters
    assert runs["float32"].sent == runs["float32"].float32_sent
    # Blocks of 8-bit codes with an exponent each; a bias of 3, smaller than a block, travels as floats.
    numbers = 4 * 256 + 256 + 256 * 3
    assert runs["float32"].parameters == numbers + 3
    assert runs["8-bit wire"].sent == pytest.approx(numbers * (1 + 1 / BLOCK) + 4 * 3, rel=0.03)  # and padding


@pytest.mark.slow
def test_one_that_fails_leaves_the_others(tmp_path: Path) -> None:
    """Its processes are gone with it; those of the next run are new."""
    runs = on_two("16 nearest", "16")
    assert [run.status for run in runs.values()] == ["finished", "finished", "failed", "finished"]
    assert runs["16 nearest"].reason == "RuntimeError: nearest is not for me"
    assert runs["16 nearest"].devices == 2
