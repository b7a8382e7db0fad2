"""``lowprec inspect``: what is said of a checkpoint is what is in it."""

from __future__ import annotations

import enum
import importlib
import json
import os
import statistics
import sys
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.data import AttributeDict
from lightning.pytorch import Trainer
from torch import nn

from lowprec_plugin import FixedPointPrecision, FixedPointTensor, memory, optim
from lowprec_plugin.checkpoints.inspect import StoredTensor, inspect_checkpoint
from lowprec_plugin.checkpoints.load import read_file, read_state
from lowprec_plugin.cli.main import main
from lowprec_plugin.formats import MIN_EXPONENT
from lowprec_plugin.tasks import MLP, Classifier, DigitsDataModule


def look(x: torch.Tensor, format: str) -> StoredTensor:
    (stored,) = inspect_checkpoint({"x": FixedPointTensor.quantize(x, format, rounding="nearest")})
    return stored


def by_hand(x: torch.Tensor, format: str) -> tuple[float, float, list[int]]:
    """Shares of saturated codes and of zeros, and exponents of the blocks that are used, number by number."""
    tensor = FixedPointTensor.quantize(x, format, rounding="nearest")
    own, values = tensor.format, tensor.dequantize().reshape(x.shape[0], -1).double()
    saturated, zeros, exponents = 0, 0, []
    for row, numbers in enumerate(values.tolist()):
        for begin in range(0, len(numbers), own.block_size):
            block = numbers[begin : begin + own.block_size]
            exponent = (
                own.static_exponent if tensor.exponents is None else int(tensor.exponents[row, begin // own.block_size])
            )
            if any(block):
                exponents.append(exponent)
            for value in block:
                code = value * 2.0**-exponent
                at_limit = code in (own.max_code, own.min_code)
                saturated += at_limit and (not own.dynamic or exponent == own.max_exponent)
                zeros += value == 0
    return saturated / x.numel(), zeros / x.numel(), exponents


@pytest.mark.parametrize("format", ["fixed16", "fixed8:32", "fixed24", "fixed12:16", "<2,6>", "<2,14>", "<4,16>"])
def test_figures_are_those_counted_by_hand(format: str) -> None:
    x = torch.randn(7, 300) * torch.exp2(torch.arange(7.0) * 3 - 10).unsqueeze(1)
    x[2, :200], x[3] = 0, 0
    x[5, :100] = torch.finfo(torch.float32).max if format.startswith("fixed") else 100.0
    stored, (saturated, zeros, exponents) = look(x, format), by_hand(x, format)
    assert stored.saturated == saturated
    assert stored.saturated > 0
    assert stored.zero == zeros > 0
    assert stored.exponents == (min(exponents), statistics.median_low(exponents), max(exponents))
    assert stored.nbytes == FixedPointTensor.quantize(x, format).nbytes
    assert (stored.elements, stored.float32_nbytes) == (2100, 8400)


def test_nothing_saturates_in_a_dynamic_format_of_ordinary_numbers() -> None:
    assert look(torch.randn(40, 300), "fixed8").saturated == 0
    assert look(torch.zeros(3, 4), "fixed8") == StoredTensor("x", "weights", "fixed8", 12, 15, 48, 0.0, 1.0, None)
    assert look(torch.zeros(3, 0), "fixed8").zero == 0
    assert MIN_EXPONENT not in (look(torch.randn(5), "fixed16").exponents or ())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, memory.MemoryReport]:
    """Of Lightning, and what the run held."""
    path = tmp_path_factory.mktemp("checkpoint") / "last.ckpt"
    plugin = FixedPointPrecision(state_word_length=8, keep_float=["network.5.bias"])
    trainer = Trainer(
        max_steps=3, plugins=plugin, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    module = Classifier(MLP())
    trainer.fit(module, DigitsDataModule())
    trainer.save_checkpoint(path)
    return path, memory.report(module, trainer.optimizers)


def test_a_lightning_checkpoint(checkpoint: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, report = checkpoint
    assert main(["inspect", str(path), f"--json_file={tmp_path / 'stored.json'}"]) == 0
    printed = capsys.readouterr().out
    rows = {row["name"]: row for row in json.loads((tmp_path / "stored.json").read_text())}
    assert len(rows) == 6 + 12
    assert rows["network.1.weight"]["format"] == "fixed16"
    assert rows["network.1.weight.exp_avg"]["format"] == "fixed8"
    assert rows["network.1.weight.exp_avg_sq"]["format"] == "fixed8^2"
    assert rows["network.5.bias"]["format"] == "float32"
    assert rows["network.5.bias"]["saturated"] is None
    weights = sum(row["nbytes"] for row in rows.values() if row["kind"] == "weights")
    state = sum(row["nbytes"] for row in rows.values() if row["kind"] == "state")
    assert weights == report.weights
    assert state == report.state - 4 * 6  # the scalars that count steps
    assert f"{weights + state:,}" in printed.splitlines()[-2]
    assert f"{100 * (weights + state) / (12 * report.elements):.1f} %" in printed.splitlines()[-2]


def test_state_dicts(tmp_path: Path) -> None:
    module = nn.Linear(8, 4)
    optim.quantize_(module)
    optimizer = optim.AdamW(module.parameters())
    module(torch.randn(2, 8)).sum().backward()
    optimizer.step()
    assert [each.name for each in inspect_checkpoint(module.state_dict())] == ["weight", "bias"]
    assert {each.kind for each in inspect_checkpoint(optimizer.state_dict())} == {"state"}
    names = [f"{param}.{state}" for param in ("weight", "bias") for state in ("exp_avg", "exp_avg_sq")]
    assert [each.name for each in inspect_checkpoint(optimizer.state_dict())] == names
    nameless = optim.AdamW([nn.Parameter(FixedPointTensor.quantize(torch.ones(3, 4), "fixed16"))])
    nameless.param_groups[0]["params"][0].grad = torch.ones(3, 4)
    nameless.step()
    paths = [each.name for each in inspect_checkpoint(nameless.state_dict())]
    assert paths == ["state.0.exp_avg", "state.0.exp_avg_sq"]
    both = inspect_checkpoint({"net": module.state_dict(), "opt": [optimizer.state_dict()]})
    assert [each.kind for each in both] == ["weights"] * 2 + ["state"] * 4
    plain = inspect_checkpoint(torch.nn.Linear(8, 4).bfloat16().state_dict())
    assert [(each.format, each.nbytes, each.float32_nbytes) for each in plain] == [
        ("bfloat16", 64, 128),
        ("bfloat16", 8, 16),
    ]


def test_a_tied_tensor_is_stored_once(tmp_path: Path) -> None:
    network = nn.ModuleDict({"embedding": nn.Embedding(20, 16), "head": nn.Linear(16, 20)})
    network["head"].weight = network["embedding"].weight
    optim.quantize_(network)
    torch.save(network.state_dict(), tmp_path / "tied.pt")
    for given in (network.state_dict(), read_file(tmp_path / "tied.pt")):
        found = inspect_checkpoint(given)
        assert [each.name for each in found] == ["embedding.weight = head.weight", "head.bias"]
        assert sum(each.nbytes for each in found) == memory.report(network).weights
    equal = torch.ones(3)
    assert len(inspect_checkpoint({"one": equal, "other": equal.clone(), "none": equal[:0], "nothing": equal[:0]})) == 4


class Kind(enum.Enum):
    """May be a key, and in a set."""

    ONE = 1


class Harmful:
    """Makes a folder when it is unpickled by those who run what a file says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return harm, (str(self.folder),)


def harm(folder: str) -> None:
    Path(folder).mkdir()


def test_objects_of_others_are_left_unread(tmp_path: Path) -> None:
    """As hyperparameters of Lightning's checkpoints are, and the loss scaler in DeepSpeed's."""
    hyperparameters = {
        "path": tmp_path, "by": statistics.NormalDist(), "harm": Harmful(tmp_path / "harm"), Kind.ONE: {Kind.ONE},
    }  # fmt: skip
    torch.save({"hyper_parameters": hyperparameters, "state_dict": {"a": torch.ones(3)}}, tmp_path / "own.ckpt")
    assert [each.name for each in inspect_checkpoint(read_file(tmp_path / "own.ckpt"))] == ["a"]
    assert not (tmp_path / "harm").exists()


class Slotted:
    """Its state is a pair."""

    __slots__ = ("width",)

    def __init__(self) -> None:
        self.width = 3


class Own(OrderedDict[str, Any]):
    """A dict of the user's with attributes of its own."""


class OwnTensor(torch.Tensor):
    """A tensor of the user's."""


class Removed:
    """Makes a folder too, by a function of a module that torch refuses at sight."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
def test_classes_of_every_kind_are_left_unread(tmp_path: Path, protocol: int) -> None:
    """As in checkpoints of chemprop, whose hyperparameters are dicts of Lightning's, with classes and modules in them.

    Of dicts and lists of other classes the tensors are there.
    """
    kinds = {
        "dict": AttributeDict(cls=Kind, width=300, nested=AttributeDict(harm=Removed(tmp_path / "harm"))),
        "module": nn.Sequential(nn.Linear(2, 2), nn.ReLU()), "enum": Kind.ONE, Kind.ONE: {Kind.ONE},
        "slots": Slotted(), "function": os.getcwd, "partial": partial(harm, str(tmp_path / "harm")),
        "method": Kind.ONE.__str__, "list": deque([1, Kind.ONE]), "numpy": np.float64(3), "counts": Counter("ab"),
    }  # fmt: skip
    own, state = Own(a=torch.ones(3), b=torch.zeros(2)), defaultdict(dict)
    own.version = 2  # type: ignore[attr-defined]
    state[0] = {"exp_avg": torch.ones(3)}
    content = {"hyper_parameters": kinds, "state_dict": own, "state": state, "last": deque([torch.ones(4)])}
    torch.save(content, tmp_path / "own.ckpt", pickle_protocol=protocol)
    read = read_file(tmp_path / "own.ckpt")
    assert [each.name for each in inspect_checkpoint(read)] == ["a", "b", "state.0.exp_avg", "last.0"]
    assert read["hyper_parameters"]["dict"]["width"] == 300
    assert read["hyper_parameters"]["counts"] == {"a": 1, "b": 1}
    assert not (tmp_path / "harm").exists()
    torch.save(own, tmp_path / "weights.pt")
    assert read_state(tmp_path / "weights.pt").keys() == {"a", "b"}


def test_nothing_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_classes.py").write_text("class Settings(dict):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = importlib.import_module("their_classes").Settings(width=3)
    torch.save({"settings": settings, "a": torch.ones(3)}, tmp_path / "own.ckpt")
    del sys.modules["their_classes"]
    assert read_file(tmp_path / "own.ckpt")["a"].tolist() == [1, 1, 1]
    assert "their_classes" not in sys.modules
    assert type(torch.load(tmp_path / "own.ckpt", weights_only=False)["settings"]).__module__ in sys.modules


def test_numbers_of_every_dtype_are_read_beside_other_classes(tmp_path: Path) -> None:
    """torch saves those of newer dtypes with an untyped storage."""
    dtypes = (torch.float64, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint64)
    numbers = {str(dtype): torch.arange(3).to(dtype) for dtype in dtypes}
    torch.save({"stage": Kind.ONE, **numbers}, tmp_path / "own.ckpt")
    read = read_file(tmp_path / "own.ckpt")
    assert {name: read[name].dtype for name in numbers} == {str(dtype): dtype for dtype in dtypes}
    assert all(read[name].double().tolist() == [0, 1, 2] for name in numbers)
    assert [each.name for each in inspect_checkpoint(read)] == [name for name in numbers if "uint" not in name]


@pytest.mark.parametrize("path", ["collections Counter", "torch UntypedStorage", "torch.storage UntypedStorage"])
def test_a_file_changes_no_class(tmp_path: Path, path: str) -> None:
    """The state of an object may be attributes to set, and the object a class."""
    torch.save({}, tmp_path / "plain.pt")
    named = "c" + path.replace(" ", "\n") + "\n"
    pickled = b"\x80\x02" + named.encode() + b"N}X\x07\x00\x00\x00changedK\x01s\x86b."
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "crafted.pt", "w") as crafted:
        for name in plain.namelist():
            crafted.writestr(name, pickled if name.endswith("data.pkl") else plain.read(name))
    read_file(tmp_path / "crafted.pt")
    assert not hasattr(Counter, "changed")
    assert not hasattr(torch.UntypedStorage, "changed")


def test_a_tensor_of_another_class_is_named(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3).as_subclass(OwnTensor), "stage": Kind.ONE}, tmp_path / "own.ckpt")
    with pytest.raises(
        ValueError, match=r"a tensor of the class tests\.checkpoints\.test_inspect\.OwnTensor, .*as_subclass"
    ):
        read_file(tmp_path / "own.ckpt")


def test_folders_say_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is a folder, and none that is a checkpoint .*: give a file"):
        read_file(tmp_path)
    (tmp_path / "latest").write_text("global_step2")  # DeepSpeed's
    with pytest.raises(ValueError, match=r"give one process's file, whose name ends in _optim_states\.pt"):
        read_file(tmp_path)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")  # torch 2.15's
def test_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text("not a checkpoint\n")
    (tmp_path / "nothing.pt").write_bytes(b"")
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "array.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'}")
    torch.save({"step": torch.tensor(3), "name": "x"}, tmp_path / "none.pt")
    (tmp_path / "random.pt").write_bytes(bytes([0x80, 2, ord("q"), 0, 7, 9]))  # a pickle's beginning
    torch.save({"code": Path}, tmp_path / "code.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pt")
    torch.save({"graph": torch.eye(3).to_sparse()}, tmp_path / "sparse.pt")
    torch.save({"net": {"a": torch.empty(3, device="meta")}}, tmp_path / "meta.pt")
    expected = {
        "text.txt": "cannot be read as plain data", "nothing.pt": "cannot be read as plain data",
        "cut.pt": "is not whole", "array.npy": "cannot be read as plain data",
        "random.pt": "cannot be read as plain data", "code.pt": "dict holds no tensors of numbers",
        "whole.pt": "holds an object whole (torch.nn.modules.linear.Linear)",
        "sparse.pt": "graph is sparse_coo: only dense tensors are looked at",
        "meta.pt": "net.a is without values, of the meta device",
        "none.pt": "dict holds no tensors of numbers", "": "is a folder", "missing.pt": "there is no checkpoint",
    }  # fmt: skip
    for name, message in expected.items():
        assert main(["inspect", str(tmp_path / name)]) == 2, name
        assert message in capsys.readouterr().err, name


def test_a_file_that_was_cut_off_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cut.ckpt"
    torch.save({"state_dict": {"weight": torch.randn(64, 64)}}, path)
    whole = path.read_bytes()
    for kept in (4, 1000, len(whole) // 2, len(whole) - 100, len(whole) - 1):
        path.write_bytes(whole[:kept])
        for command in (["inspect", str(path)], ["export", "--to=float", f"--checkpoint={path}", "--out=x.pt"]):
            assert main(command) == 2
            told = f"lowprec {command[0]}: {path} is not whole, its end is missing: copy or save it again, or give"
            assert capsys.readouterr().err == f"{told} another checkpoint\n"
