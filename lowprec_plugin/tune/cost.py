"""What a setting costs, in bits.

Three figures, each known before a run:

* **bits per parameter**: codes and exponents of the weights and of the optimizer's state, parameters kept in float32
  included. A 12-bit code counts 12 bits, though memory holds it in 2 bytes: the bytes held stand beside it.
* **bits per activation**: the mean word length of what is tuned of layer outputs, errors, and activations kept for the
  backward pass; layers weigh by how many numbers they give.
* **wire bits**: of a gradient between processes.

**The cost** is the mean of those that are tuned, each as a share of float32's: 1 is float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from lowprec_plugin.activations.emulation import Emulator
from lowprec_plugin.formats import rows_of
from lowprec_plugin.optim.state import format_of_state
from lowprec_plugin.text.option_error import Option, OptionError
from lowprec_plugin.tune.space import Setting, Space, read_options, word_length

#: The three figures, and which kinds each is of.
PARTS = {
    "parameters": ("weights", "state"),
    "activations": ("activations", "errors", "kept"),
    "wire": ("wire",),
}


@dataclass(frozen=True)
class Bits:
    """What a setting takes; float32's figure where a part is not tuned.

    Attributes:
        per_parameter: of weights and state.
        bytes_per_parameter: that memory holds for them.
        per_activation, wire: see the module.
        cost: 1 is float32.
    """

    per_parameter: float
    bytes_per_parameter: float
    per_activation: float
    wire: float
    cost: float


@dataclass(frozen=True)
class Network:
    """What counts: shapes, how many numbers of state each parameter has, and how many numbers each layer gives.

    Attributes:
        shapes: parameter name -> shape.
        state: parameter name -> numbers of optimizer state per element.
        layers: ``"activations"`` and ``"errors"`` -> module name -> numbers rounded in the rehearsal.
    """

    shapes: Mapping[str, tuple[int, ...]]
    state: Mapping[str, int]
    layers: Mapping[str, Mapping[str, int]]


def network_of(
    module: nn.Module, optimizers: Iterable[torch.optim.Optimizer], emulator: Emulator | None = None
) -> Network:
    """Look at a module in float32 and its optimizers after a step, and at an emulator that has counted."""
    state: dict[int, int] = {}
    for optimizer in optimizers:
        for param, held in optimizer.state.items():
            of_its_size = [x for x in held.values() if isinstance(x, Tensor) and x.shape == param.shape and x.dim()]
            state[id(param)] = len(of_its_size)
    counts = {} if emulator is None else emulator.counts
    return Network(
        {name: tuple(param.shape) for name, param in module.named_parameters()},
        {name: state.get(id(param), 0) for name, param in module.named_parameters()},
        {kind: {name: each.elements for name, each in layers.items()} for kind, layers in counts.items()},
    )


@dataclass(frozen=True)
class Costs:
    """The figures of every setting of a space.

    Args:
        space, network: what is tuned, and where.
        base: options of the plugin that stay.
        importance: how much each part counts in the cost.
        count: what counts of the parameters, their ``"codes"`` or the ``"bytes"`` held.

    Raises:
        ValueError: for a weight of no part, or that is negative, or where all that is tuned counts nothing.
    """

    space: Space
    network: Network
    base: Mapping[str, Any]
    importance: Mapping[str, float]
    count: str = "codes"

    def __post_init__(self) -> None:
        for part, weight in self.importance.items():
            if part not in PARTS or not 0 <= weight < math.inf:
                raise OptionError(
                    Option.given("importance", {part: weight}), f": give {', '.join(PARTS)} a weight of 0 or more"
                )
        if sum(self._weights().values()) <= 0:
            raise OptionError(Option.given("importance", dict(self.importance)), ": nothing that is tuned counts")

    def of(self, setting: Setting | None) -> Bits:
        """The bits of ``setting``; ``None``: float32."""
        bits, held = self._parameters(setting)
        activations = self._activations(setting)
        wire = 32.0 if setting is None or "wire" not in setting else float(word_length(setting["wire"]))
        parameters = (held if self.count == "bytes" else bits) / self._parameters(None)[0]
        shares = {"parameters": parameters, "activations": activations / 32, "wire": wire / 32}
        weights = self._weights()
        cost = sum(shares[part] * weight for part, weight in weights.items()) / sum(weights.values())
        return Bits(bits, held / 8, activations, wire, cost)

    @property
    def parts(self) -> list[str]:
        """Of the three figures, those that something tuned changes."""
        return [part for part, kinds in PARTS.items() if any(kind in self.space.ladders for kind in kinds)]

    def _weights(self) -> dict[str, float]:
        return {part: self.importance.get(part, 1.0) for part in self.parts}

    def _parameters(self, setting: Setting | None) -> tuple[float, float]:
        """Bits of codes and exponents, and bits that memory holds, per parameter."""
        options = {} if setting is None else self.space.options(setting, self.base, 0)
        stored = read_options(options)
        # Of squares too, whose format takes as many bits.
        weights, state = stored.format, format_of_state(stored.format, stored, "")
        bits = held = elements = 0
        for name, shape in self.network.shapes.items():
            numbers, moments = math.prod(shape), self.network.state[name]
            elements += numbers
            if setting is None or any(fnmatchcase(name, pattern) for pattern in stored.keep_float):
                bits += 32 * numbers * (1 + moments)
                held += 32 * numbers * (1 + moments)
                continue
            for format, times in ((weights, 1), (state, moments)):
                rows, row_length = rows_of(shape)
                bits += times * (numbers * format.word_length + 8 * rows * format.blocks_per_row(row_length))
                held += times * 8 * format.nbytes(shape)
        return bits / max(elements, 1), held / max(elements, 1)

    def _activations(self, setting: Setting | None) -> float:
        kinds = [kind for kind in PARTS["activations"] if setting is not None and kind in setting]
        if setting is None or not kinds:
            return 32.0
        return sum(self._of_kind(kind, setting) for kind in kinds) / len(kinds)

    def _of_kind(self, kind: str, setting: Setting) -> float:
        layers = self.network.layers.get(kind, {})
        if not self.space.layers or kind == "kept" or not sum(layers.values()):
            return float(word_length(setting[kind]))
        bits = 0
        for module, numbers in layers.items():
            pattern = next((each for each in self.space.layers if fnmatchcase(module, each)), None)
            bits += numbers * word_length(setting[kind if pattern is None else f"{kind}@{pattern}"])
        return bits / sum(layers.values())
