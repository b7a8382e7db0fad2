"""What the kills came to, as a table."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from lowprec_plugin.arithmetic.devices import device_name
from lowprec_plugin.compat.lightnings import in_use
from lowprec_plugin.experiments.environment import versions
from lowprec_plugin.text.tables import markdown_table
from tools.faulty.kinds import KINDS

_COLUMNS = (
    "kind", "kills", "of one rank", "while saving", "trainings ended", "resumed", "differing bits", "hangs", "failures",
    "files cut off", "bits of the control", "seconds",
)  # fmt: skip


def machine() -> dict[str, Any]:
    """What the trial ran on."""
    return {"processor": device_name(torch.device("cpu")), "cores": os.cpu_count(), "versions": versions(in_use())}


def summary(lines: Sequence[dict[str, Any]]) -> tuple[str, int]:
    """The record as Markdown, and the number of failures in it, the harness's own included.

    A kind has failed the harness if its control ended as the undisturbed run, or has not ended.
    """
    command = lines[0]
    names = [name for name in KINDS if any(line.get("kind") == name for line in lines)]
    rows, failures = [], []
    for name in names:
        row, failed = _row(name, [line for line in lines if line.get("kind") == name])
        rows.append(row)
        failures += failed
    total = [str(sum(int(row[column]) for row in rows)) for column in range(1, len(_COLUMNS))]
    total[_COLUMNS.index("bits of the control") - 1] = ""
    package = ", ".join(f"{name} {version}" for name, version in command["versions"].items())
    verdict = "Nothing failed." if not failures else "Failed:\n\n" + "\n".join(f"- {line}" for line in failures)
    text = f"""# Trainings that were killed

    {command["command"]}

{markdown_table([_COLUMNS, *rows, ["all", *total]])}

{verdict}

Every training that ended is compared, on every rank, with an undisturbed run's weights, optimizer state, learning rates
and plugin state, bit for bit. The control goes on with another seed after a kill: its weights must differ. Files cut
off are checkpoints under their final name that do not load. Every life is a line of `kills.jsonl`.
{command["cores"]} cores, {command["processor"]}; {package}.
"""
    return text, len(failures)


def _row(name: str, lines: Sequence[dict[str, Any]]) -> tuple[list[str], list[str]]:
    lives = [line for line in lines if line["event"] == "life"]
    tried = [line for line in lives if line["training"] != "control"]
    killed = [line for line in tried if line["outcome"] == "killed"]
    ends = [line for line in lines if line["event"] == "end" and line["training"] != "control"]
    control = next((line for line in lines if line["event"] == "end" and line["training"] == "control"), None)
    hung, failed = ([line for line in lives if line["outcome"] == outcome] for outcome in ("hung", "failed"))
    # A file is found again by every later life that passes it over.
    cut_off = sorted({f"{line['training']}, {file}" for line in lives for file in line["cut_off"]})
    of_control = 0 if control is None else control["differing_bits_of_weights"]
    counts = [
        len(killed), sum("rank" in line["aim"] for line in killed), sum(line["saving"] for line in killed), len(ends),
        sum(line["resumed"] is not None for line in tried), sum(line["differing_bits"] for line in ends), len(hung),
        len(failed), len(cut_off), of_control, round(sum(line["seconds"] for line in lives)),
    ]  # fmt: skip
    said = [f"{name}, {line['training']}: {', '.join(line['differing'])}" for line in ends if line["differing_bits"]]
    said += [f"{name}, {line['training']}, life {line['life']}: {line['outcome']}" for line in [*hung, *failed]]
    said += [f"{name}, {file}: does not load" for file in cut_off]
    if not of_control:
        said.append(f"{name}: the harness found no differing weights in its control")
    return [KINDS[name].said, *map(str, counts)], said
