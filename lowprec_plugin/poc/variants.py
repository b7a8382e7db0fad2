"""What the proof of concept compares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lowprec_plugin.experiments import (
    Config,
    plugin_options,
    with_plugin,
)
from lowprec_plugin.optim.options import VARIED, PluginOptions, names
from lowprec_plugin.ramp import STEPS_PER_LOOK, WordLengthRamp

#: The plugin's options that make a variant; the others, such as keep_float, stay as the configuration has them.
CHOSEN = names(PluginOptions, VARIED)
#: The share of a run that a ramp waits for, at most.
WAITING = 1 / 8


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        name: of the command line and the report.
        options: of :class:`FixedPointPrecision`; ``None``: without the plugin.
        twin: start with every weight one last bit away, to measure how far apart chaos alone drives two runs.
        precision: Lightning's own, in place of the plugin.
        ramp: widen the words where training stalls.
        default: run unless others are asked for.
    """

    name: str
    options: dict[str, Any] | None = field(default_factory=dict)
    twin: bool = False
    precision: str | None = None
    ramp: bool = False
    default: bool = True

    def config(self, config: Config, seed: int, steps: int | None) -> Config:
        """``config`` with what makes this variant, and a seed; ``steps`` are those of the run, if known."""
        if self.options is None:
            made = with_plugin(config, None, seed)
            if self.precision is not None:
                made["trainer"]["precision"] = self.precision
            return made
        base = {name: value for name, value in plugin_options(config).items() if name not in CHOSEN}
        return with_plugin(config, {**base, **self._options(steps), "seed": seed}, seed)

    def flag(self, config: Config, steps: int | None) -> str:
        """What the Trainer is given for it, as text; ``""``: nothing."""
        if self.options is None:
            return "" if self.precision is None else f'precision="{self.precision}"'
        base = {name: value for name, value in plugin_options(config).items() if name not in CHOSEN}
        return f"plugins={_call('FixedPointPrecision', {**base, **self._options(steps)})}"

    def _options(self, steps: int | None) -> dict[str, Any]:
        assert self.options is not None
        if not self.ramp:
            return self.options
        return {**self.options, "ramp": {"class_path": "lowprec_plugin.WordLengthRamp", "init_args": paced(steps)}}


def paced(steps: int | None) -> dict[str, Any]:
    """Arguments of a ramp that can climb its ladder within ``steps``.

    It waits as long as by default, or an eighth of the run if that is shorter: a run of 4,000 steps and more has the
    defaults. ``None``: the length is not known, and it has them too.
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
    given = []
    for key, value in options.items():
        if isinstance(value, Mapping) and "class_path" in value:
            text = _call(str(value["class_path"]).rpartition(".")[2], value.get("init_args") or {})
        else:
            text = repr(value)
        given.append(f"{key}={text}")
    return f"{name}({', '.join(given)})"


FLOAT32 = Variant("float32", None)
TWIN = Variant("float32 twin", None, twin=True)
#: Sends narrower gradients, so that it needs several processes.
WIRE = Variant("8-bit wire", {"word_length": 16, "comm_word_length": 8})

VARIANTS = {
    variant.name: variant
    for variant in (
        FLOAT32,
        TWIN,
        Variant("bf16", None, precision="bf16-mixed"),
        Variant("16", {"word_length": 16}),
        Variant("16/8", {"word_length": 16, "state_word_length": 8}),
        Variant("16 nearest", {"word_length": 16, "rounding": "nearest"}),
        Variant("12", {"word_length": 12}),
        Variant("12 with ramp", {"word_length": 12}, ramp=True),
        WIRE,
        Variant("<2,10>", {"word_length": 12, "fraction_length": 10}, default=False),
        Variant("<2,10> nearest", {"word_length": 12, "fraction_length": 10, "rounding": "nearest"}, default=False),
    )
}
#: Those that run if none are named.
DEFAULT = tuple(name for name, variant in VARIANTS.items() if variant.default)
