"""What a search found: a configuration to train with, a table, every trial as JSON, and the frontier as a plot."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from lowprec_plugin.experiments import Config
from lowprec_plugin.text.files import whole_text
from lowprec_plugin.text.scatter import Marks, scatter
from lowprec_plugin.text.tables import markdown_table
from lowprec_plugin.tune.baseline import Baseline
from lowprec_plugin.tune.cost import Bits, Costs
from lowprec_plugin.tune.frontier import frontier
from lowprec_plugin.tune.search import Trial
from lowprec_plugin.tune.space import written

LEGEND = (
    "Cost: bits as a share of float32's, the mean of the parts that are tuned. Bits per parameter: codes and exponents "
    "of weights and optimizer state; bytes: what memory holds for them. Worse: than float32 with the same seed, in the "
    "metric's units; below 0: better. Confirmed: mean over other seeds, with the standard error of the rule for equal "
    "quality; it holds if two standard errors fit within the tolerance too. *: on the frontier, no other run being "
    "cheaper and better."
)


@dataclass(frozen=True)
class Found:
    """The end of a search.

    Attributes:
        metric, tolerance: what was kept, and how much worse it may be, in its units.
        baseline: float32.
        trials: every setting that was run, in order.
        best: the cheapest that was confirmed; ``None``: none was.
        closed: whether no cheaper setting was left untried.
        config: a LightningCLI configuration of ``best``.
    """

    metric: str
    tolerance: float
    baseline: Baseline
    trials: list[Trial]
    best: Trial | None
    closed: bool
    config: Config | None


def save(folder: Path, found: Found, costs: Costs, search: Mapping[str, Any], seconds: float) -> str:
    """Write ``tuned.yaml`` (if a setting is confirmed), ``table.md``, ``trials.json`` and ``frontier.svg``.

    Returns:
        the text to print.
    """
    summary = _summary(found, seconds)
    text = f"{summary}\n\n{_table(found, costs)}\n\n{LEGEND}\n"
    (folder / "tuned.yaml").unlink(missing_ok=True)  # of a search that ended otherwise
    if found.config is not None:
        tuned = folder / "tuned.yaml"
        comment = "".join(f"# {line}\n" for line in [f"lowprec fit --config {tuned}", *summary.splitlines()])
        whole_text(tuned, comment + yaml.safe_dump(found.config, sort_keys=False))
    whole_text(folder / "table.md", text)
    whole_text(folder / "trials.json", json.dumps(_as_json(found, costs, search), indent=1) + "\n")
    whole_text(folder / "frontier.svg", _plot(found))
    names = ["table.md", "trials.json", "frontier.svg", *(["tuned.yaml"] if found.config else [])]
    return f"{text}\nSaved to {folder}: {', '.join(names)}"


def _summary(found: Found, seconds: float) -> str:
    baseline = found.baseline
    float32 = baseline.confirmed(baseline.values(baseline.runs[1:]))
    lines = [
        f"{found.metric}: float32 {float32.baseline:.6g}, mean of {len(baseline.runs) - 1} seeds; twins that start one "
        f"last bit away differ by {float32.noise:.2g} per seed; allowed: {found.tolerance:.3g} worse",
        f"{len(found.trials)} settings tried with seed {baseline.runs[0].seed}, {seconds:.0f} s of training in all",
    ]
    for trial in found.trials:
        if trial.confirmed is False:
            why = _comparison(trial, baseline) or "a run diverged"
            lines.append(f"not confirmed: {written(trial.setting)} (worse by {why})")
    if found.best is None:
        return "\n".join([*lines, "No setting was confirmed: allow more, give wider rungs, or stay with float32."])
    return "\n".join(
        [
            *lines,
            f"Found: {written(found.best.setting)}, {100 * found.best.bits.cost:.1f} % of float32's bits",
            "No cheaper setting is open" if found.closed else "Cheaper settings are left untried: give more --runs",
            f"Confirmed with seeds {baseline.runs[1].seed} to {baseline.runs[-1].seed}: "
            f"worse than float32 by {_comparison(found.best, baseline)}; with seed {found.best.run.seed}, the "
            f"file's, {found.metric} is {found.best.run.value}",
        ]
    )


def _table(found: Found, costs: Costs) -> str:
    parts = costs.parts
    rows = [
        [
            "setting",
            *(["bits/param", "bytes/param"] if "parameters" in parts else []),
            *(["bits/activation"] if "activations" in parts else []),
            *(["wire bits"] if "wire" in parts else []),
            "cost", found.metric, "worse", "outcome", "confirmed",
        ]
    ]  # fmt: skip

    def figures(bits: Bits) -> list[str]:
        return [
            *([f"{bits.per_parameter:.2f}", f"{bits.bytes_per_parameter:.2f}"] if "parameters" in parts else []),
            *([f"{bits.per_activation:.2f}"] if "activations" in parts else []),
            *([f"{bits.wire:.0f}"] if "wire" in parts else []),
            f"{100 * bits.cost:.1f} %",
        ]

    best = set(frontier([trial.point for trial in found.trials]))
    order = sorted(range(len(found.trials)), key=lambda index: found.trials[index].point)
    rows.append(["float32", *figures(costs.of(None)), f"{found.baseline.runs[0].value:.6g}", "-", "-", "-"])
    for index in order:
        trial = found.trials[index]
        mark = " *" if index in best and trial.worse is not None else ""
        value = "-" if trial.run.value is None else f"{trial.run.value:.6g}"
        worse = "-" if trial.worse is None else f"{trial.worse:+.3g}"
        held = {None: "", True: "yes", False: "no"}[trial.confirmed]
        confirmed = ", ".join(filter(None, [held, _comparison(trial, found.baseline)])) or "-"
        rows.append([written(trial.setting) + mark, *figures(trial.bits), value, worse, outcome(trial), confirmed])
    return markdown_table(rows)


def outcome(trial: Trial) -> str:
    """How the run on the search's seed ended."""
    return _outcome(trial) + ("" if trial.run.stopped is None else f" after epoch {trial.run.stopped}")


