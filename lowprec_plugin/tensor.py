"""A tensor that is held as fixed-point codes and looks like an ordinary floating-point one.

:class:`FixedPointTensor` holds integer codes and block exponents, nothing else. Every operation without a rule of its
own (:mod:`lowprec_plugin.tensor_rules`) reads it as floats for the time of that operation. This happens below
autograd, so what autograd saves for the backward pass are the codes. An operation that writes to it rounds the result
back into the codes; a view of it is a window on the same codes, and writing to the view writes to them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lowprec_plugin import first_tensor, ops
from lowprec_plugin.blocks import Blocks, check_blocks, check_window
from lowprec_plugin.dequantizing import dequantize
from lowprec_plugin.direct import Direct, refuse_as_data_of_floats
from lowprec_plugin.flattening import Flattened
from lowprec_plugin.formats import FixedPointFormat, check_integer, check_kind
from lowprec_plugin.gathered import Gathered
from lowprec_plugin.integrity import check_facts, check_read, digest
from lowprec_plugin.opening import Shared, check_not_left, open_floats, rows_in, settle
from lowprec_plugin.random_bits import key_of, stream_of, substream

_ANY_MODE = nullcontext()


class FixedPointTensor(Gathered, Direct, Flattened, torch.Tensor):
    """A tensor stored as ``code * 2**exponent``.

    Make one with :meth:`quantize`; :meth:`dequantize` gives the floats. Its ``dtype`` is the one that operations see;
    its bytes are ``.nbytes``. Whatever writes to it rounds as ``.rounding`` says, with random bits of the tensor's own
    stream; what its format holds stays exact, and ``copy_`` from a tensor of equal blocks copies the codes.

    Attributes:
        format: the :class:`~lowprec_plugin.formats.FixedPointFormat`.
        rounding: ``"stochastic"`` or ``"nearest"``.
        stream: the tensor's random stream (:func:`lowprec_plugin.random_bits.stream_of`).
        label: its name, for messages.
        first_row: the row of the whole tensor at which this shard of it starts.
        whole_rows: how many rows the whole tensor has, if this is a shard of it that may be gathered; else ``None``.
    """

    format: FixedPointFormat
    rounding: str
    stream: int
    label: str
    whole_rows: int | None
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
        window_on: FixedPointTensor | None = None,  # whose planes these are: they have been checked
    ) -> FixedPointTensor:
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
        self = torch.Tensor._make_wrapper_subclass(
            cls, size, strides=stride, storage_offset=offset, dtype=dtype, device=codes.device
        )
        self._codes, self._low, self._exponents = blocks
        self.format, self.rounding, self.stream, self.label = format, rounding, stream, label
        if window_on is None:
            self._shared, self._offset, self.whole_rows = Shared(first_row, rows_in(codes)), 0, None
        else:
            self._shared, self._offset, self.whole_rows = window_on._shared, window_on._offset, window_on.whole_rows
        return self

    # An explicit __init__, for torch.Tensor's takes no arguments of ours; it does nothing.
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    @classmethod
    def quantize(
        cls,
        x: Tensor,
        format: FixedPointFormat | str,
        *,
        rounding: str = "stochastic",
        seed: int = 0,
        label: str = "",
        dtype: torch.dtype | None = None,
        first_row: int = 0,
    ) -> FixedPointTensor:
        """Round ``x`` to the numbers of ``format``.

        Args:
            x: floating point, any shape, finite.
            format: a format or its text, such as ``"fixed16"`` or ``"<4,12>"``.
            rounding: ``"stochastic"`` or ``"nearest"``; in-place arithmetic on the result rounds likewise.
            seed, label: key the random bits; the label is the tensor's name in messages too.
            dtype: the dtype that operations see; ``x.dtype`` if ``None``.
            first_row: where ``x`` starts in the whole tensor, if it is a shard of it.

        Raises:
            ValueError: if ``x`` is not floating point, is not finite, or is negative where the format is squared; and
                for an argument of another kind.
        """
        format = FixedPointFormat.parse(format)
        check_kind(x, Tensor, "x")
        check_facts(torch.float32 if dtype is None else dtype, rounding, label, first_row)
        check_integer(seed, "seed")
        if isinstance(x, FixedPointTensor):
            dtype = dtype or x.dtype
            x = x.dequantize(torch.float32)
        stream = stream_of(seed, label)
        key = key_of(substream(stream, "quantize"), 0)
        blocks, _ = ops.quantize(x, format, rounding=rounding, key=key, first_row=first_row)
        return cls(
            blocks, format, dtype=dtype or x.dtype, rounding=rounding, stream=stream, label=label, first_row=first_row
        )

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
        settle(self)
        return self._planes

    @property
    def _planes(self) -> Blocks:
        """Codes and exponents as they are, though the tensor may be open (:mod:`lowprec_plugin.opening`)."""
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

    def _floats(self, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """All floats behind this tensor, and the window on them that it is."""
        dtype, floats = dtype or self.dtype, open_floats(self)
        floats = dequantize(self._planes, self.format, dtype) if floats is None else floats.to(dtype)
        geometry = self._geometry
        return floats, floats if geometry is None else floats.as_strided(*geometry)

    def _store(self, floats: Tensor, rounding: str) -> int:
        """Overwrite all codes behind this tensor with rounded ``floats``, in their order. Returns how many saturate."""
        check_not_left(self)
        if (opened := open_floats(self)) is not None:  # to be rounded when it is closed
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

    def _like(self, blocks: Blocks, **changes: Any) -> FixedPointTensor:
        """A tensor like this one over other planes."""
        options = {"dtype": self.dtype, "rounding": self.rounding, "stream": self.stream, "label": self.label} | changes
        if "geometry" not in changes:
            options["geometry"] = self._geometry
        if "first_row" not in changes:
            options["first_row"] = self._shared.first_row + self._offset
        result = FixedPointTensor(blocks, self.format, **options)
        result._shared.roundings, result.whole_rows = self._shared.roundings, self.whole_rows
        return result

    def _window(self, geometry: tuple[Any, Any, Any] | None) -> FixedPointTensor:
        """Another view of the same codes."""
        with self._mode():
            return FixedPointTensor(
                self._planes, self.format, dtype=self.dtype, rounding=self.rounding, stream=self.stream,
                label=self.label, geometry=geometry, window_on=self,
            )  # fmt: skip

    def _mode(self) -> AbstractContextManager[Any]:
        """In which to make a view of this tensor: under inference mode that of an ordinary one is an ordinary one."""
        return torch.inference_mode(self.is_inference()) if torch.is_inference_mode_enabled() else _ANY_MODE

    @property
    def data(self) -> FixedPointTensor:
        """A window on the same codes outside autograd. What is assigned takes their place, rounded as this rounds.

        A fixed-point tensor that is assigned brings its own format, dtype and device along.
        """
        return self.detach()  # type: ignore[return-value]

    @data.setter
    def data(self, value: Tensor) -> None:
        from lowprec_plugin import copying

        copying.assign_(self, value)

    def __format__(self, spec: str) -> str:
        return format(self.dequantize(), spec)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        kind = "Parameter" if isinstance(self, torch.nn.Parameter) else "FixedPointTensor"
        values = repr(self.dequantize()).removeprefix("tensor(").removesuffix(")")
        grad = ", requires_grad=True" if self.requires_grad else ""
        return f"{kind}({values}, format={self.format}, nbytes={self.nbytes}{grad})"

    def __deepcopy__(self, memo: dict[int, Any]) -> FixedPointTensor:
        if id(self) in memo:
            return memo[id(self)]  # type: ignore[no-any-return]
        copied: Any = self._like(self.blocks.map(torch.clone))
        copied = torch.nn.Parameter(copied) if isinstance(self, torch.nn.Parameter) else copied
        memo[id(self)] = copied.requires_grad_(self.requires_grad)
        if self.grad is not None and not isinstance(self, torch.nn.Parameter):  # torch copies no parameter's gradient
            copied.grad = copy.deepcopy(self.grad, memo)
        return copied  # type: ignore[no-any-return]

    def __reduce_ex__(self, protocol: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        facts = (
            str(self.format), self.dtype, self.rounding, self.stream, self.label, self.first_row, self.roundings,
            self._geometry, isinstance(self, torch.nn.Parameter), self.requires_grad, self.whole_rows,
        )  # fmt: skip
        hung = {name: value for name, value in vars(self).items() if name not in OWN_ATTRIBUTES}
        written = digest(self.blocks, *facts)
        return rebuild, (*self.blocks, *facts, written, hung) if hung else (*self.blocks, *facts, written)

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    @torch.compiler.disable  # type: ignore[untyped-decorator]  # below the graph: nothing here is for Dynamo to trace
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        from lowprec_plugin import tensor_rules

        return tensor_rules.dispatch(func, args, kwargs or {})


def rebuild(
    codes: Tensor,
    low: Tensor | None,
    exponents: Tensor | None,
    format: str,
    dtype: torch.dtype,
    rounding: str,
    stream: int,
    label: str,
    first_row: int,
    ticks: int,
    geometry: tuple[Any, Any, Any] | None,
    parameter: bool,
    requires_grad: bool,
    whole_rows: int | None = None,
    written: str | None = None,
    hung: dict[str, Any] | None = None,
) -> Tensor:
    """Put a :class:`FixedPointTensor` together from what its pickle holds. Allowed under ``weights_only=True``.

    ``hung`` are the attributes that a user has hung on it.

    Raises:
        ValueError: for anything that is not as it was written, see :func:`lowprec_plugin.integrity.check_read`.
    """
    given = Blocks(codes, low, exponents)
    facts = (format, dtype, rounding, stream, label, first_row, ticks, geometry, parameter, requires_grad, whole_rows)
    parsed = check_read(given, *facts, written=written)
    result = FixedPointTensor(
        given.map(torch.detach), parsed,  # the tensors given may yet be changed by what follows in the pickle
        dtype=dtype, rounding=rounding, stream=stream, label=label,
        first_row=first_row, geometry=geometry,
    )  # fmt: skip
    result.roundings, result.whole_rows = ticks, whole_rows
    tensor = torch.nn.Parameter(result, requires_grad) if parameter else result.requires_grad_(requires_grad)
    vars(tensor).update({name: value for name, value in (hung or {}).items() if name not in OWN_ATTRIBUTES})
    return tensor


#: What a tensor holds of itself, and torch of a parameter that is one, beside what a user has hung on it.
OWN_ATTRIBUTES = frozenset(("_is_param", *FixedPointTensor.__annotations__))


torch.serialization.add_safe_globals([rebuild])
first_tensor.waiting.append(partial(refuse_as_data_of_floats, FixedPointTensor))
