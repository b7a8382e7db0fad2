"""Arguments of every public function, and messages of the wire, at random.

A call with up to three odd arguments (wrong types, values beyond every limit, nested ones) succeeds or is a ValueError
that names one of them. A message of random bytes is read and summed by each backend without a byte written beside it,
and the backends agree on what a rank could have sent.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lowprec_plugin.arithmetic.native import wire as native_wire
from lowprec_plugin.arithmetic.random_bits import key_of
from lowprec_plugin.arithmetic.reference import wire as wire_reference
from lowprec_plugin.arithmetic.reference.wire import BLOCK, WORD_LENGTHS, Piece, chunk_bytes, chunk_of
from lowprec_plugin.formats import MIN_EXPONENT
from tests.test_arguments import CALLS, ELSE, ODD
from tools.faulty.processes import tried, write_table

BAD = {"wrong", "died"}


def add_to(subparsers: Any) -> None:
    """Add the sub-command ``fuzz``."""
    parser = subparsers.add_parser("fuzz", help="odd arguments and messages", description=__doc__)
    parser.add_argument("--cases", type=int, default=4000, help="of arguments, and of messages")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a folder for fuzz.md")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Do the trials, print their counts, and return 1 if one went wrong or ended its process."""
    results = {}
    for what, trial in TRIALS.items():
        with tempfile.TemporaryDirectory() as folder:
            results[what] = tried(what, trial, (given.seed, folder), given.cases, BAD)
    if given.out is not None:
        command = f"python -m tools.faults fuzz --cases {given.cases} --seed {given.seed} --out FOLDER"
        outcomes = ("refused", "taken", "wrong", "died")
        write_table(given.out / "fuzz.md", "Odd arguments and messages", str(__doc__), command, results, outcomes)
    return int(any(result["outcome"] in BAD for trials in results.values() for result in trials))


def _arguments(number: int, seed: int, folder: str) -> dict[str, Any]:
    chance = random.Random(f"{seed} {number}")
    os.chdir(tempfile.mkdtemp(dir=folder))  # some write files, which another case would read
    warnings.simplefilter("ignore")
    name = chance.choice(list(CALLS))
    call = CALLS[name]
    odd = {
        argument: _odd(chance) for argument in chance.sample(call.names(), min(len(call.names()), chance.randint(1, 3)))
    }
    shown = f"{name}({', '.join(f'{argument}={value!r}' for argument, value in odd.items())})"
    try:
        made = call.function(**{**call.given(), **odd})
        if hasattr(made, "__enter__"):
            with made:
                pass
    except (ValueError, FileNotFoundError) as error:
        named = any(each in str(error) for each in (*odd, *map(repr, odd.values()), *ELSE))
        return {"outcome": "refused"} if named else {"outcome": "wrong", "said": f"{shown}: {error}"}
    except Exception as error:
        if any(callable(value) for argument, value in odd.items() if argument == "keep_float"):
            return {"outcome": "refused"}  # what a function of the user's raises
        return {"outcome": "wrong", "said": f"{shown}: {type(error).__name__}: {error}"}
    return {"outcome": "taken"}


def _odd(chance: random.Random) -> Any:
    """A value that may well be taken, or not: one of the table's, a number of any size, text, or several of them."""
    kind = chance.random()
    if kind < 0.5:
        return chance.choice(ODD)
    if kind < 0.65:
        return chance.choice([1, -1]) * 2 ** chance.randrange(70)
    if kind < 0.75:
        return chance.choice([1.0, -1.0]) * 10.0 ** chance.randrange(-400, 308)
    if kind < 0.85:
        return "".join(chr(chance.randrange(1, 0x250)) for _ in range(chance.randrange(8)))
    several = [_odd(chance) for _ in range(chance.randrange(3))]
    return chance.choice([several, tuple(several), {str(index): value for index, value in enumerate(several)}])


def _message(number: int, seed: int, folder: str) -> dict[str, Any]:
    chance = random.Random(f"{seed} {number}")
    word_length, ranks, blocks, guard = chance.choice(WORD_LENGTHS), chance.randint(1, 5), chance.randint(1, 5), 64
    elements = chance.randint((blocks - 1) * BLOCK + 1, blocks * BLOCK)
    generator = torch.Generator().manual_seed(chance.getrandbits(31))
    sent = torch.randint(256, (ranks, chunk_bytes(blocks, word_length)), dtype=torch.uint8, generator=generator)
    chunks = [chunk_of(row, blocks, word_length) for row in sent]
    if chance.random() < 0.5:  # as ranks send them
        for chunk in chunks:
            chunk.exponents.clamp_(MIN_EXPONENT, 100)
    found = []
    for backend in (wire_reference, native_wire):
        values = torch.full((elements + 2 * guard,), 7.0)
        out = torch.full((chunk_bytes(blocks, word_length) + guard,), 7, dtype=torch.uint8)
        piece = Piece(values[guard:-guard], 0, 0, key_of(0, 0), key_of(0, 1))
        backend.read_([piece], chunks[0], word_length)
        backend.sum_([piece], chunks, chunk_of(out[:-guard], blocks, word_length), word_length, float(ranks), True)
        if not bool((torch.cat([values[:guard], values[-guard:], out[-guard:]]) == 7).all()):
            return {"outcome": "wrong", "said": f"{backend.__name__} wrote beside the message"}
        found.append((values[guard:-guard], out[:-guard]))
    # What exponents below a format's smallest stand for, which no rank sends, is each backend's own.
    lawful = all(bool((chunk.exponents >= MIN_EXPONENT).all()) for chunk in chunks)
    (numbers, summed), (natively, natively_summed) = found
    alike = torch.equal(numbers.nan_to_num(7.5), natively.nan_to_num(7.5)) and torch.equal(summed, natively_summed)
    if lawful and not alike:
        return {"outcome": "wrong", "said": f"the backends differ at {word_length} bits"}
    return {"outcome": "taken"}


TRIALS: dict[str, Callable[..., dict[str, Any]]] = {
    "arguments of public functions": _arguments, "messages of the wire": _message,
}  # fmt: skip
