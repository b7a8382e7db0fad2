"""Records of runs that never ran: cases whose verdict is known because they were made for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lowprec_plugin.poc.run.study import LayerReport, RunRecord, Study, run_file, save
from lowprec_plugin.poc.verdict.groups import Groups
from lowprec_plugin.poc.verdict.judge import Verdict, judge

NOISE = (0.0012, -0.0009, 0.0004, -0.0007, 0.0010, -0.0011, 0.0003, -0.0002)
#: Bytes a number takes, by variant: weights, state, gradients.
BYTES = {"float32": (4, 8, 4), "bf16": (4, 8, 4), "16": (2, 4, 4), "16/8": (2, 2, 4)}
PARAMETERS, EXAMPLES, STEPS = 85_002, 32, 645
LAYERS = (("net.0.weight", 16_384), ("net.0.bias", 256), ("net.2.weight", 65_536), ("net.4.weight", 2_826))


def record(variant: str, seed: int, accuracy: float = 0.97, **changes: Any) -> RunRecord:
    """A finished run with this accuracy and a full set of figures that go with its name."""
    weights, state, gradients = BYTES.get(variant.split()[0], (2, 4, 4))
    fixed = not variant.startswith(("float32", "bf16"))
    activations = 262_144
    held = {
        "weights": weights * PARAMETERS, "state": state * PARAMETERS, "gradients": gradients * PARAMETERS,
        "buffers": 128, "activations": activations // (2 if variant == "bf16" else 1),
    }  # fmt: skip
    float32 = dict(zip(("weights", "state", "gradients"), (n * PARAMETERS for n in (4, 8, 4)), strict=True))
    float32 |= {"buffers": 128, "activations": activations}
    lost = 0.93 if "nearest" in variant else 0.35
    found: dict[str, Any] = {
        "steps": STEPS, "epochs": 15, "examples": EXAMPLES,
        "metrics": {"val_accuracy": accuracy, "val_loss": 4 * (1 - accuracy), "test_accuracy": accuracy**2},
        "tested": ["test_accuracy"],
        "curves": curves(seed, accuracy),
        "held": held, "float32": float32, "bf16": {**float32, "activations": activations // 2},
        "parameters": PARAMETERS, "peak": 412_000_000 + 1000 * seed,
        "step_ms": {"median": 6.4 + 0.1 * seed if fixed else 4.1 + 0.1 * seed, "fast": 3.9, "slow": 9.5},
        "seconds": 9.5,
        "layers": [
            LayerReport(
                name, elements, "fixed16" if fixed and "bias" not in name else "float32", "fixed16", 6 * elements,
                *((0.0002 * at, lost * (1 - 0.1 * at), lost * 0.8, 0.7) if fixed else (None,) * 4),
            )
            for at, (name, elements) in enumerate(LAYERS)
        ],
        "kept_in_float": {"net.0.bias": "named in keep_float"} if fixed else {},
        "precision": f"FixedPointPrecision({variant})" if fixed else "32-true",
        "environment": {"torch": "2.13.0", "device": "cpu"},
    }  # fmt: skip
    return RunRecord(variant, seed, **{"status": "finished", **found, **changes})


def curves(seed: int, accuracy: float) -> dict[str, list[tuple[int, float]]]:
    """A training loss that falls and an accuracy that rises to ``accuracy``."""
    loss = [(step, 2.3 * math.exp(-step / 120) + 0.03 + 0.01 * math.sin(step + seed)) for step in range(0, STEPS, 5)]
    rising = [
        (step, accuracy - (accuracy - 0.1) * math.exp(-step / 100)) for step in range(43, STEPS, 43)
    ] + [(STEPS, accuracy)]  # fmt: skip
    return {"train_loss": loss, "val_accuracy": rising}


def runs(
    variant: str, mean: float, spread: float = 1.0, seeds: int = 4, shift: int = 0, **changes: Any
) -> list[RunRecord]:
    """One run for each seed around ``mean``, apart by ``spread`` times the noise."""
    return [
        record(variant, seed, mean + spread * NOISE[(seed + shift) % len(NOISE)], **changes) for seed in range(seeds)
    ]


def float32(seeds: int = 4, mean: float = 0.975) -> list[RunRecord]:
    """Float32 and its twin, sound and a little apart."""
    return runs("float32", mean, seeds=seeds) + runs("float32 twin", mean, seeds=seeds, shift=3)


def diverged(variant: str, seeds: Sequence[int], at: int = 96) -> list[RunRecord]:
    """Runs whose loss became infinite."""
    reason = f"the training loss was inf at step {at}"
    return [
        record(
            variant, seed, status="diverged", reason=reason, steps=at, metrics={}, nonfinite="net.2.weight",
            curves={"train_loss": [(0, 2.3), (20, 9.0), (90, 1e6)]},
        )
        for seed in seeds
    ]  # fmt: skip


def widened(*steps: int) -> list[dict[str, list[dict[str, Any]]]]:
    """What a ramp of each run did."""
    return [{"widened": [{"step": step, "word_length": 16, "reason": "updates are lost"}]} for step in steps]


def folder(path: Path, records: Sequence[RunRecord], **changes: Any) -> Path:
    """A proof of concept's folder with these runs."""
    names = list(dict.fromkeys(["float32", "float32 twin", *(each.variant for each in records)]))
    study = Study(
        title="Handwritten digits, staged", metric="val_accuracy", mode="max", metric_chosen="given",
        config={"model": {}}, command="lowprec poc --seeds 4",
        variants={name: f"FixedPointPrecision({name!r})" for name in names},
        left_out={"8-bit wire": "one process sends nothing"}, seeds=sorted({each.seed for each in records}), devices=1,
        steps=STEPS, price=None, versions={"torch": "2.13.0", "lowprec-plugin": "0.1"}, device="cpu, 2 cores",
    )  # fmt: skip
    save(path / "poc.json", replace(study, **changes))
    for each in records:
        save(run_file(path, each.variant, each.seed), each)
    return path


def full() -> list[RunRecord]:
    """Every kind of variant: equal, worse, recovered, diverged, failed, and bf16 beside them."""
    ramp = [
        record("12 with ramp", seed, 0.9748 + NOISE[seed + 2], **widened(400 + 12 * seed)[0]) for seed in range(4)
    ]  # fmt: skip
    failed = [
        record("16 nearest", seed, status="failed", reason="out of memory", metrics={}, held={}) for seed in range(4)
    ]
    return [
        *float32(), *runs("bf16", 0.9749, shift=2), *runs("16", 0.9748, shift=1), *runs("16/8", 0.975, shift=5),
        *runs("12", 0.955), *ramp, *runs("8", 0.61, spread=30), *diverged("<2,10> nearest", range(4)), *failed,
    ]  # fmt: skip


def verdict(
    records: Sequence[RunRecord], metric: str = "val_accuracy", mode: str = "max", variants: Sequence[str] = (),
    tolerance: float | str | None = None,
) -> Verdict:  # fmt: skip
    """Judged."""
    return judge(Groups.make(records, metric, mode, variants, tolerance))


def outcomes(found: Verdict) -> dict[str, str]:
    """In a word, by variant."""
    return {finding.variant: finding.outcome for finding in found.findings}
