"""What is known of a step whose gradients were not finite: written to a small file, and said in a sentence.

The gradients tell which parameters are concerned, and not where it began: a NaN in the data reaches all of them. So the
step is run once more, with hooks on every module, before the run ends. A step that is skipped is not run again, for the
run goes on and its averages and statistics would count the batch twice.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from lowprec_plugin.compat.trees import tree_leaves
from lowprec_plugin.optim.finite import NonFiniteGradientError
from lowprec_plugin.tensor.dtensor import local_part
from lowprec_plugin.text.files import whole_text

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

#: Steps whose loss and learning rate are remembered.
STEPS = 20
#: Files of skipped steps per run: what skips more has one cause.
FILES = 10


class Aftermath:
    """Remembers the last steps, and examines one that was refused or skipped.

    Attributes:
        written: files so far.
    """

    def __init__(self) -> None:
        self._last: deque[tuple[int, float | None, Any]] = deque(maxlen=STEPS)
        self.written: list[Path] = []

    def after(
        self,
        step: Callable[[], Any],
        module: LightningModule,
        optimizer: Any,
        closure: Callable[[], Any] | None,
        skipped: Callable[[], int],
    ) -> Any:
        """Run ``step()``, an optimizer step, and write a file if it was refused or skipped. Called on every rank.

        Args:
            closure: forward and backward pass of the step; ``None``: they cannot be run again.
            skipped: steps skipped so far.

        Returns:
            what ``step()`` returns, the loss.

        Raises:
            NonFiniteGradientError: if it was refused, with what was found out.
        """
        rate, before = _rate(optimizer), skipped()
        try:
            loss = step()
        except NonFiniteGradientError as error:
            raise NonFiniteGradientError(f"{error}. {self._refused(module, rate, closure)}") from error
        self._last.append((module.global_step, rate, _scalar(loss)))
        if skipped() > before and len(self.written) < FILES:
            said = self._write(module, "skipped", rate, _nonfinite_gradients(module), {})
            if len(self.written) <= 1:
                rank_zero_warn(f"step {module.global_step} was skipped, its gradients not being finite. {said}")
        return loss

    def _refused(self, module: LightningModule, rate: float | None, closure: Callable[[], Any] | None) -> str:
        gradients, again = _nonfinite_gradients(module), {}
        if closure is not None and not any(isinstance(part, FSDPModule) for part in module.modules()):
            again = _run_again(module, module.trainer.strategy.model, closure)
            gradients = _nonfinite_gradients(module) or gradients  # as they are before any clipping, which spreads them
        return self._write(module, "refused", rate, gradients, again)

    def _write(
        self, module: LightningModule, outcome: str, learning_rate: float | None, gradients: list[dict[str, Any]],
        again: dict[str, Any],
    ) -> str:  # fmt: skip
        trainer = module.trainer
        everywhere = _nan_throughout(module, gradients)
        first = _first(gradients, again, everywhere=everywhere, batches=trainer.accumulate_grad_batches)
        content = {
            "step": trainer.global_step, "epoch": trainer.current_epoch, "rank": trainer.global_rank,
            "outcome": outcome, "first": first, "learning_rate": _plain(learning_rate), "run_again": again,
            "gradients": gradients,
            "last_steps": [
                {"step": step, "learning_rate": _plain(lr), "loss": _plain(loss)} for step, lr, loss in self._last
            ],
            "figures": {name: _plain(value) for name, value in trainer.callback_metrics.items()},
            "precision": repr(trainer.precision_plugin),
        }  # fmt: skip
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        path = folder / f"nonfinite-step{trainer.global_step}-rank{trainer.global_rank}.json"
        try:
            whole_text(path, json.dumps(content, indent=1) + "\n")
        except OSError as error:  # the disk must not hide what went wrong
            return f"{first}. ({path} could not be written: {error})"
        self.written.append(path)
        return f"{first}. What is known of it: {path}"


def _rate(optimizer: Any) -> float | None:
    """The first group's learning rate. Not every optimizer has one; Lightning's of a module without has no group."""
    rate = next((group.get("lr") for group in optimizer.param_groups), None)
    return None if rate is None else float(rate)


def _nonfinite_gradients(module: nn.Module) -> list[dict[str, Any]]:
    """Parameters whose gradient is not finite, in the module's order."""
    found = []
    for name, param in module.named_parameters():
        if param.grad is not None and not param.grad.is_sparse:
            grad = local_part(param.grad)
            nan, inf = int(grad.isnan().sum()), int(grad.isinf().sum())
            if nan or inf:
                found.append({"parameter": name, "elements": grad.numel(), "nan": nan, "infinite": inf})
    return found


def _nan_throughout(module: nn.Module, gradients: list[dict[str, Any]]) -> bool:
    """Whether no gradient holds a number: none can be told from the others."""
    grads = [local_part(param.grad) for param in module.parameters() if param.grad is not None]
    return len(gradients) == sum(grad.numel() > 0 for grad in grads) and all(
        each["nan"] == each["elements"] for each in gradients
    )


