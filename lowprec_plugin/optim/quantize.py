"""Swap a module's parameters for fixed-point ones, in place."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from lowprec_plugin.arithmetic.ops import check_rounding
from lowprec_plugin.arithmetic.random_bits import stream_of
from lowprec_plugin.compat.exchanging import exchange, holder_of
from lowprec_plugin.compat.fsdp import has_gathered, reset_shards
from lowprec_plugin.compat.modules import hooks_of
from lowprec_plugin.formats import FixedPointFormat, check_integer, check_kind
from lowprec_plugin.optim.apart import check_apart
from lowprec_plugin.optim.gradients import GradientDtype, GradientWordLength, check_gradients, keep_gradients
from lowprec_plugin.optim.module_apply import move_in_place
from lowprec_plugin.optim.naming import patterns_of
from lowprec_plugin.optim.plain import left_of
from lowprec_plugin.optim.unadopted import look_again
from lowprec_plugin.tensor import FixedPointTensor
from lowprec_plugin.tensor.copying import note_memory
from lowprec_plugin.tensor.dtensor import fixed_part, in_place_of, local_part, on_any_rank, place
from lowprec_plugin.text.option_error import Option, OptionError


def quantize_(
    module: nn.Module,
    format: FixedPointFormat | str = "fixed16",
    *,
    rounding: str = "stochastic",
    keep_float: Iterable[str] | Callable[[str, nn.Parameter], bool] = (),
    dtype: torch.dtype | None = None,
    seed: int = 0,
    gradient_word_length: GradientWordLength | None = None,
    gradient_dtype: GradientDtype | None = None,
) -> dict[str, str]:
    """Store the parameters of ``module`` in ``format``.

    Every parameter object stays the one it was, so tied parameters stay tied and an optimizer keeps its references,
    weak ones too; its gradient and the hooks registered on it stay. The values are rounded to nearest, those of
    parameters that are in another format already too. Buffers are left alone, and so are parameters that are no plain
    tensors of floats: of a class of their own, integer or complex, sparse, or compiled by TorchScript.

    Args:
        module: changed in place.
        format: a format or its text, such as ``"fixed16"`` or ``"<4,12>"``.
        rounding: how later in-place arithmetic on the parameters rounds.
        keep_float: one or several names (shell patterns such as ``"*.bias"``), or a function of name and parameter:
            left as they are.
        dtype: the dtype that operations see; ``None``: as it was.
        seed: keys the random bits, with each parameter's name.
        gradient_word_length: bits of the gradients of what is stored, which become codes as soon as autograd has them,
            in blocks like the parameter's; ``None``: floats; ``"release"``: none are kept, for the optimizer of
            :mod:`lowprec_plugin.optim` that takes the parameters updates each in the backward pass, as soon as autograd
            has its gradient: see :mod:`lowprec_plugin.optim.release` for what that rules out.
        gradient_dtype: of these gradients, ``torch.bfloat16`` or ``torch.float16``, or their names: they are rounded to
            nearest as soon as autograd has them; ``None``: the parameter's. In place of a ``gradient_word_length``.

    Returns:
        the parameters that were not stored, and why.

    Raises:
        ValueError: for an argument outside its limits, a parameter without numbers yet, one that is not finite, that
            an autograd graph, ``DistributedDataParallel`` or TorchScript still holds, that lies in the memory of
            another or of a buffer or that FSDP2 has gathered, or a pattern that matches no parameter; if parameters
            are sharded, on every rank alike. Nothing is changed then.
    """
    format = FixedPointFormat.parse(format)
    check_rounding(rounding)
    check_integer(seed, "seed")
    check_kind(module, nn.Module, "module")
    if dtype is not None:
        check_kind(dtype, torch.dtype, "dtype")
    gradient_word_length, gradient_dtype = check_gradients(gradient_word_length, gradient_dtype)
    gathered = _put_in_shards(module)
    params = dict(module.named_parameters())
    kept = left_of(module) | kept_of(params, keep_float)
    check_apart(module, kept)
    stored: dict[str, nn.Parameter] = {}
    stored_already: dict[str, FixedPointTensor] = {}
    refused = None
    try:
        for name, param in params.items():
            part = fixed_part(param)
            if part is not None and name not in kept and (part.format, part.dtype) == (format, dtype or part.dtype):
                stored_already[name] = part
            elif name not in kept:
                if gathered and isinstance(param, DTensor):
                    raise ValueError(
                        f"parameter {name!r} has been gathered by a forward pass of FSDP2 as it is now: call "
                        "quantize_ before the first batch"
                    )
                if holder := holder_of(param):
                    raise ValueError(f"parameter {name!r} is held by {_renormed(module, name) or holder}")
                stored[name] = _stored(name, param, format, rounding, dtype, seed)
    except ValueError as error:
        refused = error
    if on_any_rank(refused is not None, params.values()):
        raise refused or ValueError("a shard on another rank was refused, so nothing is changed here: see its error")
    exchange_all(params, stored)
    for name, part in stored_already.items():
        part.rounding, part.stream = rounding, stream_of(seed, name)
    for name in (*stored, *stored_already):
        keep_gradients(params[name], gradient_word_length, gradient_dtype)
    move_in_place(module)
    reset_shards(module)  # until the first forward pass FSDP2 would keep the float ones beside them
    look_again()
    return kept


def _put_in_shards(module: nn.Module) -> bool:
    """Put FSDP2's shards in the places of parameters it has gathered; whether it has gathered any yet.

    It looks at what its shards are before it first gathers them, and never again.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
    return has_gathered(module)


