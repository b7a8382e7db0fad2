"""The table of other people's optimizers: ``python -m tests.foreign.table docs/foreign.md`` trains them all."""

from __future__ import annotations

import argparse
import importlib.metadata
from collections import Counter
from pathlib import Path

import torch

from lowprec_plugin.text.files import whole_text
from tests.foreign.optimizers import PACKAGES, Row, rows
from tests.foreign.verdict import AMPLIFIED, NEAR, STEPS, Verdict, judge

TABLE = Path(__file__).parent.parent.parent / "docs" / "foreign.md"
_BEFORE = """# Other people's optimizers

Every optimizer below trained a small network in float32 and in fixed-point, {steps} steps of the same batches. `make
foreign` does so again, and `python -m tests.foreign.table docs/foreign.md` writes this page. An optimizer is

- **right**: at 24 bits of weights and state it ends within {near24:g} of float32's way from the start, at 16 bits
  within {near16:g}, or within {amplified} times what the same noise of rounding does in float32; so does the loss; and
  no more floats are held with every step than in float32;
- or **refused**: a `ValueError` at adoption or in the first step, with what to use instead, and no weight is changed.

Anything else fails the test.

*Off* is the distance from float32's weights at 16 bits, as a share of its way. In brackets: the distance of float32
with the noise of 16-bit rounding, where it had to be measured. Where that is large too, the optimizer goes elsewhere
with every seed. *At once* is the most that a step takes above what it finds, in float copies of one of eight equal
parameters, and in brackets what it takes in float32. *Held* is what the optimizer keeps in floats, as a share of the
weights in float32.

"""


def document(found: list[tuple[Row, Verdict]]) -> str:
    text = [_BEFORE.format(steps=STEPS, near24=NEAR[24], near16=NEAR[16], amplified=AMPLIFIED)]
    counts = Counter(verdict.outcome for _, verdict in found)
    text.append(", ".join(f"{count} {outcome}" for outcome, count in counts.most_common()) + ".\n")
    for package in PACKAGES:
        text.append(f"\n## {package}{_version(package)}\n\n")
        text.append("| optimizer | | off | at once | held | |\n|---|---|---|---|---|---|\n")
        for row, verdict in found:
            if row.package == package:
                text.append("| " + " | ".join(cells(row, verdict)) + " |\n")
    return "".join(text)


def cells(row: Row, verdict: Verdict) -> list[str]:
    off = at_once = held = ""
    if verdict.distance is not None:
        noise = "" if verdict.noise is None else f" ({verdict.noise:.0e})"
        off = f"{verdict.distance:.0e}{noise}"
    if verdict.at_once is not None:
        at_once = "{:.1f} ({:.1f})".format(*verdict.at_once)
    if verdict.held is not None:
        held = f"{verdict.held:.1f}"
    return [row.name, verdict.outcome, off, at_once, held, verdict.said.replace("|", "\\|").replace("*", "\\*")]


def committed() -> dict[str, tuple[str, str]]:
    """Outcome and message of each optimizer in the table, by the text of its row."""
    found, package = {}, ""
    for line in TABLE.read_text().splitlines():
        if line.startswith("## "):
            package = max((name for name in PACKAGES if line[3:].startswith(name)), key=len)
        elif line.startswith("| ") and not line.startswith("| optimizer "):
            name, outcome, *_, said = (cell.strip() for cell in line[2:-2].split(" | "))
            found[f"{package}: {name}"] = (outcome, said.replace("\\|", "|").replace("\\*", "*"))
    return found


def _version(package: str) -> str:
    if package == "torch":
        return f" {torch.__version__.split('+')[0]}"
    try:
        return f" {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    file = parser.parse_args().file
    torch.set_num_threads(1)
    found = []
    for row in rows():
        found.append((row, judge(row)))
        print(row, *cells(*found[-1])[1:], flush=True)
    whole_text(file, document(found))


if __name__ == "__main__":
    main()
