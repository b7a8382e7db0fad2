"""Watch the byte-level transformer train: FixedPointMonitor, with Weights & Biases offline (no account, no network).

    python recipes/watch_transformer.py --steps 300 --word_length 16 --state_word_length 8
    wandb sync watched/wandb/offline-run-*      # when you want to look at it in a browser

It prints the last figures, and the layers with most noise over all counted steps.
"""

import argparse

import torch
from bytes_transformer import Transformer, batch_of, loss_of, text
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import WandbLogger

from lowprec_plugin import FixedPointMonitor, FixedPointPrecision


class Batches(torch.utils.data.IterableDataset):
    def __init__(self, data, seed):
        self.data, self.seed = data, seed

    def __iter__(self):
        order = torch.Generator().manual_seed(self.seed)
        while True:
            yield batch_of(self.data, order)


class Watched(LightningModule):
    def __init__(self, steps, lr):
        super().__init__()
        self.model, self.steps, self.lr = Transformer(), steps, lr

    def training_step(self, batch, index):
        loss = loss_of(self.model, batch)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), self.lr, betas=(0.9, 0.95), weight_decay=0.1)
        warmup = min(0.3, 100 / self.steps)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=self.steps, pct_start=warmup)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def watch(steps, logger, every_n_steps=50, lr=2e-3, seed=0, **plugin):
    """Train for so many steps and return the Trainer and the monitor."""
    seed_everything(seed, verbose=False)
    monitor = FixedPointMonitor(every_n_steps, layers=True)
    trainer = Trainer(
        accelerator="cpu", max_steps=steps, logger=logger, callbacks=[monitor], gradient_clip_val=1.0,
        plugins=FixedPointPrecision(seed=seed, **plugin), enable_checkpointing=False, enable_progress_bar=False,
        log_every_n_steps=every_n_steps, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Watched(steps, lr), torch.utils.data.DataLoader(Batches(text()[0], seed), batch_size=None))
    return trainer, monitor


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--word_length", type=int, default=16)
    parser.add_argument("--state_word_length", type=int)
    parser.add_argument("--rounding", choices=("stochastic", "nearest"), default="stochastic")
    parser.add_argument("--every", type=int, default=50, help="steps between two looks")
    parser.add_argument("--folder", default="watched")
    given = parser.parse_args()
    stored = {name: getattr(given, name) for name in ("word_length", "state_word_length", "rounding")}
    logger = WandbLogger(project="lowprec", save_dir=given.folder, offline=True)
    trainer, monitor = watch(given.steps, logger, given.every, **stored)
    for name, value in trainer.callback_metrics.items():
        print(f"{name:28} {float(value):.6g}")
    for layer in sorted(monitor.layers(), key=lambda layer: layer.noise_to_update or 0.0)[-5:]:
        print(f"{layer.name:28} {layer.weights} noise to update {layer.noise_to_update:.3g}, lost {layer.lost:.2%}")


if __name__ == "__main__":
    main()
