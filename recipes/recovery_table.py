"""The table and the plot of recipes/recovery.py's runs.

    python recipes/recovery_table.py docs/results/recovery.jsonl

Prints Markdown and writes a .png next to the runs. Needs matplotlib. "Of the gap left" is how much of the distance from
float32 to 12 bits a variant keeps, each under its own schedule of the learning rate: 0 % is float32, 100 % is 12 bits.
"""

import argparse
import json
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from lowprec_plugin.quality import compare

HEAD = [
    "variant", "seeds", "validation loss", "difference", "standard error", "of the gap left", "its error", "equal?",
    "bits x steps", "widened at steps",
]  # fmt: skip


def table(runs):
    loss = {(run["variant"], run["seed"]): run["val_loss"] for run in runs}
    yield "| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD)
    for variant in dict.fromkeys(run["variant"] for run in runs):
        end = ", no drops" if variant.endswith(", no drops") else ""
        base, twin, stalled = "float32" + end, "float32 twin", "12" + end
        seeds = [s for v, s in loss if v == variant and all((side, s) in loss for side in (base, twin, stalled))]
        if not seeds:
            continue
        values, bases = [loss[variant, s] for s in seeds], [loss[base, s] for s in seeds]
        # Twins come from the schedule with drops: chance is of the same size without them.
        twins = [b + loss[twin, s] - loss["float32", s] for b, s in zip(bases, seeds, strict=True)]
        result = compare(bases, twins, values)
        gaps = [loss[stalled, s] - b for b, s in zip(bases, seeds, strict=True)]
        left = [(v - b) / statistics.mean(gaps) for v, b in zip(values, bases, strict=True)]
        error = statistics.stdev(left) / len(left) ** 0.5 if len(left) > 1 else float("nan")
        mine = [run for run in runs if run["variant"] == variant and run["seed"] in seeds]
        steps = [[w["step"] for w in run["widened"]] for run in mine]
        at = "; ".join(" and ".join(f"{each}" for each in widened) for widened in steps if widened)
        bits = statistics.mean(run["mean_bits"] for run in mine)
        verdict = {None: "too few seeds", True: "yes", False: "no"}[result.equal]
        yield (
            f"| {variant} | {len(seeds)} | {result.setting:.4f} | {100 * result.difference / result.baseline:+.2f} % | "
            f"{100 * result.standard_error / result.baseline:.2f} % | {100 * statistics.mean(left):.0f} % | "
            f"{100 * error:.0f} % | {'-' if variant.startswith('float32') else verdict} | "
            f"{bits:.1f} x {50 * len(mine[0]['train_loss'])} | {at or '-'} |"
        )


def plot(runs, path):
    """Validation loss over steps: the mean over the seeds, and a mark where the words of each were widened."""
    figure, panels = pyplot.subplots(1, 2, figsize=(12, 4.8), sharey=True)
    for panel, end in zip(panels, ("", ", no drops"), strict=True):
        for name in ("float32", "12", "12, ramp", "12, schedule", "16"):
            mine = [run for run in runs if run["variant"] == name + end]
            if not mine:
                continue
            steps = [step for step, _ in mine[0]["curve"]]
            mean = [statistics.mean(each) for each in zip(*([v for _, v in run["curve"]] for run in mine), strict=True)]
            (line,) = panel.plot(steps, mean, label=name, color="black" if name == "float32" else None)
            for widened in (each for run in mine for each in run["widened"]):
                panel.axvline(widened["step"], color=line.get_color(), linewidth=0.8, linestyle=":")
        panel.set(
            title="learning rate " + ("constant" if end else "drops at 3/4 and 7/8"), xlabel="step", ylim=(1.65, 2.1)
        )
        panel.set_ylabel("validation loss, nats per byte")
        panel.grid(alpha=0.3)
        panel.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    path = parser.parse_args().runs
    runs = [json.loads(line) for line in path.read_text().splitlines()]
    print("\n".join(table(runs)))
    plot(runs, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
