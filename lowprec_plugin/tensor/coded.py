"""A tensor over codes: what it holds, how it is read and written as floats, and its views.

:class:`Coded` is the base of :class:`~lowprec_plugin.tensor.FixedPointTensor`, the only class of such tensors that has
any. What torch's operations do to one is in the modules between the two.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from lowprec_plugin.arithmetic import ops
from lowprec_plugin.arithmetic.blocks import Blocks, check_blocks, check_window
from lowprec_plugin.arithmetic.random_bits import key_of, substream
from lowprec_plugin.compat.subclasses import make_wrapper
from lowprec_plugin.formats import FixedPointFormat
from lowprec_plugin.tensor import first_tensor
from lowprec_plugin.tensor.dequantize import dequantize

if TYPE_CHECKING:
    from typing import Self

_ANY_MODE = nullcontext()


@dataclass(eq=False)
class Shared:
    """What all windows on the same codes have in common.

    Attributes:
        first_row: where they start in the whole tensor; not known yet if not ``placed``.
        rows: of the codes, of which a window may show some.
        roundings: in place so far, which key the random bits of the next.
        open: the floats that stand for the codes just now.
        left: what became of the tensor when windows that still have this were left behind; nothing is to be written to
            them.
        factor: of a gradient (:mod:`.gradient`), by which its numbers are multiplied; ``None``: 1.
        memory: that of the floats these codes came from, by ``.data =`` or ``quantize_``, if others hold it yet.
    """

    first_row: int
    rows: int
    roundings: int = 0
    placed: bool = True
    open: Open | None = None
    left: str = ""
    factor: Tensor | None = None
    memory: StorageWeakRef | None = None


@dataclass(eq=False)
class Open:
    """What a tensor is while it is open (:mod:`.opening`): its codes wait.

    Attributes:
        floats: float32, of the codes' shape; changed in place by what writes to the tensor.
        blocks: the codes that they will be rounded to.
        format, stream: the tensor's.
        owner: what it belongs to, see :class:`.opening.Opening`; ``None`` if that is not known.
        close: rounds the floats of what is given.
    """

    floats: Tensor
    blocks: Blocks
    format: FixedPointFormat
    stream: int
    owner: Hashable | None
    close: Callable[[Shared], None]


class Coded(torch.Tensor):
    """A tensor that holds integer codes and block exponents, nothing else. Its attributes are documented with
    :class:`~lowprec_plugin.tensor.FixedPointTensor`.
    """

    format: FixedPointFormat
    rounding: str
    stream: int
    label: str
    whole_rows: int | None
    is_copy: bool
    gradient_word_length: int | Literal["release"] | None
    gradient_dtype: torch.dtype | None
    _codes: Tensor
    _low: Tensor | None
    _exponents: Tensor | None
    _shared: Shared
    _offset: int  # rows of the tensor whose ``_shared`` this has, before the first of this

    @staticmethod
    def __new__(
        cls,
        blocks: Blocks,
        format: FixedPointFormat,
        *,
        dtype: torch.dtype = torch.float32,
        rounding: str = "stochastic",
        stream: int = 0,
        label: str = "",
        first_row: int = 0,
        geometry: tuple[Any, Any, Any] | None = None,
        window_on: Coded | None = None,  # whose planes these are: they have been checked
    ) -> Self:
        if window_on is None:
            check_blocks(blocks, format)
            if first_tensor.waiting:
                first_tensor.come()
        codes = blocks.codes
        if geometry is None:
            size, stride, offset = codes.shape, codes.stride(), 0
        else:
            size, stride, offset = geometry
            check_window(size, stride, offset, codes.numel())
        self: Self = make_wrapper(cls, size, strides=stride, storage_offset=offset, dtype=dtype, device=codes.device)
        self._codes, self._low, self._exponents = blocks
        self.format, self.rounding, self.stream, self.label = format, rounding, stream, label
        if window_on is None:
            self._shared, self._offset = Shared(first_row, rows_in(codes)), 0
            self.whole_rows, self.is_copy = None, False
            self.gradient_word_length = self.gradient_dtype = None
        else:
            self._shared, self._offset = window_on._shared, window_on._offset
            self.whole_rows, self.is_copy = window_on.whole_rows, window_on.is_copy
            self.gradient_word_length, self.gradient_dtype = window_on.gradient_word_length, window_on.gradient_dtype
        return self

    # An explicit __init__, for torch.Tensor's takes no arguments of ours; it does nothing.
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    @property
    def codes(self) -> Tensor:
        """The integer codes (the upper plane of them above 16 bits), not a copy: see :class:`Blocks`."""
        return self.blocks.codes

    @property
    def exponents(self) -> Tensor | None:
        """One int8 per block, not a copy; ``None`` in a static format."""
        return self.blocks.exponents

    @property
    def blocks(self) -> Blocks:
        """Codes and exponents, not a copy."""
        self._settle()
        return self._planes

    def _settle(self) -> None:
        """Round it if it is open: its codes are wanted."""
        if (opened := self._shared.open) is not None:
            opened.close(self._shared)

    @property
    def _planes(self) -> Blocks:
        """Codes and exponents as they are, though the tensor may be open (:mod:`.opening`)."""
        return Blocks(self._codes, self._low, self._exponents)

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        """Bytes held: codes and exponents."""
        return self._planes.nbytes

    @property
    def roundings(self) -> int:
        """How often this tensor has been rounded in place, steps included: it keys the random bits of the next time."""
        return self._shared.roundings

    @roundings.setter
    def roundings(self, count: int) -> None:
        self._shared.roundings = count

    @property
    def first_row(self) -> int:
        """The row of the whole tensor at which this shard or part of it starts."""
        return self._shared.first_row + self._offset

    @first_row.setter
    def first_row(self, row: int) -> None:
        self._shared.first_row = row - self._offset

    @property
    def is_whole(self) -> bool:
        """Whether this is all of the tensor in its own order, perhaps in another shape, and not a window on a part."""
        return self.numel() == self._codes.numel() and self.storage_offset() == 0 and self.is_contiguous()

    @property
    def _geometry(self) -> tuple[Any, Any, Any] | None:
        """Shape, strides and offset of the window on the codes that this is; ``None`` for the tensor itself."""
        as_it_is = self.is_whole and self.shape == self._codes.shape
        return None if as_it_is else (tuple(self.shape), self.stride(), self.storage_offset())

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The stored numbers as an ordinary tensor: exact in float32; in this tensor's own dtype if ``None``."""
        with torch.no_grad():
            floats = self._floats(dtype)[1]
            return floats if self._shared.open is None else floats.clone()

    def _open_floats(self) -> Tensor | None:
        """Its floats while it is open, not a copy; of a part of an open one, its rows of them."""
        opened = self._shared.open
        if opened is None:
            return None
        if self._shared.rows == rows_in(self._codes):
            return opened.floats
        return opened.floats[self._offset : self._offset + self._codes.shape[0]]

    def _floats(self, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """All floats behind this tensor, and the window on them that it is."""
        dtype, floats = dtype or self.dtype, self._open_floats()
        floats = dequantize(self._planes, self.format, dtype) if floats is None else floats.to(dtype)
        geometry = self._geometry
        return floats, floats if geometry is None else floats.as_strided(*geometry)

    def _store(self, floats: Tensor, rounding: str) -> int:
        """Overwrite all codes behind this tensor with rounded ``floats``, in their order. Returns how many saturate."""
        check_not_left(self)
        if (opened := self._open_floats()) is not None:  # to be rounded when it is closed
            if opened.data_ptr() != floats.data_ptr():
                opened.copy_(floats.reshape(opened.shape))
            return 0
        key, floats = key_of(substream(self.stream, "in place"), self.roundings), floats.reshape(self._codes.shape)
        self.roundings += 1
        try:
            _, saturated = ops.quantize(
                floats, self.format, rounding=rounding, key=key, first_row=self.first_row, out=self.blocks
            )
        except ValueError as error:
            label = f"tensor {self.label!r}" if self.label else "a fixed-point tensor"
            raise ValueError(f"{label} is left as it was: {error}; write to a float tensor, and copy_ that") from None
        return saturated

    def _like(self, blocks: Blocks, **changes: Any) -> Self:
        """A tensor like this one over other planes."""
        options = {"dtype": self.dtype, "rounding": self.rounding, "stream": self.stream, "label": self.label} | changes
        if "geometry" not in changes:
            options["geometry"] = self._geometry
        if "first_row" not in changes:
            options["first_row"] = self._shared.first_row + self._offset
        result = type(self)(blocks, self.format, **options)
        result._shared.roundings = self._shared.roundings
        result.whole_rows, result.is_copy = self.whole_rows, self.is_copy
        result.gradient_word_length, result.gradient_dtype = self.gradient_word_length, self.gradient_dtype
        return result

    def _window(self, geometry: tuple[Any, Any, Any] | None) -> Self:
        """Another view of the same codes."""
        with self._mode():
            return type(self)(
                self._planes, self.format, dtype=self.dtype, rounding=self.rounding, stream=self.stream,
                label=self.label, geometry=geometry, window_on=self,
            )  # fmt: skip

    def _mode(self) -> AbstractContextManager[Any]:
        """In which to make a view of this tensor: under inference mode that of an ordinary one is an ordinary one."""
        return torch.inference_mode(self.is_inference()) if torch.is_inference_mode_enabled() else _ANY_MODE


def rows_in(codes: Tensor) -> int:
    """How many rows ``codes`` have."""
    return codes.shape[0] if codes.dim() else 1


def check_not_left(tensor: Coded) -> None:
    """Refuse to write to a window whose tensor has become another.

    Raises:
        ValueError: with what to do.
    """
    if tensor._shared.left:
        raise ValueError(
            f"this is .data, or another window, of tensor {tensor.label!r} from before it was {tensor._shared.left}: "
            "what is written to it would be lost. Take the parameter's .data anew, or make the optimizer that keeps it "
            "anew"
        )
