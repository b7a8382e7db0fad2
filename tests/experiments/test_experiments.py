"""Configurations as users and LightningCLI write them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn

from lowprec_plugin import FixedPointPrecision
from lowprec_plugin.experiments import Config, read_config, users_line
from lowprec_plugin.experiments.making import instantiate, quietly

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


def test_a_trainer_without_names_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: my.Model\ntrainer: [max_epochs, 3]")
    with pytest.raises(ValueError, match=r"has trainer=\['max_epochs', 3\]: give its arguments by name"):
        read_config(str(tmp_path / "config.yaml"), None, None, None)


def test_a_class_takes_the_place_of_another_with_its_arguments(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: {class_path: their.Model, init_args: {lr: 0.1}}")
    assert read_config(str(tmp_path / "config.yaml"), "my.Model", None, None)["model"] == {"class_path": "my.Model"}


class Empty(LightningModule):
    """A module without anything."""


class Needy(LightningModule):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, 1)


class Pretending(LightningModule):
    """All of its arguments have a default, and it cannot be made with them."""

    def __init__(self, widths: list[int] | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(widths[0], 1)  # type: ignore[index]


class NeedyData(LightningDataModule):
    def __init__(self, path: str) -> None:
        super().__init__()


def annotated() -> Needy:
    return Needy(3)


def unannotated():  # type: ignore[no-untyped-def]
    return Needy(3)


def made(model: Any, data: Any = None) -> Any:
    here = f"{__name__}."
    config: Config = {"seed_everything": 0, "trainer": {"accelerator": "cpu"}}
    for part, given in (("model", model), ("data", data)):
        if given:
            config[part] = given if isinstance(given, dict) or "." in given else here + given
    with quietly():
        return instantiate(config).model


REMEDY = r"\. Give a configuration, --config, with {0}\.class_path .*, {0}\.init_args; or .* def make\(\) -> Net"


def test_a_module_that_needs_arguments_may_come_from_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["lowprec"])
    assert isinstance(made("annotated"), Needy)
    assert made({"class_path": f"{__name__}.Needy", "init_args": {"width": 5}}).layer.in_features == 5


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ("Needy", None, f"^model='{__name__}.Needy' cannot be made without arguments: .*required: width"
         + REMEDY.format("model")),
        ("Pretending", None, r"Pretending' .*: TypeError: 'NoneType' object is not subscriptable "
         r"\(test_experiments.py, line \d+\)" + REMEDY.format("model")),
        ("Empty", "NeedyData", f"^data='{__name__}.NeedyData' .*required: path" + REMEDY.format("data")),
        ("unannotated", None, r"unannotated' is a function without a return annotation: write def unannotated\(\) ->"),
        ("Empty", "annotated", "annotated' is no LightningDataModule, and no function annotated with"),
        ("nobody", None, f"nobody' cannot be imported: module '{__name__}' has no attribute 'nobody'$"),
        ("no.one", None, "model='no.one' cannot be imported: No module named 'no'$"),
        ({"class_path": f"{__name__}.Pretending", "init_args": {"widths": []}}, None,
         r"Pretending' cannot be made with its init_args: IndexError: list index out of range .*\)$"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_told_in_short(
    model: Any, data: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["lowprec"])
    with pytest.raises(ValueError, match=message) as refused:
        made(model, data)
    assert "Union" not in str(refused.value)


def test_what_else_is_refused_has_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["lowprec"])
    with pytest.raises(ValueError, match=r"the configuration is refused: .*max_epochz"):
        instantiate({"seed_everything": 0, "trainer": {"max_epochz": 1}, "model": f"{__name__}.Empty"})
    with pytest.raises(ValueError, match="accelerator"):
        instantiate({"seed_everything": 0, "trainer": {"accelerator": "abacus"}, "model": f"{__name__}.Empty"})


def test_one_pattern_of_weights_kept_in_float_may_be_text() -> None:
    """In YAML as in Python."""
    plugin = {"class_path": "lowprec_plugin.FixedPointPrecision", "init_args": {"keep_float": "*.bias"}}
    trainer = {"accelerator": "cpu", "plugins": [plugin]}
    config: Config = {"seed_everything": 0, "trainer": trainer, "model": {"class_path": f"{__name__}.Empty"}}
    with quietly():
        precision = instantiate(config).trainer.precision_plugin
    assert isinstance(precision, FixedPointPrecision)
    assert precision.keep_float == ("*.bias",)


def test_installed_code_is_not_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it is installed: under the home folder too."""
    folder = tmp_path / ".local" / "lib" / "python3" / "site-packages"
    folder.mkdir(parents=True)
    (folder / "installed_by_a_user.py").write_text("def refuse():\n    raise ValueError('no')\n")
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(ValueError, match="no") as caught:
        importlib.import_module("installed_by_a_user").refuse()
    assert users_line(caught.value).startswith(" (test_experiments.py, line ")
