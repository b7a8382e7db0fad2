"""A network as the integer arithmetic that it is: layers in order, the format of what goes in and out of each.

This is the arithmetic of :class:`~lowprec_plugin.Emulation` with ``accumulate="exact"`` and rounding to
nearest: a sum of products is exact, and rounded once to the layer's output format; everything else selects numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import nn

from lowprec_plugin.activations.emulation import Emulation
from lowprec_plugin.activations.emulation.settings import Formats
from lowprec_plugin.compat.modules import hooks_of
from lowprec_plugin.export.integers import State, Words, split
from lowprec_plugin.formats import FixedPointFormat
from lowprec_plugin.text.option_error import Option, OptionError

#: What a network may consist of, in an nn.Sequential or several within each other.
COVERED = "Linear, Conv2d, ReLU, MaxPool2d, Flatten and Identity"
#: Layers that sum products.
PRODUCTS = (nn.Linear, nn.Conv2d)
#: Bits of the integers that sums are held in.
SUM_BITS = 64


@dataclass(frozen=True)
class Layer:
    """One layer.

    Attributes:
        name: the module's, in the state dict's names.
        module: Linear, Conv2d, ReLU or MaxPool2d.
        input_shape, output_shape: of one image, without a batch.
        input, output: formats of the numbers that go in and out.
        weight, bias: of Linear and Conv2d.
    """

    name: str
    module: nn.Module
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    input: FixedPointFormat
    output: FixedPointFormat
    weight: Words | None = None
    bias: Words | None = None

    @property
    def sum_fraction(self) -> int:
        """Bits behind the radix point of a sum of products."""
        assert self.weight is not None
        return -self.input.static_exponent - self.weight.format.static_exponent

    @property
    def bias_shift(self) -> int:
        """A bias counts in units of ``2**bias_shift`` of a sum."""
        return 0 if self.bias is None else self.sum_fraction + self.bias.format.static_exponent

    @property
    def drop(self) -> int:
        """Bits of a sum that rounding takes away."""
        return self.sum_fraction + self.output.static_exponent

    @property
    def sum_bits(self) -> int:
        """Bits of the widest sum that any input can make with these weights, the sign included."""
        assert self.weight is not None
        rows = self.weight.codes.to(torch.int64).abs().reshape(self.weight.codes.shape[0], -1).sum(1)
        # In Python's integers: a bias may be shifted beyond int64.
        bounds = [int(row) << (self.input.word_length - 1) for row in rows]
        if self.bias is not None:
            biases = self.bias.codes.tolist()
            bounds = [bound + (abs(code) << self.bias_shift) for bound, code in zip(bounds, biases, strict=True)]
        return max(bounds).bit_length() + 1


def layers_of(root: nn.Module, network: str, input_shape: Sequence[int], activations: Formats) -> list[Layer]:
    """The layers of the ``nn.Sequential`` called ``network`` in ``root``; ``""`` is ``root`` itself.

    Args:
        input_shape: of one image, without a batch.
        activations: formats of what layers put out, as :class:`Emulation` takes them; patterns match names in ``root``.

    Raises:
        ValueError: naming the layer, for what is not covered, for formats that are not static, for numbers in float,
            and for sums that 64 bits may not hold; for a pattern that matches no module.
    """
    emulation = Emulation(activations, None, rounding="nearest", accumulate="exact")
    emulation.check_modules(name for name, _ in root.named_modules())
    sequence = _sequence(root, network)
    # A module that comes twice goes by its first name: to the emulation that in root, in the file that in the network.
    emulated = {id(module): name for name, module in root.named_modules()}
    names = {id(module): name for name, module in sequence.named_modules(prefix=network)}
    _check_hooks(sequence.named_modules(prefix=network))
    layers = [(names[id(module)], module) for module in _flat(sequence)]
    for name, module in layers:
        _check(name, module)
    products = [module for _, module in layers if type(module) in PRODUCTS]
    if not products:
        raise OptionError(Option.given("network", network), " has no Linear and no Conv2d: there is nothing to compute")
    words, _ = split(part_of(root, network))
    # What comes before the first product only selects, and rounding keeps the order of numbers.
    format = _format(emulation, emulated[id(products[0])])
    shape, planned = tuple(input_shape), []
    for name, module in layers:
        after = _shape_after(name, module, shape)
        if type(module) in (nn.ReLU, nn.MaxPool2d):
            planned.append(Layer(name, module, shape, after, format, format))
        elif type(module) in PRODUCTS:
            output = _format(emulation, emulated[id(module)])
            layer = Layer(name, module, shape, after, format, output, *_parameters(name, module, words))
            _check_bits(layer)
            planned.append(layer)
            format = layer.output
        shape = after
    return planned


def layers_if_asked(
    module_or_state: nn.Module | State,
    network: str,
    input_shape: Sequence[int] | None,
    activations: Formats,
    purpose: str,
) -> list[Layer] | None:
    """:func:`layers_of`, where a shape and formats are given; ``None`` for arrays alone.

    Args:
        purpose: what they are for, for messages.

    Raises:
        ValueError: if only some of what it needs are given; and as :func:`layers_of`.
    """
    if input_shape is None and activations is None:
        return None
    if input_shape is None or activations is None or not isinstance(module_or_state, nn.Module):
        raise OptionError(
            f"{purpose} a module, ", Option("input_shape", str(input_shape)), " and ",
            Option("activations", str(activations)), ": give all three, or neither shape nor formats for arrays alone",
        )  # fmt: skip
    return layers_of(module_or_state, network, input_shape, activations)


def part_of(module: nn.Module, network: str) -> dict[str, Any]:
    """The entries of the module's state dict that belong to its submodule ``network``; all of them for ``""``.

    Raises:
        ValueError: if there is no such submodule.
    """
    there = [name for name, _ in module.named_modules(remove_duplicate=False)]
    if network not in there:
        raise OptionError(
            Option.given("network", network), f" is no submodule of {type(module).__name__}; there are {there[1:]}"
        )
    state = module.state_dict()
    return {name: each for name, each in state.items() if not network or name.startswith(f"{network}.")}


def _sequence(root: nn.Module, network: str) -> nn.Sequential:
    there = dict(root.named_modules(remove_duplicate=False))
    found = there.get(network)
    if not _is_plain(found):
        candidates = [name for name, each in there.items() if _is_plain(each)]
        raise OptionError(
            Option.given("network", network),
            f" is {type(found).__name__}, and an nn.Sequential is needed, run in its order: {type(root).__name__} has "
            f"{candidates or 'none'}",
        )
    return found


def _is_plain(module: nn.Module | None) -> TypeGuard[nn.Sequential]:
    """Whether ``module`` runs what it holds in order and does no more, as a subclass with a forward of its own may."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _check_hooks(modules: Iterable[tuple[str, nn.Module]]) -> None:
    for name, module in modules:
        if hooks_of(module):
            raise ValueError(
                f"module {name!r} has forward hooks, and what they do is no layer's: remove them with their handles"
            )


