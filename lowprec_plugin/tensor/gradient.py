"""A gradient that is held as codes, with a factor beside them.

It takes the place of a parameter's float gradient as soon as autograd has that. What is added to it later, as the next
micro-batch's is, is added in float32 and rounded once. What multiplies all of it by one number, as clipping by norm and
the scaling of a loss do, changes the factor and no code, which updates and whatever else reads it take into account.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lowprec_plugin.arithmetic import ops
from lowprec_plugin.arithmetic.blocks import Blocks, unwritten_blocks
from lowprec_plugin.arithmetic.random_bits import key_of, substream
from lowprec_plugin.compat.autograd import version_of
from lowprec_plugin.compat.callers import distribute_tensor_calls
from lowprec_plugin.compat.operators import unscale
from lowprec_plugin.formats import FixedPointFormat
from lowprec_plugin.tensor.coded import Coded, check_not_left
from lowprec_plugin.tensor.integrity import Pickled, check_read
from lowprec_plugin.tensor.opening import current
from lowprec_plugin.tensor.operations import view
from lowprec_plugin.tensor.rules import dispatch
from lowprec_plugin.tensor.tensor import FixedPointTensor

if TYPE_CHECKING:
    from typing import Self

aten = torch.ops.aten
_Rule = Callable[..., Any]
#: Rules of gradients alone. One that does not apply gives ``NotImplemented``.
_RULES: dict[Any, _Rule] = {}
#: Roundings of one gradient, between two steps of its parameter, that draw random bits of their own.
_ROUNDINGS = 1 << 20


class FixedPointGradient(FixedPointTensor):
    """A gradient stored as ``code * 2**exponent * factor``, in a dynamic format.

    A block that comes to a NaN or an infinity is marked, and reads as NaN, until something else is written there.
    ``clone()`` gives floats: a copy in codes would be rounded like a gradient, whatever it is for.

    Attributes: those of a :class:`FixedPointTensor`, of which ``codes`` and ``exponents`` are without the factor.
    """

    @classmethod
    def of(cls, grad: Tensor, param: FixedPointTensor, word_length: int, name: str = "gradient") -> FixedPointGradient:
        """The gradient ``grad`` of ``param``, rounded as ``param`` rounds, in blocks like its own.

        The random bits are those of the parameter's next step.

        Args:
            grad: floats of ``param``'s shape, finite or not. Not changed.
            word_length: bits of a code.
            name: of its random stream, beside the parameter's: where ranks have gradients of their own, each another.
        """
        format = FixedPointFormat(word_length, block_size=param.format.block_size)
        gradient = cls(
            unwritten_blocks(param._codes.shape, format, grad.device), format, dtype=grad.dtype,
            rounding=param.rounding, stream=substream(param.stream, name),
            label=f"{param.label}.grad".removeprefix("."), first_row=param.first_row, geometry=param._geometry,
        )  # fmt: skip
        gradient.roundings = param.roundings * _ROUNDINGS
        gradient._gather(grad, fresh=True)
        return gradient

    @property
    def factor(self) -> Tensor | None:
        """What the numbers that the codes stand for are multiplied by: float32 of one element; ``None``: 1."""
        return self._shared.factor

    @property
    def stored(self) -> ops.StoredGradient:
        """It as updates read it."""
        return ops.StoredGradient(self._planes, self.format, self._shared.factor)

    def fits(self, param: FixedPointTensor) -> bool:
        """Whether its blocks are of the same elements as those of ``param``."""
        same = self._codes.shape == param._codes.shape
        return same and self.format.block_size == param.format.block_size

    def norm_of_two(self) -> Tensor:
        """Its Euclidean norm: float64 of one element, from the codes. Nothing waits for it."""
        norm = ops.squares(self._planes, self.format).sqrt()
        return norm if self.factor is None else norm * self.factor.abs()

    def _multiply(self, number: Tensor | float) -> Self:
        """Multiply it by ``number``, a Python number or a tensor of one element, without a look at a code."""
        check_not_left(self)
        self._shared.factor = _product(self._shared.factor, number, self._codes.device)
        return self

    def _gather(self, grad: Tensor, *, fresh: bool) -> None:
        check_not_left(self)
        key = key_of(substream(self.stream, "in place"), self.roundings)
        self.roundings += 1
        grad = grad if grad.dtype in ops.GRADIENT_DTYPES else grad.float()
        ops.gather_(
            grad.reshape(self._codes.shape), self._planes, self.format, factor=self._shared.factor, fresh=fresh,
            rounding=self.rounding, key=key, first_row=self.first_row,
        )  # fmt: skip
        self._shared.factor = None

    def _floats(self, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        factor = self._shared.factor
        if factor is None or self._shared.open is not None:
            return super()._floats(dtype)
        floats = super()._floats(torch.float32)[0].mul_(factor).to(dtype or self.dtype)
        geometry = self._geometry
        return floats, floats if geometry is None else floats.as_strided(*geometry)

    def _store(self, floats: Tensor, rounding: str) -> int:
        if self._shared.open is not None:
            return super()._store(floats, rounding)
        self._gather(floats, fresh=True)
        return 0

    def _like(self, blocks: Blocks, **changes: Any) -> Self:
        result, factor = super()._like(blocks, **changes), self._shared.factor
        result._shared.factor = None if factor is None else factor.to(blocks.codes.device)
        return result

    def __reduce_ex__(self, protocol: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        _, arguments = super().__reduce_ex__(protocol)
        return rebuild_gradient, (self.factor, *arguments)

    @classmethod
    @torch.compiler.disable  # type: ignore[untyped-decorator]  # as that of FixedPointTensor
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        own = _RULES.get(func)
        result = NotImplemented if own is None else own(*args, **kwargs or {})
        return dispatch(func, args, kwargs or {}) if result is NotImplemented else result


def rebuild_gradient(factor: Tensor | None, *pickled: Any) -> FixedPointGradient:
    """Put a gradient together from what its pickle holds. Allowed under ``weights_only=True``.

    Raises:
        ValueError: as :func:`lowprec_plugin.tensor.rebuild`.
    """
    given = Pickled(*pickled)
    format = check_read(given, marked=True)
    if factor is not None and (type(factor) is not Tensor or (factor.dtype, factor.dim()) != (torch.float32, 0)):
        raise ValueError(f"gradient {given.label!r} in a file is damaged: its factor is {factor!r}")
    result = FixedPointGradient(
        given.blocks.map(torch.detach), format, dtype=given.dtype, rounding=given.rounding, stream=given.stream,
        label=given.label, first_row=given.first_row, geometry=given.geometry,
    )  # fmt: skip
    result.roundings, result._shared.factor = given.roundings, factor
    return result


torch.serialization.add_safe_globals([rebuild_gradient])


def _product(factor: Tensor | None, number: Tensor | float, device: torch.device) -> Tensor:
    """``factor * number``. Of a step's gradients each asks for the same, so the last answer is kept."""
    which: Any = (id(number), version_of(number)) if isinstance(number, Tensor) else repr(number)
    key = (id(factor), which, device)
    if key != _last.key:
        new = torch.as_tensor(number, dtype=torch.float32, device=device).reshape(())
        product = new.clone() if factor is None else factor * new
        _last.key, _last.held, _last.product = key, (factor, number), product
    assert _last.product is not None
    return _last.product


