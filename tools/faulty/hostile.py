"""Hostile tensors, by every way in: each is refused where it is made, or is what its planes say; no process ends.

A case is a pickle, a state dict of an optimizer, a safetensors file or planes given to the class or to the operator
``lowprec::dequantize``, with planes of random kinds, some as the format asks for and some not. What is taken is read,
written to and stepped on. Under AddressSanitizer (``tools.sanitize``) a read outside of planes ends the process.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowprec_plugin import FixedPointFormat, FixedPointTensor, optim
from lowprec_plugin.arithmetic.blocks import Blocks, from_planes
from lowprec_plugin.tensor import rebuild
from tools.faulty.processes import tried, write_table

BAD = {"wrong", "died"}
FORMATS = [
    "fixed2", "fixed4", "fixed8", "fixed9", "fixed12", "fixed16", "fixed16:16", "fixed17", "fixed20", "fixed24",
    "fixed8^2", "fixed16^2", "fixed24^2", "<4,12>", "<3,5>", "<2,18>",
]  # fmt: skip
DTYPES = [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool, torch.float32, torch.bfloat16]
ODD: list[Any] = [None, -1, 0, 1, 2**31, 2**48, 2**62, 2**70, "x", b"x", 0.5, (), [], True]


def add_to(subparsers: Any) -> None:
    """Add the sub-command ``hostile``."""
    parser = subparsers.add_parser("hostile", help="give planes that do not fit", description=__doc__)
    parser.add_argument("--cases", type=int, default=400, help="of each way in")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a folder for hostile.md")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Try every way in, print counts, and return 1 if a case was taken wrongly or ended a process."""
    results = {f"`{way}`": tried(way, _case, (way, given.seed), given.cases, BAD) for way in given.ways}
    if given.out is not None:
        command = f"python -m tools.faults hostile --cases {given.cases} --seed {given.seed} --out FOLDER"
        outcomes = ("refused", "as written", "wrong", "died")
        write_table(given.out / "hostile.md", "Hostile tensors", str(__doc__), command, results, outcomes)
    return int(any(result["outcome"] in BAD for cases in results.values() for result in cases))


