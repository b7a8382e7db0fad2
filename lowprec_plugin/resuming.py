"""What the plugins do about a run's checkpoints: each is written whole, and checked before a run goes on from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec.core
import torch
import torch.distributed as dist
from fsspec.implementations.local import LocalFileSystem
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import nn

from lowprec_plugin.compat.bases import TorchCheckpointIO
from lowprec_plugin.compat.lightnings import classes
from lowprec_plugin.damage import check_undamaged
from lowprec_plugin.files import remove_folder, remove_partial, whole_file
from lowprec_plugin.formats import FixedPointFormat
from lowprec_plugin.strategies import trainer_of

#: Of what a plugin's ``state_dict`` holds: raised where an earlier version could no longer read it.
LAYOUT = 1


class WholeCheckpointIO(TorchCheckpointIO):
    """Lightning's own, but for files of this machine: a checkpoint has its name while it is whole, and only then.

    Lightning writes to the temporary folder (``TMPDIR``) and moves the file, which is a copy where that lies on another
    file system: a kill meanwhile leaves a part of a file under the checkpoint's name.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write ``checkpoint`` to ``path``, whole or not at all."""
        local = _local(path)
        if storage_options is not None or local is None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        remove_partial(local)
        with whole_file(local) as partial, partial.open("wb") as file:
            torch.save(checkpoint, file)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove the file or folder at ``path``: of a folder all at once."""
        local = _local(path)
        if local is None or not local.is_dir():
            super().remove_checkpoint(path)
        else:
            remove_folder(local)


def _local(path: str | Path) -> Path | None:
    """``path``, a URL or not, on a file system of this machine; ``None`` if it is on another."""
    system, place = fsspec.core.url_to_fs(str(path))
    return Path(place) if isinstance(system, LocalFileSystem) else None


def write_whole(module: nn.Module) -> None:
    """Have the strategy that trains ``module`` write its checkpoints through :class:`WholeCheckpointIO`.

    A writer that the user has chosen stays, and that is logged: its files are its own affair.
    """
    trainer = trainer_of(module)
    if trainer is None:
        return
    strategy = trainer.strategy
    writer = strategy.checkpoint_io
    if type(writer) in classes("plugins.io.TorchCheckpointIO"):
        strategy.checkpoint_io = WholeCheckpointIO()
    elif not isinstance(writer, WholeCheckpointIO):
        rank_zero_info(
            f"checkpoints are written by {type(writer).__name__}, and not by this plugin, which would write them "
            "whole: a kill meanwhile may leave a part of one"
        )


def check_resumed(module: nn.Module | None) -> None:
    """Read the checkpoint that ``module``'s Trainer goes on from once more, for its checksums. Called on every rank.

    A folder is shared out over the ranks. What is not on a file system of this machine is not looked at.

    Raises:
        ValueError: if it is damaged; of a folder, on every rank alike.
    """
    trainer = trainer_of(module)
    given = None if trainer is None else trainer.ckpt_path
    path = _local(given) if given else None
    if path is None:
        return
    if not (path.is_dir() and dist.is_initialized()):
        check_undamaged(path)
        return
    said: list[str | None] = [None] * dist.get_world_size()
    try:
        check_undamaged(path, dist.get_rank(), len(said))
        dist.all_gather_object(said, None)
    except (ValueError, OSError) as error:  # the others wait to be told
        dist.all_gather_object(said, str(error))
    for damage in said:
        if damage is not None:
            raise ValueError(damage)


def check_saved(state: Mapping[str, Any], format: FixedPointFormat) -> None:
    """Check that a plugin whose weights are in ``format`` can go on from what one saved.

    Raises:
        ValueError: for what no plugin saves, the state of a later version, or weights that ``format`` does not hold.
    """
    _check_kinds(state)
    if state.get("layout", LAYOUT) > LAYOUT:
        raise ValueError(
            f"the checkpoint was written by version {state.get('version')} of this package, in a layout that this one "
            "does not know: update it"
        )
    saved = FixedPointFormat.parse(state["format"])
    if not format.holds(saved):
        raise ValueError(
            f"the checkpoint's weights are stored as {saved}, which {format} does not hold exactly: resume "
            f"with word_length={saved.word_length}, fraction_length={saved.fraction_length}; or start anew from its "
            "weights, loaded into the module by its load_state_dict, which rounds them"
        )


def _check_kinds(state: object) -> None:
    """Check that what a plugin is to go on from is of the kinds that it saves."""
    sound = isinstance(state, Mapping) and isinstance(state.get("format"), str)
    if sound:
        assert isinstance(state, Mapping)
        counts, skipped = state.get("roundings", {}), state.get("skipped_steps", [])
        sound = (
            isinstance(counts, Mapping)
            and isinstance(skipped, list)
            and all(_is_count(each) for each in [state.get("layout", LAYOUT), *skipped, *counts.values()])
            and all(isinstance(state.get(name), Mapping | None) for name in ("wire", "ramp", "inside"))
        )
    if not sound:
        raise ValueError(
            "the state of the precision plugin in the checkpoint is not what a plugin saves: is it damaged?"
        )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
