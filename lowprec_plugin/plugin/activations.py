"""What the plugin does inside the network's forward: emulation, and activations kept in codes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from lowprec_plugin.activations.call_tracker import Running
from lowprec_plugin.activations.emulation import Emulation, Emulator
from lowprec_plugin.activations.packed import KeptActivations


class Inside:
    """Emulates, and packs activations, in every step of a run.

    Args:
        emulation: see :class:`~lowprec_plugin.activations.emulation.Emulation`; ``None``: no emulation.
        activation_word_length: bits of activations kept for the backward pass; ``None``: they stay float.
        rounding: of these.
        seed, rank: key the random bits.

    Attributes:
        step: training steps begun, which key the random bits.
        emulator, kept: at work, or ``None``.

    Raises:
        ValueError: for an emulation or a word length that is none; in the first step, for a pattern of module names
            that matches none.
    """

    def __init__(
        self,
        emulation: Emulation | None,
        activation_word_length: int | None,
        *,
        rounding: str,
        seed: int,
        rank: int = 0,
    ) -> None:
        self.emulator = None if emulation is None else Emulator(emulation, seed=seed, rank=rank)
        self.kept = (
            None
            if activation_word_length is None
            else KeptActivations(activation_word_length, rounding=rounding, seed=seed, rank=rank)
        )
        self.step = 0
        self._evaluations = 0
        self._running: Running | None = None
        self._checked = False

    @contextmanager
    def training(self, network: nn.Module) -> Iterator[None]:
        """Around the forward of one training step."""
        self.step, self._evaluations = self.step + 1, 0
        self._running = self._follow(network, self.step, training=True)
        with self._running.followed():
            yield

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Around the backward of the step begun last, whose modules activation checkpointing may run again."""
        with ExitStack() as followed:
            if self._running is not None:
                followed.enter_context(self._running.followed())
            yield

    @contextmanager
    def evaluating(self, network: nn.Module) -> Iterator[None]:
        """Around one step of evaluation: emulated, with random bits of its own; nothing is kept."""
        self._evaluations += 1
        # Counted from the training step before, so that the bits do not depend on when a run was resumed.
        with self._follow(network, (self.step << 32) + self._evaluations, training=False).followed():
            yield

    def _follow(self, network: nn.Module, step: int, *, training: bool) -> Running:
        if self.emulator is not None and not self._checked:
            self.emulator.emulation.check_modules(name for name, _ in network.named_modules())
            self._checked = True

        def enter(inside: ExitStack) -> None:
            if self.emulator is not None:
                self.emulator.enter(inside, running, step, training)
            if self.kept is not None and training:
                self.kept.enter(inside, running, step)

        running = Running(network, enter)
        return running

    def state_dict(self) -> dict[str, Any]:
        """What a run that is resumed has to know."""
        return {"step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting where the checkpoint stopped."""
        self.step = state_dict["step"]

    def __str__(self) -> str:
        lines = []
        if self.emulator is not None:
            lines.append(f"emulation inside modules with parameters: {self.emulator.emulation}")
        if self.kept is not None:
            lines.append(f"activations kept for backward: {self.kept.format}, {self.kept.rounding}")
        return "\n".join(lines)
