"""Private names of other packages stand in ``lowprec_plugin/compat`` alone.

Ruff's SLF001 asks who an attribute is taken from; this asks whose name it is. So ``self._x`` is as good as the class
that defines ``_x``, and a host's name is seen as text and as a method that takes its place, too.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from typing import TypeGuard

import pytest
from torch import nn

from tools.import_graph import PACKAGE, read

COMPAT = PACKAGE / "compat"
#: Private names that are public by the documentation of Python, and what documents them.
DOCUMENTED = {
    "_replace": "collections.namedtuple",
    "_asdict": "collections.namedtuple",
    "_fields": "collections.namedtuple",
    "_fields_": "ctypes.Structure",
}
#: Private names of other packages that stand outside of compat, as file and name, and why.
ALLOWED: dict[tuple[str, str], str] = {
    ("arithmetic/native/library.py", "_native.so"): "the file of our own library",
    ("optim/quantize.py", "_orig"): "how the names of pruned parameters end, as torch documents it",
    ("activations/emulation/sites.py", "_lowprec_format"): "an attribute of our own, which is hung on torch's tensors",
}
_WORD = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def is_private(name: str) -> bool:
    """Whether ``name`` begins with an underscore and is none of the language's own, such as ``__name__`` or ``_``."""
    return name.startswith("_") and bool(name.strip("_")) and not (name.startswith("__") and name.endswith("__"))


def defined_in(tree: ast.AST) -> set[str]:
    """The private names that a module defines: of its own, of its classes, and of what its methods set on ``self``."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_of_self(node):
            found.add(node.attr)
    return set(filter(is_private, found))


def _is_of_self(node: ast.AST) -> bool:
    """Whether ``node`` is an attribute of ``self`` or ``cls``; one that takes a host's place fails another test."""
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def spelled_in(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The private names that a module takes from elsewhere: as attributes, imports, keywords and text."""
    pieces = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.value.lineno, node.arg
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, part) for each in node.names for part in each.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            parts = [*(node.module or "").split("."), *(each.name for each in node.names)]
            yield from ((node.lineno, part) for part in parts)
        elif isinstance(node, ast.Constant) and id(node) not in pieces and _names_private(node.value):
            yield node.lineno, node.value


def _names_private(value: object) -> TypeGuard[str]:
    """Whether ``value`` is the text of a name, perhaps dotted, with something private in it."""
    return isinstance(value, str) and bool(_WORD.fullmatch(value)) and any(map(is_private, value.split(".")))


def host_names() -> set[str]:
    """The private names that ``compat`` spells and does not define itself: the hosts'."""
    trees = [ast.parse(path.read_text()) for path in COMPAT.glob("*.py")]
    own = {name for tree in trees for node in ast.walk(tree) for name in _own_of(node)}
    spelled = {part for tree in trees for _, name in spelled_in(tree) for part in name.split(".")}
    return set(filter(is_private, spelled)) - own


def _own_of(node: ast.AST) -> list[str]:
    """Private names of ``compat``'s own: of functions and classes of a module, and of variables."""
    if isinstance(node, ast.Module):
        return [each.name for each in node.body if isinstance(each, (ast.FunctionDef, ast.ClassDef))]
    return [node.id] if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else []


def strangers(files: dict[str, str], hosts: set[str]) -> list[str]:
    """Each private name in ``files`` (name -> text) that no file defines, or that is one of ``hosts``."""
    trees = {name: ast.parse(text) for name, text in files.items()}
    own = {name for tree in trees.values() for name in defined_in(tree)} - hosts
    found = []
    for file, tree in trees.items():
        of_itself = {(node.lineno, node.attr) for node in ast.walk(tree) if _is_of_self(node)}
        for line, name in spelled_in(tree):
            known = own | set(DOCUMENTED) | (defined_in(tree) if (line, name) in of_itself else set())
            wrong = any(is_private(part) and part not in known for part in name.split("."))
            if wrong and (file, name) not in ALLOWED:
                found.append(f"{file}:{line}: {name}")
    return found


def package() -> dict[str, str]:
    """The text of each file of the package outside of ``compat``."""
    paths = (path for path in PACKAGE.rglob("*.py") if COMPAT not in path.parents)
    return {str(path.relative_to(PACKAGE)): path.read_text() for path in paths}


def test_no_private_name_of_another_package_stands_outside_of_compat() -> None:
    assert strangers(package(), host_names()) == []


def test_what_is_allowed_is_there() -> None:
    texts = package()
    assert all(name in texts[file] for file, name in ALLOWED)
    assert all(any(f".{name}" in text for text in texts.values()) for name in DOCUMENTED)


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("tensor._base", "_base"),
        ("self._trainer", "_trainer"),
        ("super()._after_closure(self)", "_after_closure"),
        ("model._opt_called = True", "_opt_called"),
        ("from torch.utils._pytree import tree_map", "_pytree"),
        ("from torch.nn.modules.conv import _ConvNd", "_ConvNd"),
        ("import torch._dynamo", "_dynamo"),
        ("getattr(x, '_hidden', None)", "_hidden"),
        ("sys.modules.get('torch._dynamo')", "torch._dynamo"),
        ("vars(module)['_hidden_too']", "_hidden_too"),
        ("make(x, _extra=1)", "_extra"),
    ],
)
def test_each_way_to_spell_one_is_seen(line: str, name: str) -> None:
    assert strangers({"file.py": f"class Own:\n    def f(self):\n        {line}"}, set()) == [f"file.py:3: {name}"]