def _case(number: int, way: str, seed: int) -> dict[str, Any]:
    chance = random.Random(f"{seed} {way} {number}")
    torch.manual_seed(chance.getrandbits(32))
    try:
        taken = WAYS[way](chance)
    except (
        ValueError,
        RuntimeError,
        NotImplementedError,
    ) as error:  # torch's own, of what is no tensor or on no device
        return {"outcome": "refused", "said": f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"}
    if taken is None:
        return {"outcome": "as written"}
    wrong = _used(taken)
    return {"outcome": "wrong", "said": wrong} if wrong else {"outcome": "as written"}


def _planes(chance: random.Random, format: FixedPointFormat) -> Blocks:
    """Planes most of which are what ``format`` asks for."""
    shape = [chance.choice([0, 1, 2, 3, 7, 17, 300]) for _ in range(chance.randrange(4))]
    rows, row_length = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
    codes = _plane(chance, torch.int8 if format.container_bytes == 1 else torch.int16, shape)
    low = _plane(chance, torch.uint8 if format.container_bytes == 3 else None, shape)
    blocks = [rows, format.blocks_per_row(row_length)]
    return Blocks(codes, low, _plane(chance, torch.int8 if format.dynamic else None, blocks))  # type: ignore[arg-type]


def _plane(chance: random.Random, dtype: torch.dtype | None, shape: list[int]) -> Tensor | None:
    kind = chance.choices(
        ["right", "dtype", "shape", "strides", "device", "absent", "subclass"], [14, 1, 1, 1, 1, 1, 1]
    )[0]
    if dtype is None:
        return None if kind == "right" else torch.zeros(shape, dtype=chance.choice(DTYPES))
    if kind == "absent":
        return None
    if kind == "shape":
        shape = chance.choice(
            [shape[:-1], [*shape, 2], [size + 1 for size in shape], [max(size - 1, 0) for size in shape]]
        )
    made = torch.randint(0, 2, shape).to(chance.choice(DTYPES) if kind == "dtype" else dtype)
    if kind == "strides":
        return chance.choice([made.mT if made.dim() > 1 else made, made[..., :1].expand(shape) if shape else made])
    if kind == "device":
        return made.to("meta")
    return nn.Parameter(made, requires_grad=False) if kind == "subclass" else made


def _facts(chance: random.Random, blocks: Blocks) -> list[Any]:
    facts: list[Any] = [torch.float32, "stochastic", 1, "w", 0, 0, None, False, False, None]
    for place in range(len(facts)):
        if chance.random() < 0.03:
            facts[place] = chance.choice([*ODD, torch.int8, torch.float64, "nearest"])
    if chance.random() < 0.1:
        sizes = [chance.randrange(-1, 5) for _ in range(chance.randrange(4))]
        facts[6] = (
            tuple(sizes),
            tuple(chance.randrange(-1, 400) for _ in sizes),
            chance.choice([0, 1, 899, -1, 2**62]),
        )
    return facts


class _Pickle:
    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self.arguments = arguments

    def __reduce__(self) -> Any:
        return rebuild, self.arguments


def _by_pickle(chance: random.Random) -> Tensor | None:
    format = chance.choice(FORMATS)
    blocks = _planes(chance, FixedPointFormat.parse(format))
    told = chance.choice(FORMATS) if chance.random() < 0.1 else format
    file = io.BytesIO()
    torch.save(_Pickle((*blocks, told, *_facts(chance, blocks))), file)
    file.seek(0)
    return torch.load(file, weights_only=True)  # type: ignore[no-any-return]


def _by_optimizer(chance: random.Random) -> Tensor | None:
    layer = nn.Linear(300, 7, bias=False)
    optim.quantize_(layer, "fixed16")
    bits = chance.choice([8, 12, 16, 24])
    optimizer = optim.AdamW(layer.parameters(), lr=1e-2, state_word_length=bits)
    _step(layer, optimizer)
    state = optimizer.state_dict()
    name = chance.choice(["exp_avg", "exp_avg_sq"])
    format = FixedPointFormat(bits, squared=name == "exp_avg_sq")
    blocks = _planes(chance, format)
    if chance.random() < 0.5:
        shape = [7, 300]
        blocks = Blocks(
            _plane(chance, torch.int8 if bits <= 8 else torch.int16, shape),  # type: ignore[arg-type]
            _plane(chance, torch.uint8 if bits > 16 else None, shape),
            _plane(chance, torch.int8, [7, 2]),
        )
    file = io.BytesIO()
    state["state"][0][name] = _Pickle((*blocks, str(format), *_facts(chance, blocks)))
    torch.save(state, file)
    file.seek(0)
    optimizer.load_state_dict(torch.load(file, weights_only=True))
    _step(layer, optimizer)
    return None


def _step(layer: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    layer(torch.ones(2, 300)).sum().backward()
    optimizer.step()


def _by_safetensors(chance: random.Random) -> Tensor | None:
    import safetensors.torch

    from lowprec_plugin.export import read_safetensors

    format = FixedPointFormat.parse(chance.choice([text for text in FORMATS if "^" not in text]))
    blocks = _planes(chance, format)
    named = zip(("w", "w.low", "w.exponents"), blocks, strict=True)
    planes = {name: plane for name, plane in named if plane is not None and not plane.is_meta}
    fields = {name: getattr(format, name) for name in ("word_length", "fraction_length", "block_size")}
    if chance.random() < 0.1:
        fields[chance.choice(list(fields))] = chance.choice([each for each in ODD if not isinstance(each, bytes)])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        safetensors.torch.save_file(
            {name: plane.clone(memory_format=torch.contiguous_format) for name, plane in planes.items()}, path,
            {"lowprec": json.dumps({"w": fields})},
        )  # fmt: skip
        return read_safetensors(path)["w"]


def _by_class(chance: random.Random) -> Tensor | None:
    format = FixedPointFormat.parse(chance.choice(FORMATS))
    return FixedPointTensor(_planes(chance, format), format)


def _by_operator(chance: random.Random) -> Tensor | None:
    format = FixedPointFormat.parse(chance.choice(FORMATS))
    blocks = _planes(chance, format)
    try:
        read = torch.ops.lowprec.dequantize(*blocks, str(format), torch.float32)
    except TypeError as error:  # torch's own, of codes that are no tensor
        raise ValueError(error) from error
    if read.is_meta or torch.equal(read, FixedPointTensor(blocks, format).dequantize()):
        return None
    return torch.full((1,), torch.nan)


def _used(tensor: Tensor) -> str:
    """What is wrong with the numbers of what was taken; it is written to as well."""
    if not isinstance(tensor, FixedPointTensor):
        return f"{type(tensor).__name__} came out"
    if tensor.is_meta:
        return ""
    format, blocks = tensor.format, tensor.blocks
    integers = from_planes(blocks, format).double()
    if blocks.exponents is None:
        floats = integers * 2.0**format.static_exponent
    else:
        row_length = integers.numel() // max(len(blocks.exponents), 1)
        exponents = blocks.exponents.double().repeat_interleave(format.block_size, 1)[:, :row_length]
        floats = integers * torch.exp2(exponents).reshape(integers.shape)
    floats = floats.square() if format.squared else floats
    expected = floats.float().as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
    if not torch.equal(tensor.dequantize(torch.float32), expected):
        return "other numbers came out"
    with torch.no_grad():
        tensor.mul_(0.5)
    return ""


WAYS: dict[str, Callable[[random.Random], Tensor | None]] = {
    "torch.load(weights_only=True)": _by_pickle,
    "optimizer.load_state_dict": _by_optimizer,
    "read_safetensors": _by_safetensors,
    "FixedPointTensor": _by_class,
    "lowprec::dequantize": _by_operator,
}
