"""safetensors: what a reader in NumPy gets, and what comes back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from lowprec_plugin import FixedPointFormat, FixedPointTensor, optim
from lowprec_plugin.export import read_safetensors, to_float, to_safetensors
from tests.export import nets

DOCS = Path(__file__).parent.parent.parent / "docs" / "export.md"


def documented_reader() -> tuple[str, Any]:
    """The reader in the documentation, and what it defines."""
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S) if "safe_open" in block)
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    return code, namespace["read"]


def test_the_reader_is_short_and_needs_numpy_alone() -> None:
    code, _ = documented_reader()
    assert len(code.splitlines()) <= 30
    assert set(re.findall(r"^(?:from|import) (\w+)", code, re.M)) == {"json", "numpy", "safetensors"}


@st.composite
def formats(draw: st.DrawFn) -> FixedPointFormat:
    word_length = draw(st.integers(2, 24))
    fraction_length = draw(st.none() | st.integers(-100, 100))
    return FixedPointFormat(word_length, fraction_length, draw(st.sampled_from([16, 32, 256])))


@st.composite
def stored(draw: st.DrawFn) -> FixedPointTensor:
    format = draw(formats())
    shape = draw(st.sampled_from([(), (7,), (3, 40), (2, 3, 5, 5), (4, 0), (0, 3)]))
    centre = draw(st.integers(-60, 60)) if format.dynamic else format.static_exponent + format.word_length - 2
    x = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    return FixedPointTensor.quantize(x * 2.0**centre, format, seed=1, label="x")


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.int32)


@settings(max_examples=60)
@given(tensors=st.lists(stored(), min_size=1, max_size=3), other=st.booleans())
def test_floats_come_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, tensors: Any, other: bool) -> None:
    path = tmp_path_factory.getbasetemp() / "x.safetensors"
    state: dict[str, Tensor] = {f"layer.{index}": tensor for index, tensor in enumerate(tensors)}
    if other:
        state |= {"running_mean": torch.randn(3), "batches": torch.tensor(5)}
    to_safetensors(state, path)
    read, back = documented_reader()[1](str(path)), read_safetensors(path)
    assert read.keys() == back.keys() == state.keys()
    for name, tensor in state.items():
        if not isinstance(tensor, FixedPointTensor):
            assert torch.equal(back[name], tensor)
            assert np.array_equal(read[name], tensor.numpy())
            continue
        assert read[name].dtype == np.float32
        assert torch.equal(bits(torch.tensor(read[name])), bits(tensor.dequantize()))
        again = back[name]
        assert isinstance(again, FixedPointTensor)
        assert again.format == tensor.format
        assert all(torch.equal(one, two) for one, two in zip(again.blocks.planes, tensor.blocks.planes, strict=True))


def test_a_module_goes_on_with_what_was_read(tmp_path: Path) -> None:
    net = nets.trained("<3,13>")
    to_safetensors(net, tmp_path / "net.safetensors")
    other = nets.initial()
    other.load_state_dict(read_safetensors(tmp_path / "net.safetensors"), assign=True)
    _, _, images, _ = nets.digits()
    assert torch.equal(other(images), net(images))
    assert all(isinstance(param, FixedPointTensor) for param in other.parameters())
    streams = [param.stream for param in net.parameters()]
    assert [param.stream for param in other.parameters()] == streams
    assert len(set(streams)) == len(streams)
    size = (tmp_path / "net.safetensors").stat().st_size
    assert size < 2 * sum(param.numel() for param in net.parameters()) + 1000


def test_tied_parameters(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    optim.quantize_(net)
    to_safetensors(net, tmp_path / "net.safetensors")
    back = read_safetensors(tmp_path / "net.safetensors")
    assert torch.equal(back["0.weight"].dequantize(), back["1.weight"].dequantize())


def test_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    x = FixedPointTensor.quantize(torch.randn(4, 300), "fixed16")
    to_safetensors({"x": x}, path)
    before = path.read_bytes()
    refused = [
        ({"x": x, "x.exponents": torch.ones(3)}, "'x.exponents' is both a plane of a fixed-point tensor and a name"),
        ({"x": x, "epoch": 3}, "'epoch' is int, and safetensors holds tensors"),
        ({"x": x[:, 1:]}, r"'x', shape \(4, 299\), is a window on the codes of a tensor of shape \(4, 300\)"),
        ({"x": FixedPointTensor.quantize(torch.ones(3), "fixed8^2")}, r"'x' is in fixed8\^2, square roots of an"),
        ({"x": torch.ones(3)}, r"none of the 1 entries is in fixed-point \(x\)"),
    ]
    for state, message in refused:
        with pytest.raises(ValueError, match=message):
            to_safetensors(state, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    from safetensors.torch import save_file

    save_file({"x": torch.ones(3)}, path)
    with pytest.raises(ValueError, match="has no metadata 'lowprec'"):
        read_safetensors(path)


def fields(name: str, **changed: Any) -> str:
    return json.dumps({name: {"word_length": 16, "fraction_length": None, "block_size": 256, **changed}})


@pytest.mark.parametrize(
    ("formats", "message"),
    [
        ("{", "has metadata 'lowprec' that is no JSON"),
        ("[" * 100_000, "has metadata 'lowprec' that is no JSON"),
        ("[1]", "has metadata 'lowprec' that is no mapping of names to formats"),
        ('{"x": 3}', "says of 'x' 3 and not word_length, fraction_length, block_size"),
        ('{"x": {"word_length": 16}}', "says of 'x' {'word_length': 16} and not word_length, fraction_length, block"),
        (fields("x", squared=True), "says of 'x' {'word_length': 16, 'fraction_length': None, 'block_size': 256, 'sq"),
        (fields("x", word_length="16"), "says of 'x' word_length='16' is not an integer"),
        (fields("x", word_length=40), "says of 'x' word_length=40 is not supported: choose 2 to 24"),
        (fields("x", fraction_length=[]), "says of 'x' fraction_length=[] is not an integer"),
        (fields("y"), "names a format for 'y', whose codes it does not hold"),
        (fields("z"), "holds a damaged tensor 'z': the exponents are missing, and fixed16 needs"),
        (fields("z", word_length=20), "holds a damaged tensor 'z': the lower codes are missing, and fixed20 needs"),
    ],
)
def test_damaged_metadata_is_told_with_the_file(tmp_path: Path, formats: str, message: str) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "net.safetensors"
    planes = {"x": torch.ones(3, dtype=torch.int16), "z": torch.ones(3, dtype=torch.int16)}
    save_file({**planes, "x.exponents": torch.ones(3, 1, dtype=torch.int8)}, path, {"lowprec": formats})
    with pytest.raises(ValueError, match=re.escape(f"{path} {message}")) as info:
        read_safetensors(path)
    assert str(info.value).endswith("write it again with to_safetensors, or take another copy")


def test_a_damaged_file_is_told_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    to_safetensors({"x": FixedPointTensor.quantize(torch.randn(4, 300), "fixed16")}, path)
    whole, said = path.read_bytes(), []
    header = 8 + int.from_bytes(whole[:8], "little")
    damaged = [whole[:cut] for cut in (0, 7, 8, 100, header, len(whole) - 1)]
    for bit in range(8 * header):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(flipped))
    for content in damaged:
        path.write_bytes(content)
        try:
            read_safetensors(path)  # a flipped bit of a name is another name
        except ValueError as error:
            said.append(str(error))
    assert len(said) > len(damaged) / 2
    assert [each for each in said if not each.startswith(str(path))] == []
    with pytest.raises(OSError, match=re.escape(str(tmp_path))):
        read_safetensors(tmp_path)


def test_plain_floats(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(300, 5), nn.BatchNorm1d(5))
    optim.quantize_(net, "fixed12")
    to_float(net, tmp_path / "net.pt")
    read = torch.load(tmp_path / "net.pt", weights_only=True)
    assert all(type(value) is Tensor for value in read.values())
    other = nn.Sequential(nn.Linear(300, 5), nn.BatchNorm1d(5))
    other.load_state_dict(read)
    optim.quantize_(other, "fixed12")  # rounds to nearest: the same codes
    assert torch.equal(other[0].weight.codes, net[0].weight.codes)
    assert torch.equal(bits(other[0].weight.dequantize()), bits(net[0].weight.dequantize()))


def test_every_flipped_bit_of_a_number_is_refused(tmp_path: Path) -> None:
    """Floats' too. A file of an earlier version has no digest, and is read."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    module = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))
    optim.quantize_(module, keep_float="1.*")
    path = tmp_path / "net.safetensors"
    to_safetensors(module, path)
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    for byte in range(begin, len(content)):
        path.write_bytes(content[:byte] + bytes([content[byte] ^ 1 << byte % 8]) + content[byte + 1 :])
        with pytest.raises(ValueError, match=r"net\.safetensors is damaged, its digest"):
            read_safetensors(path)
    path.write_bytes(content)
    with safe_open(path, "pt") as file:
        metadata, entries = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del metadata["lowprec_digest"]
    save_file(entries, path, metadata)
    assert torch.equal(read_safetensors(path)["0.weight"].codes, module[0].weight.codes)  # type: ignore[attr-defined]
