"""Building the native kernels is optional: without a compiler the package installs, and the reference serves."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NATIVE = Path("lowprec_plugin", "arithmetic", "native")


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
@pytest.mark.parametrize("compiler", [None, "false"], ids=["compiler", "no compiler"])
def test_the_kernels_are_optional(tmp_path: Path, compiler: str | None) -> None:
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "lowprec_plugin", tmp_path / "lowprec_plugin", ignore=shutil.ignore_patterns("*.so"))
    if compiler is None:
        # Quick to compile, and to the same end: what is tested is that the library appears where it is looked for.
        for source in (tmp_path / NATIVE / "csrc").glob("*.cpp"):
            source.write_text("")
    environment = os.environ | ({} if compiler is None else {"CC": compiler, "CXX": compiler})
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / NATIVE / "_native.so").exists() == (compiler is None)


def test_how_to_install_is_said() -> None:
    """From a clone, with every extra by its name; those of developers are ``make test``'s and ``make foreign``'s."""
    extras = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("[project.")[0]
    names = set(re.findall(r"^(\w+) = \[", extras, re.MULTILINE)) - {"dev", "foreign"}
    line = re.search(r'`pip install "\.\[poc\]"` in the clone \(extras: (.*?)\)', (ROOT / "README.md").read_text())
    assert line is not None
    assert set(re.findall(r"`(\w+)`", line[1])) == names
    for page in (ROOT / "docs").glob("*.md"):
        assert set(re.findall(r"pip install \S*\[(\w+)\]", page.read_text())) <= names
        assert 'pip install "lowprec-plugin' not in page.read_text(), "it is on no index"
