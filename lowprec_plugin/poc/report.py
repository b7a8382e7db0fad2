"""The report of a proof of concept: a page for the browser, Markdown and JSON, made of the run files alone."""

from __future__ import annotations

from pathlib import Path

from lowprec_plugin.poc import contents
from lowprec_plugin.poc.as_text import as_json, as_markdown, summary
from lowprec_plugin.poc.page import html
from lowprec_plugin.text.files import whole_text

FILES = ("report.html", "report.md", "report.json")


def write(folder: Path) -> str:
    """Write ``report.html``, ``report.md`` and ``report.json`` into ``folder``, each whole or not at all.

    Args:
        folder: with ``poc.json`` and the runs that have ended so far. Nothing is trained, and no run is changed.

    Returns:
        the text to print: the verdict and one table.

    Raises:
        ValueError: if ``folder`` holds no proof of concept, or no run of it has ended.
    """
    found = contents.read(folder)
    for name, make in zip(FILES, (html, as_markdown, as_json), strict=True):
        whole_text(folder / name, make(found))
    return f"{summary(found)}\n\nSaved to {folder}: {', '.join(FILES)}"
