"""What is emulated, and how."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

from lowprec_plugin.arithmetic.ops import check_rounding
from lowprec_plugin.formats import FixedPointFormat
from lowprec_plugin.text.option_error import Option, OptionError, parts_of

Formats = str | FixedPointFormat | Mapping[str, str | None] | None


@dataclass(frozen=True)
class Emulation:
    """The arithmetic of fixed-point hardware: every layer's output and every back-propagated error is rounded.

    Each operation of the network is computed on numbers of the format and rounded to it once, forwards and backwards
    (Gupta et al. 2015, section 3). It covers what happens inside the forward of modules that hold parameters; losses
    and metrics around them stay in float32, and so do results without dimensions. Weights and their updates are the
    precision plugin's.

    Args:
        activations: the format of layer outputs, such as ``"<6,10>"`` or ``"fixed16"``; or formats by patterns of
            module names, the first that matches, ``{"head*": None, "*": "<4,12>"}``; ``None``: not rounded.
        errors: the format of back-propagated errors; ``"same"`` as the activations; ``None``: not rounded.
        rounding: of activations, ``"stochastic"`` or ``"nearest"``.
        error_rounding: of errors; ``None``: as ``rounding``.
        accumulate: ``"float32"``: matrix products and convolutions sum in float32, the paper's own shortcut;
            ``"exact"``: they sum without any rounding before the one at the end (static formats only; in float64,
            slower). Normalisation, softmax and the like work in float32 either way.

    Raises:
        ValueError: for a format or a word outside these.
    """

    activations: Formats = "fixed16"
    errors: Formats = "same"
    rounding: Literal["stochastic", "nearest"] = "stochastic"
    error_rounding: Literal["stochastic", "nearest"] | None = None
    accumulate: Literal["float32", "exact"] = "float32"

    def __post_init__(self) -> None:
        check_rounding(self.rounding)
        if self.error_rounding is not None:
            check_rounding(self.error_rounding)
        if self.accumulate not in ("float32", "exact"):
            raise OptionError(Option.given("accumulate", self.accumulate), " is not one of ('float32', 'exact')")
        for name in ("activations", "errors"):
            for format in self._table(name).values():
                if format is None:
                    continue
                if format.squared:
                    raise OptionError(
                        Option.given(name, str(format)), " is for squares alone, an optimizer's second moments: write "
                        f"'{replace(format, squared=False)}'",
                    )  # fmt: skip
                if self.accumulate == "exact" and format.dynamic:
                    raise OptionError(
                        Option.given(name, str(format)),
                        " has a radix point per block, and sums over several blocks are exact with none: use a static "
                        "format such as '<4,12>', or ",
                        Option.given("accumulate", "float32"),
                    )

    def _table(self, name: str) -> dict[str, FixedPointFormat | None]:
        formats = self.activations if name == "activations" or self.errors == "same" else self.errors
        if formats is None:
            return {"*": None}
        if not isinstance(formats, Mapping):
            formats = {"*": str(formats)}
        if not formats:
            raise OptionError(Option.given(name, {}), " names no format: write None to leave them in float32")
        try:
            return {
                pattern: None if format is None else FixedPointFormat.parse(format)
                for pattern, format in formats.items()
            }
        except ValueError as error:
            raise OptionError(f"{name}: ", *parts_of(error)) from error

    def check_modules(self, names: Iterable[str]) -> None:
        """Refuse patterns that no module's name matches: what they ask for would not happen.

        Raises:
            ValueError: naming the pattern, and the modules that there are.
        """
        names = list(names)
        for kind in ("activations", "errors"):
            for pattern in self._table(kind):
                if not any(fnmatchcase(name, pattern) for name in names):
                    there = ", ".join(name for name in names if name) or "none but the network itself, ''"
                    raise OptionError(Option(kind, f"{{{pattern!r}: ...}}"), f" matches no module; there are {there}")

    def activation_format(self, module: str) -> FixedPointFormat | None:
        """The format of what the module of this name puts out; ``None`` to leave it in float32."""
        return _first_match(self._table("activations"), module)

    def error_format(self, module: str) -> FixedPointFormat | None:
        """The format of errors at what the module of this name puts out; ``None`` to leave them in float32."""
        return _first_match(self._table("errors"), module)

    def __str__(self) -> str:
        def written(formats: Formats) -> str:
            if isinstance(formats, Mapping):
                return ", ".join(f"{pattern}: {written(format)}" for pattern, format in formats.items())
            return "float32" if formats is None else str(formats)

        errors = self.activations if self.errors == "same" else self.errors
        return (
            f"activations {written(self.activations)} {self.rounding}, errors {written(errors)} "
            f"{self.error_rounding or self.rounding}, sums {self.accumulate}"
        )


def check_emulation(emulation: object) -> None:
    """Raise ``ValueError`` for anything else, such as a format's text."""
    if not isinstance(emulation, Emulation):
        raise OptionError(Option.given("emulation", emulation), f" is not an Emulation: write Emulation({emulation!r})")


def _first_match(table: dict[str, FixedPointFormat | None], module: str) -> FixedPointFormat | None:
    return next((format for pattern, format in table.items() if fnmatchcase(module, pattern)), None)
