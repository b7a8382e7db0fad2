"""Train the byte-level transformer of bytes_transformer.py with gradients in codes, and compare it with float32.

    python recipes/gradients_transformer.py --variant "gradients 8" --seed 0
    python recipes/gradients_transformer.py --all --seeds 4 --out docs/results/gradients.jsonl

Weights have 16 bits and state 8; variants say how many a gradient has, how it is rounded, and in how many micro-batches
a batch is added up, which float32 would not see. Runs that --out has are skipped; recipes/compare.py makes the table.
"""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import NamedTuple

import torch
from bytes_transformer import Transformer, batch_of, loss_of, schedule_of, text, validation_loss
from torch import nn

from lowprec_plugin import memory, optim
from lowprec_plugin.experiments.making import perturb_last_bit_


class Variant(NamedTuple):
    bits: int | None = None  # of a gradient
    micro_batches: int = 1
    rounding: str = "stochastic"  # of gradients; updates are rounded stochastically
    fixed: bool = True
    twin: bool = False


VARIANTS = {
    "float32": Variant(fixed=False),
    "float32 twin": Variant(fixed=False, twin=True),
    "16/8": Variant(),
    "16/8, gradients 16": Variant(16),
    "16/8, gradients 8": Variant(8),
    "16/8, gradients 16, 4 micro-batches": Variant(16, 4),
    "16/8, gradients 8, 4 micro-batches": Variant(8, 4),
    "16/8, gradients 8 nearest, 4 micro-batches": Variant(8, 4, "nearest"),
    "16/8, gradients 4": Variant(4),
    "16/8, gradients 4 nearest": Variant(4, 1, "nearest"),
}


def train(variant, seed, steps, lr, clip):
    torch.manual_seed(seed)
    model, how = Transformer(), VARIANTS[variant]
    if how.twin:  # every weight one last bit away
        perturb_last_bit_(model)
    options = {"lr": lr, "betas": (0.9, 0.95), "weight_decay": 0.1}
    if how.fixed:
        # The parameters' own rounding is that of gradients; an optimizer's is that of its updates.
        optim.quantize_(model, "fixed16", rounding=how.rounding, seed=seed, gradient_word_length=how.bits)
        optimizer = optim.AdamW(model.parameters(), **options, state_word_length=8)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), **options)
    schedule = schedule_of(optimizer, steps)
    training, validation = text()
    order, start, bites, held = torch.Generator().manual_seed(seed), time.perf_counter(), 0, None
    for step in range(steps):
        batch = batch_of(training, order)
        for part in zip(*(rows.chunk(how.micro_batches) for rows in batch), strict=True):
            (loss_of(model, part) / how.micro_batches).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
        bites += float(norm) > clip
        if step == 1:
            held = memory.report(model, optimizer)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    seconds = time.perf_counter() - start
    return {
        "variant": variant, "seed": seed, "steps": steps, "lr": lr, "clip": clip, "clipped": bites / steps,
        "val_loss": validation_loss(model, validation),
        "bytes_per_parameter": held.per_parameter + held.gradients / held.elements,
        "step_ms": 1e3 * seconds / steps, "parameters": held.elements,
        "python": platform.python_version(), "torch": torch.__version__,
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=VARIANTS, default="16/8, gradients 8")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--all", action="store_true", help="every variant, for seeds 0 .. --seeds - 1")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--clip", type=float, default=0.25, help="the norm of all gradients, which most steps exceed")
    parser.add_argument("--out", type=Path, default=Path("gradients.jsonl"))
    given = parser.parse_args()
    runs = [(v, s) for s in range(given.seeds) for v in VARIANTS] if given.all else [(given.variant, given.seed)]
    lines = given.out.read_text().splitlines() if given.out.exists() else []
    done = {(run["variant"], run["seed"], run["steps"], run["lr"], run["clip"]) for run in map(json.loads, lines)}
    for variant, seed in runs:
        if (variant, seed, given.steps, given.lr, given.clip) not in done:
            result = json.dumps(train(variant, seed, given.steps, given.lr, given.clip))
            print(result, flush=True)
            with given.out.open("a") as file:
                file.write(result + "\n")


if __name__ == "__main__":
    main()
