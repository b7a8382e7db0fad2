"""``lowprec poc report``: the report again, from the files of a proof of concept."""

from __future__ import annotations

from pathlib import Path

from lowprec_plugin.poc.report import write
from lowprec_plugin.poc.wandb_report import publish


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
