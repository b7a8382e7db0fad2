"""What a look of FixedPointMonitor costs: one run, in which every other step is looked at.

    OMP_NUM_THREADS=1 python recipes/monitor_cost.py --out docs/results/monitor_cost.json

Steps are timed from start to start, so that logging counts. The cost at the default interval is what a look adds, over
50 steps. Processor time is given beside the clock's: other programs do not disturb it.
"""

import argparse
import json
import statistics
import time
from itertools import pairwise
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from watch_transformer import Batches, Watched, text

from lowprec_plugin import FixedPointMonitor, FixedPointPrecision
from lowprec_plugin.bench.models import Transformer
from lowprec_plugin.tasks import MLP

INTERVAL = 50


class Clock(Callback):
    def __init__(self):
        self.starts = []

    def on_train_batch_start(self, *args):
        self.starts.append((time.perf_counter(), time.process_time()))


class Large(Watched):
    """Ten million parameters."""

    def __init__(self, steps, lr):
        super().__init__(steps, lr)
        self.model = Transformer()


class Digits(LightningModule):
    """A network so small that a step is mostly Python."""

    def __init__(self, steps, lr):
        super().__init__()
        self.model = MLP()

    def training_step(self, batch, index):
        return torch.nn.functional.cross_entropy(self.model(batch[0][:, :64] / 256.0), batch[1][:, 0] % 10)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())


def measured(make, steps):
    torch.manual_seed(0)
    clock, folder = Clock(), "/tmp/lowprec_monitor_cost"
    trainer = Trainer(
        accelerator="cpu", max_steps=steps, logger=CSVLogger(folder), callbacks=[clock, FixedPointMonitor(2)],
        plugins=FixedPointPrecision(state_word_length=8), enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=INTERVAL,
    )  # fmt: skip
    trainer.fit(make(steps, 1e-3), torch.utils.data.DataLoader(Batches(text()[0], 0), batch_size=None))
    found = {}
    for name, column in (("clock", 0), ("processor", 1)):
        times = [1e3 * (after[column] - before[column]) for before, after in pairwise(clock.starts)]
        # In pairs of neighbours, so that a slow minute slows both; the first steps are warming up.
        pairs = list(zip(times[4::2], times[5::2], strict=False))
        plain = statistics.median(without for _, without in pairs)
        look = statistics.median(looked - without for looked, without in pairs)
        found[name] = {"step_ms": plain, "look_ms": look, "percent_at_50": 100 * look / INTERVAL / plain}
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found = {make.__name__: measured(make, given.steps) for make in (Watched, Large, Digits)}
    found |= {"threads": torch.get_num_threads(), "torch": torch.__version__, "steps": given.steps}
    print(json.dumps(found, indent=1))
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
