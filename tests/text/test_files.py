"""Files appear whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lowprec_plugin.text import files
from lowprec_plugin.text.files import alone_in, remove_partial, whole_file


def test_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "x.txt"
    with whole_file(path) as partial:
        mode = partial.stat().st_mode
        partial.chmod(0o600)
        partial.write_text("first")
        assert not path.exists()
    with pytest.raises(OSError, match="full"), whole_file(path) as partial:  # noqa: PT012  half a file is the point
        partial.write_text("half of the sec")
        assert path.read_text() == "first"
        raise OSError("disk full")
    assert path.read_text() == "first"
    assert path.stat().st_mode == mode
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", ["x" * 255, "\u00e4" * 127, "x" * 3])
def test_the_longest_names_are_written(tmp_path: Path, name: str) -> None:
    with whole_file(tmp_path / name) as partial:
        partial.write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with whole_file(tmp_path / name) as partial:
        left = partial.with_name(partial.name.replace(str(os.getpid()), "1"))
        left.touch()
    remove_partial(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_text_is_utf8_whatever_the_machine_speaks(tmp_path: Path) -> None:
    """As the page says of itself."""
    program = f"import runpy; runpy.run_path({files.__file__!r})['whole_text']('x.txt', '\\u2212 1')"
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=ascii_only, check=True)
    assert (tmp_path / "x.txt").read_bytes() == "\u2212 1".encode()


def test_one_at_a_time_in_a_folder(tmp_path: Path) -> None:
    with alone_in(tmp_path):
        with pytest.raises(ValueError, match="another process is at work in"), alone_in(tmp_path):
            raise AssertionError
        with alone_in(tmp_path.parent):
            pass
    with alone_in(tmp_path):
        assert not list(tmp_path.iterdir())