def _outcome(trial: Trial) -> str:
    if trial.run.diverged is not None:
        return "diverged"
    return "stopped" if trial.run.stopped is not None else "passed" if trial.passed else "too much worse"


def _comparison(trial: Trial, baseline: Baseline) -> str:
    if trial.confirmation is None:
        return ""
    worse = trial.confirmation.worse(higher_is_better=baseline.higher_is_better)
    return f"{worse:+.3g} ± {trial.confirmation.standard_error:.2g}"


def _as_json(found: Found, costs: Costs, search: Mapping[str, Any]) -> dict[str, Any]:
    best = set(frontier([trial.point for trial in found.trials]))
    return {
        "search": dict(search),
        "tolerance": found.tolerance,
        "float32": {
            "bits": asdict(costs.of(None)),
            "runs": [asdict(run) for run in found.baseline.runs],
            "twins": [asdict(run) for run in found.baseline.twins],
        },
        "trials": [
            {
                **asdict(trial),
                "outcome": outcome(trial),
                "frontier": index in best and trial.worse is not None,
                "best": trial is found.best,
            }
            for index, trial in enumerate(found.trials)
        ],
    }


def _plot(found: Found) -> str:
    ended = [trial for trial in found.trials if trial.worse is not None]
    line = [ended[index].point for index in frontier([trial.point for trial in ended])]
    limit = max([2 * found.tolerance, *(abs(worse) for _, worse in line if worse < 10 * found.tolerance)])

    def of(*outcomes: str) -> list[tuple[float, float, float]]:
        chosen = [trial for trial in found.trials if _outcome(trial) in outcomes]
        return [(100 * trial.bits.cost, min(trial.point[1], 1.4 * limit), 0.0) for trial in chosen]

    def tried(held: bool) -> list[tuple[float, float, float]]:
        pairs = [(trial, trial.confirmation) for trial in found.trials if bool(trial.confirmed) is held]
        better = found.baseline.higher_is_better
        return [
            (100 * trial.bits.cost, each.worse(higher_is_better=better), 2 * each.standard_error)
            for trial, each in pairs
            if each is not None
        ]

    return scatter(
        "Cost and quality of every setting that was tried",
        "Bits as a share of float32's, and how much worse the metric is; bars are two standard errors.",
        [
            Marks("passed", "M-4,0 a4,4 0 1,0 8,0 a4,4 0 1,0 -8,0", "good", of("passed")),
            Marks("too much worse", "M-4,-4 L4,4 M-4,4 L4,-4", "bad", of("too much worse")),
            Marks("stopped or diverged", "M-5,-4 h10 l-5,8 z", "lost", of("stopped", "diverged")),
            Marks("confirmed", "M0,-8 L7,0 L0,8 L-7,0 Z", "good", tried(True)),
            Marks("not confirmed", "M-6,-6 h12 v12 h-12 Z", "bad", tried(False)),
        ],
        [(100 * cost, worse) for cost, worse in line],
        (-2 * limit, found.tolerance),
        (-limit, 1.5 * limit),
        ("bits, % of float32's", f"{found.metric}: worse than float32", "allowed", "frontier"),
    )
