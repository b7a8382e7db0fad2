"""The update inside the backward pass: a gradient is used as soon as autograd has it, and none is kept.

``gradient_word_length="release"`` asks for it. An optimizer that takes such parameters updates each in a hook, by the
very update that its step would make, and ``step()`` updates what is left: small parameters, in one call, and those that
are kept in float. What needs all gradients at once, or more than one pass, cannot be had beside it: accumulation over
micro-batches, clipping, loss scaling, ``nonfinite="skip"``, sharded parameters, optimizers that look further than one
parameter, and another optimizer for the same parameter.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from lowprec_plugin.compat.autograd import version_of
from lowprec_plugin.compat.hooks import add_gradient_hook, gradient_hooks, remove_gradient_hook
from lowprec_plugin.compat.optimizers import ask_scalers_no_more, ask_scalers_to_show, comes_from_a_scaler
from lowprec_plugin.optim.adopted import Adopted
from lowprec_plugin.optim.finite import NonFiniteGradientError, first_nonfinite
from lowprec_plugin.optim.naming import described, names_in
from lowprec_plugin.optim.options import StepOptions
from lowprec_plugin.optim.params import params_of
from lowprec_plugin.tensor.gradient_hook import is_exchanged_first, releases_gradient
from lowprec_plugin.text.option_error import Option, OptionError

Group = dict[str, Any]
#: Updates one parameter of a group, whose gradient is there; the names are those that counts go by.
Update = Callable[[Adopted, Group, list[Tensor], Mapping[int, str]], None]
_ASKED = Option.given("gradient_word_length", "release")
_INSTEAD = Option.given("gradient_word_length", 8)


class Releasing:
    """Updates the parameters of one optimizer as their gradients come. The hook of each of them.

    A step begins with its first gradient, or with ``step()``, and ends when that does.

    Attributes:
        under_way: whether a step has begun.
        done: the parameters, by id, that have been updated in it.
    """

    under_way: bool
    done: set[int]

    def __init__(self, optimizer: Adopted, update: Update) -> None:
        self._optimizer = weakref.ref(optimizer)
        self._update = update
        self._groups: dict[int, Group]
        self._names: dict[int, str] = {}
        self._came: dict[int, tuple[int, int]] = {}  # of gradients that are kept: which, and its version
        self.forget()
        ask_scalers_to_show(optimizer)
        forget, check = weakref.WeakMethod(self.forget), weakref.WeakMethod(self._check_whole)
        self._handles = [
            optimizer.register_load_state_dict_post_hook(lambda _: _call(forget)),
            optimizer.register_state_dict_pre_hook(lambda _: _call(check)),
        ]

    def forget(self) -> None:
        """Nothing has been updated since the last step: state has been loaded."""
        self.done = set()
        self.end()

    def begin(self) -> None:
        """A step begins, unless it has."""
        optimizer = self._optimizer()
        if self.under_way or optimizer is None:
            return
        self.under_way, self.done = True, set()
        settings = optimizer.fixed_point
        if settings.counting:
            settings.counts = {}
        self._names = names_in(optimizer) if settings.counting else {}
        self._groups = {id(param): group for group in optimizer.param_groups for param in group["params"]}

    def end(self) -> None:
        """The step has been made."""
        self.under_way, self._groups = False, {}  # which hold parameters, whose hooks hold this

    def __call__(self, param: Tensor) -> None:
        """Update ``param`` by its gradient, which is freed.

        A gradient with a graph (``create_graph=True``) stays until the step: what wants the graph may add to it.

        Raises:
            NonFiniteGradientError: if that holds a NaN or an infinity. It stays where it is.
            RuntimeError: if ``param`` has been updated in this step.
        """
        if param.grad is None or param.grad.requires_grad or is_exchanged_first(param):
            return
        if _in_a_group() and dist.get_world_size() > 1 and releases_gradient(param):
            raise RuntimeError(
                f"the gradient of {described(param)} is to be used as soon as it is there ({_ASKED}), and nobody "
                "averages it over the processes before: call comm.leave_out_of_ddp(module), wrap the module in "
                f"DistributedDataParallel, and make a comm.DDPState of that; or use {_INSTEAD}"
            )
        self.use(param, param.grad)

    @torch.no_grad()
    def use(self, param: Tensor, grad: Tensor) -> None:
        """Update ``param`` by ``grad``; the same, of a gradient that has been averaged over processes."""
        optimizer = self._optimizer()
        if optimizer is None or not releases_gradient(param):
            param.grad = grad
            return
        self.begin()
        group = self._groups.get(id(param))
        param.grad = grad
        if group is None:  # it has left the optimizer
            return
        if id(param) in self.done:
            raise RuntimeError(
                f"{described(param)} got a gradient again before optimizer.step(), and its update by the first has "
                f"been made: with {_ASKED} there is one backward pass to a step, without accumulation, without a step "
                "that is left out, and without torch.utils.checkpoint's use_reentrant=True. Go back to a checkpoint, "
                f"and use {_INSTEAD} if gradients are to be added up"
            )
        if first_nonfinite([param]) is not None:
            raise NonFiniteGradientError(
                f"the gradient of {described(param)} holds a NaN or an infinity, and its update was refused. "
                f"{self.said()}. Lower the learning rate"
            )
        self._update(optimizer, group, [param], self._names)
        self.done.add(id(param))
        param.grad = None

    def note(self, param: Tensor) -> None:
        """Note what gradient of ``param`` has come, which is kept until the step: the hook of such parameters."""
        if param.grad is not None and not _in_a_group():  # where DistributedDataParallel changes them after this
            self._came[id(param)] = _state_of(param.grad)

    def said(self) -> str:
        """What has been updated already, and what to do about it, in words."""
        if not self.done:
            return "Nothing has been written in this step"
        return (
            f"{len(self.done)} parameters have been updated in the backward pass ({_ASKED}), which cannot be taken "
            "back: go back to a checkpoint"
        )

    def _check_whole(self) -> None:
        if self.under_way and self.done:
            raise ValueError(
                "the optimizer's state is that of a part of a step: save it after optimizer.step(). If the step broke "
                f"off: {self.said()}"
            )

    def check_left(self) -> None:
        """Check the parameters before ``step()`` updates those whose gradients are there.

        Raises:
            RuntimeError: if one has been updated and has a gradient again, or by a gradient that a scaler has scaled;
                or a gradient has been changed that is kept, as none of the others could be.
            ValueError: if another optimizer updates one in the backward pass.
        """
        optimizer = self._optimizer()
        assert optimizer is not None
        if comes_from_a_scaler(optimizer):
            raise RuntimeError(
                f"a GradScaler has scaled the loss, and {len(self.done)} parameters have been updated by scaled "
                f"gradients in the backward pass ({_ASKED}): go back to a checkpoint, and leave the scaler out "
                f"(float32 and bfloat16 need none), or use {_INSTEAD}"
            )
        for param in _kept(optimizer) if self.done else ():
            grad, came = param.grad, self._came.get(id(param))
            if grad is not None and came is not None and came != _state_of(grad):
                raise RuntimeError(
                    f"the gradient of {described(param)} has been changed since the backward pass, as clipping does, "
                    f"and those of {len(self.done)} others could not be, for they were used there ({_ASKED}): change "
                    f"gradients by Tensor.register_hook, or use {_INSTEAD}. Go back to a checkpoint"
                )
        for param in released(optimizer):
            if param.grad is not None and id(param) in self.done:
                raise RuntimeError(
                    f"{described(param)} has been updated in the backward pass ({_ASKED}), and has a gradient again, "
                    "as DistributedDataParallel puts one there (call comm.leave_out_of_ddp(module) before wrapping the "
                    "module), or an assignment: leave that out, or use "
                    f"{_INSTEAD}. Go back to a checkpoint"
                )
            for other in _others(param, self):
                raise ValueError(
                    f"{described(param)} belongs to another optimizer too ({other.float_class.__name__}), which has "
                    f"taken it later and updates it in the backward pass ({_ASKED}): give it to one alone, or use "
                    f"{_INSTEAD}"
                )

    def watch(self) -> None:
        """Update parameters from now on, and have no other optimizer do so; note what comes of the others."""
        optimizer = self._optimizer()
        assert optimizer is not None
        for param in params_of(optimizer):
            hook: Callable[[Tensor], None] = self if releases_gradient(param) else self.note
            if param.is_floating_point() and hook not in (hooks := gradient_hooks(param)):  # an integer has no gradient
                for other in hooks:
                    if isinstance(getattr(other, "__self__", other), Releasing):
                        remove_gradient_hook(param, other)
                add_gradient_hook(param, hook)

    def leave(self) -> None:
        """The optimizer is one of floats again, and its parameters are."""
        optimizer = self._optimizer()
        assert optimizer is not None
        for param in params_of(optimizer):
            for hook in (self, self.note):
                remove_gradient_hook(param, hook)
        for handle in self._handles:
            handle.remove()
        ask_scalers_no_more(optimizer)


def _call(method: weakref.WeakMethod[Callable[[], None]]) -> None:
    bound = method()
    if bound is not None:
        bound()


def _others(param: Tensor, own: Releasing) -> Iterator[Adopted]:
    """The optimizers that update ``param`` in the backward pass, beside that of ``own``."""
    for hook in gradient_hooks(param):
        if isinstance(hook, Releasing) and hook is not own and (optimizer := hook._optimizer()) is not None:
            yield optimizer


def released(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The parameters of ``optimizer`` whose gradients are to be released."""
    return [param for param in params_of(optimizer) if releases_gradient(param)]


