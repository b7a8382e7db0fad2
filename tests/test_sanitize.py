"""The native kernels under sanitizers, in a short form of ``make sanitize``."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lowprec_plugin.arithmetic.native import library as native
from tools import sanitize

able, reason = native.available()


def test_what_is_reported_fails_a_run() -> None:
    assert sanitize.checked("avx2", "tests", 0, "").good
    assert not sanitize.checked("avx2", "tests", 1, "").good
    said = "kernels.inl:1:2: runtime error: negation of -32768\n    #0 0x7f in larger_magnitude\n"
    row = sanitize.checked("avx2", "tests", 0, said)
    assert not row.good
    assert row.reports == ["kernels.inl:1:2: runtime error: negation of -32768"]
    assert sanitize.checked("avx2", "tests", 0, "something else\n").reports == ["something else"]


def test_a_control_that_is_not_reported_fails() -> None:
    assert sanitize.control("avx2", "codes read as wider", "READ of size", "ERROR: ...\nREAD of size 2").good
    assert not sanitize.control("avx2", "codes read as wider", "READ of size", "").good


def _has_sanitizers() -> bool:
    try:
        return (
            sys.platform == "linux"
            and shutil.which(sanitize.compiler()) is not None
            and bool(sanitize.runtime("libasan.so") and sanitize.runtime("libubsan.so"))
        )
    except ValueError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not able, reason=reason)
@pytest.mark.skipif(not _has_sanitizers(), reason="no GCC with sanitizers")
@pytest.mark.timeout(1800)
def test_every_kernel_under_sanitizers(tmp_path: Path) -> None:
    """Every word length, format and algorithm; and that faults made on purpose are seen."""
    name = native.instruction_set()
    command = [sys.executable, "-m", "tools.sanitize", "--only", "controls", "driver", "--sets", name]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path)], cwd=sanitize.ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "**clean**" in done.stdout
    assert done.stdout.count("reported: ") == 3
