"""Is ZeRO in fixed-point as good as in float32? Handwritten digits, DeepSpeed's engine, two processes on one machine.

    DS_ACCELERATOR=cpu python recipes/zero_quality.py docs/results/zero.jsonl
    DS_ACCELERATOR=cpu python recipes/zero_quality.py docs/results/zero_lr.jsonl 0.01 float32 "float32 twin" 16

Needs deepspeed and scikit-learn. Trains stages 1, 2 and 3, with four seeds each: in float32, as its twin whose weights
start one last bit away, adopted in 16 bits, and a control. After the file: the learning rate and the variants. Prints
the verdict of the package's rule for equal quality.
"""

import argparse
import json
import os
from pathlib import Path

import torch
import torch.multiprocessing
from sklearn.datasets import load_digits
from torch import nn

from lowprec_plugin.experiments.making import perturb_last_bit_
from lowprec_plugin.quality import compare

STAGES, SEEDS, STEPS, RANKS, BATCH = (1, 2, 3), 4, 420, 2, 32
VARIANTS = ("float32", "float32 twin", "16", "4 nearest")


def digits():
    """Training and test images and labels, split once and for all."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    x = (torch.tensor(data.data, dtype=torch.float32) / 8 - 1)[order]
    y = torch.tensor(data.target)[order]
    return x[:1297], y[:1297], x[1297:], y[1297:]


def run(rank, stage, variant, seed, lr):
    """Accuracy and loss on the test images."""
    import deepspeed

    from lowprec_plugin.deepspeed import adopt_engine

    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    if variant == "float32 twin":
        perturb_last_bit_(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    config = {"train_micro_batch_size_per_gpu": BATCH, "zero_optimization": {"stage": stage}}
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, lr_scheduler=scheduler, config=config)
    if variant == "16":
        adopt_engine(engine, "fixed16", seed=seed)
    if variant == "4 nearest":  # the control, which must not be equal
        adopt_engine(engine, "fixed4", state_word_length=16, rounding="nearest", seed=seed)
    x, y, test_x, test_y = digits()
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        picked = torch.randint(len(x), (RANKS, BATCH), generator=generator)[rank]
        engine.backward(nn.functional.cross_entropy(engine(x[picked]), y[picked]))
        engine.step()
    with torch.no_grad():
        out = engine(test_x)
    right = (out.argmax(1) == test_y).double().mean().item()
    return {"accuracy": right, "loss": nn.functional.cross_entropy(out, test_y).item()}


def work(rank, path, store, lr, variants):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS), "DS_ACCELERATOR": "cpu"}
    os.environ |= {"DEEPSPEED_LOG_LEVEL": "error"}
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    for stage in STAGES:
        for seed in range(SEEDS):
            for variant in variants:
                found = {"stage": stage, "variant": variant, "seed": seed} | run(rank, stage, variant, seed, lr)
                if rank == 0:
                    with open(path, "a") as file:
                        file.write(json.dumps(found) + "\n")


def table(path):
    runs = [json.loads(line) for line in path.read_text().splitlines()]
    print(
        "| ZeRO | variant | metric | float32 | variant's | difference | twins' error | its own | equal? "
        "| by the twins alone? |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for stage in STAGES:
        for variant in [name for name in VARIANTS[2:] if any(each["variant"] == name for each in runs)]:
            for metric in ("accuracy", "loss"):
                per_variant = [
                    [each[metric] for each in runs if each["stage"] == stage and each["variant"] == name]
                    for name in ("float32", "float32 twin", variant)
                ]
                result = compare(*per_variant)
                print(
                    f"| {stage} | {variant} | {metric} | {result.baseline:.5f} | {result.setting:.5f} "
                    f"| {result.difference:+.5f} | {result.twins_error:.5f} | {result.own_error:.5f} "
                    f"| {'yes' if result.equal else 'no'} | {'yes' if result.equal_by_twins else 'no'} |"
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="runs that are there are not made again")
    parser.add_argument("lr", type=float, nargs="?", default=1e-3)
    parser.add_argument("variants", nargs="*", default=VARIANTS)
    given = parser.parse_args()
    if not given.out.exists():
        store = Path(f"{given.out.absolute()}.store")
        store.unlink(missing_ok=True)
        torch.multiprocessing.spawn(work, (given.out, store, given.lr, given.variants), RANKS)
        store.unlink(missing_ok=True)
    table(given.out)
