"""What earlier versions wrote is read, and trained on, as it was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fixtures.make import RUNS, fit, state_of, values_of

FOLDERS = sorted(path.parent for path in (Path(__file__).parent / "fixtures").glob("*/values.json"))


def values(folder: Path) -> Any:
    return json.loads((folder / "values.json").read_text())


def test_there_are_some() -> None:
    assert [folder.name for folder in FOLDERS] == ["0.1.0", "0.1.0_without_digests"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_tensors_are_what_they_were(folder: Path) -> None:
    read = torch.load(folder / "tensors.pt", weights_only=True)
    assert values_of(read) == values(folder)["tensors"]
    assert isinstance(read["parameter"], torch.nn.Parameter)
    assert (read["window"].shape, read["window"].stride()) == ((2, 20), (40, 2))


@pytest.mark.filterwarnings("ignore:The loaded checkpoint was produced with Lightning")
@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_run_goes_on(folder: Path, name: str) -> None:
    path = folder / f"{name}.ckpt"
    assert json.loads(json.dumps(state_of(*fit(name, 2, path)))) == values(folder)[name]
    trainer, module = fit(name, 3, path)
    assert trainer.global_step == 12
    assert json.loads(json.dumps(state_of(trainer, module))) != values(folder)[name]
