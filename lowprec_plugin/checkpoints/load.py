"""Where a network and its weights come from: files of torch and Lightning, import paths, LightningCLI's YAML."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowprec_plugin.checkpoints import unpickle
from lowprec_plugin.checkpoints.damage import check_undamaged
from lowprec_plugin.experiments import read_yaml, refused_in_short
from lowprec_plugin.text.option_error import Option, OptionError


def read_file(path: str | Path) -> Any:
    """What ``torch.save`` or Lightning wrote to a file, on the CPU: plain data and tensors, and nothing of the rest.

    Raises:
        ValueError: if the file is not there, is damaged, is none of torch's, holds one object of another class, or a
            tensor of one.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, {_of_folder(path)}")
    if not path.exists():
        raise ValueError(f"there is no checkpoint {path}")
    check_undamaged(path)
    try:
        content = _plain(path)
    except unpickle.InTheWayError as error:
        raise ValueError(
            f"{path} holds a tensor of the class {error}, which is not imported to read it: save it as a plain tensor, "
            "with tensor.as_subclass(torch.Tensor)"
        ) from error
    except Exception as error:  # whatever unpickling makes of bytes that are no pickle
        raise ValueError(
            f"{path} cannot be read as plain data and tensors: is it whole, and written by torch.save or Lightning? "
            "torch.save(module.state_dict(), file) writes the weights alone"
        ) from error
    if isinstance(content, unpickle.Unread) and not content:
        raise ValueError(
            f"{path} holds an object whole ({content.path}), and not plain data and tensors: "
            "torch.save(module.state_dict(), file) writes the weights alone"
        )
    return content


def _plain(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        if not zipfile.is_zipfile(path):
            raise
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=unpickle)


def _of_folder(path: Path) -> str:
    """What kind of checkpoint it is, and what to do."""
    if (path / "latest").exists():
        return (
            "as DeepSpeed's checkpoints are: give one process's file, whose name ends in _optim_states.pt, or make one "
            f"file of floats of all with python {path / 'zero_to_fp32.py'} {path} FOLDER"
        )
    if (path / ".metadata").exists():
        # torch's own command does not import this package, whose types the pickle in it names.
        return (
            "as distributed checkpoints are: make one file of it, of floats, with python -c "
            '"import lowprec_plugin; from torch.distributed.checkpoint.format_utils import dcp_to_torch_save; '
            f"dcp_to_torch_save({str(path)!r}, 'FILE')\""
        )
    return "and none that is a checkpoint (a distributed one is whole when it has a .metadata): give a file"


def read_state(path: str | Path) -> dict[str, Any]:
    """The ``state_dict`` in a Lightning checkpoint, or a state dict that ``torch.save`` wrote.

    Raises:
        ValueError: as :func:`read_file`, and if there is no state dict.
    """
    content = read_file(path)
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not any(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path} holds {type(state).__name__} without tensors by name: no checkpoint, no state dict")
    return dict(state)


def make_module(path: str) -> nn.Module:
    """Call what an import path names, ``package.module.function`` or a class, without arguments.

    Raises:
        ValueError: if it cannot be imported, or gives no module.
    """
    package, _, name = path.rpartition(".")
    try:
        factory = getattr(import_module(package), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path!r} cannot be imported ({error}): write package.module.function, and set PYTHONPATH to the folder "
            "of the package"
        ) from error
    try:
        module = factory()
    except TypeError as error:
        raise OptionError(
            f"{path} is called without arguments, and answers: {error}. Write a function that passes them, or give ",
            Option("config"),
        ) from error
    if not isinstance(module, nn.Module):
        raise ValueError(f"{path} gave {type(module).__name__}, not a torch.nn.Module")
    return module


def configured_module(path: str | Path) -> nn.Module:
    """The ``model:`` of a LightningCLI configuration, made as LightningCLI makes it; nothing else of the file is used.

    Raises:
        ValueError: if the file is not there or no YAML, has no model with a ``class_path``, or one that cannot be made.
    """
    from jsonargparse import ArgumentParser

    from lowprec_plugin.experiments.lightnings import lightning_of_config

    content = read_yaml(path)
    model = content.get("model") if isinstance(content, Mapping) else None
    if not isinstance(model, Mapping) or "class_path" not in model:
        raise OptionError(
            f"{path} has no model: with a class_path, as LightningCLI's configurations have where the class is not "
            "fixed in the program: give ",
            Option("module", "package.function"),
        )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(lightning_of_config({"model": model}).get("LightningModule"), "model")
    with refused_in_short({"model": model}, f"the model: of {path}"):
        made = parser.instantiate_classes(parser.parse_object({"model": dict(model)}))
    module: nn.Module = made.model
    return module


def described_module(module: str | None, config: str | None) -> nn.Module:
    """The module that an import path or a configuration gives: one of them.

    Raises:
        ValueError: if both or neither are given, and as :func:`make_module` and :func:`configured_module`.
    """
    if (module is None) == (config is None):
        raise OptionError(
            Option.given("module", module), " and ", Option.given("config", config),
            ": give one of them, an import path or a LightningCLI configuration, for the network's structure",
        )  # fmt: skip
    return make_module(module) if module is not None else configured_module(str(config))


def network_with(state: Mapping[str, Any], module: str | None, config: str | None) -> nn.Module:
    """The module that an import path or a configuration gives, holding ``state`` as it is stored.

    Raises:
        ValueError: if both or neither are given, or the state dict is not that module's.
    """
    made = described_module(module, config)
    try:
        made.load_state_dict(dict(state), assign=True)
    except RuntimeError as error:
        raise ValueError(f"the checkpoint is not that of {module or config}: {error}") from error
    return made.eval()
