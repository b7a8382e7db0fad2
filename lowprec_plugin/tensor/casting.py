"""Whether a cast of a fixed-point tensor may share its codes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

#: Set while a cast to another dtype may share the codes of its source: see :func:`casts_share_codes`.
casts_share: ContextVar[bool] = ContextVar("lowprec_casts_share", default=False)


@contextmanager
def casts_share_codes() -> Iterator[None]:
    """Within the context, a cast of a :class:`FixedPointTensor` to another dtype is a window on the same codes.

    For the forward pass under autocast, which keeps its casts of the weights until the backward pass: so it keeps no
    floats. Outside, a cast is a copy, as everywhere in torch.
    """
    token = casts_share.set(True)
    try:
        yield
    finally:
        casts_share.reset(token)
