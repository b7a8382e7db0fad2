"""The import graph of the package: its rooms, floors and arrows, and every circle.

A room is a module or a folder at the top of the package. An arrow leads from a room to one that it imports, anywhere in
its files: in a function, and under ``TYPE_CHECKING`` too. A floor holds the rooms whose longest way down is as long.

::

    python -m tools.import_graph            # the figures, and circles
    python -m tools.import_graph --rooms    # each room with its floor and the rooms it imports
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Container, Mapping
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parent.parent / "lowprec_plugin"

Graph = Mapping[str, frozenset[str]]


class House(NamedTuple):
    """What a package's imports come to.

    Attributes:
        paths: of its modules, by dotted names.
        modules: what each imports of the package.
        rooms: the same, room by room.
    """

    paths: Mapping[str, Path]
    modules: Graph
    rooms: Graph

    @property
    def arrows(self) -> int:
        """Between rooms."""
        return sum(map(len, self.rooms.values()))


def read(package: Path = PACKAGE) -> House:
    """Read the imports of every module of ``package``."""
    paths = {_dotted(path, package): path for path in sorted(package.rglob("*.py"))}
    modules = {name: frozenset(_module(each, paths) for each in imports_of(path)) for name, path in paths.items()}
    modules = {name: (imported & set(paths)) - {name} for name, imported in modules.items()}
    rooms: dict[str, set[str]] = {room_of(name): set() for name in modules}
    for name, imported in modules.items():
        rooms[room_of(name)] |= {room_of(each) for each in imported} - {room_of(name)}
    return House(paths, modules, {room: frozenset(imported) for room, imported in rooms.items()})


def room_of(module: str) -> str:
    """The module or folder at the top of its package that ``module`` is, or lies in."""
    return module.partition(".")[2].partition(".")[0] or "__init__"


def circles(graph: Graph) -> list[list[str]]:
    """Each group of nodes of ``graph`` that all reach one another."""
    below = {node: _reached(node, graph) for node in graph}
    found = {frozenset(other for other in below[node] if node in below[other]) for node in graph}
    return sorted(sorted(group) for group in found if len(group) > 1)


def floors(graph: Graph) -> dict[str, int]:
    """How many arrows the longest way down from each node of ``graph`` has, which must have no circle."""
    known: dict[str, int] = {}

    def floor(node: str) -> int:
        if node not in known:
            known[node] = max((floor(each) + 1 for each in graph[node]), default=0)
        return known[node]

    return {node: floor(node) for node in graph}


def imports_of(path: Path) -> dict[str, bool]:
    """What the module at ``path`` imports, of ``from a import b`` ``a.b``; and whether it runs, or is for types."""
    found: dict[str, bool] = {}
    tree = ast.parse(path.read_text())
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for each in node.body
        for inner in ast.walk(each)
    }
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            found[name] = found.get(name, False) or id(node) not in typing
    return found


def _reached(node: str, graph: Graph) -> set[str]:
    seen, waiting = {node}, [node]
    while waiting:
        new = graph[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen


def _dotted(path: Path, package: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _module(name: str, known: Container[str]) -> str:
    """The module that an imported ``name`` is, or is a name of."""
    return name if name in known else name.rpartition(".")[0]


def main() -> int:
    """Print the graph. Returns 1 if it has a circle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", action="store_true", help="each room with its floor and the rooms it imports")
    options = parser.parse_args()
    house = read()
    wrong = [*circles(house.rooms), *circles(house.modules)]
    print(f"{len(house.rooms)} rooms, {house.arrows} arrows, {len(house.modules)} modules")
    for circle in wrong:
        print(f"circle: {', '.join(circle)}")
    if not wrong:
        at = floors(house.rooms)
        print(f"{max(at.values()) + 1} floors")
        for room in sorted(at, key=lambda room: (at[room], room)) if options.rooms else ():
            print(f"{at[room]:3} {room}: {', '.join(sorted(house.rooms[room]))}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
