"""``lowprec export`` and ``lowprec cost``: from a checkpoint to a file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from lowprec_plugin import FixedPointPrecision, FixedPointTensor
from lowprec_plugin.cli.main import main
from lowprec_plugin.export import read_safetensors, to_c, to_hls
from lowprec_plugin.tasks import MLP, Classifier, DigitsDataModule
from tests.export import nets

CONFIGS = Path(__file__).parent.parent.parent / "configs"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of Lightning, a few steps of the shipped configuration in <3,13>."""
    path = tmp_path_factory.mktemp("checkpoint") / "last.ckpt"
    trainer = Trainer(
        max_steps=3, plugins=FixedPointPrecision(fraction_length=13), accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(Classifier(MLP()), DigitsDataModule())
    trainer.save_checkpoint(path)
    return path


def export(to: str, checkpoint: Path, out: Path, *more: str) -> int:
    return main(["export", "--to", to, "--checkpoint", str(checkpoint), "--out", str(out), *more])


def stored(checkpoint: Path) -> dict[str, Any]:
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def test_weights_alone(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = stored(checkpoint)
    assert all(isinstance(value, FixedPointTensor) for value in state.values())
    assert export("safetensors", checkpoint, tmp_path / "net.safetensors") == 0
    assert f"wrote {tmp_path / 'net.safetensors'}" in capsys.readouterr().out
    read = read_safetensors(tmp_path / "net.safetensors")
    assert export("float", checkpoint, tmp_path / "net.pt") == 0
    floats = torch.load(tmp_path / "net.pt", weights_only=True)
    for name, value in state.items():
        assert torch.equal(read[name].dequantize(), value.dequantize())
        assert torch.equal(floats[name], value.dequantize())
    assert export("c", checkpoint, tmp_path / "net.h", "--leave_out+=*.bias") == 0
    assert "_bias" not in (tmp_path / "net.h").read_text()
    to_c(state, tmp_path / "other" / "net.h", leave_out="*.bias")
    assert (tmp_path / "net.h").read_text() == (tmp_path / "other" / "net.h").read_text()


def test_a_state_dict_will_do(checkpoint: Path, tmp_path: Path) -> None:
    torch.save(stored(checkpoint), tmp_path / "weights.pt")
    assert export("hls", tmp_path / "weights.pt", tmp_path / "net.h") == 0
    to_hls(stored(checkpoint), tmp_path / "other" / "net.h")
    assert (tmp_path / "net.h").read_text() == (tmp_path / "other" / "net.h").read_text()


def test_a_network_by_its_configuration(checkpoint: Path, tmp_path: Path) -> None:
    options = ["--config", str(CONFIGS / "digits.yaml"), "--network=network", "--input_shape=[1,8,8]"]
    assert export("c", checkpoint, tmp_path / "net.h", *options, "--activations=<8,8>") == 0
    module = Classifier(MLP())
    module.load_state_dict(stored(checkpoint), assign=True)
    to_c(module, tmp_path / "other" / "net.h", network="network", input_shape=(1, 8, 8), activations="<8,8>")
    text = (tmp_path / "net.h").read_text()
    assert text == (tmp_path / "other" / "net.h").read_text()
    assert "static void net_run(const int32_t *input, int32_t *output, int32_t *work)" in text
    assert export("onnx", checkpoint, tmp_path / "net.onnx", *options) == 0
    assert (tmp_path / "net.onnx").stat().st_size < 2.2 * sum(param.numel() for param in module.parameters())


def test_a_network_by_its_import_path(tmp_path: Path) -> None:
    torch.save(nets.trained("<3,13>").state_dict(), tmp_path / "weights.pt")
    options = [
        "--module=tests.export.nets.initial",
        "--input_shape=[1,8,8]",
        "--activations={'1': '<6,6>', '*': '<8,8>'}",
    ]
    assert export("hls", tmp_path / "weights.pt", tmp_path / "net.h", *options) == 0
    assert "typedef ap_fixed<12, 6, AP_RND_CONV, AP_SAT> net_1_out_t;" in (tmp_path / "net.h").read_text()


@pytest.mark.parametrize(
    ("to", "options", "message"),
    [
        ("safetensors", ["--input_shape=[3]"], r"input_shape=\(3,\) is of no use with --to='safetensors'"),
        ("onnx", ["--leave_out=[a]", "--module=m"], "leave_out=\\('a',\\) is of no use with --to='onnx'"),
        ("onnx", ["--module=tests.export.nets.initial"], "to='onnx' needs input_shape"),
        ("onnx", ["--input_shape=[3]"], "give --module or --config too"),
        ("c", ["--module=nets.initial"], r"'nets.initial' cannot be imported \(No module named 'nets'\)"),
        ("c", ["--module=tests.export.nets.digits"], "gave tuple, not a torch.nn.Module"),
        ("c", ["--module=torch.nn.Linear"], "torch.nn.Linear is called without arguments, and answers: .* missing"),
        ("c", ["--module=tests.export.nets.initial"], "the checkpoint is not that of tests.export.nets.initial"),
        ("c", ["--module=a.b", "--config=c"], "module='a.b' and --config='c': give one of them"),
        ("c", ["--config=configs/none.yaml"], "config=.configs/none.yaml. cannot be read: .*No such file"),
        ("c", ["--config=README.md"], "config=.README.md. cannot be read"),
        ("c", ["--config=configs/deepspeed_zero2.json"], "deepspeed_zero2.json has no model: with a class_path"),
    ],
)
def test_refused(
    to: str, options: list[str], message: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(to, checkpoint, tmp_path / "net.h", *options) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert list(tmp_path.iterdir()) == []


def test_files_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {"a": 1}}, tmp_path / "empty.pt")
    torch.save({"callbacks": Path}, tmp_path / "code.pt")
    torch.save({"a": torch.ones(9)}, tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:400])
    (tmp_path / "nothing.pt").touch()
    (tmp_path / "text.pt").write_text("hello\n")
    expected = {
        "none.pt": "there is no checkpoint", "empty.pt": "without tensors by name", "": "is a folder, and none",
        "code.pt": "without tensors by name",
        "cut.pt": "cut.pt is not whole, its end is missing",
        **{name: f"{name} cannot be read" for name in ("nothing.pt", "text.pt")},
    }  # fmt: skip
    for name, message in expected.items():
        assert export("float", tmp_path / name, tmp_path / "out.pt") == 2
        assert message in capsys.readouterr().err


