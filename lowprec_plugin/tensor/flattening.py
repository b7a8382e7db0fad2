"""A fixed-point tensor taken apart into its planes and put together again, for compiled graphs and what traces them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from lowprec_plugin.arithmetic.blocks import Blocks
from lowprec_plugin.compat.subclasses import CompiledByKey
from lowprec_plugin.tensor.coded import Coded
from lowprec_plugin.tensor.opening import refuse_compiled

if TYPE_CHECKING:
    from typing import Self


class Flattened(Coded, CompiledByKey):
    """What torch.compile looks for in a tensor that wraps others."""

    def __tensor_flatten__(self) -> tuple[list[str], tuple[Any, ...]]:
        refuse_compiled()
        self._settle()  # a closure of an optimizer's step may run a compiled module
        names = [name for name in ("_codes", "_low", "_exponents") if getattr(self, name) is not None]
        context = (
            self.format, self.dtype, self.rounding, self.stream, self.label, self.first_row, self.whole_rows,
            self.is_copy, self.storage_offset(),
        )  # fmt: skip
        return names, context

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, Tensor], context: tuple[Any, ...], size: Any, stride: Any) -> Self:
        format, dtype, rounding, stream, label, first_row, whole_rows, is_copy, offset = context
        blocks = Blocks(inner["_codes"], inner.get("_low"), inner.get("_exponents"))
        result = cls(
            blocks, format, dtype=dtype, rounding=rounding, stream=stream, label=label, first_row=first_row,
            geometry=(size, stride, offset),
        )  # fmt: skip
        result.whole_rows, result.is_copy = whole_rows, is_copy
        return result
