"""The options of the plugin: their defaults, and the checks of each alone and beside the others.

The plugin, the DeepSpeed plugin, the optimizers, the plan, the proof of concept and the search for formats each take
some, under the same names, and hand them on as a record. docs/extending.md says how to add one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

import torch

from lowprec_plugin.activations.emulation import Emulation
from lowprec_plugin.activations.emulation.settings import check_emulation
from lowprec_plugin.arithmetic import wire_ops
from lowprec_plugin.arithmetic.ops import check_rounding
from lowprec_plugin.comm.ddp import check_feedback
from lowprec_plugin.compute_dtype import ComputeDtype, Computing
from lowprec_plugin.formats import FixedPointFormat, check_integer, check_kind, check_word_length
from lowprec_plugin.optim.gradients import GradientDtype, GradientWordLength, check_gradients
from lowprec_plugin.optim.naming import patterns_of
from lowprec_plugin.ramp import WordLengthRamp, check_ramp
from lowprec_plugin.text.option_error import Option, OptionError

if TYPE_CHECKING:
    from typing import Self

NONFINITE = ("raise", "skip")


#: Of options that make a variant of the proof of concept, which leaves a configuration's own out.
VARIED = {"varied": True}
#: Of those that change what a resumed run computes, though its checkpoint is read: a change is said.
RESUMED = {"resumed": True}


@dataclass(frozen=True)
class StepOptions:
    """How state is stored, and how an optimizer updates: what the optimizers take too.

    Args:
        state_word_length: bits of the state; ``None``: as each parameter.
        rounding: ``"stochastic"`` or ``"nearest"``.
        nonfinite: on a NaN or infinite gradient ``"raise"``, or ``"skip"`` the step and count it.
        state_fraction_length: bits behind the radix point of all state, which a state word length goes with; ``None``:
            every block of state has a radix point of its own.

    Raises:
        OptionError: naming the option.
    """

    state_word_length: int | None = field(default=None, metadata=VARIED)
    rounding: str = field(default="stochastic", metadata=VARIED | RESUMED)
    nonfinite: str = "raise"
    state_fraction_length: int | None = field(default=None, metadata=VARIED)

    def __post_init__(self) -> None:
        check_rounding(self.rounding)
        if self.state_word_length is not None:
            check_word_length(self.state_word_length, "state_word_length")
        if self.state_fraction_length is not None:
            if self.state_word_length is None:
                raise OptionError(
                    Option.given("state_fraction_length", self.state_fraction_length),
                    " needs ",
                    Option("state_word_length"),
                    ", which ramps leave alone",
                )
            FixedPointFormat(self.state_word_length, self.state_fraction_length)  # refuses bad values
        if self.nonfinite not in NONFINITE:
            raise OptionError(Option.given("nonfinite", self.nonfinite), f" is not one of {NONFINITE}")

    @classmethod
    def of(cls, arguments: Mapping[str, Any] | StepOptions, **changes: Any) -> Self:
        """The options that ``arguments`` hold, among other things; the others have their defaults.

        Args:
            arguments: of a function, by name, or another record.
            changes: what is otherwise than in ``arguments``.
        """
        held = arguments if isinstance(arguments, Mapping) else vars(arguments)
        return cls(**{name: held[name] for name in names(cls) if name in held} | changes)

    def given(self) -> dict[str, Any]:
        """All, by name."""
        return {name: getattr(self, name) for name in names(type(self))}


@dataclass(frozen=True, kw_only=True)
class PluginOptions(StepOptions):
    """All of them, as :class:`~lowprec_plugin.FixedPointPrecision` documents them.

    Raises:
        OptionError: naming the option.
    """

    word_length: int = field(default=16, metadata=VARIED)
    fraction_length: int | None = field(default=None, metadata=VARIED)
    comm_word_length: int | Literal["auto"] | None = field(default="auto", metadata=VARIED | RESUMED)
    comm_error_feedback: bool = field(default=False, metadata=VARIED | RESUMED)
    block_size: int = 256
    compute_dtype: ComputeDtype = field(default=torch.float32, metadata=RESUMED)
    keep_float: Sequence[str] = field(default=(), metadata=RESUMED)  #: one, or several: here a tuple
    ramp: WordLengthRamp | None = field(default=None, metadata=VARIED)
    emulation: Emulation | None = field(default=None, metadata=RESUMED)
    activation_word_length: int | None = field(default=None, metadata=RESUMED)
    gradient_word_length: GradientWordLength | None = field(default=None, metadata=VARIED | RESUMED)
    gradient_dtype: GradientDtype | None = field(default=None, metadata=VARIED | RESUMED)  #: here no text
    leave_float: bool = False
    seed: int = field(default=0, metadata=VARIED | RESUMED)

    def __post_init__(self) -> None:
        weights, computing = self.format, self.computing  # which refuse bad values
        super().__post_init__()
        if self.comm_bits is not None:
            wire_ops.check_word_length(self.comm_bits, "comm_word_length")
        check_feedback(self.comm_bits, self.comm_error_feedback, "comm_")
        if self.ramp is not None:
            check_ramp(self.ramp, weights.word_length)
        object.__setattr__(self, "keep_float", tuple(patterns_of(self.keep_float)))
        check_integer(self.seed, "seed")
        if self.emulation is not None:
            if computing.precision != "32-true":
                raise OptionError(
                    Option.given("compute_dtype", self.compute_dtype),
                    " is other arithmetic: emulation needs torch.float32",
                )
            check_emulation(self.emulation)
        if self.activation_word_length is not None:
            check_word_length(self.activation_word_length, "activation_word_length")
        _, dtype = check_gradients(self.gradient_word_length, self.gradient_dtype)
        object.__setattr__(self, "gradient_dtype", dtype)
        if self.gradient_word_length == "release":
            self._check_release()
        check_kind(self.leave_float, bool, "leave_float")

    def _check_release(self) -> None:
        asked = Option.given("gradient_word_length", "release")
        if self.nonfinite == "skip":
            raise OptionError(
                Option.given("nonfinite", "skip"), " beside ", asked,
                ": a step cannot be skipped once a part of it is made; use ", Option.given("nonfinite", "raise"),
                " or ", Option.given("gradient_word_length", 8),
            )  # fmt: skip
        if self.ramp is not None and self.ramp.at is None:
            raise OptionError(
                "a ramp that measures updates before they are made finds none to measure beside ", asked,
                ": give it a schedule (at=...), or use ", Option.given("gradient_word_length", 8),
            )  # fmt: skip

    @property
    def format(self) -> FixedPointFormat:
        """Of the weights, at first if there is a ramp."""
        return FixedPointFormat(self.word_length, self.fraction_length, self.block_size)

    @property
    def comm_bits(self) -> int | None:
        """Bits of a gradient between processes, ``"auto"`` being 16 as long as no ramp says otherwise."""
        return 16 if self.comm_word_length == "auto" else self.comm_word_length

    @property
    def computing(self) -> Computing:
        """What ``compute_dtype`` asks for."""
        return Computing(self.compute_dtype)

    def terms(self) -> dict[str, Any]:
        """All in plain numbers and texts, by name."""
        said = {
            "compute_dtype": str(self.computing), "keep_float": list(self.keep_float),
            "emulation": self.emulation and str(self.emulation), "ramp": self.ramp and str(self.ramp),
            "gradient_dtype": self.gradient_dtype and str(self.gradient_dtype).removeprefix("torch."),
        }  # fmt: skip
        return self.given() | said

    @classmethod
    def of_format(cls, format: FixedPointFormat, **others: Any) -> Self:
        """Those of weights in ``format``, which is not squared."""
        return cls(
            word_length=format.word_length, fraction_length=format.fraction_length, block_size=format.block_size,
            **others,
        )  # fmt: skip


def of_options(name: str) -> Any:
    """An attribute of a plugin, read from the record that it has as ``options``."""
    return property(attrgetter(f"options.{name}"), doc=f"As ``options.{name}``.")


def names(options: type[StepOptions], mark: Mapping[str, bool] | None = None) -> tuple[str, ...]:
    """The names of a record's options: of all, or of those with a ``mark``, ``VARIED`` or ``RESUMED``."""
    return tuple(each.name for each in fields(options) if mark is None or mark.items() <= each.metadata.items())
