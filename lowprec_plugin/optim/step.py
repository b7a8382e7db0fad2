"""The optimizer step on fixed-point parameters.

:class:`FixedPointStep` is mixed into an optimizer's class and replaces its ``step``. Of the optimizers of
:mod:`.optimizers`, and whatever else takes its step from ``torch.optim``, where every parameter is updated by itself,
per parameter group:

* fixed-point parameters are updated by one fused call, if there is one (:mod:`.fused`);
* otherwise by the optimizer's own step, one at a time (:mod:`.generic`);
* parameters that are kept in float go to the optimizer's own step together.

Any other optimizer runs its own step once, over all that it has (:mod:`.whole`).

Before anything is written every gradient is checked. State is held as :class:`FixedPointTensor` under the names that
the optimizer gives it, so ``state_dict`` and ``load_state_dict`` work as ever.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lowprec_plugin.arithmetic import ops
from lowprec_plugin.arithmetic.random_bits import key_of
from lowprec_plugin.optim.adopted import Adopted
from lowprec_plugin.optim.finite import came_to_nan, gradient_of, gradients_are_finite
from lowprec_plugin.optim.fused import FusedUpdate, Group, fused_update
from lowprec_plugin.optim.generic import step_alone
from lowprec_plugin.optim.loading import check_state_dict
from lowprec_plugin.optim.naming import described, names_in
from lowprec_plugin.optim.params import params_of
from lowprec_plugin.optim.release import Releasing, check_release, released
from lowprec_plugin.optim.state import new_state, places, store_state, store_states
from lowprec_plugin.optim.whole import step_whole
from lowprec_plugin.tensor import FixedPointTensor
from lowprec_plugin.tensor.dtensor import as_floats, fixed_part, place, stored_part
from lowprec_plugin.tensor.gradient_hook import Asked, watch_gradient


class FixedPointStep(Adopted):
    """Replaces methods of an optimizer's class, ``float_class``, and calls them."""

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Update every parameter that has a gradient, in place; each stored number is rounded once.

        Args:
            args, kwargs: as the optimizer's own step takes them, a closure among them.

        Raises:
            NonFiniteGradientError: if a gradient is NaN or infinite and ``nonfinite="raise"``.
            ValueError: for a sparse gradient.
        """
        return _step(self, args, kwargs)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; also warns of a float parameter that joins fixed-point ones, for that is easily meant otherwise.

        Not while the optimizer is made: what is in float then was left so.

        Raises:
            ValueError: for a fixed-point parameter that is sharded in another way than by rows. The group is not added.
        """
        self.float_class.add_param_group(self, param_group)
        try:
            for param in self.param_groups[-1]["params"]:
                place(param)
                watch_gradient(param)
            update_in_backward(self)
        except ValueError:
            self.param_groups.pop()
            raise
        if not hasattr(self, "fixed_point"):
            return
        added = [param for param in self.param_groups[-1]["params"] if fixed_part(param) is None]
        if added and any(fixed_part(param) is not None for param in params_of(self)):
            more = f" and {len(added) - 1} more" if len(added) > 1 else ""
            warnings.warn(
                f"add_param_group got {described(added[0])}{more} in float, to be updated so beside fixed-point ones. "
                "If that is not meant, call optim.quantize_(module) before adding the module's parameters",
                stacklevel=2,
            )

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle holds: the optimizer's own, and the settings."""
        return self.float_class.__getstate__(self) | {"fixed_point": self.fixed_point}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this optimizer, or of its float32 original, whose state is rounded to nearest.

        Raises:
            ValueError: if state is stored in another format and not exact in this one. Nothing is changed then.
        """
        if self.float_class.load_state_dict is not torch.optim.Optimizer.load_state_dict:
            before = dict(self.__dict__)
            self.float_class.load_state_dict(self, state_dict)  # in a form of its own
            try:
                store_states(self, exact=True)
            except ValueError:
                self.__dict__ = before
                raise
            return
        stored: dict[Tensor, dict[str, Any]] = {}
        # The last of the hooks that may change what is given, before torch changes anything: state may be refused.
        last = self.register_load_state_dict_pre_hook(lambda _, given: stored.update(_stored_state(self, given)))
        try:
            self.float_class.load_state_dict(self, state_dict)
        finally:
            last.remove()
        for param, tensors in stored.items():
            for holder, key, name in places(self.state[param]):
                # torch keeps references to the given tensors, and a step would change them under their owner.
                value = holder[key].clone()
                holder[key] = tensors[name] if name in tensors else as_floats(value)


#: What an adopted optimizer's class takes from :class:`FixedPointStep`, in whose place another may stand.
REPLACED = ("step", "add_param_group", "__getstate__", "load_state_dict")


def steps_each_by_itself(float_class: type[torch.optim.Optimizer]) -> bool:
    """Whether the step of ``float_class`` is one of ours, or of ``torch.optim``'s, none of which looks further than one
    parameter.
    """
    step: Any = float_class.step
    modules = [getattr(step, "__globals__", {}).get("__name__", "")]
    while hasattr(step, "__wrapped__"):  # torch's hooks and grad modes; or a user's, who gives it torch's name
        step = step.__wrapped__
        modules.append(getattr(step, "__globals__", {}).get("__name__", ""))
    within = all(name.startswith(("torch.", "lowprec_plugin.optim.")) for name in modules)
    return within and modules[-1].startswith(("torch.optim.", "lowprec_plugin.optim."))


# Its kernels are there, and Dynamo cannot follow. Of a method that is disabled itself, torch 2.10 loses the ``self``.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _step(optimizer: FixedPointStep, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if optimizer.releasing is not None:
        optimizer.releasing.begin()
    elif optimizer.fixed_point.counting:
        optimizer.fixed_point.counts = {}
    if steps_each_by_itself(optimizer.float_class):
        return _step_each(optimizer, *args, **kwargs)
    return step_whole(optimizer, args, kwargs)


def _step_each(optimizer: FixedPointStep, closure: Callable[[], Any] | None = None) -> Any:
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    with torch.no_grad():
        if optimizer.releasing is not None:
            optimizer.releasing.check_left()
        if Asked.release:
            update_in_backward(optimizer)  # also copies, which come without their hooks
        _update_each(optimizer)
    if optimizer.releasing is not None:
        optimizer.releasing.end()
    return loss


def _update_each(optimizer: FixedPointStep) -> None:
    if not gradients_are_finite(optimizer):
        optimizer.fixed_point.skipped_steps += 1
        return
    if not optimizer.fixed_point.looked_at_gradients:
        _say_what_stays_float(optimizer)
    names = names_in(optimizer) if optimizer.fixed_point.counting else {}
    for group in optimizer.param_groups:
        params = [param for param in group["params"] if param.grad is not None]
        _update(optimizer, group, [param for param in params if fixed_part(param) is not None], names)
        floats = [param for param in params if fixed_part(param) is None]
        if floats:
            step_alone(optimizer, group, floats, names)


def _say_what_stays_float(optimizer: FixedPointStep) -> None:
    """Once, warn of gradients that were to be codes and are not."""
    optimizer.fixed_point.looked_at_gradients = True
    for param in params_of(optimizer):
        grad, part = param.grad, fixed_part(param)
        asked = part is not None and isinstance(part.gradient_word_length, int)
        if asked and grad is not None and fixed_part(grad) is None and not grad.requires_grad:
            warnings.warn(
                f"the gradient of {described(param)} is in floats where codes were asked for (gradient_word_length). "
                "DistributedDataParallel holds floats of every gradient that it exchanges: call "
                "comm.leave_out_of_ddp(module) before wrapping the module, and make a comm.DDPState",
                stacklevel=4,
            )
            return


def _update(optimizer: Adopted, group: Group, params: list[Tensor], names: Mapping[int, str]) -> None:
    """Update ``params`` of ``group``, which are fixed-point and have gradients that have been looked at."""
    update, _ = fused_update(optimizer.float_class, group)
    if update is None:
        for param in params:
            step_alone(optimizer, group, [param], names)
    elif params:
        _fused_step(optimizer, update, group, params, names)
    # As any operation in place would, so that a backward pass through the former weights is refused.
    torch.autograd.graph.increment_version(params)


def update_in_backward(optimizer: FixedPointStep) -> None:
    """Have ``optimizer`` update in the backward pass those of its parameters whose gradients are to be released.

    Raises:
        ValueError: if it cannot; see :func:`check_release`. Nothing is changed then.
    """
    settings = getattr(optimizer, "fixed_point", None)
    check_release(optimizer, settings, each_by_itself=steps_each_by_itself(optimizer.float_class))
    if settings is not None and released(optimizer):
        if optimizer.releasing is None:
            optimizer.releasing = Releasing(optimizer, _update)
        optimizer.releasing.watch()


def _fused_step(
    optimizer: Adopted, update: FusedUpdate, group: Group, params: list[Tensor], names: Mapping[int, str]
) -> None:
    settings = optimizer.fixed_point
    algorithm = update.algorithm(group)
    known: dict[tuple[int, bool], Any] = {}
    hypers, stores, keys, parts = [], [], [], []
    for param in params:
        state, part = optimizer.state[param], stored_part(param)
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32)
        missing = [name for name in algorithm.states if state.get(name) is None]  # torch's SGD may save None
        for name in missing:
            state[name] = new_state(optimizer, param, name)
        state["step"] += 1
        step, new = int(state["step"]), bool(missing)
        if (step, new) not in known:
            known[step, new] = algorithm.hyper(**update.hypers(group, step, new))
        hypers.append(known[step, new])
        tensors = [part, *(stored_part(state[name]) for name in algorithm.states)]
        stores.append([ops.Stored(t.blocks, t.format) for t in tensors])
        keys.append(key_of(part.stream, step))
        part.roundings += 1  # a copy made after the step draws other random bits than one made before it
        parts.append(part)
    by_device: dict[torch.device, list[int]] = {}
    for index, part in enumerate(parts):
        by_device.setdefault(part.device, []).append(index)
    for indices in by_device.values():
        done = ops.update_(
            algorithm,
            [_in_form_of(parts[i], gradient_of(params[i])) for i in indices],
            [stores[i] for i in indices],
            [hypers[i] for i in indices],
            rounding=settings.rounding,
            keys=[keys[i] for i in indices],
            first_rows=[parts[i].first_row for i in indices],
            counting=settings.counting,
        )
        settings.saturated += done.saturated
        if done.refused is not None:
            settings.counts = {}
            raise came_to_nan(group, params[indices[done.refused]], "the blocks with NaN were not written")
        if settings.counting:
            for i, counts in zip(indices, done.counts, strict=True):
                settings.note(names[id(params[i])], counts)


def _in_form_of(part: FixedPointTensor, gradient: Tensor | ops.StoredGradient) -> Tensor | ops.StoredGradient:
    """``gradient`` in the shape of the codes of ``part``."""
    return gradient.reshape(part._codes.shape) if isinstance(gradient, Tensor) else gradient


def _stored_state(optimizer: FixedPointStep, state_dict: dict[str, Any]) -> dict[Tensor, dict[str, Any]]:
    """The tensors that ``state_dict`` has for each parameter, of a fixed-point one as ``optimizer`` holds them.

    As they were given: torch casts them to the parameter's dtype, which may hold less.
    """
    check_state_dict(optimizer.float_class, optimizer.param_groups, state_dict)
    groups = zip(optimizer.param_groups, state_dict["param_groups"], strict=False)  # torch refuses what does not fit
    pairs = [pair for own, given in groups for pair in zip(own["params"], given["params"], strict=False)]
    return {
        param: {
            name: store_state(optimizer, param, name, holder[key].to(param.device, copy=True))
            for holder, key, name in places(state_dict["state"][number])
            if name != "step" and fixed_part(param) is not None
        }
        for param, number in pairs
        if number in state_dict["state"]
    }
