"""The only door to the arithmetic: argument checks, then the backend that serves the device.

Three backends do the same arithmetic bit for bit: the torch reference (any device, slow), the native CPU kernels and
the Triton kernels. The device of the codes decides (:mod:`.backends`); :func:`use_backend` overrides it for tests.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lowprec_plugin.arithmetic.addresses import in_memory as in_memory
from lowprec_plugin.arithmetic.addresses import readable as readable
from lowprec_plugin.arithmetic.backends import backend_for as backend_for
from lowprec_plugin.arithmetic.backends import serving
from lowprec_plugin.arithmetic.backends import use_backend as use_backend
from lowprec_plugin.arithmetic.blocks import Blocks, check_blocks, empty_blocks
from lowprec_plugin.arithmetic.formulas import ALGORITHMS, Algorithm, Hyper
from lowprec_plugin.arithmetic.random_bits import Draw, check_bits
from lowprec_plugin.arithmetic.update_counts import UpdateCounts
from lowprec_plugin.arithmetic.updates import Stored as Stored
from lowprec_plugin.arithmetic.updates import StoredGradient as StoredGradient
from lowprec_plugin.arithmetic.updates import Update, Updated
from lowprec_plugin.formats import FixedPointFormat
from lowprec_plugin.text.option_error import Option, OptionError

ROUNDINGS = ("stochastic", "nearest")
#: Of gradients in floats that every backend reads as they are.
GRADIENT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_rounding(rounding: str) -> None:
    """Raise ``ValueError`` unless ``rounding`` is ``"stochastic"`` or ``"nearest"``."""
    if rounding not in ROUNDINGS:
        raise OptionError(Option.given("rounding", rounding), f" is not one of {ROUNDINGS}")


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
            on the meta device, and for ``out`` that does not fit ``format``. Nothing is written.
    """
    check_rounding(rounding)
    if not x.is_floating_point():
        raise ValueError(f"only floating-point tensors can be quantised, not {x.dtype}")
    x = readable(x.detach().to(torch.float32))
    if first_nonfinite([x]) is not None:
        raise ValueError("a NaN or an infinity cannot be quantised")
    if format.squared and bool((x < 0).any()):
        raise ValueError(f"{format} holds square roots, and the tensor has negative elements")
    bits = _bits_for(x, bits, rounding)
    backend = serving(x.device)
    if out is None:
        out = empty_blocks(x.shape, format, x.device)
    else:
        check_blocks(out, format)  # a pickle may set attributes of a tensor after it was made
    assert (out.codes.shape, out.codes.device) == (x.shape, x.device), (out.codes.shape, x.shape, out.codes.device)
    if x.numel() == 0:
        return out, 0
    return out, backend.quantize(x, format, out, Draw(rounding == "stochastic", key, bits, first_row))


def dequantize(blocks: Blocks, format: FixedPointFormat, dtype: torch.dtype = torch.float32) -> Tensor:
    """The stored numbers as a new tensor of ``dtype``: exact in float32, else rounded to it once."""
    codes = blocks.codes
    backend = serving(codes.device)
    direct = dtype if dtype in (torch.float32, torch.bfloat16) else torch.float32
    out = torch.empty(codes.shape, dtype=direct, device=codes.device)
    if codes.numel() > 0:
        backend.dequantize(blocks, format, out)
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
    bits = _bits_for(x, bits, rounding)
    out = torch.empty_like(x, dtype=torch.float32)
    count = serving(x.device).rounded(x, format, out, Draw(rounding == "stochastic", key, bits))
    if saturated is not None:
        saturated += count
    return out


def _bits_for(x: Tensor, bits: Tensor | None, rounding: str) -> Tensor | None:
    """The caller's random bits, checked, if it gives some and they are wanted."""
    if bits is None:
        return None
    check_bits(bits, x)
    return readable(bits) if rounding == "stochastic" else None


