"""Which parameters' gradients become codes, and how an optimizer that reads floats gets them.

See :mod:`lowprec_plugin.tensor.gradient` for what they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from lowprec_plugin.formats import rows_of
from lowprec_plugin.tensor.dtensor import fixed_part, in_place_of, stored_part
from lowprec_plugin.tensor.gradient_hook import watch_gradient

#: Gradients of fewer elements stay floats: as codes they save less than handling them costs.
FEWEST = 4096


def stays_float(shape: Sequence[int]) -> bool:
    """Whether a gradient of this shape is not worth codes: of fewer than ``FEWEST`` elements, or of a vector.

    Every element of a vector would be a block.
    """
    rows, columns = rows_of(shape)
    return columns == 1 or rows * columns < FEWEST


def keep_in_codes(param: Tensor, word_length: int | None) -> None:
    """Have the gradients of a fixed-point parameter kept in ``word_length`` bits from now on; ``None``: as floats.

    Those for which :func:`stays_float` holds stay floats.
    """
    stored_part(param).gradient_word_length = None if stays_float(param.shape) else word_length
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
