"""Train on two processes under Lightning's DDP, with gradients in 32, 16, 8 and 4 bits, and compare the quality.

    torchrun --nproc-per-node 2 recipes/wire_quality.py --task mnist --root FOLDER --out mnist_wire.jsonl
    torchrun --nproc-per-node 2 recipes/wire_quality.py --task bytes --out bytes_wire.jsonl
    python recipes/compare.py bytes_wire.jsonl

Variants but float32's and bf16_compress_hook store weights and optimizer state in 16 bits, the default. Each run adds
a line to --out; runs in it are skipped. Expect a minute per run of MNIST, three of the transformer, on two cores.
"""

import argparse
import json
import logging
import os
import time
import warnings
from pathlib import Path

import bytes_transformer
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.utils.data import DataLoader, IterableDataset

from lowprec_plugin import FixedPointPrecision
from lowprec_plugin.experiments.making import perturb_last_bit_
from lowprec_plugin.tasks import MLP, Classifier, MNISTDataModule

RANKS, RANK = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
# The plugin's options; None: float32.
VARIANTS = {
    "float32": None,
    "float32 twin": None,
    "16": {"comm_word_length": 16},
    "8, feedback": {"comm_word_length": 8, "comm_error_feedback": True},
    "8": {"comm_word_length": 8},
    "4, feedback": {"comm_word_length": 4, "comm_error_feedback": True},
    "bf16_compress_hook": None,
}


def halve(state, bucket):
    """torch's own hook, under a name that DistributedDataParallel does not know to refuse on a CPU."""
    return bf16_compress_hook(state, bucket)


class Watch(Callback):
    """Registers torch's own hook where asked (Lightning does it on GPUs alone), and reads what the plugin sent."""

    def __init__(self, variant):
        self.variant, self.sent = variant, None

    def on_train_start(self, trainer, pl_module):
        if self.variant == "bf16_compress_hook":
            trainer.model.register_comm_hook(None, halve)

    def on_train_end(self, trainer, pl_module):
        wire = getattr(trainer.precision_plugin, "wire", None)
        self.sent = None if wire is None else wire.report()
        if VARIANTS[self.variant] is not None:
            assert self.sent["bytes_sent_per_step"] > 0, "the hook was not active"


class Bytes(IterableDataset):
    """This process's rows of every batch."""

    def __init__(self, seed, steps):
        self.seed, self.steps = seed, steps

    def __iter__(self):
        order = torch.Generator().manual_seed(self.seed)
        data = bytes_transformer.text()[0]
        for _ in range(self.steps):
            inputs, targets = bytes_transformer.batch_of(data, order)
            yield inputs[RANK::RANKS], targets[RANK::RANKS]


class ByteModel(LightningModule):
    def __init__(self, steps):
        super().__init__()
        self.network, self.steps = bytes_transformer.Transformer(), steps

    def training_step(self, batch, batch_idx):
        return bytes_transformer.loss_of(self.network, batch)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1)
        schedule = bytes_transformer.schedule_of(optimizer, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train(task, variant, seed, root):
    seed_everything(seed, verbose=False)
    options, watch = VARIANTS[variant], Watch(variant)
    module, loader = (Classifier(MLP(784), lr=0.004), None) if task == "mnist" else (ByteModel(1500), Bytes(seed, 1500))
    if variant == "float32 twin":
        perturb_last_bit_(module)
    trainer = Trainer(
        max_epochs=4 if task == "mnist" else 1, accelerator="cpu", strategy="ddp", devices=RANKS, callbacks=[watch],
        plugins=[] if options is None else FixedPointPrecision(**options, seed=seed), num_sanity_val_steps=0,
        gradient_clip_val=None if task == "mnist" else 1.0, limit_val_batches=0, logger=False,
        enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
    )  # fmt: skip
    result = {"variant": variant, "seed": seed, "task": task, "processes": RANKS}
    start = time.perf_counter()
    if task == "mnist":
        data = MNISTDataModule(root, batch_size=100 // RANKS)
        trainer.fit(module, data)
        module.eval()
        with torch.no_grad():  # every process on all of the test images
            images, labels = data.test.tensors
            logits = module(images)
        result["val_loss"] = torch.nn.functional.cross_entropy(logits, labels).item()
        result["accuracy"] = (logits.argmax(-1) == labels).float().mean().item()
    else:
        trainer.fit(module, DataLoader(loader, batch_size=None))
        result["val_loss"] = bytes_transformer.validation_loss(module.network, bytes_transformer.text()[1])
    sent = watch.sent and {key: watch.sent[key] for key in ("bytes_sent_per_step", "float32_bytes_per_step")}
    return result | {"sent": sent, "seconds": time.perf_counter() - start, "torch": torch.__version__}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("mnist", "bytes"), default="mnist")
    parser.add_argument("--root", default="data/mnist", help="folder of MNIST's files")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("wire_quality.jsonl"))
    given = parser.parse_args()
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    lines = given.out.read_text().splitlines() if given.out.exists() else []
    done = {(run["variant"], run["seed"]) for run in map(json.loads, lines)}
    for seed in range(given.seeds):
        for variant in given.variants:
            if (variant, seed) not in done:
                result = json.dumps(train(given.task, variant, seed, given.root))
                if RANK == 0:
                    print(result, flush=True)
                    with given.out.open("a") as file:
                        file.write(result + "\n")


if __name__ == "__main__":
    main()