def _kept(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The other parameters of ``optimizer``."""
    return [param for param in params_of(optimizer) if not releases_gradient(param)]


def _state_of(grad: Tensor) -> tuple[int, int]:
    return id(grad), version_of(grad)


def check_release(optimizer: torch.optim.Optimizer, settings: StepOptions | None, *, each_by_itself: bool) -> None:
    """Check that ``optimizer`` can update in the backward pass those of its parameters of which that is asked.

    Args:
        settings: that it has, or is to have; ``None``: they are not known yet.
        each_by_itself: whether its step treats every parameter by itself.

    Raises:
        ValueError: if it cannot, naming the reason and what to use.
    """
    params = released(optimizer)
    if not params:
        return
    some = described(params[0])
    if settings is not None and settings.nonfinite == "skip":
        raise OptionError(
            Option.given("nonfinite", "skip"), f": {some} is updated in the backward pass (", _ASKED,
            "), and a step cannot be skipped once a part of it is made; use ", Option.given("nonfinite", "raise"),
            " or ", _INSTEAD,
        )  # fmt: skip
    if not each_by_itself:
        raise OptionError(
            f"{type(optimizer).__name__} runs its own step over all parameters at once, and {some} is to be updated "
            "as soon as its gradient is there (", _ASKED,
            "): use an optimizer of torch.optim or lowprec_plugin.optim, or ", _INSTEAD,
        )  # fmt: skip
    if any(isinstance(param, DTensor) for param in params):
        raise OptionError(f"{some} is sharded, which does not go together with ", _ASKED, ": use ", _INSTEAD)


def _in_a_group() -> bool:
    return dist.is_available() and dist.is_initialized()
