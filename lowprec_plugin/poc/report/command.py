"""``lowprec poc report``: a page for the browser, Markdown and JSON, made from the run files alone."""

from __future__ import annotations

from pathlib import Path

from lowprec_plugin.poc.report import contents
from lowprec_plugin.poc.report.contents import FILES
from lowprec_plugin.poc.report.page import html
from lowprec_plugin.poc.report.text import as_json, as_markdown, summary
from lowprec_plugin.poc.report.wandb_report import publish
from lowprec_plugin.text.files import whole_text


def run_report(folder: str, wandb: str | None = None) -> None:
    """Write the report of a proof of concept again, from its files alone, and print the verdict.

    Args:
        folder: what ``lowprec poc --output`` was given; runs that have not ended are left out.
        wandb: a project of Weights & Biases to log the report to, in a new run.

    Raises:
        ValueError: if ``folder`` holds no proof of concept, no run of it has ended, or wandb is not installed.
    """
    print(write(Path(folder)))
    if wandb is not None:
        publish(Path(folder), wandb)


def write(folder: Path) -> str:
    """Write ``report.html``, ``report.md`` and ``report.json`` into ``folder``, each whole or not at all.

    Returns:
        the text to print: the verdict and one table.

    Raises:
        ValueError: if ``folder`` holds no proof of concept, or no run of it has ended.
    """
    found = contents.read(folder)
    for name, make in zip(FILES, (html, as_markdown, as_json), strict=True):
        whole_text(folder / name, make(found))
    return f"{summary(found)}\n\nSaved to {folder}: {', '.join(FILES)}"
