"""Train a byte-level transformer on Python's own standard library, in float32 or fixed-point, without Lightning.

    python recipes/bytes_transformer.py --variant 16/8 --seed 0
    python recipes/bytes_transformer.py --all --seeds 4 --out docs/results/bytes.jsonl

Runs that --out has are skipped; recipes/compare.py makes the table. A run of 1,500 steps takes three minutes on a core.
"""

import argparse
import json
import platform
import sysconfig
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from lowprec_plugin import keep_activations, memory, optim
from lowprec_plugin.experiments.making import perturb_last_bit_

# word length of weights and state, and rounding; None: float32. bf16: weights and state are bfloat16 tensors.
VARIANTS = {
    "float32": None,
    "float32 twin": None,
    "16": (16, 16, "stochastic"),
    "16/8": (16, 8, "stochastic"),
    "8/8": (8, 8, "stochastic"),
    "bf16 nearest": "bf16",
    "12 nearest": (12, 12, "nearest"),
    "8 nearest": (8, 8, "nearest"),
}
KEPT = {"float32, kept 8": 8, "float32, kept 16": 16, "16/8, kept 8": 8}  # bits of activations kept for backward
VARIANTS |= {name: VARIANTS[name.split(",")[0]] for name in KEPT}
CONTEXT, BATCH, WIDTH, LAYERS, HEADS = 128, 8, 128, 3, 4


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        batch, length, width = x.shape
        heads = self.qkv(self.norm1(x)).view(batch, length, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256)
        for table in (self.bytes, self.places):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, ids):
        return self.head(self.norm(self.blocks(self.bytes(ids) + self.places.weight)))


def text():
    """Eight million bytes of the standard library's modules, the last tenth for validation."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = [*sorted(folder.glob("*.py")), *sorted(folder.glob("[a-r]*/*.py"))]
    data = b"".join(path.read_bytes() for path in files)[:8_000_000]
    data = torch.frombuffer(bytearray(data), dtype=torch.uint8).long()
    return data[: len(data) * 9 // 10], data[len(data) * 9 // 10 :]


def batch_of(data, generator, processes=1):
    count = processes * -(-BATCH // processes)  # a few more where processes would not share them evenly
    starts = torch.randint(len(data) - CONTEXT - 1, (count,), generator=generator)
    rows = torch.stack([data[start : start + CONTEXT + 1] for start in starts.tolist()])
    return rows[:, :-1], rows[:, 1:]


def loss_of(model, batch):
    return F.cross_entropy(model(batch[0]).float().flatten(0, 1), batch[1].flatten())


def schedule_of(optimizer, steps):
    """100 steps of warm-up, then a cosine to zero."""
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=100)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - 100)
    return torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], [100])


def validation_loss(model, data):
    """The mean of 100 batches, the same for every model."""
    with torch.no_grad():
        fixed = torch.Generator().manual_seed(1)
        return sum(loss_of(model, batch_of(data, fixed)).item() for _ in range(100)) / 100


def train(variant, seed, steps, lr):
    torch.manual_seed(seed)
    model = Transformer()
    if variant == "float32 twin":  # every weight one last bit away
        perturb_last_bit_(model)
    options, how = {"lr": lr, "betas": (0.9, 0.95), "weight_decay": 0.1}, VARIANTS[variant]
    if how is None:
        optimizer = torch.optim.AdamW(model.parameters(), **options)
    elif how == "bf16":
        optimizer = torch.optim.AdamW(model.to(torch.bfloat16).parameters(), **options)
    else:
        weights, state, rounding = how
        optim.quantize_(model, f"fixed{weights}", rounding=rounding, seed=seed)
        optimizer = optim.AdamW(model.parameters(), **options, state_word_length=state, rounding=rounding)
    schedule = schedule_of(optimizer, steps)
    training, validation = text()
    order, start = torch.Generator().manual_seed(seed), time.perf_counter()
    for step in range(steps):
        optimizer.zero_grad()
        with keep_activations(model, KEPT[variant], step=step, seed=seed) if variant in KEPT else nullcontext():
            loss = loss_of(model, batch_of(training, order))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    seconds = time.perf_counter() - start
    held = memory.report(model, optimizer)
    return {
        "variant": variant, "seed": seed, "steps": steps, "lr": lr, "val_loss": validation_loss(model, validation),
        "bytes_per_parameter": held.per_parameter, "step_ms": 1e3 * seconds / steps, "parameters": held.elements,
        "python": platform.python_version(), "torch": torch.__version__,
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=VARIANTS, default="16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--all", action="store_true", help="every variant, for seeds 0 .. --seeds - 1")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate; 1e-3 and 4e-3 end worse in float32")
    parser.add_argument("--out", type=Path, default=Path("bytes.jsonl"))
    given = parser.parse_args()
    runs = [(v, s) for s in range(given.seeds) for v in VARIANTS] if given.all else [(given.variant, given.seed)]
    lines = given.out.read_text().splitlines() if given.out.exists() else []
    done = {(run["variant"], run["seed"], run["steps"], run["lr"]) for run in map(json.loads, lines)}
    for variant, seed in runs:
        if (variant, seed, given.steps, given.lr) not in done:
            result = json.dumps(train(variant, seed, given.steps, given.lr))
            print(result, flush=True)
            with given.out.open("a") as file:
                file.write(result + "\n")


if __name__ == "__main__":
    main()
