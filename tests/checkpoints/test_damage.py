"""A checkpoint with a flipped bit is recognised by the checksums in it, which torch does not look at."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from lowprec_plugin.checkpoints.damage import check_undamaged
from lowprec_plugin.checkpoints.load import read_file


def flip(path: Path, byte: int, bit: int = 3) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.write_bytes(content)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.arange(100.0), "bias": torch.ones(3)}, path)
    return path


def test_a_whole_file_passes(weights: Path, tmp_path: Path) -> None:
    check_undamaged(weights)
    check_undamaged(tmp_path)
    check_undamaged(tmp_path / "not there")


def test_every_bit_of_a_number_is_noticed_and_torch_notices_none(weights: Path) -> None:
    at = weights.read_bytes().find(torch.arange(100.0).numpy().tobytes())
    for byte in range(at, at + 400, 7):
        flip(weights, byte)
        assert not torch.equal(torch.load(weights)["weight"], torch.arange(100.0))  # silently
        with pytest.raises(ValueError, match=r"weights\.pt is damaged"):
            check_undamaged(weights)
        with pytest.raises(ValueError, match=r"weights\.pt is damaged"):
            read_file(weights)
        flip(weights, byte)
    check_undamaged(weights)


def read_or_refused(path: Path) -> Any:
    """What is read; of a file that is refused the error's text."""
    try:
        return read_file(path)
    except ValueError as error:
        return str(error)


def test_whatever_is_flipped_is_refused_or_changes_nothing(weights: Path) -> None:
    written = torch.load(weights)
    chance = random.Random(0)
    refused = 0
    for _ in range(300):
        byte, bit = chance.randrange(weights.stat().st_size), chance.randrange(8)
        flip(weights, byte, bit)
        read = read_or_refused(weights)
        if isinstance(read, str):
            assert "weights.pt" in read
            refused += 1
        else:
            assert all(torch.equal(read[name], value) for name, value in written.items()), (byte, bit)
        flip(weights, byte, bit)
    assert refused > 100


def test_every_bit_of_an_archives_directory_is_refused_or_changes_nothing(weights: Path) -> None:
    """No checksum covers it. One bit of it makes torch leave a tensor's memory as it was."""
    written, content = torch.load(weights), weights.read_bytes()
    begin = content.find(b"PK\x01\x02")
    for byte in range(begin, len(content)):
        for bit in range(8):
            weights.write_bytes(content[:byte] + bytes([content[byte] ^ 1 << bit]) + content[byte + 1 :])
            read = read_or_refused(weights)
            same = isinstance(read, str) or all(torch.equal(read[name], value) for name, value in written.items())
            assert same, (byte - begin, bit)
    called_folder = content.find(b"PK\x01\x02", content.find(b"data/0", begin) - 60) + 38
    weights.write_bytes(content[:called_folder] + b"\x10" + content[called_folder + 1 :])
    with pytest.raises(ValueError, match=r"record 'weights/data/0' is not what was written"):
        read_file(weights)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled", "ignore:TypedStorage is deprecated")
def test_a_distributed_checkpoint_is_many_archives(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    numbers = torch.arange(1000.0)
    dcp.save({"weight": numbers, "other": torch.ones(5)}, checkpoint_id=folder)
    torch.save({"step": 3}, folder / "meta.pt")
    check_undamaged(folder)
    (data,) = folder.glob("*.distcp")
    flip(data, data.read_bytes().find(numbers.numpy().tobytes()) + 17)
    with pytest.raises(ValueError, match=r"distcp, .* bytes from byte .* is damaged"):
        check_undamaged(folder)
    metadata = (folder / ".metadata").read_bytes()
    (folder / ".metadata").write_bytes(metadata[:100])
    with pytest.raises(ValueError, match=r"\.metadata is damaged"):
        check_undamaged(folder)
    (folder / ".metadata").write_bytes(metadata)
    # Shared out, one of two has the damaged one.
    found = 0
    for share in range(2):
        try:
            check_undamaged(folder, share, 2)
        except ValueError:
            found += 1
    assert found == 1


def test_a_folder_of_files(tmp_path: Path, weights: Path) -> None:
    """As DeepSpeed writes them."""
    below = tmp_path / "global_step3" / "mp_rank_00_model_states.pt"
    below.parent.mkdir()
    below.write_bytes(weights.read_bytes())
    (tmp_path / "latest").write_text("global_step3")
    check_undamaged(tmp_path)
    flip(below, below.read_bytes().find(torch.arange(100.0).numpy().tobytes()))
    with pytest.raises(ValueError, match=r"mp_rank_00_model_states\.pt is damaged"):
        check_undamaged(tmp_path)


def test_what_has_no_checksums_passes(tmp_path: Path) -> None:
    path = tmp_path / "former.pt"
    torch.save({"weight": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    check_undamaged(path)
