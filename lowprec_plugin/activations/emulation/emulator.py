"""Emulation at work on one network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn
from torch.backends import mha

from lowprec_plugin.activations.call_tracker import Running, check_inside
from lowprec_plugin.activations.emulation.mode import EmulationMode
from lowprec_plugin.activations.emulation.settings import Emulation, check_emulation
from lowprec_plugin.activations.emulation.sites import Counts, Kind, Site, stream_of_kind
from lowprec_plugin.compat.overrides import check_fast_paths
from lowprec_plugin.formats import check_kind


class Emulator:
    """Rounds what a network's operations give, and counts it.

    Args:
        emulation: what is rounded to what.
        seed: keys the random bits, together with the step, the module and the operation.
        rank: of this process: its activations, and so their random bits, are its own.

    Attributes:
        counts: per kind (``"activations"``, ``"errors"``) and module, what has been rounded so far.

    Raises:
        ValueError: if ``emulation`` is something else, such as a format's text.
    """

    def __init__(self, emulation: Emulation, *, seed: int = 0, rank: int = 0) -> None:
        check_emulation(emulation)
        check_fast_paths()
        self.emulation = emulation
        self._seed = seed
        self._rank = rank
        self.counts: dict[str, dict[str, Counts]] = {"activations": {}, "errors": {}}
        self._kinds: dict[tuple[str, bool], tuple[Kind, Kind]] = {}

    def enter(self, inside: ExitStack, running: Running, step: int, training: bool) -> None:
        """Enter the emulation for one outermost module, until ``inside`` is unwound."""

        def next_site(operation: str) -> Site:
            place = running.next_place(entering=operation == "input")
            return Site(operation, running.module, place, step, *self._kinds_of(running.module, training))

        # Attention's and the encoder layer's one-piece kernels round nothing in between.
        inside.callback(mha.set_fastpath_enabled, mha.get_fastpath_enabled())
        mha.set_fastpath_enabled(False)
        inside.enter_context(EmulationMode(next_site, self.emulation.accumulate == "exact"))

    def saturated(self) -> dict[str, dict[str, float]]:
        """The share of numbers out of range so far, per kind and module."""
        return {
            kind: {module: int(each.saturated) / max(each.elements, 1) for module, each in modules.items()}
            for kind, modules in self.counts.items()
        }

    def _kinds_of(self, module: str, training: bool) -> tuple[Kind, Kind]:
        if (module, training) not in self._kinds:
            settings = self.emulation
            during = "" if training else "evaluation "
            self._kinds[module, training] = (
                Kind(
                    settings.activation_format(module),
                    settings.rounding,
                    stream_of_kind(self._seed, f"{during}activations", self._rank),
                    self.counts["activations"].setdefault(module, Counts()),
                ),
                Kind(
                    settings.error_format(module),
                    settings.error_rounding or settings.rounding,
                    stream_of_kind(self._seed, f"{during}errors", self._rank),
                    self.counts["errors"].setdefault(module, Counts()),
                ),
            )
        return self._kinds[module, training]


@contextmanager
def emulate(
    module: nn.Module, emulation: Emulation, *, step: int = 0, seed: int = 0, training: bool = True, rank: int = 0
) -> Iterator[Emulator]:
    """Within the context, emulate fixed-point arithmetic in the forwards of ``module``, and in their backwards.

    ::

        with emulate(model, Emulation("<6,10>"), step=step):
            loss = loss_of(model(x), y)
            loss.backward()

    A backward pass outside the context rounds errors as well; only recomputed forwards (activation checkpointing)
    have to be inside.

    Args:
        module: the network, in float32; its parameters in any format.
        step: keys the random bits, with the seed and the place in the network.
        training: evaluation has random bits of its own.

    Raises:
        ValueError: for a pattern that matches no module, for compiled modules, for fused operations that cannot be
            rounded inside, and in ``accumulate="exact"`` for operands or sums that float64 would not add exactly.
    """
    check_kind(training, bool, "training")
    check_inside(module, seed, step, rank)
    emulator = Emulator(emulation, seed=seed, rank=rank)
    emulation.check_modules(name for name, _ in module.named_modules())
    running = Running(module, lambda inside: emulator.enter(inside, running, step, training))
    with running.followed():
        yield emulator
