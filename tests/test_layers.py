"""Imports go down only (see docs/decisions/0001-layers.md)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lowprec_plugin"

#: Layer of each module or folder; a module may import its own layer's and lower ones'.
LAYERS = {
    "version": 0, "formats": 0, "quality": 0, "ramp": 0, "files": 0, "counts": 0, "markdown": 0,
    "blocks": 1, "random_bits": 1, "updates": 1, "reference": 1, "native": 1, "kernels": 1,
    "update_reference": 1, "wire_reference": 1, "native_wire": 1, "compat": 1,
    "ops": 2, "wire": 2,
    "tensor": 3, "tensor_rules": 3, "tensor_comm": 3, "gathered": 3, "casting": 3, "sharding": 3, "widening": 3,
    "comm": 3, "copying": 3, "opening": 3,
    "flattening": 3, "direct": 3, "dequantizing": 3, "integrity": 3, "damage": 3, "first_tensor": 3,
    "optim": 4, "memory": 4, "describe": 4, "running": 4, "emulation": 4, "kept": 4, "inside": 4,
    "computing": 4, "plan": 4, "telemetry": 4,
    "plugin": 5, "ramping": 5, "resuming": 5, "wiring": 5, "strategies": 5, "nonfinite": 5, "deepspeed": 5,
    "monitoring": 5,
    "tasks": 6, "poc": 6, "bench": 6, "tune": 6, "cli": 6, "export": 6,
    "inspection": 6, "sources": 6, "unread": 6,
    "trainings": 6,
    "__init__": 6,
}  # fmt: skip
#: Third-party packages and the lowest layer (or the only folders) that may import them.
HOSTS = {
    "torch": 1,
    "lightning_utilities": 4,
    "jsonargparse": 6,
    "sklearn": 6,
    "wandb": 5,
    "rich": 6,
    "onnx": 6,
    "safetensors": 6,
    "yaml": 6,
    "optuna": 6,
    "matplotlib": 6,
    "tqdm": 6,
    "jinja2": 6,
    "markupsafe": 6,
}
ONLY_IN = {"triton": "kernels", "deepspeed": "deepspeed"}
#: Whose classes are asked of lowprec_plugin.compat, for they come from any of several packages.
BY_NAME = {"lightning", "pytorch_lightning", "lightning_fabric"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All that runs: what a type checker alone reads is left out."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from nodes(node)


def imports(path: Path) -> set[str]:
    found = set()
    for node in nodes(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
            found.add(str(node.module))
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    layer = LAYERS[name_of(path)]
    for imported in imports(path):
        parts = imported.split(".")
        assert parts[0] not in BY_NAME, f"{path.name} imports {imported} itself"
        if parts[0] == "lowprec_plugin":
            if len(parts) > 1 and parts[1] in LAYERS:
                assert LAYERS[parts[1]] <= layer, f"{path.name} (layer {layer}) imports {imported}"
        elif parts[0] in ONLY_IN:
            assert name_of(path) == ONLY_IN[parts[0]], f"{path.name} imports {imported}"
        elif parts[0] in HOSTS:
            assert HOSTS[parts[0]] <= layer, f"{path.name} (layer {layer}) imports {imported}"


def test_files_are_small() -> None:
    long = {str(path): len(path.read_text().splitlines()) for path in modules()}
    assert {path: lines for path, lines in long.items() if lines > 350} == {}
