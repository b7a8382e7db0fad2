"""What the proof of concept compares."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lowprec_plugin.plugin import FixedPointPrecision


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        name: of the command line and the table.
        options: of :class:`FixedPointPrecision`; ``None``: float32, without the plugin.
        twin: start with every weight one last bit away, to measure how far apart chaos alone drives two runs.
    """

    name: str
    options: dict[str, Any] | None = field(default_factory=dict)
    twin: bool = False

    def plugin(self, seed: int) -> FixedPointPrecision | None:
        """The flag for the Trainer."""
        return None if self.options is None else FixedPointPrecision(**self.options, seed=seed)


FLOAT32 = Variant("float32", None)
TWIN = Variant("float32 twin", None, twin=True)

VARIANTS = {
    variant.name: variant
    for variant in (
        FLOAT32,
        TWIN,
        Variant("16", {"word_length": 16}),
        Variant("16/8", {"word_length": 16, "state_word_length": 8}),
        Variant("16 nearest", {"word_length": 16, "rounding": "nearest"}),
        Variant("<2,10>", {"word_length": 12, "fraction_length": 10}),
        Variant("<2,10> nearest", {"word_length": 12, "fraction_length": 10, "rounding": "nearest"}),
    )
}
