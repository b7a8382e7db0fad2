"""The kinds of files that :mod:`faulty.damage` damages: how each is written, and what is read of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed.checkpoint as dcp
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lowprec_plugin import FixedPointPrecision, FixedPointTensor, optim
from lowprec_plugin.export import read_safetensors, to_safetensors


class Kind(Protocol):
    """A kind of file. Only :meth:`read` is given damaged ones."""

    what: str

    def write(self, stem: Path) -> Path:
        """Write a file or a folder, named as ``stem`` with an ending of its own."""

    def read(self, path: Path) -> dict[str, Any]:
        """All weights and state that a run would go on with, comparable by ``==``."""


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 2))


def _trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    network = _network()
    optim.quantize_(network, "fixed16")
    optimizer = optim.AdamW(network.parameters(), lr=1e-2, state_word_length=8)
    for _ in range(3):
        optimizer.zero_grad()
        network(torch.randn(8, 20)).square().mean().backward()
        optimizer.step()
    return network, optimizer


def _numbers(held: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every tensor in ``held`` by its place, as what it holds."""
    if isinstance(held, FixedPointTensor):
        planes = [plane.tolist() for plane in held.blocks.planes]
        yield path, (str(held.format), tuple(held.shape), held.stream, held.first_row, held.roundings, planes)
    elif isinstance(held, Tensor):
        yield path, (str(held.dtype), held.tolist())
    elif isinstance(held, Mapping):
        for name, value in held.items():
            yield from _numbers(value, f"{path}/{name}")
    elif isinstance(held, list):
        for index, value in enumerate(held):
            yield from _numbers(value, f"{path}/{index}")


def _codes(held: Any) -> dict[str, Any]:
    """As :func:`_numbers`, of fixed-point tensors alone: floats carry no digest of their own."""
    return {path: value for path, value in _numbers(held) if len(value) > 2}


class Weights:
    """``torch.save(module.state_dict())``."""

    what = "a module's state dict, by torch.save"

    def write(self, stem: Path) -> Path:
        path = stem.with_suffix(".pt")
        torch.save(_trained()[0].state_dict(), path)
        return path

    def read(self, path: Path) -> dict[str, Any]:
        network = _trained()[0]
        network.load_state_dict(torch.load(path, weights_only=True))
        return _codes(network.state_dict())


class OptimizerState:
    """``torch.save(optimizer.state_dict())``: moments; counts of steps are floats, without a digest."""

    what = "an optimizer's state dict, by torch.save"

    def write(self, stem: Path) -> Path:
        path = stem.with_suffix(".pt")
        torch.save(_trained()[1].state_dict(), path)
        return path

    def read(self, path: Path) -> dict[str, Any]:
        optimizer = _trained()[1]
        optimizer.load_state_dict(torch.load(path, weights_only=True))
        return _codes(optimizer.state_dict()["state"])


class _Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(_network(), nn.BatchNorm1d(2))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return self.network(batch[0]).square().mean() + self.network(batch[0]).mean().exp()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-2)


class LightningCheckpoint:
    """A checkpoint of a Trainer with the plugin: weights, buffers, state and counts, floats too."""

    what = "a Lightning checkpoint under the plugin, resumed"

    def _fit(self, path: Path | None) -> tuple[Trainer, LightningModule]:
        x = torch.randn(32, 20, generator=torch.Generator().manual_seed(1))
        module = _Module()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = Trainer(
                max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                enable_model_summary=False, plugins=FixedPointPrecision(state_word_length=8),
            )  # fmt: skip
            trainer.fit(module, DataLoader(TensorDataset(x), batch_size=8), ckpt_path=path, weights_only=False)
        return trainer, module

    def write(self, stem: Path) -> Path:
        path = stem.with_suffix(".ckpt")
        self._fit(None)[0].save_checkpoint(path)
        return path

    def read(self, path: Path) -> dict[str, Any]:
        trainer, module = self._fit(path)  # which has made its steps already
        return dict(_numbers({"module": module.state_dict(), "optimizer": trainer.optimizers[0].state_dict()["state"]}))


class DistributedCheckpoint:
    """A folder of ``torch.distributed.checkpoint``."""

    what = "a distributed checkpoint (DCP)"

    def write(self, stem: Path) -> Path:
        network, optimizer = _trained()
        dcp.save({"network": network.state_dict(), "state": optimizer.state_dict()["state"]}, checkpoint_id=stem)
        return stem

    def read(self, path: Path) -> dict[str, Any]:
        network, optimizer = _trained()
        state = {"network": network.state_dict(), "state": optimizer.state_dict()["state"]}
        dcp.load(state, checkpoint_id=path)
        return _codes(state)


class Safetensors:
    """What ``lowprec export --to safetensors`` writes, floats too."""

    what = "safetensors, by export"

    def write(self, stem: Path) -> Path:
        path = stem.with_suffix(".safetensors")
        to_safetensors(nn.Sequential(_trained()[0], nn.BatchNorm1d(2)), path)
        return path

    def read(self, path: Path) -> dict[str, Any]:
        return dict(_numbers(read_safetensors(path)))


class Floats:
    """``torch.save`` of floats, which carry no digest and of which torch checks none."""

    what = "control: floats without a digest, by torch.save"

    def write(self, stem: Path) -> Path:
        path = stem.with_suffix(".pt")
        torch.save(_network().state_dict(), path)
        return path

    def read(self, path: Path) -> dict[str, Any]:
        return dict(_numbers(torch.load(path, weights_only=True)))


#: The kind whose damage goes unnoticed.
CONTROL = "control"
KINDS: dict[str, Any] = {
    "weights": Weights,
    "state": OptimizerState,
    "checkpoint": LightningCheckpoint,
    "distributed": DistributedCheckpoint,
    "safetensors": Safetensors,
    CONTROL: Floats,
}
