"""The report in Weights & Biases: as an artifact, a table and a page. ``wandb`` is optional."""

from __future__ import annotations

from pathlib import Path

from lowprec_plugin.poc.report import contents, tables
from lowprec_plugin.poc.report.contents import FILES

#: Name of the artifact.
ARTIFACT = "lowprec-poc"


def publish(folder: Path, project: str) -> None:
    """Log what :func:`lowprec_plugin.poc.report.command.write` has written to ``folder`` to a new run of ``project``.

    The files become the artifact ``lowprec-poc``, the short table ``lowprec/poc`` and the page ``lowprec/report``; the
    headline is in the run's summary.

    Raises:
        ValueError: if wandb is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise ValueError('wandb is not installed: pip install "lowprec-plugin[wandb]", or leave --wandb out') from error
    found = contents.read(folder)
    made = tables.table(found, "summary")
    table = wandb.Table(columns=[*made.header], data=[[_cell(cell) for cell in row] for row in made.rows])
    artifact = wandb.Artifact(ARTIFACT, type="report", metadata={"verdict": found.verdict.headline})
    for name in FILES:
        artifact.add_file(str(folder / name))
    with wandb.init(project=project, job_type="lowprec poc") as run:
        run.log({"lowprec/poc": table, "lowprec/report": wandb.Html(folder / FILES[0])})
        run.log_artifact(artifact)
        run.summary["lowprec/verdict"] = found.verdict.headline


def _cell(cell: tables.Cell) -> float | str | None:
    """The figure itself where there is just one, so that the table can be sorted by it; ``None`` for none."""
    if len(cell) == 1 and (cell[0].value is not None or cell[0].text == tables.NONE):
        return cell[0].value
    return "".join(part.text for part in cell)
