"""Tables for a page and for a terminal."""

from __future__ import annotations

from lowprec_plugin.text.tables import columns, markdown_table

ROWS = [["layer", "format", "bytes"], ["a|b", "fixed16", "1,024"], ["", "8", "7"]]


def test_columns_line_up_texts_to_the_left_and_figures_to_the_right() -> None:
    assert columns(ROWS, texts=2) == ["layer  format   bytes", "a|b    fixed16  1,024", "       8            7"]
    assert columns([["a", "b"], ["long", ""]], texts=2) == ["a     b", "long"], "no blanks at the ends of lines"


def test_markdown_lines_up_too_and_a_bar_in_a_cell_is_no_column() -> None:
    assert markdown_table(ROWS).splitlines() == [
        "| layer | format  | bytes |",
        "|-------|---------|-------|",
        "| a\\|b  | fixed16 | 1,024 |",
        "|       | 8       | 7     |",
    ]
