"""What the documents show is there: files that they link to, headings, names in the package, and Python that runs."""

from __future__ import annotations

import ast
import builtins
import re
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    path for pattern in ("*.md", "docs/**/*.md", "recipes/*.md", "configs/*.md") for path in sorted(ROOT.glob(pattern))
]
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
BLOCKS = [
    pytest.param(found.group(1), id=f"{path.stem}-{number}")
    for path in DOCUMENTS
    for number, found in enumerate(_BLOCK.finditer(path.read_text()))
]


def _headings(path: Path) -> set[str]:
    """What a link may name in a document, as GitHub makes it of its headings."""
    found = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in found}


def broken_links(path: Path, text: str) -> list[str]:
    """The links of ``text``, a document at ``path``, that lead nowhere in the repository."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        name, _, heading = link.partition("#")
        target = path.parent / name if name else path
        if not target.exists() or (heading and heading not in _headings(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    assert broken_links(path, path.read_text()) == []


def test_a_link_that_leads_nowhere_is_seen() -> None:
    text = "[a](docs/nothing.md) [b](docs/wire.md#nothing) [c](docs/wire.md#when-it-pays) [d](docs)"
    assert broken_links(ROOT / "README.md", text) == ["docs/nothing.md", "docs/wire.md#nothing"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_of_the_package_are_there(path: Path) -> None:
    for name in re.findall(r"\blowprec_plugin(?:\.[A-Za-z]\w*)+(?![\w/])", path.read_text()):
        if not name.endswith(".py"):
            resolve_name(name)


@pytest.mark.parametrize("code", BLOCKS)
def test_python_that_needs_nothing_else_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the others, what they import from the package is there."""
    tree = ast.parse(code)
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    made = {each.id for each in names if not isinstance(each.ctx, ast.Load)} | set(dir(builtins))
    made |= {alias.asname or alias.name.partition(".")[0] for node in imports for alias in node.names}
    made |= {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    made |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    monkeypatch.chdir(tmp_path)
    if {each.id for each in names} <= made and all(_is_installed(node) for node in imports):
        exec(compile(tree, "document", "exec"), {})
    for node in imports:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lowprec_plugin"):
            for alias in node.names:
                resolve_name(f"{node.module}:{alias.name}")


def _is_installed(node: ast.Import | ast.ImportFrom) -> bool:
    names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
    return all(find_spec(name.partition(".")[0]) for name in names)
