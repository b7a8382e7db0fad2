"""What the proof of concept compares."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lowprec_plugin.experiments import Config, plugin_options, with_plugin
from lowprec_plugin.optim.options import VARIED, PluginOptions, names
from lowprec_plugin.ramp import STEPS_PER_LOOK, WordLengthRamp

#: Plugin options that make a variant; the configuration's others, such as keep_float, hold for all.
CHOSEN = names(PluginOptions, VARIED)
#: The share of a run that a ramp waits for, at most.
WAITING = 1 / 8


@dataclass(frozen=True)
class Variant:
    """One way to train, by its name on the command line and in the report."""

    name: str
    options: dict[str, Any] | None = field(default_factory=dict)  # of FixedPointPrecision; None: without the plugin
    twin: bool = False  # start with every weight one last bit away: how far chance alone drives two runs apart
    precision: str | None = None  # Lightning's own, in place of the plugin
    ramp: bool = False  # widen the words where training stalls
    default: bool = True  # run unless variants are named

    def config(self, config: Config, seed: int, steps: int | None) -> Config:
        """``config`` with this variant and a seed; ``steps``: of the run, if known."""
        options = self._options(config, steps)
        made = with_plugin(config, None if options is None else {**options, "seed": seed}, seed)
        if self.precision is not None:
            made["trainer"]["precision"] = self.precision
        return made

    def flag(self, config: Config, steps: int | None) -> str:
        """What the Trainer is given, as text; ``""``: nothing."""
        options = self._options(config, steps)
        if options is not None:
            return f"plugins={_call('FixedPointPrecision', options)}"
        return "" if self.precision is None else f'precision="{self.precision}"'

    def _options(self, config: Config, steps: int | None) -> dict[str, Any] | None:
        if self.options is None:
            return None
        base = {name: value for name, value in plugin_options(config).items() if name not in CHOSEN}
        ramp = {"ramp": {"class_path": "lowprec_plugin.WordLengthRamp", "init_args": paced(steps)}} if self.ramp else {}
        return {**base, **self.options, **ramp}


def paced(steps: int | None) -> dict[str, Any]:
    """Arguments of a ramp that can climb its ladder within ``steps``.

    It waits as long as by default, or an eighth of a run of less than 4,000 steps. ``None``: unknown, as by default.
    """
    default = WordLengthRamp()
    ladder = {"ladder": list(default.ladder)}
    looks = default.patience if steps is None else int(WAITING * steps / STEPS_PER_LOOK)
    if looks >= default.patience:
        return ladder
    looks = max(1, looks)
    return {**ladder, "patience": looks, "cooldown": looks, "smoothing": min(default.smoothing, 1 - 1 / looks)}


def _call(name: str, options: Mapping[str, Any]) -> str:
    """A call in Python, as text."""

    def text(value: Any) -> str:
        if isinstance(value, Mapping) and "class_path" in value:
            return _call(str(value["class_path"]).rpartition(".")[2], value.get("init_args") or {})
        return repr(value)

    return f"{name}({', '.join(f'{key}={text(value)}' for key, value in options.items())})"


def spoken(variant: str) -> str:
    """A name in a sentence: ``16`` is 16-bit stochastic, ``16/8`` is 16/8-bit, ``12 with ramp`` is 12-bit with ramp."""
    found = re.fullmatch(r"(\d+(?:/\d+)*)( .*)?", variant)
    if not found:
        return variant
    bits, rest = found.groups()
    return f"{bits}-bit{rest or ('' if '/' in bits else ' stochastic')}"


FLOAT32 = Variant("float32", None)
TWIN = Variant("float32 twin", None, twin=True)
BF16 = Variant("bf16", None, precision="bf16-mixed")
#: Computed, not run, unless the study has it run.
BF16_MIXED = "bf16 mixed, computed"
#: Sends narrower gradients, which takes several processes.
WIRE = Variant("8-bit wire", {"word_length": 16, "comm_word_length": 8})
_ALL = (
    FLOAT32,
    TWIN,
    BF16,
    Variant("16", {"word_length": 16}),
    Variant("16/8", {"word_length": 16, "state_word_length": 8}),
    Variant("16/8/8", {"word_length": 16, "state_word_length": 8, "gradient_word_length": 8}),
    Variant("16 nearest", {"word_length": 16, "rounding": "nearest"}),
    Variant("12", {"word_length": 12}),
    Variant("12 with ramp", {"word_length": 12}, ramp=True),
    WIRE,
    Variant("<2,10>", {"word_length": 12, "fraction_length": 10}, default=False),
    Variant("<2,10> nearest", {"word_length": 12, "fraction_length": 10, "rounding": "nearest"}, default=False),
)
VARIANTS = {variant.name: variant for variant in _ALL}
#: Those that run if none are named.
DEFAULT = tuple(name for name, variant in VARIANTS.items() if variant.default)
