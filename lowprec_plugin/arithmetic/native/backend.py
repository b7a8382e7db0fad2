"""The native kernels as a backend."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lowprec_plugin.arithmetic.addresses import in_memory, readable
from lowprec_plugin.arithmetic.native import library, wire
from lowprec_plugin.arithmetic.reference import finite


class Native:
    """:class:`~lowprec_plugin.arithmetic.backend.Backend` in C++, where the library was built."""

    name = "native"
    devices: tuple[str, ...] = ("cpu",)

    available = staticmethod(library.available)
    quantize = staticmethod(library.quantize)
    dequantize = staticmethod(library.dequantize)
    rounded = staticmethod(library.rounded)
    update = staticmethod(library.update)
    gather, squares = staticmethod(library.gather), staticmethod(library.squares)
    round_, sum_, read_ = staticmethod(wire.round_), staticmethod(wire.sum_), staticmethod(wire.read_)

    def first_nonfinite(self, tensors: Sequence[Tensor]) -> int | None:
        """See :meth:`~lowprec_plugin.arithmetic.backend.Backend.first_nonfinite`."""
        read = (*library.FLOAT_TYPES, torch.int8)
        if all(tensor.is_cpu and tensor.dtype in read and in_memory(tensor) for tensor in tensors):
            return library.first_nonfinite([readable(tensor) for tensor in tensors])
        return finite.first_nonfinite(tensors)
