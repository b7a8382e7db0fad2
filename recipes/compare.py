"""Turn the runs of bytes_transformer.py or wire_quality.py into a table, by the package's rule for equal quality.

    python recipes/compare.py docs/results/bytes.jsonl
    python recipes/compare.py docs/results/mnist_wire.jsonl accuracy
    python recipes/compare.py docs/results/zero_transformer.jsonl val_loss stage=2

Runs that do not match what follows the metric are left out. Only seeds that have a float32 run, its twin and the
variant's run count.
"""

import argparse
import json
from pathlib import Path

from lowprec_plugin.quality import compare


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("metric", nargs="?", default="val_loss")
    parser.add_argument("which", nargs="*", metavar="KEY=VALUE")
    given = parser.parse_args()
    runs, metric = [json.loads(line) for line in given.runs.read_text().splitlines()], given.metric
    for key, value in (each.split("=") for each in given.which):
        runs = [run for run in runs if str(run[key]) == value]
    loss = {(run["variant"], run["seed"]): run[metric] for run in runs}
    variants = list(dict.fromkeys(run["variant"] for run in runs))
    print("| variant | seeds | metric | difference | standard error, twins' | its own | equal? | by the twins alone? |")
    print("|---|---|---|---|---|---|---|---|")
    for variant in variants:
        sides = ("float32", "float32 twin", variant)
        seeds = [seed for name, seed in loss if name == variant and all((side, seed) in loss for side in sides)]
        if not seeds:
            continue
        result = compare(*([loss[side, seed] for seed in seeds] for side in sides))
        words = {None: "too few seeds", True: "yes", False: "no"}
        verdicts = [words[result.equal], words[result.equal_by_twins]]
        if variant in ("float32", "float32 twin"):
            verdicts = ["-", "-"]
        print(
            f"| {variant} | {len(seeds)} | {result.setting:.4f} | "
            f"{100 * result.difference / result.baseline:+.2f} % | "
            f"{100 * result.twins_error / result.baseline:.4f} % | "
            f"{100 * result.own_error / result.baseline:.2f} % | {verdicts[0]} | {verdicts[1]} |"
        )


if __name__ == "__main__":
    main()