def _stored(
    name: str, param: nn.Parameter, format: FixedPointFormat, rounding: str, dtype: torch.dtype | None, seed: int
) -> nn.Parameter:
    """A parameter that stores what ``param`` does, sharded as it is."""
    if isinstance(param, nn.UninitializedParameter):
        raise ValueError(f"parameter {name!r} is not initialised yet: run a batch through the module first")
    if param.is_meta:
        raise ValueError(f"parameter {name!r} is on the meta device: to_empty() and initialise the module first")
    values = local_part(param).detach()
    try:
        stored = FixedPointTensor.quantize(
            values, format, rounding="nearest", seed=seed, label=name, dtype=dtype or param.dtype
        )
        stored.rounding = rounding
        whole = nn.Parameter(in_place_of(stored, param), param.requires_grad)
        place(whole)
    except ValueError as error:
        raise ValueError(f"parameter {name!r}: {error}") from None
    note_memory(stored, values)
    if not format.dynamic:
        _warn_if_saturated(name, values, stored)
    if local_part(param).is_shared():  # type: ignore[no-untyped-call]
        stored.share_memory_()
    return whole


def _warn_if_saturated(name: str, values: Tensor, stored: FixedPointTensor) -> None:
    low, high = stored.format.min_code, stored.format.max_code
    step = 2.0**stored.format.static_exponent
    lost = int(((values > high * step) | (values < low * step)).sum())
    if lost:
        warnings.warn(
            f"parameter {name!r}: {lost:,} of {values.numel():,} values are out of {stored.format}'s range, "
            f"{low * step:g} to {high * step:g}, and were saturated; choose a smaller fraction_length, or None for a "
            f"radix point per block, or keep_float={[name]}",
            stacklevel=4,
        )


def exchange_all(params: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    """Exchange what the tensors of the same names are, all of them or none.

    Raises:
        ValueError: naming one that stays what it is.
    """
    done: list[str] = []
    for name, other in stored.items():
        try:
            exchange(params[name], other)
        except RuntimeError as error:
            for undo in done:
                exchange(params[undo], stored[undo])
            raise ValueError(f"parameter {name!r} is held by C++ code as the tensor that it is: {error}") from error
        done.append(name)


def _renormed(module: nn.Module, name: str) -> str:
    """What to do if ``name`` is held by the weight that torch's old norms, or its pruning, leave in its module.

    That weight is computed anew before each forward pass and lies there, graph and all, until the next.
    """
    path, _, own = name.rpartition(".")
    inside = name.removesuffix(own)
    holder, stem = module.get_submodule(path), own.removesuffix("_orig")
    for hook in hooks_of(holder):
        if isinstance(hook, (WeightNorm, SpectralNorm)) and own.startswith(f"{hook.name}_"):
            norm = "weight_norm" if isinstance(hook, WeightNorm) else "spectral_norm"
            return (
                f"an autograd graph: torch.nn.utils.{norm} leaves {inside + hook.name!r} in its module with its graph. "
                f"Use torch.nn.utils.parametrizations.{norm}, or leave its parameters with "
                f"keep_float={[f'{inside}{hook.name}_*']}"
            )
        if isinstance(hook, BasePruningMethod) and stem != own and hasattr(holder, f"{stem}_mask"):
            return (
                f"an autograd graph: torch.nn.utils.prune leaves {inside + stem!r} in its module with its "
                f"graph. Prune under torch.no_grad(), or after this, or leave the parameter with keep_float={[name]}"
            )
    return ""


def kept_of(
    params: dict[str, nn.Parameter], keep_float: Iterable[str] | Callable[[str, nn.Parameter], bool]
) -> dict[str, str]:
    """The parameters that ``keep_float`` leaves in float, and why.

    Raises:
        ValueError: for a pattern that matches none.
    """
    if callable(keep_float):
        return {name: "keep_float" for name, param in params.items() if keep_float(name, param)}
    kept = {}
    for pattern in patterns_of(keep_float):
        matches = [name for name in params if fnmatchcase(name, pattern)]
        if not matches:
            raise OptionError(
                Option.given("keep_float", pattern), f" matches no parameter; there are {', '.join(params)}"
            )
        kept.update(dict.fromkeys(matches, str(Option.given("keep_float", pattern))))
    return kept
