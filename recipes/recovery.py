"""Twelve bits stall, and widening recovers: a byte-level transformer under Lightning, with the controls beside it.

    python recipes/recovery.py --seeds 4 --out docs/results/recovery.jsonl
    python recipes/recovery_table.py docs/results/recovery.jsonl

Weights are in the static <6,6> of 12 bits with stochastic rounding: six bits before the point, as hardware wants them
that keeps weights and layer outputs in one format (Gupta et al. 2015 keep MNIST's outputs in <6,10>). The learning rate
drops to a fifth at 3/4 and at 7/8 of the run, or never; the ramp knows nothing of that. Runs that the file has are not
repeated. A run of 6,000 steps takes about two minutes on one core; expect a line for each.
"""

import argparse
import json
import logging
import sysconfig
import time
import warnings
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lowprec_plugin import FixedPointPrecision, WordLengthRamp
from lowprec_plugin.experiments.making import perturb_last_bit_

CONTEXT, BATCH, WIDTH, LR, STEPS = 64, 16, 32, 8e-3, 6000
RAMP = {"ladder": (12, 16, 20), "patience": 20, "cooldown": 20, "min_delta": 0.002}
# Bits of a weight in the beginning, the ramp, and whether the learning rate drops.
VARIANTS = {
    "float32": (None, None, True),
    "float32 twin": (None, None, True),
    "12": (12, None, True),
    "12, ramp": (12, RAMP, True),
    "12, schedule": (12, {"at": {2400: 16}, "unit": "step"}, True),
    "16": (16, None, True),
    "float32, no drops": (None, None, False),
    "12, no drops": (12, None, False),
    "12, ramp, no drops": (12, RAMP, False),
}


class Windows(Dataset):
    """Windows of the standard library's source; which ones depends on the seed alone."""

    def __init__(self, part, count, seed):
        files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
        data = torch.frombuffer(bytearray(b"".join(path.read_bytes() for path in files)), dtype=torch.uint8)
        cut = len(data) * 9 // 10
        self.data = data[:cut] if part == "train" else data[cut:]
        self.starts = torch.randint(len(self.data) - CONTEXT, (count,), generator=torch.Generator().manual_seed(seed))

    def __len__(self):
        return len(self.starts)

    def __getitem__(self, index):
        return self.data[self.starts[index] : self.starts[index] + CONTEXT + 1].long()


class Bytes(LightningModule):
    def __init__(self, drops):
        super().__init__()
        self.drops = drops
        self.bytes, self.places = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.block = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT), persistent=False)
        for table in (self.bytes, self.places):
            nn.init.normal_(table.weight, std=0.5)

    def forward(self, rows):
        x = self.bytes(rows[:, :-1]) + self.places.weight
        logits = self.head(self.norm(self.block(x, src_mask=self.mask, is_causal=True)))
        return nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())

    def training_step(self, rows, _):
        return self(rows)

    def validation_step(self, rows, _):
        self.log("val_loss", self(rows))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), LR, betas=(0.9, 0.95), weight_decay=0.1)
        drops = [STEPS * 3 // 4, STEPS * 7 // 8] if self.drops else []
        warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=100)
        steps = torch.optim.lr_scheduler.MultiStepLR(optimizer, drops, 0.2)
        schedule = torch.optim.lr_scheduler.ChainedScheduler([warmup, steps])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Curve(Callback):
    def __init__(self):
        self.train_loss, self.val_loss, self.bits = [], [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, *_):
        self.train_loss.append(outputs["loss"].item())
        self.bits.append(getattr(getattr(trainer.precision_plugin, "format", None), "word_length", 32))

    def on_validation_epoch_end(self, trainer, pl_module):
        self.val_loss.append((trainer.global_step, round(trainer.callback_metrics["val_loss"].item(), 5)))


def train(variant, seed):
    word_length, ramp, drops = VARIANTS[variant]
    seed_everything(seed, verbose=False)
    module, curve, plugin = Bytes(drops), Curve(), None
    if variant == "float32 twin":  # every weight one last bit away
        perturb_last_bit_(module)
    if word_length is not None:
        ramp = ramp and WordLengthRamp(**ramp)
        plugin = FixedPointPrecision(word_length, word_length - 6, state_word_length=16, ramp=ramp, seed=seed)
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, val_check_interval=STEPS // 20, plugins=plugin, callbacks=curve,
        gradient_clip_val=1.0, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    start = time.time()
    training, validation = Windows("train", BATCH * STEPS, seed), Windows("val", 2048, 0)
    trainer.fit(module, DataLoader(training, BATCH), DataLoader(validation, 256))
    train_loss = torch.tensor(curve.train_loss).view(-1, 50).mean(1)
    return {
        "variant": variant, "seed": seed, "val_loss": curve.val_loss[-1][1], "curve": curve.val_loss,
        "train_loss": [round(loss, 4) for loss in train_loss.tolist()], "mean_bits": sum(curve.bits) / STEPS,
        "widened": plugin.ramping.history if ramp else [], "seconds": round(time.time() - start),
        "torch": torch.__version__,
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    done = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    known = {(run["variant"], run["seed"]) for run in done}
    runs = [(variant, seed) for seed in range(options.seeds) for variant in options.variants]
    for variant, seed in [run for run in runs if run not in known]:
        result = train(variant, seed)
        with options.out.open("a") as out:
            out.write(json.dumps(result) + "\n")
        print(f"{variant}, seed {seed}: {result['val_loss']:.4f}, {result['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
