"""The page of strategies is what its data say, and the tests that it names exist."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests import strategies

TESTS = Path(__file__).parent


def named() -> list[str]:
    return sorted({test for cells in strategies.STRATEGIES.values() for cell in cells for test in cell.tests})


@pytest.mark.parametrize("test", named())
def test_it_exists(test: str) -> None:
    file, *path = test.split("::")
    names = {node.name for node in ast.walk(ast.parse((TESTS / file).read_text())) if isinstance(node, ast.FunctionDef)}
    assert path[-1] in names


def test_the_page_was_written_by_a_run_in_which_all_of_them_passed() -> None:
    assert (TESTS.parent / "docs" / "strategies.md").read_text() == strategies.document()


def test_a_cell_whose_test_did_not_pass_says_so() -> None:
    assert "not shown" in strategies.table(passed=set())
    assert "not shown" not in strategies.table(passed=set(named()))
