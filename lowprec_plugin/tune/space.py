"""What can be chosen: formats per kind of tensor, per layer where the plugin can, and the rounding.

A setting gives each dimension one text of its ladder: ``{"weights": "fixed12", "state": "fixed8", "rounding":
"stochastic"}``. Dimensions of one layer are written ``kind@pattern``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from lowprec_plugin.activations.emulation import Emulation
from lowprec_plugin.arithmetic import wire_ops
from lowprec_plugin.arithmetic.ops import check_rounding
from lowprec_plugin.formats import FixedPointFormat
from lowprec_plugin.optim.options import PluginOptions
from lowprec_plugin.text.option_error import Option, OptionError, parts_of

Setting = dict[str, str]

#: A rung of the ladder that leaves the numbers as they are.
FLOAT32 = "float32"
#: Of a layer's weights: stored as the others are.
STORED = "stored"
#: The kinds, and whether the plugin takes any format for them or only a word length.
KINDS = {"weights": True, "state": False, "activations": True, "errors": True, "kept": False, "wire": False}
_MAY_STAY_FLOAT = ("activations", "errors", "kept")
_PER_LAYER = ("weights", "activations", "errors")


@dataclass(frozen=True)
class Space:
    """Every dimension with its ladder, from the narrowest rung to the widest.

    Args:
        ladders: dimension -> its texts.
        layers: patterns of module names with dimensions of their own.
    """

    ladders: Mapping[str, tuple[str, ...]]
    layers: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """How many settings there are."""
        return math.prod(len(ladder) for ladder in self.ladders.values())

    def settings(self) -> Iterator[Setting]:
        """All of them."""
        for choice in itertools.product(*self.ladders.values()):
            yield dict(zip(self.ladders, choice, strict=True))

    def at(self, share: float, rounding: str) -> Setting:
        """The setting at one height of all ladders: 0 is the bottom, 1 the top."""
        rungs = {name: ladder[round(share * (len(ladder) - 1))] for name, ladder in self.ladders.items()}
        return {**rungs, "rounding": rounding}

    def options(self, setting: Setting, base: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """The options of ``FixedPointPrecision``, as a YAML has them: ``base``, with ``setting``."""
        options = {**base, "rounding": setting["rounding"], "seed": seed}
        if "weights" in setting:
            format = FixedPointFormat.parse(setting["weights"])
            options.update(word_length=format.word_length, block_size=format.block_size)
            options.pop("fraction_length", None)
            if not format.dynamic:
                options["fraction_length"] = format.fraction_length
        for kind, name in (
            ("state", "state_word_length"), ("kept", "activation_word_length"), ("wire", "comm_word_length"),
        ):  # fmt: skip
            if kind in setting:
                options[name] = None if setting[kind] == FLOAT32 else FixedPointFormat.parse(setting[kind]).word_length
        kept = [f"{layer}.*" for layer in self.layers if setting.get(f"weights@{layer}") == FLOAT32]
        if kept:
            before = base.get("keep_float", [])
            options["keep_float"] = [*([before] if isinstance(before, str) else before), *kept]
        tuned = [kind for kind in ("activations", "errors") if kind in setting]
        if tuned:
            options["emulation"] = {
                **(base.get("emulation") or {"activations": None, "errors": None}),
                **{kind: self._formats(kind, setting) for kind in tuned},
                "rounding": setting["rounding"],
            }
        return options

    def _formats(self, kind: str, setting: Setting) -> str | dict[str, str | None] | None:
        layers = {layer: _or_none(setting[f"{kind}@{layer}"]) for layer in self.layers}
        return {**layers, "*": _or_none(setting[kind])} if layers else _or_none(setting[kind])


def make_space(
    ladders: Mapping[str, Sequence[int | str | None]], rounding: Sequence[str], layers: Sequence[str], base: Any
) -> Space:
    """Check the user's ladders and put them in order.

    Args:
        ladders: kind -> rungs: word lengths, texts of formats, ``None`` or ``"float32"`` to leave the numbers in float;
            an empty one: the kind is not tuned.
        rounding: which roundings to try.
        layers: patterns of module names.
        base: options of the plugin that stay.

    Raises:
        ValueError: for a rung that the plugin does not take, and where nothing is left to choose.
    """
    found: dict[str, tuple[str, ...]] = {}
    for kind, rungs in ladders.items():
        if isinstance(rungs, str):
            raise OptionError(Option.given(kind, rungs), f" is not a list of rungs; write [{rungs!r}]")
        texts = {_text(kind, rung) for rung in rungs}
        if texts:
            found[kind] = tuple(sorted(texts, key=_width))
    if not found:
        raise ValueError(f"nothing to tune: give at least one of {', '.join(KINDS)} a list of word lengths")
    if not rounding:
        raise OptionError(
            Option.given("rounding", []), " names no rounding: choose ['stochastic'], ['nearest'] or both"
        )
    for each in rounding:
        check_rounding(each)
    if layers and not set(found) & set(_PER_LAYER):
        raise OptionError(
            Option.given("layers", list(layers)), f" have nothing of their own: tune {', '.join(_PER_LAYER)}"
        )
    for layer, kind in itertools.product(layers, _PER_LAYER):
        if kind in found:
            found[f"{kind}@{layer}"] = (STORED, FLOAT32) if kind == "weights" else found[kind]
    space = Space({**found, "rounding": tuple(dict.fromkeys(rounding))}, tuple(layers))
    for name, ladder in space.ladders.items():  # what the plugin refuses, it refuses now
        for rung in ladder:
            read_options(space.options({**space.at(1.0, rounding[0]), name: rung}, base, 0))
    return space


def read_options(options: Mapping[str, Any]) -> PluginOptions:
    """Options as they stand in a YAML.

    Raises:
        ValueError: for what the plugin does not take.
    """
    emulation = options.get("emulation")
    return PluginOptions(**{**options, "emulation": None if emulation is None else Emulation(**emulation)})


def narrower(one: Setting, other: Setting) -> bool:
    """Whether ``one`` is nowhere wider than ``other``, and rounds alike."""
    return one["rounding"] == other["rounding"] and all(
        _within(value, other[name]) for name, value in one.items() if name != "rounding"
    )


def word_length(rung: str) -> int:
    """Bits of a number; 32 for float32."""
    return 32 if rung == FLOAT32 else FixedPointFormat.parse(rung).word_length


def written(setting: Setting) -> str:
    """A setting in a line, for people."""
    return ", ".join(value if name == "rounding" else f"{name} {value}" for name, value in setting.items())


@cache
def _within(rung: str, other: str) -> bool:
    if rung in (other, STORED) or other == FLOAT32:
        return True
    return rung != FLOAT32 and FixedPointFormat.parse(other).holds(FixedPointFormat.parse(rung))


def _width(rung: str) -> tuple[int, int]:
    return word_length(rung), 0 if rung == FLOAT32 else FixedPointFormat.parse(rung).fraction_length or 0


def _text(kind: str, rung: int | str | None) -> str:
    if rung is None or rung == FLOAT32:
        if kind not in _MAY_STAY_FLOAT:
            raise OptionError(
                Option.given(kind, rung),
                f": only {', '.join(_MAY_STAY_FLOAT)} may be left in float32; weights of single layers may with ",
                Option("layers", "[...]"),
            )
        return FLOAT32
    try:
        format = FixedPointFormat(rung) if isinstance(rung, int) else FixedPointFormat.parse(rung)
    except ValueError as error:
        raise OptionError(Option.given(kind, rung), ": ", *parts_of(error)) from None
    if format.squared or (not KINDS[kind] and str(format) != f"fixed{format.word_length}"):
        raise OptionError(Option.given(kind, rung), f": give a word length here, such as {format.word_length}")
    if kind == "wire":
        wire_ops.check_word_length(format.word_length, kind)
    return str(format)


def _or_none(rung: str) -> str | None:
    return None if rung == FLOAT32 else rung