class _Last:
    """The last product, and what it is of: held, so that no other tensors get their ids meanwhile."""

    key: tuple[Any, ...] | None = None
    held: tuple[Any, Any] | None = None
    product: Tensor | None = None


_last = _Last()


def _rule(*functions: Any) -> Callable[[_Rule], _Rule]:
    def register(function: _Rule) -> _Rule:
        _RULES.update(dict.fromkeys(functions, function))
        return function

    return register


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):  # one made in inference mode has no version by which a change would be seen
        return value.dim() == 0 and not isinstance(value, Coded) and not value.is_inference()
    return isinstance(value, int | float)


def _takes_factor(target: Any) -> bool:
    return isinstance(target, FixedPointGradient) and target._shared.open is None and target.is_whole


def _scaled(target: FixedPointGradient, number: Any, invert: bool) -> Any:
    if not _takes_factor(target) or not _is_number(number) or current() is not None:
        return NotImplemented
    if isinstance(number, Tensor):
        return target._multiply(number.float().reciprocal() if invert else number)
    if invert and number == 0:
        return target._multiply(math.nan)
    return target._multiply(1 / number if invert else number)


@_rule(aten.mul_.Tensor, aten.mul_.Scalar)
def _mul_(target: Any, number: Any) -> Any:
    return _scaled(target, number, invert=False)