def _flat(sequence: nn.Sequential) -> Iterator[nn.Module]:
    for module in sequence:
        if _is_plain(module):
            yield from _flat(module)
        else:
            yield module


def _format(emulation: Emulation, name: str) -> FixedPointFormat:
    format = emulation.activation_format(name)
    if format is None:
        raise ValueError(f"activations gives no format for layer {name!r}: add one for it or for '*'")
    return format


def _parameters(name: str, module: nn.Module, words: Mapping[str, Words]) -> tuple[Words, Words | None]:
    found: list[Words] = []
    for own in ("weight", "bias"):
        if getattr(module, own) is None:
            continue
        each = words.get(f"{name}.{own}")
        if each is None or each.format.dynamic:
            what = "float32" if each is None else f"{each.format}, a radix point per block"
            raise ValueError(
                f"'{name}.{own}' is in {what}, and integer sums need one radix point for the tensor: train with a "
                "fraction_length, or optim.quantize_(module, '<4,12>')"
            )
        found.append(each)
    return found[0], found[1] if len(found) > 1 else None


def _check(name: str, module: nn.Module) -> None:
    """Refuse what is not covered, naming it."""
    refused: dict[str, bool] = {}
    kind = type(module)
    if kind not in (*PRODUCTS, nn.ReLU, nn.MaxPool2d, nn.Flatten, nn.Identity):
        raise ValueError(f"layer {name!r} is {kind.__name__}, and {COVERED} are covered: take it out of the network")
    if isinstance(module, nn.Conv2d):
        refused = {
            f"padding={module.padding!r}": isinstance(module.padding, str),
            f"padding_mode={module.padding_mode!r}": module.padding_mode != "zeros",
        }
    elif isinstance(module, nn.MaxPool2d):
        refused = {
            f"dilation={module.dilation}": module.dilation not in (1, (1, 1)),
            "ceil_mode=True": module.ceil_mode,
            "return_indices=True": module.return_indices,
        }
    elif isinstance(module, nn.Flatten):
        dims = (module.start_dim, module.end_dim)
        refused = {f"start_dim, end_dim = {dims}": dims != (1, -1)}
    for option, used in refused.items():
        if used:
            raise ValueError(f"layer {name!r}, {kind.__name__}, has {option}, which is not covered")


def _shape_after(name: str, module: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    dims = {nn.Linear: 1, nn.Conv2d: 3, nn.MaxPool2d: 3}.get(type(module))
    if dims is not None and len(shape) != dims:
        raise ValueError(
            f"layer {name!r}, {type(module).__name__}, takes {dims} dimensions (without a batch) and is given "
            f"{shape}: check input_shape, or put nn.Flatten before it"
        )
    weight = next(module.parameters(), torch.empty(0))
    try:
        with torch.no_grad():
            return tuple(module(torch.zeros(1, *shape, dtype=weight.dtype, device=weight.device)).shape[1:])
    except RuntimeError as error:
        raise ValueError(f"layer {name!r}, {type(module).__name__}, does not take {shape}: {error}") from error


def _check_bits(layer: Layer) -> None:
    assert layer.weight is not None
    if layer.bias_shift < 0:
        assert layer.bias is not None
        raise ValueError(
            f"layer {layer.name!r}: its bias in {layer.bias.format} has more bits behind the radix point than the "
            f"{layer.sum_fraction} of its products: give it {layer.sum_fraction} or fewer"
        )
    bits = max(layer.sum_bits + max(0, -layer.drop), layer.drop + 2, layer.bias_shift + 2)
    if bits > SUM_BITS:
        raise ValueError(
            f"layer {layer.name!r}: sums of {layer.weight.format} times {layer.input}, put out in {layer.output}, need "
            f"{bits} bits, and {SUM_BITS} are there: choose narrower words, or fraction lengths closer to each other"
        )
