"""What to train, as LightningCLI's configurations say it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

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
            raise ValueError(f"data={data!r} needs a module to train: give model=, or a config with both")
        found = {"trainer": {}, "model": {"class_path": model}} if model else copy.deepcopy(default)
    else:
        try:
            found = yaml.safe_load(Path(config).read_text())
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"config={config!r} cannot be read: {error}") from error
        if not isinstance(found, dict):
            raise ValueError(f"config={config!r} is not a LightningCLI configuration: a mapping with trainer and model")
        if model is not None:
            found["model"] = {"class_path": model}
    if data is not None:
        found["data"] = {"class_path": data}
    trainer = found["trainer"] = dict(found.get("trainer") or {})
    if epochs is not None:
        trainer["max_epochs"] = epochs
    if found.pop("ckpt_path", None) is not None:
        raise ValueError("ckpt_path: every run trains from the start: leave it out")
    found.pop("seed_everything", None)
    if trainer.get("precision") not in (None, 32, "32", "32-true"):
        raise ValueError(f"trainer.precision={trainer['precision']!r}: formats are held against float32: leave it out")
    if (plugin_options(found) or {}).get("ramp") is not None:
        raise ValueError(
            "the plugin has a ramp, and the formats of a run are chosen here: leave it out, and put it in afterwards"
        )
    return found


def plugin_options(config: Config) -> dict[str, Any]:
    """What the configuration says of our plugin already; what is not chosen here is kept."""
    for plugin in _plugins(config):
        if _is_ours(plugin):
            return dict(plugin.get("init_args") or {}) if isinstance(plugin, dict) else {}
    return {}


def with_plugin(config: Config, options: Mapping[str, Any] | None, seed: int) -> Config:
    """``config`` with the plugin of ``options`` (``None``: float32, without it) and a seed."""
    others = [plugin for plugin in _plugins(config) if not _is_ours(plugin)]
    ours = [] if options is None else [{"class_path": PLUGIN, "init_args": dict(options)}]
    trainer = {**config["trainer"], "plugins": [*others, *ours]}
    return copy.deepcopy({"seed_everything": seed, **config, "trainer": trainer})


def _plugins(config: Config) -> list[Any]:
    plugins = config["trainer"].get("plugins") or []
    return plugins if isinstance(plugins, list) else [plugins]


def _is_ours(plugin: Any) -> bool:
    path = plugin.get("class_path") if isinstance(plugin, dict) else plugin
    return isinstance(path, str) and path.rsplit(".", 1)[-1] == "FixedPointPrecision"
