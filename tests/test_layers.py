"""Folders are the layers, and imports go down only (see docs/decisions/0001-layers.md)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import lowprec_plugin
from tools.import_graph import PACKAGE, circles, floors, imports_of, read, room_of

#: The rooms of each layer, from the ground up: a room may import those of its own layer and of lower ones.
LAYERS = (
    ("version", "formats", "quality", "ramp", "text", "former_names", "compat"),
    ("arithmetic",),
    ("tensor",),
    ("optim", "comm", "activations", "memory", "compute_dtype", "experiments", "checkpoints"),
    ("plan", "telemetry"),
    ("plugin", "deepspeed", "monitoring"),
    ("tasks", "poc", "bench", "tune", "export", "cli", "__init__"),
)
LAYER = {room: layer for layer, rooms in enumerate(LAYERS) for room in rooms}
#: Third-party packages and the lowest layer that may import them.
HOSTS = {
    "torch": 0, "jsonargparse": 3, "yaml": 3, "lightning_utilities": 3, "wandb": 5, "sklearn": 6, "rich": 6, "onnx": 6,
    "safetensors": 6, "optuna": 6, "tqdm": 6, "jinja2": 6, "markupsafe": 6,
}  # fmt: skip
ONLY_IN = {"triton": "lowprec_plugin.arithmetic.triton", "deepspeed": "lowprec_plugin.deepspeed"}
#: Of the lowest layer these alone may import torch.
WITH_TORCH = {"compat"}
#: Whose classes are asked of lowprec_plugin.compat, for they come from any of several packages.
BY_NAME = {"lightning", "pytorch_lightning", "lightning_fabric"}
HOUSE = read()


def test_rooms_are_few() -> None:
    assert len(HOUSE.rooms) <= 30
    assert len(list(PACKAGE.glob("*.py"))) <= 9
    assert sorted(HOUSE.rooms) == sorted(LAYER)


def test_no_circle() -> None:
    """Not between rooms and not between modules, what a type checker alone reads included."""
    assert circles(HOUSE.rooms) == []
    assert circles(HOUSE.modules) == []
    assert max(floors(HOUSE.rooms).values()) < 12


@pytest.mark.parametrize("room", sorted(LAYER))
def test_imports_go_down(room: str) -> None:
    upwards = [each for each in HOUSE.rooms[room] if LAYER[each] > LAYER[room]]
    assert upwards == []


def test_the_proof_of_concept_goes_from_runs_to_a_verdict_to_a_report() -> None:
    floors_of = {f"lowprec_plugin.poc.{name}": floor for floor, name in enumerate(("run", "verdict", "report"))}

    def floor(module: str) -> int:
        return next((floor for name, floor in floors_of.items() if module.startswith(f"{name}.")), -1)

    for module, imported in HOUSE.modules.items():
        if floor(module) >= 0:
            assert [each for each in imported if floor(each) > floor(module)] == [], module


@pytest.mark.parametrize("module", sorted(HOUSE.modules))
def test_hosts_are_imported_where_they_belong(module: str) -> None:
    for name, runs in imports_of(HOUSE.paths[module]).items():
        host = name.partition(".")[0]
        if not runs:
            continue
        assert host not in BY_NAME, f"{module} imports {name} itself"
        if host in ONLY_IN:
            assert module.startswith(ONLY_IN[host]), f"{module} imports {name}"
        if host in HOSTS:
            assert HOSTS[host] <= LAYER[room_of(module)], f"{module} imports {name}"
        if host == "torch" and LAYER[room_of(module)] == 0:
            assert room_of(module) in WITH_TORCH, f"{module} imports {name}"


def test_a_circle_and_an_upward_arrow_are_seen(tmp_path: Path) -> None:
    package = tmp_path / "package"
    (package / "low").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "high.py").write_text("from package.low import one")
    (package / "low" / "__init__.py").write_text("")
    for_types = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from package.low import two"
    (package / "low" / "one.py").write_text(for_types)
    (package / "low" / "two.py").write_text("def later():\n    from package.low.one import x\n    import package.high")
    house = read(package)
    assert circles(house.modules) == [["package.high", "package.low.one", "package.low.two"]]
    assert circles(house.rooms) == [["high", "low"]]
    assert house.rooms["low"] == {"high"}


def test_files_are_small() -> None:
    long = {str(path): len(path.read_text().splitlines()) for path in HOUSE.paths.values()}
    assert {path: lines for path, lines in long.items() if lines > 350} == {}


def test_imports_are_absolute() -> None:
    for path in HOUSE.paths.values():
        nodes = ast.walk(ast.parse(path.read_text()))
        assert all(node.level == 0 for node in nodes if isinstance(node, ast.ImportFrom)), path


def test_what_is_public_is_listed() -> None:
    """And is there: some of it is imported when it is asked for."""
    assert dir(lowprec_plugin) == sorted(lowprec_plugin.__all__)
    assert all(getattr(lowprec_plugin, name) is not None for name in lowprec_plugin.__all__)
