"""Configurations as users and LightningCLI write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowprec_plugin.trainings import read_config

FIXED = """
model:
  lr: 1e-3
  options: {eps: 1e-8}
data:
  width: 3
ckpt_path: null
weights_only: null
"""


def test_of_a_program_that_fixes_its_classes(tmp_path: Path) -> None:
    """What it saves has their arguments alone; 1e-3 is a number, as for LightningCLI."""
    (tmp_path / "saved.yaml").write_text(FIXED)
    saved = str(tmp_path / "saved.yaml")
    assert read_config(saved, "my.Model", "my.Data", 3) == {
        "trainer": {"max_epochs": 3},
        "model": {"class_path": "my.Model", "init_args": {"lr": 1e-3, "options": {"eps": 1e-8}}},
        "data": {"class_path": "my.Data", "init_args": {"width": 3}},
    }
    with pytest.raises(ValueError, match=r"has a model without a class_path.*: give model=package\.Class"):
        read_config(saved, None, None, None)
    with pytest.raises(ValueError, match="has a data without a class_path"):
        read_config(saved, "my.Model", None, None)


def test_a_class_takes_the_place_of_another_with_its_arguments(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: {class_path: their.Model, init_args: {lr: 0.1}}")
    assert read_config(str(tmp_path / "config.yaml"), "my.Model", None, None)["model"] == {"class_path": "my.Model"}
