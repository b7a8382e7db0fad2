"""Which modules of a network are running their forward: where emulation and narrow activations apply.

What happens inside the forward of a module that holds parameters belongs to the network. What a training step computes
around it, losses and metrics, does not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from lowprec_plugin.compat.autograd import backward_pass
from lowprec_plugin.compat.compiling import is_compiled
from lowprec_plugin.compat.lightning import to_be_compiled_again
from lowprec_plugin.formats import check_integer, check_kind


@dataclass
class _Frame:
    module: int  # its id
    name: str
    call: int
    operations: int = 0
    inputs: int = 0


class Running:
    """The running modules of one network, innermost last, and how often each has been called.

    Args:
        root: the network.
        enter: called when an outermost module with parameters begins, given an ``ExitStack`` that is unwound when it
            ends, by an exception too.

    Raises:
        ValueError: if a module's operations cannot be seen: compiled, TorchScript, or DataParallel.
    """

    def __init__(self, root: nn.Module, enter: Callable[[ExitStack], None]) -> None:
        self._names = {id(each): name for name, each in root.named_modules()}
        for name, each in root.named_modules():
            if is_compiled(each) or to_be_compiled_again(each):
                raise ValueError(
                    f"module {name!r} is compiled, and operations inside compiled code cannot be seen one by one: "
                    "leave torch.compile out, or emulation and activation_word_length"
                )
            if isinstance(each, torch.jit.ScriptModule):
                raise ValueError(
                    f"module {name!r} is TorchScript, whose operations cannot be seen one by one: use the module that "
                    "it was made from, or leave out emulation and activation_word_length"
                )
            if isinstance(each, nn.DataParallel) and len(each.device_ids) > 1:
                raise ValueError(
                    f"module {name!r} is a DataParallel, whose copies run in threads of their own: use "
                    'DistributedDataParallel (strategy="ddp"), or leave out emulation and activation_word_length'
                )
        self._enter = enter
        self._calls: Counter[str] = Counter()
        self._again: dict[int, Counter[str]] = {}  # calls within a backward pass, which is activation checkpointing
        self._stack: list[_Frame] = []
        self._inside = ExitStack()
        self._followers = 0

    @property
    def module(self) -> str:
        """The name of the innermost running module; empty for the network itself."""
        return self._stack[-1].name

    def next_place(self, *, entering: bool = False) -> str:
        """A name for the next operation of the innermost module, the same in every step and when it is recomputed.

        ``entering``: for the next number that comes from outside. These are counted apart, for to a recomputed module
        more may come from outside.
        """
        frame = self._stack[-1]
        if entering:
            frame.inputs += 1
            return f"{frame.name}/{frame.call}/input {frame.inputs}"
        frame.operations += 1
        return f"{frame.name}/{frame.call}/{frame.operations}"

    def begin(self, module: nn.Module, args: Any) -> None:
        """A global forward pre-hook."""
        name = self._names.get(id(module))
        if name is None or (not self._stack and not _holds_parameters(module)) or _stands_in(module):
            return
        call = self._count(name)
        if not self._stack:
            self._inside = ExitStack()
            self._enter(self._inside)
        self._stack.append(_Frame(id(module), name, call))

    def end(self, module: nn.Module, args: Any, output: Any) -> None:
        """A global forward hook, always called."""
        if self._stack and self._stack[-1].module == id(module):
            self._stack.pop()
            if not self._stack:
                self._inside.close()

    def _count(self, name: str) -> int:
        current = backward_pass()
        if current is None:
            self._calls[name] += 1
            return self._calls[name]
        if self._calls[name] > 1:
            raise ValueError(
                f"module {name!r} ran {self._calls[name]} times in this step and is run again by activation "
                "checkpointing: which of the calls is repeated cannot be told, and it would be rounded otherwise. "
                "Checkpoint modules that run once per step"
            )
        again = self._again.setdefault(current, Counter())
        again[name] += 1
        return again[name]

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Within the context, follow the modules' calls, and those of activation checkpointing in backward passes.

        Raises:
            ValueError: from a module's call, if it is recomputed and was called more than once.
        """
        if self._followers:  # a backward pass inside the training step
            yield
            return
        with ExitStack() as hooks:
            hooks.callback(register_module_forward_pre_hook(self.begin).remove)
            hooks.callback(register_module_forward_hook(self.end, always_call=True).remove)
            self._followers += 1
            try:
                yield
            finally:
                self._followers -= 1
                # An interrupt, which is no Exception, ends modules without a hook.
                self._stack.clear()
                self._inside.close()


def check_inside(module: nn.Module, seed: int, step: int, rank: int) -> None:
    """Raise ``ValueError`` unless ``module`` is one, and what keys random bits inside it are integers."""
    check_kind(module, nn.Module, "module")
    for name, value in (("seed", seed), ("step", step), ("rank", rank)):
        check_integer(value, name)


def _holds_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _stands_in(module: nn.Module) -> bool:
    """Whether a wrapper such as DDP calls ``module`` in place of its ``training_step``: Lightning swaps its forward."""
    return getattr(module.forward, "__self__", None) is None