def test_names_of_our_own_are_no_strangers() -> None:
    text = "class Own:\n    _kind: int\n    def f(self, other):\n        self._x = other._x + other._kind + self._f()\n"
    text += "    def _f(self):\n        return f'{self}_suffix' + row._replace(a=1).__name__\n"
    assert strangers({"file.py": text}, set()) == []
    assert strangers({"file.py": text + "        other._f()"}, {"_f"}) == ["file.py:7: _f"]


def test_no_class_takes_the_place_of_a_private_name_of_a_base_of_another_package() -> None:
    """As a method of the name of a hook does, which would never be called again where the host renames it."""
    found = []
    for name, path in read().paths.items():
        if path.is_relative_to(COMPAT) or name.endswith("__main__"):
            continue
        module = importlib.import_module(name)
        for kind in vars(module).values():
            if inspect.isclass(kind) and kind.__module__ == name:
                found += [f"{name}.{kind.__qualname__}.{each}" for each in _replaced(kind)]
    assert found == []


def _replaced(kind: type) -> list[str]:
    hosts = [base for base in kind.__mro__ if not base.__module__.startswith("lowprec_plugin")]
    held = {each for base in hosts if base not in (object, tuple, dict) for each in vars(base)}
    own = set(kind.__mro__) - set(hosts)
    outside = [base for base in own if not base.__module__.startswith("lowprec_plugin.compat.")]
    ours = {each for base in outside for each in vars(base) if is_private(each)}
    made = {"_abc_impl", "_backward_cls", "_is_protocol", *DOCUMENTED}  # by Python, and by torch for its functions
    return sorted(each for each in ours & held - made if not each.endswith("_"))  # enumerations' own


def test_a_method_in_the_place_of_a_hosts_is_seen() -> None:
    class Mixin:
        def _apply(self) -> None: ...

    class Module(Mixin, nn.Module): ...

    for kind in (Mixin, Module):
        kind.__module__ = "lowprec_plugin.made_up"
    assert _replaced(Module) == ["_apply"]
    Mixin.__module__ = "lowprec_plugin.compat.made_up"
    assert _replaced(Module) == []


def test_compat_imports_no_host_but_torch() -> None:
    for path in COMPAT.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
                assert (module or "").partition(".")[0] not in ("deepspeed", "wandb"), path
