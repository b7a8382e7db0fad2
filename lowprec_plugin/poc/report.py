"""The proof of concept's table."""

from __future__ import annotations

import statistics
from pathlib import Path

from lowprec_plugin.files import whole_text
from lowprec_plugin.markdown import markdown_table
from lowprec_plugin.poc.study import load_runs, load_study


def write(folder: Path) -> str:
    """Write ``report.md`` into ``folder``, whole or not at all. Returns the text to print."""
    study = load_study(folder)
    runs = load_runs(folder, study)
    rows = [["variant", "runs", study.metric, "held MiB", "step ms"]]
    for variant in study.variants:
        mine = [run for run in runs if run.variant == variant and run.status == "finished"]
        if mine:
            held = statistics.median(sum(run.held.values()) for run in mine) / 2**20
            step = statistics.median(run.step_ms["median"] for run in mine)
            value = statistics.mean(run.metrics[study.metric] for run in mine)
            rows.append([variant, str(len(mine)), f"{value:.4g}", f"{held:.3f}", f"{step:.2f}"])
    text = f"{study.title}\n\n{markdown_table(rows)}\n"
    whole_text(folder / "report.md", text)
    return text
