"""Where numbers are rounded: one site per operation of a network, with its formats, random bits and counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lowprec_plugin.arithmetic import ops
from lowprec_plugin.arithmetic.random_bits import key_of, stream_of, substream
from lowprec_plugin.formats import FixedPointFormat

#: The attribute of a tensor that says which format its numbers are in, as text: it is saved with the tensor.
_FORMAT = "_lowprec_format"
#: The second gives zeros, as torch's attention does, where all is hidden: at -inf.
SOFTMAX = ("softmax", "masked softmax")


@dataclass
class Counts:
    """What has been rounded at one module's operations, of one kind (activations, or errors).

    Attributes:
        elements: rounded so far.
        saturated: of these, how many were out of the format's range; int64 of one element, on the device.
    """

    elements: int = 0
    saturated: Tensor = field(default_factory=lambda: _counter(torch.device("cpu")))

    def on(self, device: torch.device) -> Tensor:
        """``saturated``, moved to ``device`` where it is not there already."""
        if self.saturated.device != device:
            self.saturated = _counter(device).copy_(self.saturated)
        return self.saturated


def _counter(device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # or it could be added to under inference mode alone
        return torch.zeros(1, dtype=torch.int64, device=device)


@dataclass(frozen=True)
class Kind:
    """How one kind of numbers is rounded at a site."""

    format: FixedPointFormat | None
    rounding: str
    stream: int
    counts: Counts


@dataclass(frozen=True)
class Site:
    """One operation in one step.

    Attributes:
        operation: the name of the function.
        module: the name of the module it is in.
        place: which call of which module it is in, and where; the same in every step.
        step: keys its random bits together with the place.
    """

    operation: str
    module: str
    place: str
    step: int
    activations: Kind
    errors: Kind

    def __str__(self) -> str:
        """As messages have it."""
        return f"{self.operation!r} in module {self.module!r}"

    @property
    def rounds(self) -> bool:
        """Whether anything is rounded here."""
        return self.activations.format is not None or self.errors.format is not None

    def round_activation(self, x: Tensor) -> Tensor:
        """A layer's output, rounded."""
        return self._rounded(x, self.activations, "activation")

    def round_error(self, error: Tensor, operand: int | None = None) -> Tensor:
        """A back-propagated error, rounded: at the operation's output, or at one of its operands."""
        return self._rounded(error, self.errors, "error" if operand is None else f"error {operand}")

    def _rounded(self, x: Tensor, kind: Kind, role: str) -> Tensor:
        if kind.format is None:
            return x
        if x.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"emulation works on float32, and {self} gave {x.dtype}: leave autocast and half precision out"
            )
        if x.dtype == torch.float64 and kind.format.dynamic:
            x = x.float()
        kind.counts.elements += x.numel()
        stream = substream(kind.stream, f"{self.place}/{role}")
        return ops.rounded(
            x,
            kind.format,
            rounding=kind.rounding,
            key=key_of(stream, self.step) if kind.rounding == "stochastic" else 0,
            saturated=kind.counts.on(x.device),
        )


def stream_of_kind(seed: int, kind: str, rank: int) -> int:
    """The random stream of one kind of numbers; ranks have activations of their own, and so bits of their own."""
    return stream_of(seed, f"emulation/{kind}/{rank}")


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, site: Site, dtype: torch.dtype | None) -> Tensor:
        ctx.site, ctx.dtype = site, x.dtype
        rounded = site.round_activation(x).to(x.dtype if dtype is None else dtype)
        # A view made in here could not be changed in place, as the next operation may.
        return x.clone() if rounded is x else rounded

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor, None, None]:
        return ctx.site.round_error(error).to(ctx.dtype), None, None


class _RoundedFromOutput(torch.autograd.Function):
    """A function whose derivative is one of its result, which hardware has in rounded form only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str, dim: int, site: Site) -> Tensor:
        value = torch.softmax(x, dim) if name in SOFTMAX else getattr(torch, name)(x)
        if name == "masked softmax":
            value = value.masked_fill(x.isneginf().all(dim, keepdim=True), 0.0)
        rounded = site.round_activation(value).to(x.dtype)
        ctx.site, ctx.function, ctx.dim = site, name, dim
        ctx.save_for_backward(rounded)
        return rounded

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor, None, None, None]:
        (y,) = ctx.saved_tensors
        error = ctx.site.round_error(error)
        if ctx.function in SOFTMAX:
            slope = y * (error - (error * y).sum(ctx.dim, keepdim=True))
        elif ctx.function == "sigmoid":
            slope = error * y * (1 - y)
        else:  # tanh
            slope = error * (1 - y * y)
        return slope, None, None, None


def rounded(x: Tensor, site: Site, dtype: torch.dtype | None = None) -> Tensor:
    """``x`` rounded to the site's activations; the error that comes back is rounded to its errors.

    Of ``dtype``; ``None``: of ``x``'s own.
    """
    if not site.rounds:
        return mark(x if dtype is None else x.to(dtype), None)
    return mark(_Rounded.apply(x, site, dtype), site.activations.format)  # type: ignore[no-untyped-call]


def rounded_function(x: Tensor, name: str, dim: int, site: Site) -> Tensor:
    """One of ``SOFTMAX``, ``sigmoid`` or ``tanh`` of ``x``, rounded; its derivative is taken of the rounded result."""
    y = _RoundedFromOutput.apply(x, name, dim, site)  # type: ignore[no-untyped-call]
    return mark(y, site.activations.format)


def mark(x: Tensor, format: FixedPointFormat | None) -> Tensor:
    """Note on ``x`` that its numbers are ``format``'s; ``None``: of no known one."""
    if format is not None:
        setattr(x, _FORMAT, str(format))
    elif hasattr(x, _FORMAT):
        delattr(x, _FORMAT)
    return x


def format_of(x: Tensor) -> FixedPointFormat | None:
    """The format that the numbers of ``x`` are known to be in."""
    text = getattr(x, _FORMAT, None)
    return None if text is None else FixedPointFormat.parse(text)
