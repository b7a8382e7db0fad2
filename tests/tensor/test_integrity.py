"""Nothing of a file is trusted: a tensor is held against its format, its range and its digest when it is made."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lowprec_plugin import FixedPointFormat, FixedPointTensor, optim
from lowprec_plugin.arithmetic.blocks import Blocks, check_window, from_planes
from lowprec_plugin.formats import MIN_EXPONENT
from lowprec_plugin.tensor import rebuild
from lowprec_plugin.tensor.integrity import Pickled, check_numbers, digest

FORMATS = [
    "fixed2", "fixed8", "fixed9", "fixed16", "fixed16:32", "fixed17", "fixed20", "fixed24", "fixed8^2", "fixed24^2",
    "<4,12>", "<3,5>", "<2,18>",
]  # fmt: skip
ONE_LOW = torch.zeros(1, 1, dtype=torch.uint8)


def stored(format: str, shape: tuple[int, ...] = (3, 300)) -> FixedPointTensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return FixedPointTensor.quantize(x.square() if "^2" in format else x, format, label="w")


def pickled(tensor: Tensor) -> tuple[Any, ...]:
    """What a pickle of ``tensor`` gives to ``rebuild``."""
    return tensor.__reduce_ex__(2)[1]  # type: ignore[return-value]


def changed(arguments: tuple[Any, ...], **changes: Any) -> tuple[Any, ...]:
    """Arguments of ``rebuild`` with some others, and without a digest, as a forger would leave it out."""
    return Pickled(*arguments)._replace(**{"written": None, **changes})


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (0, 4), (3, 300), (2, 3, 5)], ids=str)
def test_what_was_written_is_read(format: str, shape: tuple[int, ...]) -> None:
    tensor = nn.Parameter(stored(format, shape))
    file = io.BytesIO()
    torch.save(tensor, file)
    file.seek(0)
    read = torch.load(file, weights_only=True)
    assert isinstance(read, FixedPointTensor)
    assert all(torch.equal(one, other) for one, other in zip(read.blocks.planes, tensor.blocks.planes, strict=True))
    assert (read.format, read.stream, read.label) == (tensor.format, tensor.stream, tensor.label)


def test_what_an_earlier_version_wrote_has_no_digest() -> None:
    tensor = stored("fixed16")
    assert torch.equal(rebuild(*pickled(tensor)[:-1]).codes, tensor.codes)  # type: ignore[attr-defined]


PLANES: dict[str, Callable[[FixedPointTensor], dict[str, Any]]] = {
    "expanded codes": lambda x: {"codes": x.codes[:1, :1].expand(x.codes.shape)},
    "transposed codes": lambda x: {"codes": x.codes.t().contiguous().t()},
    "codes of every other element": lambda x: {"codes": x.codes.repeat(1, 2)[:, ::2]},
    "int8 codes of 16 bits": lambda x: {"codes": x.codes.to(torch.int8)},
    "int16 codes of 8 bits": lambda x: {"format": "fixed8"},
    "float codes": lambda x: {"codes": x.codes.float()},
    "int32 codes": lambda x: {"codes": x.codes.int()},
    "bool codes": lambda x: {"codes": x.codes.bool(), "format": "fixed8"},
    "uint8 codes": lambda x: {"codes": x.codes.view(torch.uint8)[:, ::2].contiguous(), "format": "fixed8"},
    "sparse codes": lambda x: {"codes": x.codes.to_sparse()},
    "codes on meta": lambda x: {"codes": x.codes.to("meta")},
    "codes that are fixed-point": lambda x: {"codes": x},
    "no codes": lambda x: {"codes": None},
    "codes that are a list": lambda x: {"codes": x.codes.tolist()},
    "no exponents": lambda x: {"exponents": None},
    "exponents of a static format": lambda x: {"format": "<4,12>"},
    "too few exponents": lambda x: {"exponents": x.exponents[:1]},  # type: ignore[index]
    "too many exponents": lambda x: {"exponents": x.exponents.repeat(1, 2)},  # type: ignore[union-attr]
    "exponents of other blocks": lambda x: {"format": "fixed16:128"},
    "expanded exponents": lambda x: {"exponents": x.exponents[:1, :1].expand(3, 2)},  # type: ignore[index]
    "exponents in one dimension": lambda x: {"exponents": x.exponents.reshape(-1)},  # type: ignore[union-attr]
    "int32 exponents": lambda x: {"exponents": x.exponents.int()},  # type: ignore[union-attr]
    "bool exponents": lambda x: {"exponents": x.exponents.bool()},  # type: ignore[union-attr]
    "exponents on meta": lambda x: {"exponents": x.exponents.to("meta")},  # type: ignore[union-attr]
    "a lower plane of 16 bits": lambda x: {"low": x.codes.to(torch.uint8)},
    "no lower plane of 24 bits": lambda x: {"format": "fixed24"},
    "one byte of a lower plane": lambda x: {"format": "fixed24", "low": ONE_LOW},
    "an expanded lower plane": lambda x: {"format": "fixed24", "low": ONE_LOW.expand(3, 300)},
    "an int8 lower plane": lambda x: {"format": "fixed24", "low": torch.zeros(3, 300, dtype=torch.int8)},
    "a window behind the codes": lambda x: {"geometry": ((2,), (1,), 899)},
    "a window before the codes": lambda x: {"geometry": ((2,), (1,), -1)},
    "a window in strides": lambda x: {"geometry": ((3, 300), (301, 1), 0)},
    "a window backwards": lambda x: {"geometry": ((2,), (-1,), 5)},
    "a window of negative size": lambda x: {"geometry": ((-2,), (1,), 0)},
    "a window without strides": lambda x: {"geometry": ((2, 2), (1,), 0)},
    "a window that is none": lambda x: {"geometry": "all of it"},
    "a window of text": lambda x: {"geometry": (("2",), (1,), 0)},
    "an exponent too small": lambda x: {"exponents": torch.full((3, 2), -128, dtype=torch.int8)},
    "an exponent too large": lambda x: {"exponents": torch.full((3, 2), 114, dtype=torch.int8)},
    "a code too large": lambda x: {"format": "fixed12"},
    "a code of two's complement": lambda x: {"codes": torch.full((3, 300), -32768, dtype=torch.int16)},
    "a negative root": lambda x: {"format": "fixed16^2"},
    "another format": lambda x: {"format": "fixed25"},
    "no format": lambda x: {"format": None},
    "an integer dtype": lambda x: {"dtype": torch.int32},
    "no dtype": lambda x: {"dtype": "float32"},
    "another rounding": lambda x: {"rounding": "upwards"},
    "a stream of text": lambda x: {"stream": "w"},
    "a label of bytes": lambda x: {"label": b"w"},
    "a row before the first": lambda x: {"first_row": -1},
    "a row beyond all": lambda x: {"first_row": 2**62},
    "a row of text": lambda x: {"first_row": "0"},
    "roundings of a float": lambda x: {"roundings": 0.5},
    "a parameter of 1": lambda x: {"parameter": 1},
    "a gradient of text": lambda x: {"requires_grad": "no"},
    "whole rows of text": lambda x: {"whole_rows": "3"},
}  # fmt: skip


@pytest.mark.parametrize("case", PLANES)
def test_what_cannot_have_been_written_is_refused(case: str) -> None:
    tensor = stored("fixed16")
    with pytest.raises(ValueError, match="in a file is damaged"):
        rebuild(*changed(pickled(tensor), **PLANES[case](tensor)))


STRUCTURAL = list(PLANES)[: list(PLANES).index("a window behind the codes")]


@pytest.mark.parametrize("case", STRUCTURAL)
def test_no_way_in_goes_round_the_check(case: str) -> None:
    """The class itself, what torch.compile puts together, and the operator of compiled graphs."""
    tensor = stored("fixed16")
    given = {
        "codes": tensor.codes,
        "low": None,
        "exponents": tensor.exponents,
        "format": "fixed16",
        **PLANES[case](tensor),
    }
    format = FixedPointFormat.parse(given.pop("format"))
    inner = {f"_{name}": plane for name, plane in given.items() if plane is not None}
    context = (format, *tensor.__tensor_flatten__()[1][1:])
    for make in (
        lambda: FixedPointTensor(Blocks(**given), format),
        lambda: FixedPointTensor.__tensor_unflatten__({"_codes": None, **inner}, context, (3, 300), (300, 1)),
    ):
        with pytest.raises(ValueError, match=r"and \S+ (needs|has none)"):
            make()
    if "meta" in case:  # torch asks for the shape alone then, and nothing is read
        return
    # torch itself refuses what is no tensor.
    with pytest.raises((ValueError, RuntimeError, NotImplementedError)):
        torch.ops.lowprec.dequantize(*given.values(), str(format), torch.float32)


@pytest.mark.parametrize("format", FORMATS)
def test_every_flipped_bit_is_noticed(format: str) -> None:
    """Of codes, of exponents, and of what is stored with them."""
    arguments = pickled(stored(format, (3, 20)))
    for place, plane in enumerate(arguments[:3]):
        if plane is None:
            continue
        flipped = plane.clone()
        flat = flipped.view(torch.uint8).reshape(-1)
        for byte in range(len(flat)):
            for bit in range(8):
                flat[byte] ^= 1 << bit
                with pytest.raises(ValueError, match="in a file is damaged"):
                    rebuild(*arguments[:place], flipped, *arguments[place + 1 :])
                flat[byte] ^= 1 << bit
    facts = {
        4: torch.bfloat16, 5: "nearest", 6: arguments[6] ^ 1, 7: "v", 8: 1, 9: 1, 10: ((3, 20), (20, 1), 0), 11: True,
        12: True, 13: 3, 14: "00000000",
    }  # fmt: skip
    for place, fact in facts.items():
        with pytest.raises(ValueError, match="in a file is damaged"):
            rebuild(*arguments[:place], fact, *arguments[place + 1 :])
    assert torch.equal(rebuild(*arguments).codes, arguments[0])  # type: ignore[attr-defined]


@given(st.data())
@settings(max_examples=300)
def test_planes_fit_or_are_refused(data: st.DataObject) -> None:
    """Of planes of any kind, what is taken reads as the law says; the kernels see no others."""
    format = FixedPointFormat.parse(data.draw(st.sampled_from(FORMATS)))
    dtypes = st.sampled_from([torch.int8, torch.int16, torch.int32, torch.uint8, torch.bool, torch.float32])
    sizes = st.lists(st.integers(0, 40), max_size=3)

    def plane(likely: torch.dtype, shape: list[int] | None) -> Tensor | None:
        kind = data.draw(st.sampled_from(["likely", "likely", "likely", "any", "none"]))
        if kind == "none":
            return None
        dtype = likely if kind == "likely" else data.draw(dtypes)
        size = shape if kind == "likely" and shape is not None else data.draw(sizes)
        made = torch.randint(0, 2, size, generator=torch.Generator().manual_seed(0)).to(dtype)
        return made if kind == "likely" else data.draw(st.sampled_from([made, made.mT if made.dim() > 1 else made]))

    codes = plane(torch.int8 if format.container_bytes == 1 else torch.int16, None)
    shape = [] if codes is None else list(codes.shape)
    rows, row_length = (
        (shape[0], codes.numel() // shape[0]) if codes is not None and codes.numel() and shape else (1, 1)
    )
    low = plane(torch.uint8, shape) if format.container_bytes == 3 else None
    exponents = plane(torch.int8, [rows, format.blocks_per_row(row_length)]) if format.dynamic else None
    try:
        tensor = FixedPointTensor(Blocks(codes, low, exponents), format)  # type: ignore[arg-type]
    except ValueError:
        return
    assert codes is not None
    integers = from_planes(tensor.blocks, format).double()
    if exponents is None:
        expected = integers * 2.0**format.static_exponent
    else:
        by_element = exponents.double().repeat_interleave(format.block_size, 1)[:, : integers.numel() // max(rows, 1)]
        expected = integers * torch.exp2(by_element).reshape(integers.shape)
    if format.squared:
        expected = expected.square()
    assert torch.equal(tensor.dequantize().double(), expected.float().double())


def test_ranges_are_exactly_the_formats() -> None:
    """The ends themselves are taken."""
    for text in FORMATS:
        format = FixedPointFormat.parse(text)
        lowest = 0 if format.squared else format.min_code
        tensor = stored(text, (1, 2))
        for end in (lowest, format.max_code):
            planes = FixedPointTensor(tensor.blocks.map(torch.clone), format)
            codes = torch.full((1, 2), end, dtype=torch.int32)
            if format.container_bytes == 3:
                wide = codes << (24 - format.word_length)
                planes.codes.copy_(wide >> 8)
                assert planes.blocks.low is not None
                planes.blocks.low.copy_(wide & 255)
            else:
                planes.codes.copy_(codes)
            for exponent in (MIN_EXPONENT, format.max_exponent) if format.dynamic else (0,):
                if planes.exponents is not None:
                    planes.exponents.fill_(exponent)
                check_numbers(planes.blocks, format)


def test_a_window_inside_is_taken() -> None:
    check_window((3, 300), (300, 1), 0, 900)
    check_window((2,), (0,), 899, 900)
    check_window((0, 5), (1, 1), 900, 900)
    check_window((), (), 899, 900)


def test_a_state_from_a_file_leaves_the_optimizer_as_it_was() -> None:
    layer = nn.Linear(300, 3, bias=False)
    optim.quantize_(layer, "fixed16")
    optimizer = optim.AdamW(layer.parameters(), lr=1e-2)
    layer(torch.ones(2, 300)).sum().backward()
    optimizer.step()
    before = pickle.dumps(optimizer.state_dict())
    codes = torch.ones(3, 300, dtype=torch.int8)
    with pytest.raises(ValueError, match="and fixed16 needs contiguous int16"):
        rebuild(*changed(pickled(optimizer.state[layer.weight]["exp_avg"]), codes=codes))
    assert pickle.dumps(optimizer.state_dict()) == before


def test_a_tensor_without_values_has_no_digest() -> None:
    blocks = stored("fixed16").blocks.map(lambda plane: plane.to("meta"))
    assert digest(blocks) is None
    check_numbers(blocks, FixedPointFormat(16))
    file = io.BytesIO()
    torch.save({"w": stored("fixed16")}, file)
    file.seek(0)
    assert torch.load(file, map_location="meta", weights_only=True)["w"].is_meta


ARGUMENTS: list[dict[str, Any]] = [
    {"label": ()}, {"seed": "x"}, {"first_row": "x"}, {"first_row": -1}, {"first_row": 2**62}, {"dtype": 4},
    {"dtype": int}, {"dtype": torch.int8}, {"rounding": "up"},
]  # fmt: skip


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_arguments_of_another_kind(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        FixedPointTensor.quantize(torch.ones(2, 3), "fixed16", **arguments)


class _Call:
    """Pickled as a call."""

    def __init__(self, *call: Any) -> None:
        self._call = call

    def __reduce__(self) -> Any:
        return self._call


def _as_eight_bits_of_sixteen() -> OrderedDict[str, Any]:
    format: OrderedDict[str, Any] = OrderedDict()
    format.__dict__.update(vars(FixedPointFormat(16)), dynamic=True, container_bytes=2)
    return format


@pytest.mark.parametrize(
    "attributes",
    [
        {"_codes": torch.zeros(4, 300, dtype=torch.int8)},
        {"_exponents": torch.zeros(0, dtype=torch.int8)},
        {"_low": torch.zeros(4, 300, dtype=torch.uint8)},
        {"format": _as_eight_bits_of_sixteen()},
    ],
    ids=lambda attributes: next(iter(attributes)),
)
@pytest.mark.parametrize("written_by", ["fused", "copy_"])
def test_planes_that_a_pickle_sets_after_the_tensor_was_made_are_not_written(attributes, written_by):
    whole = FixedPointTensor.quantize(torch.ones(4, 300), "fixed16")
    file = io.BytesIO()
    torch.save(_Call(torch._utils._rebuild_parameter_with_state, (whole, True, None, attributes)), file)
    file.seek(0)
    read = torch.load(file, weights_only=True)
    read.grad = torch.ones(4, 300)
    optimizer = optim.adopt(torch.optim.SGD([read], 0.1))
    write = optimizer.step if written_by == "fused" else lambda: read.data.copy_(torch.ones(4, 300))
    with pytest.raises(ValueError, match=r"needs|has none|is not a FixedPointFormat"):
        write()
