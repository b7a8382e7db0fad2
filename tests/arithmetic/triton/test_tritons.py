"""The usual kernels, compiled by every version of Triton that a CUDA build of torch requires, and by the newest."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.arithmetic.triton import tritons
from tests.arithmetic.triton.conftest import INTERPRETED

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(INTERPRETED, reason="the versions compile in processes of their own")

Outcomes = list[dict[str, Any]]


@pytest.fixture(scope="module")
def compilations() -> Iterator[dict[str, Future[Outcomes]]]:
    """What the versions compile, all at work at once."""
    pool = ThreadPoolExecutor(os.cpu_count())
    there = [version for version in tritons.VERSIONS if not tritons.missing(version)]
    yield {version: pool.submit(tritons.compile_kernels, version, "--target", "sm_90") for version in there}
    pool.shutdown(cancel_futures=True)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("version", tritons.VERSIONS)
def test_usual_kernels(version: str, compilations: dict[str, Future[Outcomes]]) -> None:
    if tritons.missing(version):
        pytest.skip(str(tritons.missing(version)))
    lines = compilations[version].result()
    assert len(lines) > 50
    # Which registers are spilled is each version's own affair, and in the record.
    assert [line for line in lines if not line["compiled"]] == []
    assert [line for line in lines if not all("spilled" in fault for fault in line["faults"])] == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("version", tritons.VERSIONS)
def test_launches_compile_as_they_do_ahead_of_time(version: str, tmp_path: Path) -> None:
    if tritons.missing(version):
        pytest.skip(str(tritons.missing(version)))
    right = f"assert triton.__version__ == {version!r}"
    script = f"import sys, triton, pytest; {right}; sys.exit(pytest.main(sys.argv[1:]))"
    tests = ["tests/arithmetic/triton/test_aot.py", "-k", "per_kind"]
    command = [sys.executable, "-c", script, "-q", "-p", "no:cacheprovider", *tests]
    env = tritons.environment(version, tmp_path)
    run = subprocess.run(command, cwd=tritons.ROOT, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "3 passed" in run.stdout


def test_another_triton_is_noticed() -> None:
    folder = tritons.FOLDERS / "3.6.0"
    line = {"triton": "3.6.0", "folder": str(folder)}
    assert tritons.outcomes(json.dumps(line), "3.6.0", folder) == [line]
    for other in ({"triton": "3.7.1"}, {"folder": "/elsewhere"}):
        with pytest.raises(RuntimeError, match=str(*other.values())):
            tritons.outcomes(f"{json.dumps(line)}\n{json.dumps(line | other)}", "3.6.0", folder)
    with pytest.raises(RuntimeError, match="was to compile"):
        tritons.outcomes("", "3.6.0", folder)


def test_the_record_counts_what_failed() -> None:
    good = {"kernel": "good", "compiled": True, "faults": []}
    spilled = {"kernel": "spilled", "compiled": True, "faults": ["8 spilled"]}
    failed = {"kernel": "failed", "compiled": False, "faults": ["does not compile: no"]}
    page = tritons.record({("3.6.0", "sm_90"): [good, spilled, failed], ("3.9.1", "sm_80"): [good]})
    rows = [re.split(r" *\| *", line)[1:-1] for line in page.splitlines() if line.startswith("| 3.")]
    assert rows == [
        ["3.6.0", "2.10, 2.11", "sm_90", "3", "2", "1", "1"],
        ["3.9.1", "none yet", "sm_80", "1", "1", "0", "0"],
        ["3.6.0", "sm_90", "spilled", "8 spilled"],
        ["3.6.0", "sm_90", "failed", "does not compile: no"],
    ]


def test_what_torch_requires() -> None:
    required = {"2.10": "3.6.0", "2.11": "3.6.0", "2.12": "3.7.0", "2.13": "3.7.1", "2.14": "3.8.0", "2.15": "3.9.0"}
    assert required == tritons.REQUIRED
    assert set(tritons.REQUIRED.values()) <= set(tritons.VERSIONS)
    # Of the torch that is installed its own metadata say it, if it is built for CUDA.
    for requirement in importlib.metadata.requires("torch") or []:
        if pinned := re.match(r"triton[=~]=([\d.]+)", requirement):
            assert tritons.REQUIRED.get(_minor(torch.__version__), pinned[1]) == pinned[1]


def test_the_package_takes_all_of_them() -> None:
    oldest = _minor(tritons.VERSIONS[0])
    pyproject = (tritons.ROOT / "pyproject.toml").read_text()
    assert re.findall(r"\"triton>=([\d.]+);", pyproject) == [oldest]
    assert f"{oldest} to {_minor(tritons.VERSIONS[-1])}" in pyproject


@pytest.mark.skipif(Path(sys.prefix) != tritons.ROOT / ".venv", reason="not the environment that make builds")
def test_the_development_environment_has_the_triton_of_its_torch() -> None:
    installed = importlib.metadata.version("triton")
    assert tritons.REQUIRED.get(_minor(torch.__version__), installed) == installed


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("minor", tritons.REQUIRED)
def test_make_installs_the_triton_of_its_torch(minor: str) -> None:
    command = ["make", "-n", "VENV=nowhere", f"TORCH=torch=={minor}.0", "nowhere/torch"]
    env = {"PATH": os.environ["PATH"]}  # without the variables of a make that runs this test
    run = subprocess.run(command, cwd=tritons.ROOT, env=env, capture_output=True, text=True, check=True)
    assert re.findall(r"triton==([\d.]+)", run.stdout) == [tritons.REQUIRED[minor]]


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
