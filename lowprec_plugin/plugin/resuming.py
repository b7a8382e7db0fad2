"""What the plugins do about a run's checkpoints: each is written whole, and checked before a run goes on from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec.core
import torch
import torch.distributed as dist
from fsspec.implementations.local import LocalFileSystem
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn

from lowprec_plugin.checkpoints.damage import check_undamaged
from lowprec_plugin.comm import DDPState, FSDPState
from lowprec_plugin.compat.bases import TorchCheckpointIO
from lowprec_plugin.compat.lightnings import classes
from lowprec_plugin.formats import FixedPointFormat
from lowprec_plugin.optim import StepSettings
from lowprec_plugin.optim.options import RESUMED, PluginOptions, names
from lowprec_plugin.plugin.activations import Inside
from lowprec_plugin.plugin.averages import fit_averages_, restore_averages_
from lowprec_plugin.plugin.gradients import load_wire
from lowprec_plugin.plugin.ramp import Ramping
from lowprec_plugin.plugin.strategies import trainer_of
from lowprec_plugin.tensor import FixedPointTensor
from lowprec_plugin.tensor.widen import narrow_
from lowprec_plugin.text.files import remove_folder, remove_partial, whole_file
from lowprec_plugin.version import __version__

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


class Resumes:
    """The part of the plugin that a checkpoint holds, and that goes on from one."""

    format: FixedPointFormat
    options: PluginOptions
    wire: DDPState | FSDPState | None
    ramping: Ramping | None
    inside: Inside | None
    _stepping: list[StepSettings]
    _network: nn.Module | None
    _fitting: bool
    _left: dict[str, Any] | None  # the state with which floats were left

    def _params(self) -> list[FixedPointTensor]:
        raise NotImplementedError

    def _follow_with_wire(self) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint says of the plugin, in plain numbers and texts. Called on every rank."""
        if self._left is not None:
            return self._left
        return {
            "version": __version__,
            "layout": LAYOUT,
            "format": str(self.format),
            "seed": self.options.seed,
            "arguments": self._said(),
            "skipped_steps": [each.skipped_steps for each in self._stepping],
            "wire": None if self.wire is None else self.wire.state_dict(),
            "emulation": str(self.options.emulation),
            "activation_word_length": self.options.activation_word_length,
            "ramp": None if self.ramping is None else self.ramping.state_dict(trainer_of(self._network)),
            "inside": None if self.inside is None else self.inside.state_dict(),
            # In-place roundings so far: they key the random bits of optimizers without a fused update.
            "roundings": {param.label: param.roundings for param in self._params() if param.roundings},
        }

    def _said(self) -> dict[str, str]:
        """What changes what a resumed run computes. Formats have to hold the saved ones instead."""
        terms = self.options.terms()
        return {name: str(terms[name]) for name in names(PluginOptions, RESUMED)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that was damaged after it was written, which torch reads as it is.

        Averages go on as it holds them, bit for bit.
        """
        check_resumed(self._network)
        if self._fitting:
            restore_averages_(self._network, checkpoint)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting where the checkpoint stopped; the module has its weights by now.

        Words that a ramp has widened since the checkpoint, as while Lightning's finders try learning rates or batch
        sizes, are narrowed to the checkpoint's: its weights are exact in them. Other arguments than the checkpoint's
        are said.

        Raises:
            ValueError: for weights that this format does not hold, or others' residuals. Nothing is changed then.
        """
        check_saved(state_dict, self.format)
        load_wire(self.wire, state_dict.get("wire"), fitting=self._fitting)  # may refuse, too
        if self._fitting:
            say_changed({**state_dict, **(state_dict.get("arguments") or {})}, self._said())
        for settings, skipped in zip(self._stepping, state_dict["skipped_steps"], strict=False):
            settings.skipped_steps = skipped
        if self._fitting and self.ramping is not None and self._network is not None:
            self._narrow(self.ramping.format_to_resume(self._network, self.format))
        counts = state_dict.get("roundings")
        for param in self._params():
            # None are saved where there were none; earlier versions saved no counts at all.
            param.roundings = param.roundings if counts is None else counts.get(param.label, 0)
        if self.ramping is not None and state_dict.get("ramp") is not None:
            self.ramping.load_state_dict(state_dict["ramp"])
        if self.inside is not None and state_dict.get("inside") is not None:
            self.inside.load_state_dict(state_dict["inside"])

    def _narrow(self, format: FixedPointFormat) -> None:
        """Narrow the weights to ``format`` if that is narrower; state follows when it is loaded."""
        if format.word_length < self.format.word_length:
            for param in self._params():
                narrow_(param, format.word_length)
            self.format = format
            fit_averages_(self._network, format)
            self._follow_with_wire()


def say_changed(saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Warn of arguments that a checkpoint's plugin had otherwise: the run goes on, and not as it would have."""
    changed = [
        f"{name}={value} (there {saved[name]})"
        for name, value in own.items()
        if name in saved and str(saved[name]) != str(value)
    ]
    if changed:
        rank_zero_warn(
            f"this plugin has other arguments than the one that wrote the checkpoint: {', '.join(changed)}. The run "
            "goes on with its own; give it the checkpoint's to go on bit for bit"
        )


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
            and all(isinstance(state.get(name), Mapping | None) for name in ("wire", "ramp", "inside", "arguments"))
        )
    if not sound:
        raise ValueError(
            "the state of the precision plugin in the checkpoint is not what a plugin saves: is it damaged?"
        )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
