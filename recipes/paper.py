"""Run one of the tables of Gupta et al. 2015: every configuration of configs/paper/TABLE, from several seeds.

    python recipes/paper.py --table mnist_fc --root FOLDER --seeds 4 --out docs/results/paper_mnist_fc.jsonl

At the end the table (.md, .csv) and the curves (.png) are written beside the runs, as recipes/paper_table.py does of
any such files.

Runs that the file has, of as many epochs, are not repeated: stop it and start it again as you like. --epochs overrides
the paper's number, --rows runs some of the rows; a second process needs a file of its own. MNIST, fully connected:
about 4 minutes a run on one core (30 epochs); the convolutional network: about 30 (120 epochs). Expect one line per
run: the row, the seed and the test error in percent.
"""

import argparse
import json
import logging
import time
import warnings
from pathlib import Path

import paper_table
import torch
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningCLI

ROWS = ["float32", "float32 twin"] + [f"{how}_{fl}" for how in ("stochastic", "nearest") for fl in (14, 12, 10, 8)]


class Curve(Callback):
    """Keeps the figures of every epoch."""

    def __init__(self):
        self.error, self.train_loss = [], []

    def on_validation_epoch_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.error.append(round(trainer.callback_metrics["val_error"].item(), 3))

    def on_train_epoch_end(self, trainer, pl_module):
        self.train_loss.append(round(trainer.callback_metrics["train_loss"].item(), 5))


def run(config, seed, twin, options, more):
    curve = Curve()
    arguments = ["fit", "--config", str(config), f"--seed_everything={seed}", "--trainer.enable_progress_bar=false"]
    arguments += ["--trainer.enable_model_summary=false", "--trainer.num_sanity_val_steps=0"]
    arguments += [f"--model.init_args.twin={str(twin).lower()}"]
    arguments += [f"--data.init_args.root={options.root}"] if options.root else []
    arguments += [f"--trainer.max_epochs={options.epochs}"] if options.epochs else []
    arguments += more
    start = time.time()
    cli = LightningCLI(args=arguments, save_config_callback=None, trainer_defaults={"callbacks": [curve]})
    plugin = cli.trainer.precision_plugin
    saturated = plugin.inside.emulator.saturated() if getattr(plugin, "inside", None) else None
    return {
        "seed": seed, "epochs": cli.trainer.max_epochs, "test_error": curve.error[-1], "errors": curve.error,
        "train_losses": curve.train_loss, "saturated": saturated, "precision": repr(plugin),
        "seconds": round(time.time() - start), "torch": torch.__version__,
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", required=True, choices=["mnist_fc", "mnist_cnn", "cifar_cnn"])
    parser.add_argument("--rows", nargs="*", default=ROWS)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--root", help="the folder of the data")
    parser.add_argument("--out", type=Path, required=True)
    options, more = parser.parse_known_args()  # what it does not know is for LightningCLI: --model.init_args.lr=0.2
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    done = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    known = {(each["row"], each["seed"], each["epochs"]) for each in done}
    configs = Path(__file__).parent.parent / "configs" / "paper" / options.table
    for seed in range(options.seeds):
        for row in options.rows:
            config = configs / f"{row.removesuffix(' twin')}.yaml"
            if not config.exists():  # the paper has no such row in this table
                continue
            epochs = options.epochs or yaml.safe_load(config.read_text())["trainer"]["max_epochs"]
            if (row, seed, epochs) in known:
                continue
            result = {"table": options.table, "row": row, **run(config, seed, row.endswith("twin"), options, more)}
            with options.out.open("a") as out:
                out.write(json.dumps(result) + "\n")
            print(f"{row}, seed {seed}: {result['test_error']:.2f} %", flush=True)
    if {"float32", "float32 twin"} <= set(options.rows):  # the yardstick; other rows alone await theirs
        paper_table.write([options.out])


if __name__ == "__main__":
    main()