def _first(gradients: list[dict[str, Any]], again: dict[str, Any], *, everywhere: bool, batches: int) -> str:
    """Where it began, in words.

    Args:
        everywhere: whether all gradients are NaN throughout.
        batches: whose gradients are added up; of these only the last was run again.
    """
    seen = _seen(again)
    if seen:
        return f"When the step was run again, {seen}"
    others = again and dist.is_initialized() and dist.get_world_size() > 1
    if again and batches > 1:
        elsewhere = ", or at what the other processes wrote" if others else ""
        return (
            "Of the batches whose gradients are added up the last was run again, and all was finite: look at those "
            f"before it{elsewhere}"
        )
    if others:
        return "All was finite on this process when the step was run again: see what the other processes wrote"
    if gradients and everywhere:
        return (
            "Every gradient is NaN throughout, as a loss that is NaN makes them, and clipping: which was first cannot "
            "be told"
        )
    if gradients:  # the backward pass goes from the last to the first
        return f"The last parameter whose gradient is not finite is {gradients[-1]['parameter']!r}"
    return "Of the gradients that this process still holds all are finite"


def _seen(again: dict[str, Any]) -> str:
    """What was not finite first when the step was run again, in words; empty if all was finite."""
    loss = again.get("loss")
    if "input" in again:
        said = f"what went into module {again['input']!r} was not finite"
        if "before" not in again:
            return f"{said}: look at the data"
        said += f", and the outputs before it, the last of module {again['before']!r}, were"
        return f"{said}: look at what is computed in between, and at the data"
    if "forward" in again:
        return f"the first output that was not finite was that of module {again['forward']!r}"
    if loss is not None and not math.isfinite(float(loss)):
        if "minus_infinity" not in again:
            return "every module's output was finite and the loss was not"
        said = "the loss was not finite, and of the modules' outputs the first with minus infinity in it"
        return f"{said}, as a mask would put there, was that of module {again['minus_infinity']!r}"
    if "backward" in again:
        said = "outputs and loss were finite, and in the backward pass the first gradient that was not"
        return f"{said} was that of the output of module {again['backward']!r}"
    return ""


def _run_again(module: LightningModule, model: Any, closure: Callable[[], Any]) -> dict[str, Any]:
    """Run forward and backward pass once more with hooks on every module; what was not finite first, by module.

    Empty if no module ran: with manual optimization the passes are not in the closure.
    """
    found: dict[str, Any] = {}
    alone = model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()
    try:
        with torch.enable_grad(), _watched(module, found), alone:
            found["loss"] = _plain(_scalar(closure()))
    except Exception as error:  # of the user's code, on a batch that has been trouble already
        found["error"] = f"{type(error).__name__}: {error}"
    return found if found.pop("ran", False) else {}


@contextmanager
def _watched(module: nn.Module, found: dict[str, Any]) -> Iterator[None]:
    """Within the context, note the first module whose input, output, or output's gradient is not finite.

    Minus infinity is what masks are made of: alone, it is noted of an output apart, and of an input only if no output
    held it before and it is not a mask, which has zeros beside.
    """
    hooks = []

    def watch(name: str, part: nn.Module) -> None:
        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            found["ran"] = True
            if {"input", "forward"} & found.keys():
                return
            given = [leaf for leaf in _floats((args, kwargs)) if not _is_mask(leaf)]
            if not _finite(given) and not ("minus_infinity" in found and _only_minus_infinity(given)):
                found["input"] = name

        def after(_: nn.Module, args: Any, output: Any) -> None:
            if not {"input", "forward"} & found.keys():
                if _finite(output):
                    found["before"] = name
                elif _only_minus_infinity(output):
                    found.setdefault("minus_infinity", name)
                else:
                    found["forward"] = name
            for leaf in _floats(output):
                if leaf.requires_grad:
                    leaf.register_hook(backward)  # type: ignore[no-untyped-call]

        def backward(grad: Tensor) -> None:
            if "backward" not in found and not _finite(grad):
                found["backward"] = name

        hooks.append(part.register_forward_pre_hook(before, with_kwargs=True))
        hooks.append(part.register_forward_hook(after))

    for name, part in module.named_modules():
        if name:  # the LightningModule's own forward is the training step
            watch(name, part)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _floats(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _finite(tree: Any) -> bool:
    return all(bool(torch.isfinite(leaf).all()) for leaf in _floats(tree))


def _only_minus_infinity(tree: Any) -> bool:
    """Whether all that is not finite is minus infinity."""
    return not any(bool((leaf.isnan() | (leaf == math.inf)).any()) for leaf in _floats(tree))


def _is_mask(tensor: Tensor) -> bool:
    """Whether it is nothing but zeros and minus infinities, as what is added to attention's scores."""
    zero = tensor == 0
    return bool(zero.any() and (zero | (tensor == -math.inf)).all())


def _scalar(loss: Any) -> Any:
    return loss.detach().float().mean() if isinstance(loss, Tensor) else None


def _plain(value: Any) -> float | str | None:
    """For JSON, which has no word for NaN."""
    if value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) else str(number)
