"""The only door to the arithmetic: argument checks, and the choice of a backend.

Three backends do the same arithmetic bit for bit: the torch reference (any device, slow), the native CPU kernels and
the Triton kernels. The device of the codes decides; :func:`use_backend` overrides it for tests.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor

from lowprec_plugin.arithmetic.blocks import Blocks, check_blocks, empty_blocks
from lowprec_plugin.arithmetic.formulas import Algorithm, Hyper, Updated
from lowprec_plugin.arithmetic.native import library as native
from lowprec_plugin.arithmetic.random_bits import check_bits, random_bits
from lowprec_plugin.arithmetic.reference import rounding as reference
from lowprec_plugin.arithmetic.reference import update as update_reference
from lowprec_plugin.arithmetic.update_counts import UpdateCounts
from lowprec_plugin.formats import FixedPointFormat, rows_of
from lowprec_plugin.text.option_error import Option, OptionError

ROUNDINGS = ("stochastic", "nearest")
BACKENDS = ("reference", "native", "triton")

_forced: ContextVar[str | None] = ContextVar("lowprec_backend", default=None)
_said: set[str] = set()


class Stored(NamedTuple):
    """One tensor of an update: its planes and its format."""

    blocks: Blocks
    format: FixedPointFormat


def check_rounding(rounding: str) -> None:
    """Raise ``ValueError`` unless ``rounding`` is ``"stochastic"`` or ``"nearest"``."""
    if rounding not in ROUNDINGS:
        raise OptionError(Option.given("rounding", rounding), f" is not one of {ROUNDINGS}")


def backend_for(device: torch.device) -> str:
    """The backend that serves tensors on ``device``: one of ``BACKENDS``.

    Warns once, with the reason, where the fast one is not to be had.
    """
    forced = _forced.get()
    if forced is not None:
        return forced
    if device.type == "cpu":
        fast, (able, reason) = "native", native.available()
    elif device.type == "cuda":
        fast, (able, reason) = "triton", _triton_available()
    else:
        return "reference"
    if able:
        return fast
    if fast not in _said:
        _said.add(fast)
        warnings.warn(f"lowprec runs on its slow reference backend: {reason}", stacklevel=2)
    return "reference"


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within the context, do all arithmetic on the backend called ``name``.

    Raises:
        ValueError: if there is no such backend, or it cannot run here.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend {name!r} is not one of {BACKENDS}")
    able, reason = {"native": native.available, "triton": _triton_available}.get(name, lambda: (True, ""))()
    if not able:
        raise ValueError(f"backend {name!r} cannot run here: {reason}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def _triton_available() -> tuple[bool, str]:
    from lowprec_plugin.arithmetic import triton as kernels

    return kernels.available()


def readable(x: Tensor) -> Tensor:
    """``x`` as kernels read it, from an address on: a copy where it is not contiguous, aligned and as it looks.

    torch has tensors whose memory holds other numbers than they do (``is_neg()``, as imaginary parts of a conjugate),
    and ones between the bytes of a file.

    Raises:
        ValueError: for a tensor whose numbers lie in no memory of its own, as those of a class that computes them.
    """
    x = x.contiguous().resolve_neg()
    if not in_memory(x):
        raise ValueError(
            f"the numbers of this {type(x).__name__} lie in no memory of its own that could be read (it wraps others, "
            "or is under vmap or traced): give them as a plain torch.Tensor"
        )
    return x if x.data_ptr() % x.element_size() == 0 else x.clone()


def in_memory(x: Tensor) -> bool:
    """Whether the numbers of ``x`` lie where its address says, or nowhere because there are none to read."""
    if x.layout is not torch.strided:
        return False
    if x.is_meta or x.numel() == 0:
        return True
    try:
        return x.data_ptr() != 0
    except RuntimeError:  # under vmap, or while tracing
        return False


def quantize(
    x: Tensor,
    format: FixedPointFormat,
    *,
    rounding: str = "nearest",
    key: int = 0,
    bits: Tensor | None = None,
    first_row: int = 0,
    out: Blocks | None = None,
) -> tuple[Blocks, int]:
    """Round a tensor into ``format``: see :func:`lowprec_plugin.arithmetic.reference.rounding.quantize` for the law.

    Args:
        x: floating point, any shape. Converted to float32 first.
        rounding: ``"nearest"`` (ties to even) or ``"stochastic"``.
        key: of the random bits, see :mod:`lowprec_plugin.arithmetic.random_bits`.
        bits: int32 of shape ``(rows, row_length)``, 0 to 65535, to use in place of the key's.
        first_row: the row of the whole tensor at which ``x`` starts, if it is a shard.
        out: planes to write to, changed in place; made if ``None``.

    Returns:
        the planes, and how many elements were out of range and saturated.

    Raises:
        ValueError: for a NaN or an infinity, for a negative number in a squared format, for ``bits`` of another kind,
            and for ``out`` that does not fit ``format``. Nothing is written.
    """
    check_rounding(rounding)
    if not x.is_floating_point():
        raise ValueError(f"only floating-point tensors can be quantised, not {x.dtype}")
    x = readable(x.detach().to(torch.float32))
    if first_nonfinite([x]) is not None:
        raise ValueError("a NaN or an infinity cannot be quantised")
    if format.squared and bool((x < 0).any()):
        raise ValueError(f"{format} holds square roots, and the tensor has negative elements")
    stochastic = rounding == "stochastic"
    if bits is not None:
        check_bits(bits, x)
        bits = readable(bits)
    backend = backend_for(x.device)
    if out is None:
        out = empty_blocks(x.shape, format, x.device)
    else:
        check_blocks(out, format)  # a pickle may set attributes of a tensor after it was made
    assert (out.codes.shape, out.codes.device) == (x.shape, x.device), (out.codes.shape, x.shape, out.codes.device)
    if x.numel() == 0:
        return out, 0
    if backend == "native":
        saturated = native.quantize(
            x, format, out, stochastic=stochastic, key=key, bits=bits if stochastic else None, first_row=first_row
        )
        return out, saturated
    if backend == "triton":
        from lowprec_plugin.arithmetic import triton as kernels

        return out, kernels.quantize(x, format, out, stochastic=stochastic, key=key, bits=bits, first_row=first_row)
    if stochastic and bits is None:
        bits = random_bits(key, *rows_of(x.shape), first_row, x.device)
    blocks, saturated = reference.quantize(x, format, bits if stochastic else None)
    out.copy_(blocks)
    return out, saturated


def dequantize(blocks: Blocks, format: FixedPointFormat, dtype: torch.dtype = torch.float32) -> Tensor:
    """The stored numbers as a new tensor of ``dtype``: exact in float32, else rounded to it once."""
    codes = blocks.codes
    backend = backend_for(codes.device)
    if backend == "reference" or codes.numel() == 0:
        return reference.dequantize(blocks, format).to(dtype)
    direct = dtype if dtype in (torch.float32, torch.bfloat16) else torch.float32
    out = torch.empty(codes.shape, dtype=direct, device=codes.device)
    if backend == "native":
        native.dequantize(blocks, format, out)
    else:
        from lowprec_plugin.arithmetic import triton as kernels

        kernels.dequantize(blocks, format, out)
    return out.to(dtype)


def rounded(
    x: Tensor,
    format: FixedPointFormat,
    *,
    rounding: str = "nearest",
    key: int = 0,
    bits: Tensor | None = None,
    saturated: Tensor | None = None,
) -> Tensor:
    """The numbers of ``format`` that :func:`quantize` and :func:`dequantize` would make of ``x``, in one pass.

    What is not finite stays what it is.

    Args:
        x: float32, any shape; for a static format float64 too, which is rounded once, straight to its codes.
        rounding, key, bits: as for :func:`quantize`.
        saturated: int64 of one element on ``x``'s device, to which the number of saturated elements is added. Nothing
            waits for the device.

    Returns:
        a new float32 tensor.

    Raises:
        ValueError: for ``bits`` of another kind.
    """
    check_rounding(rounding)
    assert x.dtype == torch.float32 or (x.dtype == torch.float64 and not format.dynamic), (x.dtype, str(format))
    assert not format.squared, format
    x = readable(x.detach())
    if x.numel() == 0:
        return x.float()
    stochastic = rounding == "stochastic"
    if bits is not None:
        check_bits(bits, x)
        bits = readable(bits)
    backend = backend_for(x.device)
    out = torch.empty_like(x, dtype=torch.float32)
    if backend == "native":
        count: int | Tensor = native.rounded(
            x, format, out, stochastic=stochastic, key=key, bits=bits if stochastic else None
        )
    elif backend == "triton":
        from lowprec_plugin.arithmetic import triton as kernels

        count = kernels.rounded(x, format, out, stochastic=stochastic, key=key, bits=bits)
    else:
        if stochastic and bits is None:
            bits = random_bits(key, *rows_of(x.shape), 0, x.device)
        out, count = reference.rounded(x, format, bits if stochastic else None)
    if saturated is not None:
        saturated += count
    return out


def update_(
    algorithm: Algorithm,
    grads: Sequence[Tensor],
    stores: Sequence[Sequence[Stored]],
    hypers: Sequence[Hyper],
    *,
    rounding: str = "stochastic",
    keys: Sequence[int] | None = None,
    first_rows: Sequence[int] | None = None,
    counting: bool = False,
) -> Updated:
    """One optimizer step over many parameters of one device, in place: read codes, update in float32, round, write.

    Every stored number is rounded once. Arithmetic that overflows float32 saturates.

    Args:
        algorithm: which formula of :mod:`lowprec_plugin.arithmetic.formulas`.
        grads: one per parameter, finite (:func:`first_nonfinite`); float32, bfloat16 or float16.
        stores: per parameter, itself and then its state in the formula's order. Changed in place.
        hypers: per parameter, the formula's hyperparameters.
        keys: per parameter, the key of this step's random bits (:mod:`.random_bits`); 0 if ``None``. A
            tensor's place among ``stores`` is its role.
        first_rows: per parameter, the row of the whole tensor at which this shard starts; 0 if ``None``.
        counting: count what it does, see :func:`.reference.update.counted` for the law. What is written
            is the same.

    Returns:
        see :class:`~.formulas.Updated`. Blocks in which a NaN came up are neither written nor counted.

    Raises:
        ValueError: if a gradient and what it updates are on different devices, or planes do not fit their format.
            Nothing is written.
    """
    check_rounding(rounding)
    for grad, tensors in zip(grads, stores, strict=True):
        assert len(tensors) == 1 + algorithm.states, f"{algorithm!r} takes {algorithm.states} tensors of state"
        for blocks, format in tensors:
            check_blocks(blocks, format)  # a pickle may set attributes of a tensor after it was made
            assert blocks.codes.shape == grad.shape, f"{blocks.codes.shape} is not the gradient's {grad.shape}"
            assert format.block_size == tensors[0].format.block_size, "one block size per parameter"
            if blocks.codes.device != grad.device:
                raise ValueError(
                    f"a gradient on {grad.device} cannot update codes on {blocks.codes.device}: move the optimizer's "
                    "state with the module (load_state_dict after the move does), or make the optimizer afterwards"
                )
    kept = [index for index, grad in enumerate(grads) if grad.numel() > 0]
    counts = [UpdateCounts()] * len(grads) if counting else []
    if not kept:
        return Updated(0, None, counts)
    offsets = [0] * len(grads) if first_rows is None else list(first_rows)
    keys = [0] * len(grads) if keys is None else keys
    grads = [readable(grads[i]) for i in kept]
    stores, keys = [stores[i] for i in kept], [keys[i] for i in kept]
    hypers, offsets = [hypers[i] for i in kept], [offsets[i] for i in kept]
    backend = backend_for(grads[0].device)
    update = update_reference.update
    if backend == "native":
        update = native.update
    elif backend == "triton":
        from lowprec_plugin.arithmetic import triton as kernels

        update = kernels.update
    stochastic = rounding == "stochastic"
    done = update(algorithm, grads, stores, keys, hypers, offsets, stochastic=stochastic, counting=counting)
    if counting:
        for index, each in zip(kept, done.counts, strict=True):
            counts[index] = each
    return Updated(done.saturated, None if done.refused is None else kept[done.refused], counts)


def first_nonfinite(tensors: Sequence[Tensor]) -> int | None:
    """The index of the first tensor that holds a NaN or an infinity; ``None`` if all are finite."""
    known = all(tensor.dtype in native.FLOAT_TYPES and in_memory(tensor) for tensor in tensors)
    if tensors and known and backend_for(tensors[0].device) == "native":
        return native.first_nonfinite([readable(tensor) for tensor in tensors])
    for index, tensor in enumerate(tensors):
        if not bool(torch.isfinite(tensor).all()):
            return index
    return None