def test_an_output_that_cannot_be_written(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for out in ("file/out.safetensors", "folder"):
        assert export("safetensors", checkpoint, tmp_path / out) == 2
        assert re.search(r"^lowprec export: .*(exists|directory).*tmp", capsys.readouterr().err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_configurations_refused(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "class.yaml").write_text("model:\n  class_path: no.such.Class\n")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    expected = {
        "class.yaml": "model='no.such.Class' cannot be imported: .*No module named 'no'",
        "bytes.yaml": "bytes.yaml' cannot be read",
    }
    for name, message in expected.items():
        assert export("c", checkpoint, tmp_path / "net.h", f"--config={tmp_path / name}") == 2
        error = capsys.readouterr().err
        assert re.search(message, error, re.DOTALL), error


def test_cost(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["cost", "--input_shape=[1,28,28]", "--batch_size=100", "--module=lowprec_plugin.tasks.CNN"]
    assert main(options) == 0
    printed = capsys.readouterr().out
    assert "28 x 28 units of 1 DSP, 784 + 28 for rounding = 812 of 840 DSPs" in printed
    assert "6400 x 200 x 16" in printed
    assert main([*options, "--word_length=24", "--dsps=1"]) == 2
    assert "dsps=1 is less than the" in capsys.readouterr().err
    assert main(["cost", "--input_shape=[4]"]) == 2
