"""Train every variant from the same seeds on the same data, in the same order."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything

from lowprec_plugin import memory
from lowprec_plugin.poc.report import save
from lowprec_plugin.poc.variants import FLOAT32, TWIN, VARIANTS, Variant
from lowprec_plugin.tasks import MLP, Classifier, DigitsDataModule, MNISTDataModule
from lowprec_plugin.trainings import perturb_last_bit_, quietly


@dataclass(frozen=True)
class Run:
    """What one training came to.

    Attributes:
        test_accuracy, test_loss: on held-out data at the end.
        bytes_per_parameter: weights and optimizer state, as held after the last step.
        step_ms: median milliseconds of a training step, the callbacks' and the loader's time aside.
    """

    variant: str
    seed: int
    test_accuracy: float
    test_loss: float
    bytes_per_parameter: float
    step_ms: float


class StepTimer(Callback):
    """Times every training step, and reads the memory held at the end."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.bytes_per_parameter = 0.0

    def on_train_batch_start(self, *args: Any) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_train_batch_end(self, *args: Any) -> None:
        """Stop it."""
        self.seconds.append(time.perf_counter() - self._start)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add up weights and state while the optimizer is there."""
        self.bytes_per_parameter = memory.report(pl_module, trainer.optimizers).per_parameter


def run_variant(
    variant: Variant,
    seed: int,
    make_module: Callable[[], LightningModule],
    make_data: Callable[[], LightningDataModule],
    *,
    epochs: int,
    progress: bool = True,
) -> Run:
    """Train and test one variant. The seed decides the weights, the order of the data and the rounding."""
    seed_everything(seed, workers=True, verbose=False)
    module, data, timer = make_module(), make_data(), StepTimer()
    if variant.twin:
        perturb_last_bit_(module)
    plugin = variant.plugin(seed)
    with quietly():
        trainer = Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            plugins=[] if plugin is None else plugin,
            callbacks=[timer],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=progress,
            num_sanity_val_steps=0,
            limit_val_batches=0,
        )
        trainer.fit(module, data)
        (metrics,) = trainer.test(module, data, verbose=False)
    return Run(
        variant.name,
        seed,
        metrics["test_accuracy"],
        metrics["test_loss"],
        timer.bytes_per_parameter,
        1e3 * statistics.median(timer.seconds),
    )


@dataclass(frozen=True)
class Task:
    """What to train: ``title`` names data, network and optimizer; ``epochs`` are the default."""

    title: str
    module: Callable[[], LightningModule]
    data: Callable[[str], LightningDataModule]
    epochs: int


# The learning rates are high enough for chaos to drive two runs apart, as it does in any longer training: with a low
# one the twins of float32 end alike, and there would be no noise to judge a difference by.
TASKS = {
    "digits": Task(
        "Handwritten digits, MLP 64-256-256-10, AdamW",
        lambda: Classifier(MLP(), lr=0.02),
        lambda root: DigitsDataModule(),
        15,
    ),
    "mnist": Task(
        "MNIST, MLP 784-256-256-10, AdamW",
        lambda: Classifier(MLP(784), lr=0.004),
        lambda root: MNISTDataModule(root),
        4,
    ),
}


def run_poc(
    task: Literal["digits", "mnist"] = "digits",
    variants: Sequence[str] = tuple(VARIANTS),
    seeds: int = 4,
    epochs: int | None = None,
    root: str = "data/mnist",
    output: str = "lowprec_poc",
    progress: bool = True,
) -> list[Run]:
    """Train one task in float32 and in fixed-point, and print and save one table.

    Args:
        task: ``"digits"`` (scikit-learn's, no download) or ``"mnist"``.
        variants: which to run, by name; float32 and its twin are always run, for they are the yardstick.
        seeds: how many; with at least 4 the table gives a verdict on equal quality.
        epochs: of each training; a default of the task's if not given.
        root: folder of MNIST's files.
        output: folder for ``table.md`` and ``runs.json``.
        progress: show progress bars.

    Raises:
        ValueError: for a variant that does not exist, or fewer than one seed or epoch.
    """
    unknown = [name for name in variants if name not in VARIANTS]
    if unknown:
        raise ValueError(f"no variant {unknown[0]!r}; there are {', '.join(map(repr, VARIANTS))}")
    if task not in TASKS:
        raise ValueError(f"no task {task!r}; there are {', '.join(map(repr, TASKS))}")
    chosen_task = TASKS[task]
    epochs = chosen_task.epochs if epochs is None else epochs
    if seeds < 1 or epochs < 1:
        raise ValueError(f"seeds={seeds} and epochs={epochs} must be at least 1")
    chosen = list(dict.fromkeys([FLOAT32.name, TWIN.name, *variants]))
    runs: list[Run] = []
    start = time.perf_counter()
    for seed in range(seeds):  # all variants of a seed in turn, so that a slow minute slows them alike
        for name in chosen:
            if progress:
                print(f"{name}, seed {seed}: run {len(runs) + 1} of {seeds * len(chosen)}", flush=True)
            make_data = partial(chosen_task.data, root)
            run = run_variant(VARIANTS[name], seed, chosen_task.module, make_data, epochs=epochs, progress=progress)
            runs.append(run)
    seconds = time.perf_counter() - start
    title = f"{chosen_task.title}, {epochs} epochs, {seeds} seeds, {seconds:.0f} s"
    print("\n" + save(Path(output), title, [asdict(run) for run in runs]))
    return runs
