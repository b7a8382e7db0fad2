"""The optimizer step on fixed-point parameters.

:class:`FixedPointStep` is mixed into a ``torch.optim`` class in front of it and replaces its ``step``. Per parameter
group:

* fixed-point parameters are updated by one fused call, if the optimizer has one (:mod:`.fused`);
* otherwise one at a time, as floats, by the optimizer's own step (:mod:`.generic`);
* parameters that are kept in float go to the optimizer's own step as they are.

Before anything is written every gradient is checked. State is held as :class:`FixedPointTensor` under the names that
torch.optim gives it, so ``state_dict`` and ``load_state_dict`` work as ever.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lowprec_plugin import ops
from lowprec_plugin.blocks import empty_blocks
from lowprec_plugin.copying import convert_
from lowprec_plugin.counts import UpdateCounts
from lowprec_plugin.formats import FixedPointFormat
from lowprec_plugin.optim import generic
from lowprec_plugin.optim.fused import SQUARED_STATES, STATES, FusedUpdate, Group, fused_update
from lowprec_plugin.optim.loading import check_state_dict
from lowprec_plugin.optim.settings import StepSettings
from lowprec_plugin.random_bits import key_of, substream
from lowprec_plugin.sharding import as_floats, fixed_part, in_place_of, local_part, on_any_rank, placed_part
from lowprec_plugin.tensor import FixedPointTensor


class NonFiniteGradientError(ValueError):
    """A gradient is NaN or infinite: the step was refused and nothing was written."""


class FixedPointStep(torch.optim.Optimizer):
    """Replaces the ``step`` of the ``torch.optim`` class that follows it in the bases."""

    fixed_point: StepSettings
    float_class: type[torch.optim.Optimizer]  # the class whose place this takes

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient, in place; each stored number is rounded once.

        Raises:
            NonFiniteGradientError: if a gradient is NaN or infinite and ``nonfinite="raise"``.
            ValueError: for a sparse gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.fixed_point.counting:
            self.fixed_point.counts = {}
        if not self._gradients_are_finite():
            self.fixed_point.skipped_steps += 1
            return loss
        attributes = generic.apart(self.__dict__)
        for group in self.param_groups:
            before = generic.Before(attributes, generic.apart(group))
            params = [param for param in group["params"] if param.grad is not None]
            fixed = [param for param in params if fixed_part(param) is not None]
            floats = [param for param in params if fixed_part(param) is None]
            update, _ = fused_update(self.float_class, group)
            if update is None:
                for param in fixed:
                    generic.step_one(self, before, group, param)
            elif fixed:
                self._fused_step(update, group, fixed)
            # As any operation in place would, so that a backward pass through the former weights is refused.
            torch.autograd.graph.increment_version(fixed)
            if floats:
                generic.step_floats(self, before, group, floats)
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; also warns of a float parameter that joins fixed-point ones, for that is easily meant otherwise.

        Not while the optimizer is made: what is in float then was left so.
        """
        super().add_param_group(param_group)
        if not hasattr(self, "fixed_point"):
            return
        added = [param for param in self.param_groups[-1]["params"] if fixed_part(param) is None]
        if added and any(fixed_part(param) is not None for param in self._params()):
            more = f" and {len(added) - 1} more" if len(added) > 1 else ""
            warnings.warn(
                f"add_param_group got {label_of(added[0])}{more} in float, to be updated so beside fixed-point ones. "
                "If that is not meant, call optim.quantize_(module) before adding the module's parameters",
                stacklevel=2,
            )

    def _params(self) -> list[Tensor]:
        return [param for group in self.param_groups for param in group["params"]]

    def _gradients_are_finite(self) -> bool:
        params: list[Any] = [param for param in self._params() if param.grad is not None]
        for param in params:
            if param.grad.is_sparse and fixed_part(param) is not None:
                raise ValueError(
                    f"the gradient of {label_of(param)} is sparse, which fixed-point updates do not support: "
                    "use sparse=False in its embedding, or keep_float for the parameter"
                )
        by_device: dict[torch.device, list[Any]] = {}
        for param in params:
            if not param.grad.is_sparse:
                by_device.setdefault(local_part(param).device, []).append(param)
        found = None
        for some in by_device.values():
            index = ops.first_nonfinite([_gradient(param) for param in some])
            found = label_of(some[index]) if found is None and index is not None else found
        if not on_any_rank(found is not None, self._params()):
            return True
        if self.fixed_point.nonfinite == "skip":
            return False
        raise NonFiniteGradientError(
            f"the gradient of {found or 'a parameter, in the shard of another rank,'} holds a NaN or an infinity: the "
            'step was refused and nothing was written. Lower the learning rate or clip gradients; nonfinite="skip" '
            "skips such steps"
        )

    def _fused_step(self, update: FusedUpdate, group: Group, params: list[Tensor]) -> None:
        algorithm = update.algorithm(group)
        names = STATES[algorithm]
        known: dict[tuple[int, bool], Any] = {}
        hypers, stores, keys, parts = [], [], [], []
        for param in params:
            state, part = self.state[param], placed_part(param)
            if "step" not in state:
                state["step"] = torch.zeros((), dtype=torch.float32)
            missing = [name for name in names if state.get(name) is None]  # torch's SGD may save None
            for name in missing:
                state[name] = self._new_state(param, name)
            state["step"] += 1
            step, new = int(state["step"]), bool(missing)
            if (step, new) not in known:
                known[step, new] = update.hypers(group, step, new)
            hypers.append(known[step, new])
            tensors = [part, *(placed_part(state[name]) for name in names)]
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
                [_gradient(params[i]).reshape(parts[i].codes.shape) for i in indices],
                [stores[i] for i in indices],
                [hypers[i] for i in indices],
                rounding=self.fixed_point.rounding,
                keys=[keys[i] for i in indices],
                first_rows=[parts[i].first_row for i in indices],
                counting=self.fixed_point.counting,
            )
            self.fixed_point.saturated += done.saturated
            if done.refused is not None:
                self.fixed_point.counts = {}
                raise self.came_to_nan(group, params[indices[done.refused]], "the blocks with NaN were not written")
            for i, counts in zip(indices, done.counts, strict=self.fixed_point.counting):
                self.note(params[i], counts)

    @staticmethod
    def came_to_nan(group: Group, param: Tensor, said: str) -> NonFiniteGradientError:
        """The error of a step that came to NaN; ``said``: what was not written."""
        return NonFiniteGradientError(
            f"the update of {label_of(param)} came to NaN although its gradient is finite (is the learning rate, "
            f"{group.get('lr')}, finite?); {said}"
        )

    def note(self, param: Tensor, counts: UpdateCounts) -> None:
        """Keep what a counted step did to ``param`` under its name."""
        label = placed_part(param).label
        if not label or label in self.fixed_point.counts:
            place = next(index for index, each in enumerate(self._params()) if each is param)
            label = f"parameter {place}"
        self.fixed_point.counts[label] = counts

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle holds: torch's own, and the settings."""
        return super().__getstate__() | {"fixed_point": self.fixed_point}

    def state_format(self, param: Tensor, name: str) -> FixedPointFormat:
        """The format in which state ``name`` of ``param`` is stored: the settings', whatever the parameter's."""
        part = fixed_part(param)
        assert part is not None
        settings = self.fixed_point
        return format_of_state(part.format, settings.state_word_length, name, settings.state_fraction_length)

    def _new_state(self, param: Tensor, name: str) -> Tensor:
        format, part = self.state_format(param, name), placed_part(param)
        return self._own(FixedPointTensor(empty_blocks(part.codes.shape, format, part.device), format), param, name)

    def _own(self, tensor: FixedPointTensor, param: Tensor, name: str) -> Tensor:
        """Give state ``tensor`` the place, dtype, sharding and random stream of state ``name`` of ``param``."""
        part = placed_part(param)
        owned = tensor._like(
            tensor.blocks, dtype=part.dtype, rounding=self.fixed_point.rounding, first_row=part.first_row,
            stream=substream(part.stream, name), label=f"{label_of(param)}.{name}", geometry=part._geometry,
        )  # fmt: skip
        owned.whole_rows = part.whole_rows
        return in_place_of(owned, param)

    def store_state(self, param: Tensor, name: str, value: Any) -> Any:
        """``value`` of state ``name`` as this optimizer holds it: fixed-point if it has an element per parameter's.

        Raises:
            ValueError: if it is fixed-point in another format and not exact in this one, or not finite.
        """
        if name == "step" or not generic.is_elementwise(value, param):
            return value
        format, value = self.state_format(param, name), local_part(value)
        if not isinstance(value, FixedPointTensor):
            try:
                blocks, _ = ops.quantize(value.reshape(placed_part(param).codes.shape), format)
            except ValueError as error:
                raise ValueError(f"state {name!r} of {label_of(param)}: {error}") from None
            return self._own(FixedPointTensor(blocks, format), param, name)
        if value.format == format:
            return self._own(value, param, name)
        converted = self._new_state(param, name)
        try:
            convert_(placed_part(converted), value)
        except ValueError as error:
            raise ValueError(
                f"state {name!r} of {label_of(param)}: {error}. Resume with state_word_length="
                f"{value.format.word_length}, or load optim.plain_optimizer_state(state_dict), which is rounded"
            ) from None
        return converted

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this optimizer, or of its float32 original, whose state is rounded to nearest.

        Raises:
            ValueError: if state is stored in another format and not exact in this one. Nothing is changed then.
        """
        stored: dict[Tensor, dict[str, Any]] = {}
        # The last of the hooks that may change what is given, before torch changes anything: state may be refused.
        last = self.register_load_state_dict_pre_hook(lambda _, given: stored.update(self._stored_state(given)))
        try:
            super().load_state_dict(state_dict)
        finally:
            last.remove()
        for param, tensors in stored.items():
            state = self.state[param]
            for name, value in state.items():
                # torch keeps references to the given tensors, and a step would change them under their owner.
                value = value.clone() if isinstance(value, Tensor) else value
                state[name] = tensors[name] if name in tensors else as_floats(value)

    def _stored_state(self, state_dict: dict[str, Any]) -> dict[Tensor, dict[str, Any]]:
        """The tensors that ``state_dict`` has for each parameter, of a fixed-point one as this optimizer holds them.

        As they were given: torch casts them to the parameter's dtype, which may hold less.
        """
        check_state_dict(self.float_class, self.param_groups, state_dict)
        groups = zip(self.param_groups, state_dict["param_groups"], strict=False)  # torch refuses what does not fit
        pairs = [pair for own, given in groups for pair in zip(own["params"], given["params"], strict=False)]
        return {
            param: {
                name: self.store_state(param, name, value.to(param.device, copy=True))
                for name, value in state_dict["state"][key].items()
                if name != "step" and isinstance(value, Tensor) and fixed_part(param) is not None
            }
            for param, key in pairs
            if key in state_dict["state"]
        }


def format_of_state(
    weights: FixedPointFormat, word_length: int | None, name: str, fraction_length: int | None = None
) -> FixedPointFormat:
    """The format of state ``name`` of a parameter in format ``weights``; ``word_length=None``: as the weights'.

    Raises:
        ValueError: if ``fraction_length`` is given and the state is one of squares.
    """
    squared = name in SQUARED_STATES
    if squared and fraction_length is not None:
        raise ValueError(
            f"state_fraction_length={fraction_length}: {name} is a mean of squares, which has to have a radix point in "
            "every block: leave it None, or use an optimizer without squares"
        )
    return FixedPointFormat(word_length or weights.word_length, fraction_length, weights.block_size, squared)


def label_of(param: Tensor) -> str:
    """The parameter's name, or its shape if it has none."""
    label = getattr(local_part(param), "label", "")
    return f"parameter {label!r}" if label else f"a parameter of shape {tuple(param.shape)}"


def _gradient(param: Tensor) -> Tensor:
    """The gradient of what this rank holds of ``param``; of a fixed-point one in a dtype that updates take."""
    assert param.grad is not None
    grad = local_part(param.grad)
    if fixed_part(param) is None:
        return grad
    if isinstance(grad, FixedPointTensor):  # somebody assigned a parameter's copy
        return grad.dequantize(torch.float32)
    return grad if grad.dtype in (torch.float32, torch.bfloat16, torch.float16) else grad.float()
