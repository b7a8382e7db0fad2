"""Turn the runs of bytes_transformer.py into a table, by the package's rule for equal quality.

    python recipes/compare.py docs/results/bytes.jsonl

Only seeds that have a float32 run, its twin and the variant's run count.
"""

import json
import sys
from pathlib import Path

from lowprec_plugin.quality import compare


def main():
    runs = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    loss = {(run["variant"], run["seed"]): run["val_loss"] for run in runs}
    variants = list(dict.fromkeys(run["variant"] for run in runs))
    print("| variant | bytes/param | seeds | val loss | difference | standard error, twins' | its own | equal? |")
    print("|---|---|---|---|---|---|---|---|")
    for variant in variants:
        sides = ("float32", "float32 twin", variant)
        seeds = [seed for name, seed in loss if name == variant and all((side, seed) in loss for side in sides)]
        if not seeds:
            continue
        result = compare(*([loss[side, seed] for seed in seeds] for side in sides))
        held = next(run["bytes_per_parameter"] for run in runs if run["variant"] == variant)
        verdict = {None: "too few seeds", True: "yes", False: "no"}[result.equal]
        if variant in ("float32", "float32 twin"):
            verdict = "-"
        print(
            f"| {variant} | {held:.2f} | {len(seeds)} | {result.setting:.4f} | "
            f"{100 * result.difference / result.baseline:+.2f} % | "
            f"{100 * result.standard_error / result.baseline:.4f} % | "
            f"{100 * result.own_error / result.baseline:.2f} % | {verdict} |"
        )


if __name__ == "__main__":
    main()
