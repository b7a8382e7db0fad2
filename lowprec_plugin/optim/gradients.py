"""Which parameters' gradients become codes, and how an optimizer that reads floats gets them.

See :mod:`lowprec_plugin.tensor.gradient` for what they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from lowprec_plugin.formats import rows_of
from lowprec_plugin.tensor.dtensor import fixed_part, in_place_of, stored_part
from lowprec_plugin.tensor.gradient_hook import watch_gradient

#: Gradients of fewer elements stay floats: as codes they save less than handling them costs.
FEWEST = 4096


def may_be_codes(shape: Sequence[int]) -> bool:
    """Whether gradients of this shape become codes where that is wanted.

    Those of fewer elements than ``FEWEST``, and of vectors, every element of which is a block, stay floats.
    """
    return rows_of(shape)[1] > 1 and math.prod(shape) >= FEWEST


def keep_in_codes(param: Tensor, word_length: int | None) -> None:
    """Have the gradients of a fixed-point parameter kept in ``word_length`` bits from now on, if they may be codes.

    ``None``: as floats.
    """
    stored_part(param).gradient_word_length = word_length if may_be_codes(param.shape) else None
    watch_gradient(param)


@contextmanager
def as_floats_meanwhile(params: Iterable[Tensor]) -> Iterator[None]:
    """Within the context the gradients of ``params`` that are codes are floats, which are dropped at its end."""
    coded = [(param, param.grad) for param in params if param.grad is not None and fixed_part(param.grad) is not None]
    try:
        for param, grad in coded:
            param.grad = in_place_of(stored_part(grad).dequantize(), param)
        yield
    finally:
        for param, grad in coded:
            param.grad = grad
