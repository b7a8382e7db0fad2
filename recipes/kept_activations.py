"""What do activations kept in codes take? The byte-level transformer of bytes_transformer.py, one step, in bytes.

    python recipes/kept_activations.py --out docs/results/kept_bytes.json

Two counts that know nothing of each other: what the packing says of itself (with what it leaves in float), and what the
C library's allocator (glibc) has handed out more when the forward pass is over than before it.
"""

import argparse
import ctypes
import json
from contextlib import nullcontext
from pathlib import Path

import torch
from bytes_transformer import Transformer, batch_of, loss_of, text

from lowprec_plugin import keep_activations


class MallocInfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "top",
        )
    ]


def bytes_in_use():
    library = ctypes.CDLL(None)
    library.mallinfo2.restype = MallocInfo
    info = library.mallinfo2()
    return info.uordblks + info.hblkhd


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("kept_bytes.json"))
    given = parser.parse_args()
    torch.manual_seed(0)
    model = Transformer()
    batch = batch_of(text()[0], torch.Generator().manual_seed(0))
    record = {}
    for bits in (None, None, 16, 8):  # the first makes what is made once
        model.zero_grad()
        before = bytes_in_use()
        with keep_activations(model, bits) if bits else nullcontext() as kept:
            loss = loss_of(model, batch)
        held = bytes_in_use() - before
        loss.backward()
        packed = {} if kept is None else {"as_float": kept.bytes.as_float, "stored": kept.bytes.stored}
        left = {} if kept is None else {"left": kept.bytes.left}
        record[f"{bits} bits" if bits else "float32"] = {"held": held, **packed, **left}
    print("| activations | held after the forward pass | of float32 | packed: as floats | stored | left in float |")
    print("|---|---|---|---|---|---|")
    for name, each in record.items():
        mib = [f"{each[key] / 2**20:.2f} MiB" if key in each else "-" for key in ("held", "as_float", "stored", "left")]
        print(f"| {name} | {mib[0]} | {each['held'] / record['float32']['held']:.3f} | {' | '.join(mib[1:])} |")
    given.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
