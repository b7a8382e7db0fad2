"""Does an average of weights in 16-bit codes go float32's way? A small network on digits, AdamW, a decay of 0.9999.

    python recipes/ema.py --out docs/results/ema.json

One training per seed, weights and state in 16 bits, and one sequence of weights for all averages: in float32, in codes
of 16 bits rounded stochastically and to nearest, and in bfloat16. All are computed in float32 and rounded once. Each is
compared with the average in float64: what share of its way it has gone, how far off it is, and the validation loss of
the network with it. Two minutes on one
core.
"""

import argparse
import json
import math
import statistics
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim.swa_utils import AveragedModel

from lowprec_plugin import optim
from lowprec_plugin.tasks import DigitsDataModule

KINDS = ("float32", "16 bits, stochastic", "16 bits, nearest", "bfloat16")


def perceptron():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))


def average_of(network, kind, decay):
    average = AveragedModel(network, avg_fn=lambda kept, weight, _: kept.float().lerp(weight, 1 - decay))
    if kind.startswith("16 bits, "):
        optim.quantize_(average.module, "fixed16", rounding=kind.removeprefix("16 bits, "), seed=1)
    else:
        optim.to_float_(average.module, dtype=getattr(torch, kind))
    average.update_parameters(network)  # the first is a copy
    return average


def numbers(network):
    return parameters_to_vector(optim.float_state_dict(network).values()).double()


@torch.no_grad()
def loss_with(weights, data):
    """Of the validation images, in float64."""
    images, labels = data.test.tensors
    network = perceptron().double()
    vector_to_parameters(weights, network.parameters())
    return F.cross_entropy(network(images.double()), labels).item()


def run(seed, steps, decay):
    """What each kind of average comes to in one training."""
    torch.manual_seed(seed)
    data = DigitsDataModule()
    data.setup("fit")
    network = perceptron()
    optim.quantize_(network, "fixed16", seed=seed)
    optimizer = optim.AdamW(network.parameters(), lr=1e-3)
    averages = {kind: average_of(network, kind, decay) for kind in KINDS}
    starts = {kind: numbers(average.module) for kind, average in averages.items()}
    start = numbers(network)
    exact = start.clone()
    done = 0
    while done < steps:
        for images, labels in data.train_dataloader():
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            optimizer.step()
            exact.lerp_(numbers(network), 1 - decay)
            for average in averages.values():
                average.update_parameters(network)
            done += 1
            if done == steps:
                break
    way = exact - start
    found = {"seed": seed, "loss": {"float64": loss_with(exact, data)}, "share": {}, "off": {}, "unmoved": {}}
    for kind, average in averages.items():
        end = numbers(average.module)
        found["share"][kind] = ((end - start) @ way / (way @ way)).item()
        found["off"][kind] = ((end - exact).norm() / way.norm()).item()
        found["unmoved"][kind] = (end == starts[kind]).double().mean().item()
        found["loss"][kind] = loss_with(end, data)
    return found


def line(kind, runs):
    """A row of the table: means over seeds, and whether what float32 differs by is within two standard errors."""
    record = {"kind": kind}
    for what in ("share", "loss"):
        above = [each[what][kind] - each[what]["float32"] for each in runs]
        mean, error = statistics.fmean(above), statistics.stdev(above) / math.sqrt(len(above))
        record[f"{what}, above float32"] = {"mean": mean, "standard error": error, "within two": abs(mean) <= 2 * error}
    for what in ("share", "off", "unmoved"):
        record[what] = statistics.fmean(each[what][kind] for each in runs)
    return record


def as_row(record):
    cells = [record["kind"], f"{record['share']:.5f}", f"{record['off']:.4f}", f"{100 * record['unmoved']:.1f} %"]
    for what in ("share", "loss"):
        above = record[f"{what}, above float32"]
        verdict = "yes" if above["within two"] else "no"
        cells += [f"{above['mean']:+.6f} ± {above['standard error']:.6f}", verdict]
    return f"| {' | '.join(cells)} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--decay", type=float, default=0.9999)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("ema.json"))
    given = parser.parse_args()
    runs = [run(seed, given.steps, given.decay) for seed in range(given.seeds)]
    lines = [line(kind, runs) for kind in KINDS]
    print("| average | share of the way | off | never moved | share, above float32 | equal? | loss, above | equal? |")
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(map(as_row, lines)))
    options = {"steps": given.steps, "decay": given.decay, "torch": torch.__version__}
    given.out.write_text(json.dumps({**options, "averages": lines, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
