"""Whether the runs that a folder holds are of what is to be trained now."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowprec_plugin.text.option_error import Option, OptionError


def check_same(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to continue runs of something else.

    Args:
        path: what holds the runs.
        before, now: what all runs depend on, as JSON can hold it; nested as it may be.

    Raises:
        ValueError: naming the first value that differs, by its path in the nested data.
    """
    old, new = _leaves(dict(before)), _leaves(dict(now))
    for name in {**new, **old}:
        if old.get(name) != new.get(name):
            raise OptionError(
                f"{path} holds runs with ",
                Option.given(name, old.get(name)),
                f", not {new.get(name)!r}: give another output folder, or delete that one",
            )


def _leaves(content: Any, name: str = "") -> dict[str, Any]:
    """The leaves of nested data by path, as JSON holds them; NaN, which equals nothing, as text."""
    if not isinstance(content, dict) or not content:
        return {name: json.loads(json.dumps(content), parse_constant=str)}
    parts = [_leaves(each, f"{name}.{key}".strip(".")) for key, each in content.items()]
    return {path: leaf for part in parts for path, leaf in part.items()}
