"""What to train, as LightningCLI's configurations say it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from lowprec_plugin.text.option_error import Option, OptionError

Config = dict[str, Any]

PLUGIN = "lowprec_plugin.FixedPointPrecision"
#: scikit-learn's digits: no download, seconds per run. The learning rate is high enough for chaos to drive two runs
#: apart, as it does in any longer training: with a low one the twins of float32 end alike, and there would be no noise
#: to judge a difference by.
DIGITS: Config = {
    "trainer": {"max_epochs": 15, "accelerator": "cpu"},
    "model": {
        "class_path": "lowprec_plugin.tasks.Classifier",
        "init_args": {"network": {"class_path": "lowprec_plugin.tasks.MLP"}, "lr": 0.02},
    },
    "data": {"class_path": "lowprec_plugin.tasks.DigitsDataModule"},
}


def read_config(
    config: str | None, model: str | None, data: str | None, epochs: int | None, default: Config = DIGITS
) -> Config:
    """The configuration to train: a LightningCLI YAML, or classes by import path, or ``default``.

    Raises:
        ValueError: if it is not there, is no mapping, or has what runs side by side cannot keep.
    """
    if config is None:
        if data is not None and model is None:
            raise OptionError(
                Option.given("data", data),
                " needs a module to train: give ",
                Option("model"),
                ", or a config with both",
            )
        found = {"trainer": {}} if model else copy.deepcopy(default)
    else:
        found = read_yaml(config)
        if not isinstance(found, dict):
            raise OptionError(
                Option.given("config", config), " is not a LightningCLI configuration: a mapping with trainer and model"
            )
    for part, path in (("model", model), ("data", data)):
        if path is not None:
            found[part] = _by_path(path, found.get(part))
        elif isinstance(found.get(part), Mapping) and "class_path" not in found[part]:
            raise OptionError(
                Option.given("config", config),
                f" has a {part} without a class_path, as where a program fixes the class: give ",
                Option(part, "package.Class"),
            )
    if not isinstance(found.get("trainer") or {}, Mapping):
        raise OptionError(
            Option.given("config", config), f" has trainer={found['trainer']!r}: give its arguments by name"
        )
    trainer = found["trainer"] = dict(found.get("trainer") or {})
    if epochs is not None:
        trainer["max_epochs"] = epochs
    if found.pop("ckpt_path", None) is not None:
        raise ValueError("ckpt_path: every run trains from the start: leave it out")
    for name in ("seed_everything", "weights_only"):  # the latter, of fit as ckpt_path is, stands in every saved one
        found.pop(name, None)
    if trainer.get("precision") not in (None, 32, "32", "32-true"):
        raise ValueError(f"trainer.precision={trainer['precision']!r}: formats are held against float32: leave it out")
    trainer.pop("precision", None)  # the Trainer refuses one, float32's too, beside a plugin
    if (plugin_options(found) or {}).get("ramp") is not None:
        raise ValueError(
            "the plugin has a ramp, and the formats of a run are chosen here: leave it out, and put it in afterwards"
        )
    return found


def read_yaml(config: str | Path) -> Any:
    """The content of a configuration, as LightningCLI reads it: ``1e-3`` is a number.

    Raises:
        ValueError: if it is not there, or is no YAML.
    """
    try:
        return get_loader("yaml")(Path(config).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())  # PyYAML says it in several lines
        raise OptionError(Option.given("config", str(config)), f" cannot be read: {reason}") from error


def class_path(given: Any) -> str:
    """The class that a configuration names: LightningCLI takes a path alone, and one with arguments."""
    return str(given.get("class_path") if isinstance(given, Mapping) else given)


def _by_path(path: str, given: Any) -> Config:
    """``path`` in place of what the configuration has; where that has no class, it is this one's arguments."""
    arguments = given if isinstance(given, Mapping) and "class_path" not in given else {}
    return {"class_path": path, **({"init_args": dict(arguments)} if arguments else {})}


def plugin_options(config: Config) -> dict[str, Any]:
    """What the configuration says of our plugin already; what is not chosen here is kept."""
    for plugin in one_or_more(config["trainer"].get("plugins")):
        if _is_ours(plugin):
            options = dict(plugin.get("init_args") or {}) if isinstance(plugin, dict) else {}
            emulation = options.get("emulation")
            if isinstance(emulation, Mapping) and "class_path" in emulation:  # its arguments alone mean the same
                options["emulation"] = dict(emulation.get("init_args") or {})
            return options
    return {}


def with_plugin(config: Config, options: Mapping[str, Any] | None, seed: int) -> Config:
    """``config`` with the plugin of ``options`` (``None``: float32, without it) and a seed."""
    others = [plugin for plugin in one_or_more(config["trainer"].get("plugins")) if not _is_ours(plugin)]
    ours = [] if options is None else [{"class_path": PLUGIN, "init_args": dict(options)}]
    trainer = {**config["trainer"], "plugins": [*others, *ours]}
    return copy.deepcopy({"seed_everything": seed, **config, "trainer": trainer})


def one_or_more(given: Any) -> list[Any]:
    """What a configuration may have none, one or several of."""
    return given if isinstance(given, list) else [given] if given else []


def _is_ours(plugin: Any) -> bool:
    return class_path(plugin).rsplit(".", 1)[-1] == "FixedPointPrecision"
