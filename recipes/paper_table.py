"""Tables and curves of Gupta et al. 2015 from the runs of recipes/paper.py, the paper's own figures beside them.

    python recipes/paper_table.py docs/results/paper_mnist_fc.jsonl

Prints Markdown, and writes a .csv of the table and a .png of the curves (test error over epochs, as the paper's figures
1 to 3) next to the runs. Needs matplotlib. Only seeds that have a float32 run, its twin and the row's run count.
"""

import csv
import json
import statistics
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from lowprec_plugin.quality import compare

# Test errors in percent; those with ~ were read off a plot.
PAPER = {
    "mnist_fc": {
        "float32": "1.4", "stochastic_14": "~1.43", "stochastic_10": "~1.43", "stochastic_8": "~1.50",
        "nearest_14": "no loss", "nearest_10": "~1.75", "nearest_8": "~3.0",
    },
    "mnist_cnn": {
        "float32": "0.77", "stochastic_14": "0.83", "stochastic_12": "0.90",
        "nearest_14": "fails to converge", "nearest_12": "diverges",
    },
    "cifar_cnn": {
        "float32": "24.6", "stochastic_14": "25.4", "stochastic_12": "28.8",
        "nearest_14": "collapses", "nearest_12": "collapses",
    },
}  # fmt: skip
HEAD = [
    "row", "seeds", "test error, %", "standard error", "difference, points", "twins' error", "its own", "equal?",
    "by the twins alone?", "paper, %",
]  # fmt: skip


def table(runs, name):
    error = {(run["row"], run["seed"]): run["test_error"] for run in runs}
    for row in dict.fromkeys(run["row"] for run in runs):
        sides = ("float32", "float32 twin", row)
        seeds = [seed for r, seed in error if r == row and all((side, seed) in error for side in sides)]
        if not seeds:
            continue
        # The rule's limit of 0.3 % is one of the accuracy: of an error of 1 % it would be a third of one image.
        result = compare(*([100 - error[side, seed] for seed in seeds] for side in sides))
        errors = [error[row, seed] for seed in seeds]
        spread = statistics.stdev(errors) / len(errors) ** 0.5 if len(errors) > 1 else float("nan")
        words = {None: "too few seeds", True: "yes", False: "no"}
        verdicts = ["-", "-"] if row.startswith("float32") else [words[result.equal], words[result.equal_by_twins]]
        yield [
            row.replace("_", ", FL "), len(seeds), f"{statistics.mean(errors):.2f}", f"{spread:.3f}",
            f"{0.0 - result.difference:+.3f}", f"{result.twins_error:.3f}", f"{result.own_error:.3f}", *verdicts,
            PAPER[name].get(row, "-"),
        ]  # fmt: skip


def plot(runs, path):
    """Test error over epochs: the mean over the seeds as a line, their range as a band."""
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    for panel, how in zip(panels, ("nearest", "stochastic"), strict=True):
        for row in ("float32", *(f"{how}_{fl}" for fl in (14, 12, 10, 8))):
            curves = [run["errors"] for run in runs if run["row"] == row]
            if curves:
                epochs = range(1, len(curves[0]) + 1)
                mean = [statistics.mean(each) for each in zip(*curves, strict=True)]
                color = "black" if row == "float32" else None
                (line,) = panel.plot(epochs, mean, label=row.replace("_", ", FL "), color=color)
                low, high = ([f(each) for each in zip(*curves, strict=True)] for f in (min, max))
                panel.fill_between(epochs, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        panel.set(title=f"{how} rounding, 16 bits", xlabel="epoch", ylabel="test error, %", yscale="log")
        panel.grid(alpha=0.3, which="both")
        panel.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main():
    path = Path(sys.argv[1])
    runs = [json.loads(line) for line in path.read_text().splitlines()]
    rows = list(table(runs, runs[0]["table"]))
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD))
    for row in rows:
        print("| " + " | ".join(str(each) for each in row) + " |")
    with path.with_suffix(".csv").open("w", newline="") as out:
        csv.writer(out).writerows([HEAD, *rows])
    plot(runs, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
