"""safetensors, and what writes by it, asked to write fixed-point weights: refused in words, and the words work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lowprec_plugin import export, optim

safetensors = pytest.importorskip("safetensors.torch")

WORDS = r"no memory of floats that safetensors could write.*float_state_dict.*to_safetensors"


def net() -> nn.Module:
    module = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    optim.quantize_(module)
    return module


@pytest.mark.parametrize(
    "write",
    [
        lambda module, path: safetensors.save_file(module.state_dict(), path),
        lambda module, path: safetensors.save_model(module, path),
        lambda module, path: path.write_bytes(safetensors.save(module.state_dict())),
        lambda module, path: safetensors.save_file({"x": module[0].weight}, path),
    ],
    ids=["save_file", "save_model", "save", "a parameter"],
)
def test_weights_are_refused(write: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=WORDS):
        write(net(), tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


def test_what_the_words_say(tmp_path: Path) -> None:
    """Floats come back as the codes that they were."""
    module, other = net(), net()
    safetensors.save_file(optim.float_state_dict(module), tmp_path / "floats.safetensors")
    other.load_state_dict(safetensors.load_file(tmp_path / "floats.safetensors"))
    export.to_safetensors(module, tmp_path / "codes.safetensors")
    codes = export.read_safetensors(tmp_path / "codes.safetensors")
    for name, param in module.named_parameters():
        for found in (other.get_parameter(name), codes[name]):
            assert torch.equal(found.codes, param.codes)  # type: ignore[attr-defined]


def test_save_pretrained(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=20, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    model = transformers.GPT2LMHeadModel(config)
    optim.quantize_(model)
    with pytest.raises(ValueError, match=WORDS):
        model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path, state_dict=optim.float_state_dict(model))
    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
    for name, param in model.named_parameters():
        assert torch.equal(again.get_parameter(name), param.dequantize())
