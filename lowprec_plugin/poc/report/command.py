"""``lowprec poc report``: a page for the browser, Markdown and JSON, made from the run files alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lowprec_plugin.poc.report import contents, tables
from lowprec_plugin.poc.report.page import html
from lowprec_plugin.poc.report.text import as_json, as_markdown, summary
from lowprec_plugin.text.files import whole_text

FILES = ("report.html", "report.md", "report.json")
#: Name of the artifact in Weights & Biases.
ARTIFACT = "lowprec-poc"


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


def log_report(run: Any, folder: Path) -> None:
    """Log what :func:`write` has written to ``folder`` to ``run``, a ``wandb.Run``.

    The files become the artifact ``lowprec-poc``, the short table ``lowprec/poc`` and the page ``lowprec/report``; the
    headline is in the run's summary.
    """
    import wandb

    found = contents.read(folder)
    made = tables.table(found, "summary")
    table = wandb.Table(columns=[*made.header], data=[[_cell(cell) for cell in row] for row in made.rows])
    run.log({"lowprec/poc": table, "lowprec/report": wandb.Html(folder / FILES[0])})
    artifact = wandb.Artifact(ARTIFACT, type="report", metadata={"verdict": found.verdict.headline})
    for name in FILES:
        artifact.add_file(str(folder / name))
    run.log_artifact(artifact)
    run.summary["lowprec/verdict"] = found.verdict.headline


def publish(folder: Path, project: str) -> None:
    """The same, to a new run of ``project``.

    Raises:
        ValueError: if wandb is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise ValueError('wandb is not installed: pip install "lowprec-plugin[wandb]", or leave --wandb out') from error
    with wandb.init(project=project, job_type="lowprec poc") as run:
        log_report(run, folder)


def _cell(cell: tables.Cell) -> float | str | None:
    """The figure itself where there is just one, so that the table can be sorted by it; ``None`` for none."""
    if len(cell) == 1 and (cell[0].value is not None or cell[0].text == tables.NONE):
        return cell[0].value
    return "".join(part.text for part in cell)
