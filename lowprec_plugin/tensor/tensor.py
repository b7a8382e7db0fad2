"""A tensor that is held as fixed-point codes and looks like an ordinary floating-point one.

Every operation without a rule of its own (:mod:`.rules`) reads it as floats for the time of that operation. This
happens below autograd, so what autograd saves for the backward pass are the codes. An operation that writes to it
rounds the result back into the codes; a view of it is a window on the same codes, and writing to the view writes to
them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lowprec_plugin.arithmetic import ops
from lowprec_plugin.arithmetic.random_bits import key_of, stream_of, substream
from lowprec_plugin.compat.modules import PARAMETER_MARK
from lowprec_plugin.compat.shallow_copies import refuse_as_data
from lowprec_plugin.compat.subclasses import no_torch_function
from lowprec_plugin.formats import FixedPointFormat, check_integer, check_kind
from lowprec_plugin.former_names import label_of_today
from lowprec_plugin.tensor import first_tensor
from lowprec_plugin.tensor.coded import Coded
from lowprec_plugin.tensor.copying import assign_
from lowprec_plugin.tensor.flattening import Flattened
from lowprec_plugin.tensor.fsdp import Gathered
from lowprec_plugin.tensor.integrity import Pickled, check_facts, check_read
from lowprec_plugin.tensor.interop import NO_DATA_OF_FLOATS, Direct
from lowprec_plugin.tensor.rules import dispatch

#: What files have behind the label of a copy.
_OF_COPIES = " (a copy)"


class FixedPointTensor(Gathered, Direct, Flattened):
    """A tensor stored as ``code * 2**exponent``.

    Make one with :meth:`quantize`; :meth:`dequantize` gives the floats. Its ``dtype`` is the one that operations see;
    its bytes are ``.nbytes``. Whatever writes to it rounds as ``.rounding`` says, with random bits of the tensor's own
    stream; what its format holds stays exact, and ``copy_`` from a tensor of equal blocks copies the codes.

    Attributes:
        format: the :class:`~lowprec_plugin.formats.FixedPointFormat`.
        rounding: ``"stochastic"`` or ``"nearest"``.
        stream: the tensor's random stream (:func:`lowprec_plugin.arithmetic.random_bits.stream_of`).
        label: its name, for messages.
        first_row: the row of the whole tensor at which this shard of it starts.
        whole_rows: how many rows the whole tensor has, if this is a shard of it that may be gathered; else ``None``.
        is_copy: whether it is an optimizer's copy of a parameter, such as slow weights, and so has the parameter's
            format whatever other state has.
        gradient_word_length: bits of a parameter's gradient, once an optimizer has it; ``None``: floats;
            ``"release"``: none is kept, for the optimizer uses it as soon as autograd has it.
        gradient_dtype: of a parameter's gradient, once an optimizer has it; ``None``: the tensor's own.
    """

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
    def data(self) -> FixedPointTensor:
        """A window on the same codes outside autograd. What is assigned takes their place, rounded as this rounds.

        A fixed-point tensor that is assigned brings its own format, dtype and device along.
        """
        return self.detach()  # type: ignore[return-value]

    @data.setter
    def data(self, value: Tensor) -> None:
        assign_(self, value)

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
        label = self.label + (_OF_COPIES if self.is_copy else "")
        pickled = Pickled(
            *self.blocks, str(self.format), self.dtype, self.rounding, self.stream, label, self.first_row,
            self.roundings, self._geometry, isinstance(self, torch.nn.Parameter), self.requires_grad, self.whole_rows,
            hung={name: value for name, value in vars(self).items() if name not in OWN_ATTRIBUTES},
        )  # fmt: skip
        pickled = pickled._replace(written=pickled.digest())
        return rebuild, pickled[:] if pickled.hung else pickled[:-1]  # plain tuples, which files hold

    __torch_function__ = no_torch_function

    @classmethod
    @torch.compiler.disable  # type: ignore[untyped-decorator]  # below the graph: nothing here is for Dynamo to trace
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return dispatch(func, args, kwargs or {})


def rebuild(*pickled: Any) -> Tensor:
    """Put a :class:`FixedPointTensor` together from what its pickle holds. Allowed under ``weights_only=True``.

    Args:
        pickled: see :class:`~lowprec_plugin.tensor.integrity.Pickled`.

    Raises:
        ValueError: for anything that is not as it was written, see :func:`lowprec_plugin.tensor.integrity.check_read`.
    """
    given = Pickled(*pickled)
    format, label = check_read(given), label_of_today(given.label)
    result = FixedPointTensor(
        given.blocks.map(torch.detach), format,  # the tensors given may yet be changed by what follows in the pickle
        dtype=given.dtype, rounding=given.rounding, stream=given.stream, label=label.removesuffix(_OF_COPIES),
        first_row=given.first_row, geometry=given.geometry,
    )  # fmt: skip
    result.roundings, result.whole_rows = given.roundings, given.whole_rows
    result.is_copy = label.endswith(_OF_COPIES)
    needed = given.requires_grad
    tensor = torch.nn.Parameter(result, needed) if given.parameter else result.requires_grad_(needed)
    vars(tensor).update({name: value for name, value in (given.hung or {}).items() if name not in OWN_ATTRIBUTES})
    return tensor


#: What a tensor holds of itself, and torch of a parameter that is one, beside what a user has hung on it.
OWN_ATTRIBUTES = frozenset((PARAMETER_MARK, *Coded.__annotations__))


rebuild.__module__ = "lowprec_plugin.tensor"  # as files name it, of earlier versions too
torch.serialization.add_safe_globals([rebuild])
first_tensor.waiting.append(partial(refuse_as_data, FixedPointTensor, NO_DATA_OF_FLOATS))
