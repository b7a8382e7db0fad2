"""The inside of ``torch.nn.Module``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from lowprec_plugin.compat.lookup import TORCH, check_names, look_up

_MOVE = "to move codes with their module"
_HELD = ("_parameters", "_buffers", "_modules")
#: How torch marks a parameter that is of a class of its own.
PARAMETER_MARK = "_is_param"

_Function = Callable[[Tensor], Tensor]


def hooks_of(module: nn.Module) -> list[Any]:
    """The hooks that run with ``module``'s forward pass, those before it first.

    Raises:
        ValueError: if this torch keeps them elsewhere; so do all functions here.
    """
    feature = "to see the hooks of a module"
    names = ("_forward_pre_hooks", "_forward_hooks")
    return [hook for name in names for hook in look_up(module, name, host=TORCH, feature=feature).values()]


def hung_on(module: nn.Module) -> dict[str, Any]:
    """The attributes of ``module`` beside its parameters, buffers and parts, by name."""
    check_names(module, _HELD, host=TORCH, feature="to find tensors that are hung on a module")
    return {name: value for name, value in vars(module).items() if name not in _HELD}


def own_parameters(module: nn.Module) -> dict[str, Any]:
    """What ``module`` itself holds as parameters, by name, ``None`` included."""
    return look_up(module, "_parameters", host=TORCH, feature=_MOVE)  # type: ignore[no-any-return]


def apply_by(module: nn.Module, function: Callable[[nn.Module, _Function, bool], nn.Module]) -> None:
    """Have ``module._apply(fn, recurse)``, by which torch moves and converts a module, call ``function``."""
    look_up(module, "_apply", host=TORCH, feature=_MOVE)
    module.__dict__["_apply"] = partial(function, module)  # a module may refuse attributes that it does not know


def apply_plainly(module: nn.Module, function: Callable[..., nn.Module]) -> bool:
    """Undo :func:`apply_by` with ``function``; whether that had been done."""
    own = module.__dict__.get("_apply")
    if not isinstance(own, partial) or own.func is not function:
        return False
    del module.__dict__["_apply"]
    return True


def apply_of_class(module: nn.Module, fn: _Function, recurse: bool) -> None:
    """What ``module``'s class does to apply ``fn`` to its tensors."""
    look_up(type(module), "_apply", host=TORCH, feature=_MOVE)(module, fn, recurse)


@contextmanager
def hidden(module: nn.Module, names: Collection[str]) -> Iterator[None]:
    """Have ``module`` hold ``None`` in place of its parameters ``names``, which an ``_apply`` passes over."""
    held = own_parameters(module)
    before = {name: held[name] for name in names}
    held.update(dict.fromkeys(before))
    try:
        yield
    finally:
        held.update(before)


def find_weights_again(module: nn.RNNBase) -> None:
    """Have a recurrent ``module`` look at its parameters as they are now."""
    look_up(module, "_init_flat_weights", host=TORCH, feature=_MOVE)()
