"""Files appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowprec_plugin.files import whole_file


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
