"""What a run says that it ran on."""

from __future__ import annotations

import platform
from importlib import import_module
from importlib.metadata import version

import pytest
import torch

from lowprec_plugin import __version__
from lowprec_plugin.compat.lightnings import LIGHTNINGS, Lightning
from lowprec_plugin.experiments.environment import versions


@pytest.mark.parametrize("lightning", LIGHTNINGS, ids=lambda each: each.package)
def test_only_the_lightning_that_runs_is_named(lightning: Lightning) -> None:
    """Which others a process has imported changes nothing: a study goes on in a process that has imported fewer."""
    for each in LIGHTNINGS:
        import_module(each.name)
    assert versions(lightning) == {
        "python": platform.python_version(), "torch": torch.__version__,
        lightning.package: version(lightning.package), "lowprec_plugin": __version__,
    }  # fmt: skip