@_rule(aten.div_.Tensor, aten.div_.Scalar)
def _div_(target: Any, number: Any) -> Any:
    return _scaled(target, number, invert=True)


@_rule(aten._foreach_mul_.Scalar, aten._foreach_mul_.Tensor, aten._foreach_mul_.ScalarList)
def _foreach_mul_(targets: list[Any], numbers: Any) -> Any:
    return _each(targets, numbers, Tensor.mul_)


@_rule(aten._foreach_div_.Scalar, aten._foreach_div_.Tensor, aten._foreach_div_.ScalarList)
def _foreach_div_(targets: list[Any], numbers: Any) -> Any:
    return _each(targets, numbers, Tensor.div_)


def _each(targets: list[Any], numbers: Any, function: Callable[[Tensor, Any], Any]) -> None:
    several = isinstance(numbers, (list, tuple))
    for index, target in enumerate(targets):
        function(target, numbers[index] if several else numbers)


@_rule(unscale)
def _unscale_(targets: list[Any], found: Tensor, inverse: Tensor) -> None:
    """Of a ``GradScaler``: multiplies all by the inverse scale, and notes whether any was not finite."""
    floats = [target for target in targets if not isinstance(target, FixedPointGradient)]
    if floats:
        unscale(floats, found, inverse)
    for target in targets:
        if isinstance(target, FixedPointGradient):
            bad = ops.first_nonfinite([target.stored]) is not None
            target._multiply(inverse)
            if bad:
                found.fill_(1.0)


@_rule(aten.add_.Tensor)
def _add_(target: Any, other: Any, *, alpha: Any = 1) -> Any:
    fits = isinstance(other, Tensor) and not isinstance(other, Coded) and other.is_floating_point()
    if not (_takes_factor(target) and fits and alpha == 1 and other.shape == target.shape) or current() is not None:
        return NotImplemented
    if other.layout != torch.strided or other.device != target.device:
        return NotImplemented
    target._gather(other.detach(), fresh=False)
    return target


@_rule(aten.slice.Tensor)
def _slice(source: Any, *args: Any, **kwargs: Any) -> Any:
    return view(aten.slice.Tensor, (source, *args), kwargs)


@_rule(aten.split.Tensor, aten.split_with_sizes.default)
def _split(source: Any, sizes: Any, dim: int = 0) -> Any:
    """Windows on all of it, as slices are: rows that are a tensor of their own would take the factor as theirs."""
    function = aten.split.Tensor if isinstance(sizes, int) else aten.split_with_sizes.default
    return NotImplemented if distribute_tensor_calls() else view(function, (source, sizes, dim), {})


@_rule(aten.clone.default)
def _clone(source: Any, **kwargs: Any) -> Any:
    return aten.clone.default(source._floats()[1], **kwargs)


@_rule(aten.linalg_vector_norm.default)
def _vector_norm(source: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    if not _takes_factor(source) or ord != 2 or dim not in (None, []) or keepdim:
        return NotImplemented
    return source.norm_of_two().to(dtype or source.dtype)


@_rule(aten._foreach_norm.Scalar)
def _foreach_norm(sources: list[Any], ord: Any = 2, dtype: Any = None) -> list[Tensor]:
    return [torch.linalg.vector_norm(source, ord, dtype=dtype) for source in sources]
