"""Tests of other people's packages, which ``make foreign`` installs; elsewhere they are skipped."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

#: Of the extra ``foreign``: each of these, or none is tried.
PACKAGES = ("geoopt", "heavyball", "peft", "prodigyopt", "pytorch_optimizer", "schedulefree", "torchao", "transformers")
MISSING = [name for name in PACKAGES if find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if MISSING else []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("foreign")
            # What other people's packages deprecate and warn of is theirs.
            item.add_marker(pytest.mark.filterwarnings("ignore"))
            item.add_marker(pytest.mark.filterwarnings("error:.*fixed-point"))
