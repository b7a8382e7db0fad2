"""The kernels on the CPU, under Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.conftest import INTERPRETED

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
@pytest.mark.timeout(900)
def test_the_interpreted_kernels_agree_with_the_reference() -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/kernels/test_bits.py"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize(
    ("block", "environment", "expected"),
    [
        ("None", {}, "not to be had"),
        ("...", {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}, "no GPU"),
    ],
    ids=["no triton", "no gpu"],
)
def test_the_package_imports_without(block: str, environment: dict[str, str], expected: str) -> None:
    pytest.importorskip("triton")
    hide = "" if block == "..." else "import sys; sys.modules['triton'] = None; "
    script = f"{hide}from lowprec_plugin import kernels; print(kernels.available())"
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | environment
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=clean, capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith("(False")
    assert expected in run.stdout
