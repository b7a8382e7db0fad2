"""The plugin under Lightning's ModelParallelStrategy, with FSDP2, over gloo."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.fsdp import FSDPModule, fully_shard

from lowprec_plugin import FixedPointPrecision, WordLengthRamp
from lowprec_plugin.optim import gradients
from lowprec_plugin.tensor.dtensor import fixed_part
from tests.comm import ranks
from tests.plugin import users


class Sharded(users.Regressor):
    """What a user of FSDP2 under Lightning writes."""

    def configure_model(self) -> None:
        if isinstance(self, FSDPModule):  # Lightning calls this for every fit and test
            return
        mesh = self.device_mesh["data_parallel"]  # type: ignore[index]
        for part in self.net:
            if isinstance(part, nn.Linear):
                fully_shard(part, mesh=mesh)
        fully_shard(self, mesh=mesh)


class Watch(Callback):
    """How everything is stored and what the wire says, at the end of training."""

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        wire = trainer.precision_plugin.wire
        self.report = None if wire is None else wire.report()
        state = [value for each in trainer.optimizers[0].state.values() for value in each.values() if value.dim()]
        self.stored = [fixed_part(tensor) is not None for tensor in [*pl_module.parameters(), *state]]


def fit(
    rank: int, ranks: int, folder: str, resume: str | None = None, whole: bool = False, **given: Any
) -> dict[str, Any]:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks),
        "GROUP_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "test",
        "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    seed_everything(0)
    trainer_options = given.pop("trainer", {})
    module, watch, plugin = Sharded(), Watch(), FixedPointPrecision(**given)
    trainer = Trainer(
        accelerator="cpu", devices=ranks, max_epochs=2, logger=False, enable_progress_bar=False, plugins=plugin,
        strategy=ModelParallelStrategy(ranks, 1, save_distributed_checkpoint=not whole), enable_model_summary=False,
        callbacks=[watch, ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)], **trainer_options,
    )  # fmt: skip
    trainer.fit(module, users.vectors(), ckpt_path=resume)
    weights = {name: param.full_tensor().clone() for name, param in module.state_dict().items()}
    trainer.test(module, users.vectors(), verbose=False)
    assert plugin.wire is None
    return {"weights": weights, "report": watch.report, "stored": watch.stored}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(torch.equal(one["weights"][name], other["weights"][name]) for name in one["weights"])


pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")


def _settings(rank: int, folder: str) -> dict[str, Any]:
    return {
        "auto": fit(rank, 2, f"{folder}/auto"),
        "none": fit(rank, 2, f"{folder}/none", comm_word_length=None),
        "8": fit(rank, 2, f"{folder}/8", comm_word_length=8, state_word_length=8),
        "clipped": fit(
            rank, 2, f"{folder}/clipped", trainer={"gradient_clip_val": 0.5, "accumulate_grad_batches": 2}
        ),
        "resumed": fit(rank, 2, f"{folder}/resumed", resume=f"{folder}/auto/epoch=0.ckpt"),
        "one file": fit(rank, 2, f"{folder}/whole", whole=True),
        "resumed from one file": fit(
            rank, 2, f"{folder}/again", whole=True, resume=f"{folder}/whole/epoch=0.ckpt"
        ),
    }  # fmt: skip


def test_the_flag_shards_codes(tmp_path: Path) -> None:
    one, other = ranks.run(2, _settings, str(tmp_path))
    for name, run in one.items():
        assert same(run, other[name]), name
        assert all(run["stored"]), name
        assert len(run["stored"]) == 4 * 3
        assert (run["report"] is None) == (name == "none")
    assert not same(one["auto"], one["none"])  # a wire that was not active would fail here
    assert one["auto"]["report"]["bytes_sent_per_step"] > one["8"]["report"]["bytes_sent_per_step"] > 0
    for name in ("resumed", "one file", "resumed from one file"):
        assert same(one["auto"], one[name]), name


def _coded(rank: int, folder: str) -> dict[str, Any]:
    gradients.FEWEST = 1
    given: dict[str, Any] = {"gradient_word_length": 8, "state_word_length": 8}
    clipped = {"gradient_clip_val": 0.5, "accumulate_grad_batches": 2}
    return {
        "floats": fit(rank, 2, f"{folder}/floats", state_word_length=8),
        "coded": fit(rank, 2, f"{folder}/coded", **given),
        "resumed": fit(rank, 2, f"{folder}/resumed", resume=f"{folder}/coded/epoch=0.ckpt", **given),
        "clipped": fit(rank, 2, f"{folder}/clipped", trainer=clipped, **given),
    }


def test_gradients_in_codes(tmp_path: Path) -> None:
    one, other = ranks.run(2, _coded, str(tmp_path))
    for name, run in one.items():
        assert same(run, other[name]), name
    assert not same(one["coded"], one["floats"])
    assert same(one["coded"], one["resumed"])


def _damaged(rank: int, folder: str, checkpoint: str) -> str:
    with pytest.raises(ValueError, match="damaged") as info:
        fit(rank, 2, folder, resume=checkpoint)
    return str(info.value)


def test_a_flipped_bit_is_refused_on_every_rank(tmp_path: Path) -> None:
    """Each looks at a part of the folder. The bit is of a float that carries no digest: a count of steps."""
    ranks.run(2, fit, 2, str(tmp_path))
    folder = tmp_path / "epoch=0.ckpt"
    stored = FileSystemReader(folder).read_metadata().storage_data
    place = next(each for index, each in stored.items() if index.fqn.endswith("step"))
    data = folder / place.relative_path
    content = bytearray(data.read_bytes())
    with zipfile.ZipFile(io.BytesIO(content[place.offset : place.offset + place.length])) as archive:
        record = next(each for each in archive.infolist() if each.filename.endswith("data/0"))
        content[content.find(archive.read(record), place.offset + record.header_offset)] ^= 1
    data.write_bytes(content)
    one, other = ranks.run(2, _damaged, str(tmp_path / "again"), str(folder))
    assert one == other
    assert data.name in one


def _refused(rank: int, folder: str) -> list[str]:
    said = []
    ramp = WordLengthRamp(at={1: 20})
    for options in ({"comm_word_length": 8, "comm_error_feedback": True}, {"seed": rank}, {"ramp": ramp}):
        with pytest.raises(ValueError) as info:  # noqa: PT011
            fit(rank, 2, folder, **options)
        said.append(str(info.value))
    return said


def test_refusals(tmp_path: Path) -> None:
    for feedback, seeds, ramp in ranks.run(2, _refused, str(tmp_path)):
        assert "comm_error_feedback=True needs a byte per parameter on every rank" in feedback
        assert "disagree on seed: rank 0 has 0, rank 1 has 1" in seeds
        assert "a ramp cannot widen what FSDP2 or tensor parallelism has sharded" in ramp


def test_fsdp1_is_refused_and_the_alternative_named() -> None:
    with pytest.raises(TypeError, match=r'FSDPPrecision.*works on one device, with strategy="ddp", and with Model'):
        FSDPStrategy().precision_plugin = FixedPointPrecision()
