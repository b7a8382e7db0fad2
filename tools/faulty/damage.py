"""Single flipped bits in files that carry a digest: none may be taken for the weights or state that were written.

Each trial writes a file, flips one bit of it at random and reads it again. Either it is refused, or what is read is
what was written, bit for bit. A process per kind does the trials, so that one that ends is noticed too. Of a control,
floats without a digest, some must be taken for what was written, or the trials do not see what they look for.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from tools.faulty.damaged_files import CONTROL, KINDS, Kind
from tools.faulty.processes import tried, write_table


def add_to(subparsers: Any) -> None:
    """Add the sub-command ``damage``."""
    parser = subparsers.add_parser("damage", help="flip single bits in files", description=__doc__)
    parser.add_argument("--flips", type=int, default=400, help="of each kind of file")
    kinds = [kind for kind in KINDS if kind != CONTROL]
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a folder for damage.jsonl and damage.md")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Do the trials, and return 1 if a flip was accepted or ended a process, or none of the control was accepted."""
    results = {}
    for kind in (*given.kinds, CONTROL):
        bad = {"died"} if kind == CONTROL else {"died", "accepted"}
        with tempfile.TemporaryDirectory() as folder:
            results[kind] = tried(kind, _trial, (kind, given.seed, folder), given.flips, bad)
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"kind": kind, **trial}) for kind, trials in results.items() for trial in trials]
        (given.out / "damage.jsonl").write_text("\n".join([*lines, ""]))
        command = f"python -m tools.faults damage --flips {given.flips} --seed {given.seed} --out FOLDER"
        outcomes = ("refused", "harmless", "accepted", "died")
        named = {KINDS[kind].what: trials for kind, trials in results.items()}
        write_table(given.out / "damage.md", "Flipped bits", str(__doc__), command, named, outcomes)
    noticed = any(trial["outcome"] == "accepted" for trial in results.pop(CONTROL))
    failed = any(trial["outcome"] in ("accepted", "died") for trials in results.values() for trial in trials)
    return int(failed or not noticed)


def _trial(number: int, kind: str, seed: int, folder: str) -> dict[str, Any]:
    made, written, expected = _as_written(kind, folder)
    damaged = written.with_name(f"damaged{written.suffix}")
    place = _flip_one(written, damaged, random.Random(f"{seed} {kind} {number}"))
    try:
        read = made.read(damaged)
    except BaseException as error:  # as those of distributed checkpoints are
        return {**place, "outcome": "refused", "said": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    wrong = [name for name in expected.keys() | read.keys() if expected.get(name) != read.get(name)]
    return {**place, "outcome": "accepted" if wrong else "harmless", "said": ", ".join(wrong[:3])}


@cache
def _as_written(kind: str, folder: str) -> tuple[Kind, Path, dict[str, Any]]:
    made = KINDS[kind]()
    written = made.write(Path(tempfile.mkdtemp(dir=folder)) / "as written")
    return made, written, made.read(written)


def _flip_one(source: Path, target: Path, chance: random.Random) -> dict[str, Any]:
    """Copy a file or a folder with one bit flipped somewhere, every bit as likely as any other."""
    if target.is_dir():
        shutil.rmtree(target)
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    chosen = chance.choices(files, [path.stat().st_size for path in files])[0]
    content = bytearray(chosen.read_bytes())
    byte, bit = chance.randrange(len(content)), chance.randrange(8)
    content[byte] ^= 1 << bit
    if source.is_file():
        target.write_bytes(content)
    else:
        shutil.copytree(source, target)
        (target / chosen.relative_to(source)).write_bytes(content)
    return {"file": chosen.name, "byte": byte, "bit": bit}
