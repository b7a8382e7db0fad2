"""What gradients are kept as, and how an optimizer that reads floats gets them.

See :mod:`lowprec_plugin.tensor.gradient` for codes, and :mod:`lowprec_plugin.optim.release` for keeping none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from lowprec_plugin.formats import check_word_length, rows_of
from lowprec_plugin.tensor.dtensor import fixed_part, in_place_of, local_part, stored_part
from lowprec_plugin.tensor.gradient_hook import Asked, keep_floats, watch_gradient
from lowprec_plugin.text.option_error import Option, OptionError

GradientWordLength = int | Literal["release"]
GradientDtype = torch.dtype | Literal["bfloat16", "float16"]
#: Gradients of fewer elements stay floats: otherwise they save less than handling them one by one costs.
FEWEST = 4096
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def check_gradients(
    word_length: GradientWordLength | None, dtype: GradientDtype | None
) -> tuple[GradientWordLength | None, torch.dtype | None]:
    """What is asked of gradients: bits of codes or ``"release"``, and a dtype, which may be given as text.

    Raises:
        OptionError: for a value that is none, or both.
    """
    if word_length is not None and word_length != "release":
        if isinstance(word_length, str):
            raise OptionError(
                Option.given("gradient_word_length", word_length), ' is neither a number of bits nor "release"'
            )
        check_word_length(word_length, "gradient_word_length")
    if dtype is None:
        return word_length, None
    parsed = _DTYPES.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if parsed not in _DTYPES.values():
        raise OptionError(
            Option.given("gradient_dtype", dtype),
            f" is not one of {', '.join(_DTYPES)}: leave it out for floats of the dtype that operations see",
        )  # fmt: skip
    if word_length is not None:
        raise OptionError(
            Option.given("gradient_dtype", dtype), " beside ", Option.given("gradient_word_length", word_length),
            ": a gradient is kept in one way; leave one out",
        )  # fmt: skip
    return None, parsed


def stays_float(shape: Sequence[int], word_length: GradientWordLength | None) -> bool:
    """Whether the gradient of a parameter of this shape is a float until the step where ``word_length`` is asked.

    One of fewer elements than ``FEWEST`` is; and in place of codes that of a vector, every element of which would be a
    block.
    """
    rows, columns = rows_of(shape)
    small = rows * columns < FEWEST or (columns == 1 and word_length != "release")
    return word_length is None or small


def keep_gradients(param: Tensor, word_length: GradientWordLength | None, dtype: torch.dtype | None = None) -> None:
    """Have the gradients of a fixed-point parameter kept otherwise from now on.

    Args:
        word_length: bits of codes; ``"release"``: an optimizer that takes the parameter uses them at once; ``None``:
            floats. Some are floats all the same, see :func:`stays_float`.
        dtype: of the floats; ``None``: the parameter's own.
    """
    part = stored_part(param)
    keep_floats(param)
    part.gradient_word_length = None if stays_float(param.shape, word_length) else word_length
    Asked.release |= word_length == "release"
    part.gradient_dtype = None if dtype == part.dtype else dtype
    watch_gradient(param)


def widen_gradients(params: Iterable[Tensor]) -> None:
    """Have the gradients of ``params`` that are in a dtype of their own be in the parameter's, until they come anew."""
    for param in params:
        part, grad = fixed_part(param), param.grad
        if part is not None and grad is not None and part.gradient_dtype is not None:
            param.grad = grad.to(part.dtype)


@contextmanager
def as_floats_meanwhile(params: Iterable[Tensor]) -> Iterator[None]:
    """Within the context the gradients of ``params`` are floats of their dtype, which are dropped at its end."""
    kept = [(param, param.grad) for param in params if param.grad is not None and _is_narrow(param, param.grad)]
    try:
        for param, grad in kept:
            part = fixed_part(grad)
            floats = local_part(grad).to(param.dtype) if part is None else part.dequantize()
            param.grad = in_place_of(floats, param)
        yield
    finally:
        for param, grad in kept:
            param.grad = grad


def _is_narrow(param: Tensor, grad: Tensor) -> bool:
    return fixed_part(grad) is not None or grad.dtype != param.dtype
