"""How often do sums in float32 and exact sums round to different numbers? Needs MNIST's four files in --root.

    python recipes/exact_sums.py --root data/mnist --out docs/results/exact_sums.json

Both kinds of emulation are given the same operands, and for stochastic rounding the same random bits. First dot
products of noise, by formats and lengths; then the four layers of the paper's CNN for MNIST at work: their outputs, and
the errors at their inputs, each from the same inputs. A few minutes on one core.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from lowprec_plugin import Emulation, FixedPointFormat, emulate, optim
from lowprec_plugin.tasks import CNN, MNISTDataModule

ROUNDINGS = ("nearest", "stochastic")
#: Of weights and activations.
FORMATS = [("<2,6>", "<4,4>"), ("<2,10>", "<6,6>"), ("<2,14>", "<6,10>"), ("<2,14>", "<4,12>"), ("<2,18>", "<6,14>")]
LENGTHS = (64, 1024, 16384)


def differing(a, b, format):
    """The share of numbers that differ, and the largest difference in codes."""
    codes = (a - b).abs() / 2.0 ** -FixedPointFormat.parse(format).fraction_length
    return {"share": (codes > 0).double().mean().item(), "most_codes": codes.max().item()}


def dot_products(weights, activations, length, rounding):
    """Of 256 x 256 dot products of noise: weights of a usual size for their number, inputs of about one."""
    generator = torch.Generator().manual_seed(length)
    layer = nn.Linear(length, 256, bias=False)
    with torch.no_grad():
        layer.weight.normal_(0, 1 / math.sqrt(length), generator=generator)
    optim.quantize_(layer, FixedPointFormat.parse(weights))
    x = torch.randn(256, length, generator=generator)
    out = []
    for accumulate in ("float32", "exact"):
        with torch.no_grad(), emulate(layer, Emulation(activations, None, rounding=rounding, accumulate=accumulate)):
            out.append(layer(x))
    return differing(*out, activations)


def layer_of(network, layer, x, error, step, **emulation):
    """The outputs of one layer, and the errors at its input."""
    x = x.clone().requires_grad_()
    with emulate(network, Emulation("<6,10>", "<2,14>", **emulation), step=step):
        out = layer(x)
    return out.detach(), *torch.autograd.grad(out, x, error)


def mnist(root, steps, every):
    """Train the network with exact sums; now and then compare its layers' sums. Shares over all that was compared."""
    data = MNISTDataModule(root)
    data.prepare_data()
    data.setup("fit")
    torch.manual_seed(0)
    network = CNN()
    layers = {"conv1": network[0], "conv2": network[3], "dense1": network[7], "dense2": network[9]}
    optim.quantize_(network, FixedPointFormat(16, 14))
    optimizer = optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    seen, found = {}, {}
    for name, layer in layers.items():
        layer.register_forward_hook(lambda module, args, out, name=name: seen.update({name: (args[0], out)}))
    for step, (images, labels) in zip(range(steps), data.train_dataloader(), strict=False):
        optimizer.zero_grad()
        with emulate(network, Emulation("<6,10>", "<2,14>", accumulate="exact"), step=step):
            out = network(images)
        for _, output in seen.values():
            output.retain_grad()
        F.cross_entropy(out, labels).backward()
        optimizer.step()
        if step % every:
            continue
        for name, (x, output) in dict(seen).items():
            given = network, layers[name], x.detach(), output.grad, step
            for rounding in ROUNDINGS:
                runs = [layer_of(*given, rounding=rounding, accumulate=each) for each in ("float32", "exact")]
                pairs = {f"{name}, outputs, {rounding}": (*(run[0] for run in runs), "<6,10>")}
                if rounding == "nearest":  # the random bits of errors are others where sums are exact
                    pairs[f"{name}, errors, {rounding}"] = (*(run[1] for run in runs), "<2,14>")
                for kind, pair in pairs.items():
                    found.setdefault(kind, []).append(differing(*pair))
    return {
        kind: {
            "share": sum(each["share"] for each in all_found) / len(all_found),
            "most_codes": max(each["most_codes"] for each in all_found),
        }
        for kind, all_found in found.items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data/mnist")
    parser.add_argument("--steps", type=int, default=300, help="of training the CNN")
    parser.add_argument("--every", type=int, default=20, help="steps between two comparisons")
    parser.add_argument("--out", type=Path, default=Path("exact_sums.json"))
    given = parser.parse_args()
    record = {"torch": torch.__version__, "dot products": []}
    print("| weights | activations | length | nearest | stochastic | most codes |\n|---|---|---|---|---|---|")
    for weights, activations in FORMATS:
        for length in LENGTHS:
            both = {rounding: dot_products(weights, activations, length, rounding) for rounding in ROUNDINGS}
            record["dot products"].append({"weights": weights, "activations": activations, "length": length, **both})
            shares = " | ".join(f"{100 * each['share']:.3f} %" for each in both.values())
            most = max(each["most_codes"] for each in both.values())
            print(f"| {weights} | {activations} | {length} | {shares} | {most:g} |", flush=True)
    record["MNIST CNN"] = mnist(given.root, given.steps, given.every)
    print("\n| MNIST CNN | differ | most codes |\n|---|---|---|")
    for kind, each in record["MNIST CNN"].items():
        print(f"| {kind} | {100 * each['share']:.4f} % | {each['most_codes']:g} |")
    given.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
