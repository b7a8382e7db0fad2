"""What earlier versions wrote is read, and trained on, as it was written."""

from __future__ import annotations

import json
import pickle
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from lowprec_plugin.checkpoints.inspect import inspect_checkpoint
from lowprec_plugin.checkpoints.load import read_file
from lowprec_plugin.former_names import _MOVED, label_of_today
from tests.fixtures.make import RUNS, fit, objects, state_of, values_of

FOLDERS = sorted(path.parent for path in (Path(__file__).parent / "fixtures").glob("*/values.json"))


def values(folder: Path) -> Any:
    """As they were written, but for the names of state, in which the parameter's stood as in a message."""
    text = (folder / "values.json").read_text()
    assert "parameter 'net.0.weight'.exp_avg" in text
    return json.loads(re.sub(r"parameter '([\w.]+)'\.", r"\1.", text))


def test_there_are_some() -> None:
    assert [folder.name for folder in FOLDERS] == ["0.1.0", "0.1.0_without_digests"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_tensors_are_what_they_were(folder: Path) -> None:
    read = torch.load(folder / "tensors.pt", weights_only=True)
    assert values_of(read) == values(folder)["tensors"]
    assert isinstance(read["parameter"], torch.nn.Parameter)
    assert (read["window"].shape, read["window"].stride()) == ((2, 20), (40, 2))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_state_goes_by_the_names_of_today(folder: Path) -> None:
    found = inspect_checkpoint(read_file(folder / "adamw.ckpt"))
    expected = [f"net.0.{param}.{state}" for param in ("weight", "bias") for state in ("exp_avg", "exp_avg_sq")]
    assert [each.name for each in found if each.format in ("fixed8", "fixed8^2")] == expected
    assert b"parameter 'net.0.weight'.exp_avg" in (folder / "adamw.ckpt").read_bytes()


@pytest.mark.parametrize(
    ("label", "today"),
    [
        ("parameter 'net.0.weight'.exp_avg", "net.0.weight.exp_avg"), ("a parameter of shape (3, 40).slow", "slow"),
        ("parameter 'w'.fast.0 (a copy)", "w.fast.0 (a copy)"), ("a parameter of shape ().exp_avg", "exp_avg"),
        ('parameter "it\'s".exp_avg', "it's.exp_avg"), ("parameter", "parameter"), ("net.0.weight", "net.0.weight"),
        ("parameter 3", "parameter 3"), ("", ""),
    ],
)  # fmt: skip
def test_labels_of_then(label: str, today: str) -> None:
    assert label_of_today(label) == today


@pytest.mark.filterwarnings("ignore:The loaded checkpoint was produced with Lightning")
@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_run_goes_on(folder: Path, name: str) -> None:
    path = folder / f"{name}.ckpt"
    assert json.loads(json.dumps(state_of(*fit(name, 2, path)))) == values(folder)[name]
    trainer, module = fit(name, 3, path)
    assert trainer.global_step == 12
    assert json.loads(json.dumps(state_of(trainer, module))) != values(folder)[name]


@pytest.mark.filterwarnings("ignore:The loaded checkpoint was produced with Lightning")
@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_run_goes_on_to_the_bit_as_from_a_checkpoint_of_today(folder: Path, name: str, tmp_path: Path) -> None:
    """Nothing that a checkpoint of today holds is missing from one of then, nor read as something else."""
    written = folder / f"{name}.ckpt"
    fit(name, 2, written)[0].save_checkpoint(tmp_path / "today.ckpt")
    then, today = (state_of(*fit(name, 3, path)) for path in (written, tmp_path / "today.ckpt"))
    assert then == today


PICKLES = sorted((Path(__file__).parent / "fixtures").glob("*/objects.pkl"))


@pytest.mark.parametrize("path", PICKLES, ids=lambda path: path.parent.name)
def test_objects_are_what_they_were(path: Path) -> None:
    """``0.1.0_flat`` names modules of the layout that version 0.1.0 had, which are elsewhere now."""
    read, made = pickle.loads(path.read_bytes()), objects()
    made["module"].zero_grad()  # gradients are not pickled
    assert list(read) == list(made)
    for name in ("emulation", "ramp", "counts", "format"):
        assert read[name] == made[name], name
    assert read["settings"].given() == made["settings"].given()
    assert values_of(read["module"].state_dict()) == values_of(made["module"].state_dict())
    for name in ("lion", "adopted lion"):
        assert type(read[name]).__mro__[1:] == type(made[name]).__mro__[1:]
        assert values_of(read[name].state_dict()) == values_of(made[name].state_dict())
        for optimizer in (read[name], made[name]):
            (param, _) = optimizer.param_groups[0]["params"]
            param.grad = torch.ones(3, 40)
            optimizer.step()
        assert values_of(read[name].state_dict()) == values_of(made[name].state_dict())


def test_there_are_pickles_of_the_flat_layout() -> None:
    assert "0.1.0_flat" in [path.parent.name for path in PICKLES]
    assert b"lowprec_plugin.emulation.settings" in PICKLES[0].read_bytes()


@pytest.mark.parametrize("name", _MOVED)
def test_modules_go_by_their_former_names_too(name: str) -> None:
    moved, now = import_module(f"lowprec_plugin.{name}"), import_module(f"lowprec_plugin.{_MOVED[name]}")
    public = [each for each in vars(now) if not each.startswith("_")]
    assert public
    assert all(getattr(moved, each) is getattr(now, each) for each in public)
    with pytest.raises(AttributeError):
        _ = moved.nothing_of_the_kind