def update_(
    algorithm: Algorithm,
    grads: Sequence[Tensor | StoredGradient],
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
        algorithm: one of :data:`lowprec_plugin.arithmetic.formulas.ALGORITHMS`.
        grads: one per parameter, finite (:func:`first_nonfinite`); float32, bfloat16, float16, or codes in blocks of
            the parameter's size.
        stores: per parameter, itself and then its state in the formula's order. Changed in place.
        hypers: per parameter, the formula's hyperparameters (:meth:`.formulas.Algorithm.hyper`).
        keys: per parameter, the key of this step's random bits (:mod:`.random_bits`); 0 if ``None``. A
            tensor's place among ``stores`` is its role.
        first_rows: per parameter, the row of the whole tensor at which this shard starts; 0 if ``None``.
        counting: count what it does, see :func:`.reference.update.counted` for the law. What is written
            is the same.

    Returns:
        see :class:`~.updates.Updated`. Blocks in which a NaN came up are neither written nor counted.

    Raises:
        ValueError: if a gradient and what it updates are on different devices, planes do not fit their format, or
            kernels know no such algorithm. Nothing is written.
    """
    check_rounding(rounding)
    if algorithm not in ALGORITHMS:
        raise ValueError(f"{algorithm!r} is not one that kernels know: they have {', '.join(map(str, ALGORITHMS))}")
    for grad, tensors, hyper in zip(grads, stores, hypers, strict=True):
        assert len(tensors) == 1 + len(algorithm.states), f"{algorithm} has the states {algorithm.states}"
        assert len(hyper) == len(algorithm.hypers), f"{algorithm} takes {algorithm.hypers}"
        held = _held_by(grad)
        in_codes = [] if isinstance(grad, Tensor) else [(grad.blocks, grad.format)]
        for blocks, format in [*tensors, *in_codes]:
            check_blocks(blocks, format)  # a pickle may set attributes of a tensor after it was made
            assert blocks.codes.shape == held.shape, f"{blocks.codes.shape} is not the gradient's {held.shape}"
            assert format.block_size == tensors[0].format.block_size, "one block size per parameter"
            if blocks.codes.device != held.device:
                raise ValueError(
                    f"a gradient on {held.device} cannot update codes on {blocks.codes.device}: move the optimizer's "
                    "state with the module (load_state_dict after the move does), or make the optimizer afterwards"
                )
    kept = [index for index, grad in enumerate(grads) if _held_by(grad).numel() > 0]
    counts = [UpdateCounts()] * len(grads) if counting else []
    if not kept:
        return Updated(0, None, counts)
    offsets = [0] * len(grads) if first_rows is None else list(first_rows)
    keys = [0] * len(grads) if keys is None else keys
    grads = [readable(each) if isinstance(each, Tensor) else each for each in (grads[i] for i in kept)]
    stores, keys = [stores[i] for i in kept], [keys[i] for i in kept]
    hypers, offsets = [hypers[i] for i in kept], [offsets[i] for i in kept]
    step = Update(algorithm, grads, stores, keys, hypers, offsets, rounding == "stochastic", counting)
    done = serving(stores[0][0].blocks.codes.device).update(step)
    if counting:
        for index, each in zip(kept, done.counts, strict=True):
            counts[index] = each
    return Updated(done.saturated, None if done.refused is None else kept[done.refused], counts)


def _held_by(gradient: Tensor | StoredGradient) -> Tensor:
    return gradient if isinstance(gradient, Tensor) else gradient.blocks.codes


def gather_(
    grad: Tensor,
    blocks: Blocks,
    format: FixedPointFormat,
    *,
    factor: Tensor | None = None,
    fresh: bool = False,
    rounding: str = "stochastic",
    key: int = 0,
    first_row: int = 0,
) -> None:
    """Add ``grad`` to a gradient in codes, in place: read codes, add in float32, round once, write, block by block.

    A block that comes to a NaN or an infinity is marked, see :mod:`.reference.gradients`.

    Args:
        grad: float32, bfloat16 or float16, of the codes' shape.
        blocks, format: of the gradient; dynamic.
        factor: float32 of one element on the codes' device, by which what they hold is multiplied; ``None``: 1.
        fresh: the codes hold nothing yet, and are not read.
        rounding, key, first_row: as for :func:`quantize`.

    Raises:
        ValueError: if planes do not fit their format. Nothing is written.
    """
    check_rounding(rounding)
    check_blocks(blocks, format)
    assert format.dynamic, format
    assert not format.squared, format
    assert (grad.shape, grad.device) == (blocks.codes.shape, blocks.codes.device), (grad.shape, blocks.codes.shape)
    if grad.numel() == 0:
        return
    if not fresh and factor is None:
        factor = torch.ones((), device=grad.device)
    draw = Draw(rounding == "stochastic", key, None, first_row)
    serving(grad.device).gather(readable(grad.detach()), blocks, format, None if fresh else factor, draw)


def squares(blocks: Blocks, format: FixedPointFormat) -> Tensor:
    """The sum of the squares of a gradient in codes, without its factor; NaN if a block is marked.

    Of a block it is exact, and the blocks are added in float64.

    Returns:
        float64 of one element, on the codes' device. Nothing waits for it.
    """
    if blocks.codes.numel() == 0:
        return torch.zeros((), dtype=torch.float64, device=blocks.codes.device)
    return serving(blocks.codes.device).squares(blocks, format)


def first_nonfinite(gradients: Sequence[Tensor | StoredGradient]) -> int | None:
    """The index of the first of ``gradients`` that holds a NaN or an infinity; ``None`` if all are finite.

    Raises:
        ValueError: on the meta device, where tensors hold no numbers.
    """
    read: list[Tensor] = []
    owners: list[int] = []
    factors: dict[int, Tensor] = {}
    for index, each in enumerate(gradients):
        if isinstance(each, Tensor):
            read.append(each)
        else:
            assert each.blocks.exponents is not None
            read.append(each.blocks.exponents)
            if each.factor is not None and id(each.factor) not in factors:  # most often one for all
                factors[id(each.factor)] = each.factor
                read.append(each.factor.reshape(1))
                owners.append(index)
        owners.append(index)
    if any(tensor.is_meta for tensor in read):
        raise ValueError(
            "a tensor on the meta device holds no numbers that could be rounded: make it on another device first "
            "(a module by to_empty(device=...), and initialise it)"
        )
    found = serving(read[0].device).first_nonfinite(read) if read else None
    return None if found is None else owners[found]
