"""The tests that want Triton to interpret, or to compile, where this process does the other."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lowprec_plugin.arithmetic.triton import backend
from tests.arithmetic.triton.conftest import INTERPRETED


@pytest.mark.timeout(900)
def test_the_other_mode() -> None:
    pytest.importorskip("triton")
    wanted = ["aot"] if INTERPRETED else ["bits", "counting", "gradients", "wire"]
    tests = [f"tests/arithmetic/triton/test_{name}.py" for name in wanted]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "TRITON_INTERPRET": "0" if INTERPRETED else "1"}
    root = Path(__file__).parents[3]
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_available_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("kernels_without_triton", str(backend.__file__))
    assert spec is not None
    assert spec.loader is not None
    fresh = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "triton", None)  # as if it were not installed
    spec.loader.exec_module(fresh)
    able, reason = fresh.Triton().available()
    assert not able
    assert "Triton" in reason


@pytest.mark.skipif(INTERPRETED or torch.cuda.is_available(), reason="the kernels run here")
def test_available_says_that_there_is_no_gpu() -> None:
    pytest.importorskip("triton")
    able, reason = backend.Triton().available()
    assert not able
    assert "GPU" in reason
