"""What a network would cost on the systolic array of Gupta et al. 2015, section 5: an estimate, nothing is simulated.

The array is ``n`` x ``n`` multiply-accumulate units, and ``n`` units that round the sums which leave its columns. With
the paper's 18-bit DSPs it is the largest that fits the Kintex-7 325T's 840: 28 x 28 + 28 = 812, and at 166 MHz, two
operations per unit and cycle, 2 * 28 * 28 * 166e6 = 260 G-ops/s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowprec_plugin.formats import check_integer, check_kind, check_word_length
from lowprec_plugin.tensor import FixedPointTensor
from lowprec_plugin.text.option_error import Option, OptionError


@dataclass(frozen=True)
class SystolicArray:
    """The hardware; by default the paper's.

    Args:
        dsps: on the chip.
        clock_hz: of the array.
        multiplier: bits of a DSP's two factors, signs included (the paper counts on 18 x 18).
        accumulator: bits of a DSP's sum.
    """

    dsps: int = 840
    clock_hz: float = 166e6
    multiplier: tuple[int, int] = (18, 18)
    accumulator: int = 48

    def __post_init__(self) -> None:
        if not self.clock_hz > 0:
            raise OptionError(Option("clock_hz", f"{self.clock_hz:g}"), " must be above 0")

    def multipliers(self, weights: int, activations: int) -> int:
        """DSPs that multiply two words.

        A word wider than its port is cut into pieces: the upper one has the sign and fills the port, those below have
        no sign and one bit less. Every piece of one word is multiplied with every piece of the other.
        """
        first, second = self.multiplier
        return min(
            _pieces(weights, first) * _pieces(activations, second),
            _pieces(weights, second) * _pieces(activations, first),
        )

    def adders(self, weights: int, activations: int, terms: int) -> int:
        """DSPs in a row that hold a sum of ``terms`` products: more than one where it is wider than an accumulator."""
        return math.ceil((weights + activations - 1 + math.ceil(math.log2(terms))) / self.accumulator)

    def side(self, per_unit: int, per_column: int) -> int:
        """The largest ``n`` with ``n * n * per_unit + n * per_column`` DSPs on the chip.

        Raises:
            ValueError: if not even one unit fits.
        """
        side = int((math.sqrt(per_column**2 + 4 * per_unit * max(self.dsps, 0)) - per_column) / (2 * per_unit))
        if side < 1:
            raise OptionError(
                Option.given("dsps", self.dsps),
                f" is less than the {per_unit + per_column} of one unit and its rounding: choose a larger chip or "
                "narrower words",
            )
        return side


@dataclass(frozen=True)
class Product:
    """One matrix product of a network, ``count`` times: ``(rows x inner) @ (inner x columns)``.

    Attributes:
        layer: the module's name.
        kind: ``"forward"``, ``"error"`` (of the layer's input) or ``"gradient"`` (of its weights).
    """

    layer: str
    kind: str
    rows: int
    inner: int
    columns: int
    count: int = 1

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * self.count * self.rows * self.inner * self.columns

    def cycles(self, side: int) -> int:
        """On an array of ``side``: tiles of ``side`` x ``side`` sums, one after the other.

        A tile takes a cycle per term of its sums, but at least the ``side`` cycles in which a column's sums leave
        through its one rounding unit. The first tile takes ``2 (side - 1)`` cycles to reach the far corner, and the
        last ``side`` to leave. Rows and columns that do not fill the last tiles are computed for nothing.
        """
        tiles = math.ceil(self.rows / side) * math.ceil(self.columns / side)
        return self.count * (tiles * max(self.inner, side) + 3 * side - 2)


@dataclass(frozen=True)
class Estimate:
    """What :func:`estimate` answers. ``str()`` of it is a table.

    Attributes:
        side: the array is ``side`` x ``side`` units.
        per_unit, per_column: DSPs of a unit, and of the rounding at the end of a column.
        products: of all layers.
        uncounted: modules whose weights take part in no product that was counted.
    """

    array: SystolicArray
    word_length: int
    activation_word_length: int
    side: int
    per_unit: int
    per_column: int
    products: tuple[Product, ...]
    uncounted: tuple[str, ...]

    @property
    def dsps(self) -> int:
        """In use."""
        return self.side * (self.side * self.per_unit + self.per_column)

    @property
    def peak(self) -> float:
        """Operations a second with every unit at work."""
        return 2 * self.side**2 * self.array.clock_hz

    @property
    def cycles(self) -> int:
        """Of the whole pass."""
        return sum(product.cycles(self.side) for product in self.products)

    @property
    def operations(self) -> int:
        """Of the whole pass."""
        return sum(product.operations for product in self.products)

    @property
    def seconds(self) -> float:
        """Of the whole pass."""
        return self.cycles / self.array.clock_hz

    @property
    def rate(self) -> float:
        """Operations a second, on average over the pass."""
        return self.operations / self.seconds

    @property
    def efficiency(self) -> float:
        """The share of the peak that is reached."""
        return self.rate / self.peak

    def __str__(self) -> str:
        units, rounding = self.side**2 * self.per_unit, self.side * self.per_column
        lines = [
            f"ESTIMATE for a systolic array as in Gupta et al. 2015, {self.word_length}-bit weights, "
            f"{self.activation_word_length}-bit activations",
            f"array      {self.side} x {self.side} units of {self.per_unit} DSP, {units} + {rounding} for rounding = "
            f"{self.dsps} of {self.array.dsps} DSPs",
            f"peak       {self.peak / 1e9:.1f} G-ops/s at {self.array.clock_hz / 1e6:g} MHz",
            f"{'layer':<20} {'product':<9} {'rows x inner x columns':<26} {'M-ops':>10} {'cycles':>12} {'ms':>9} "
            f"{'G-ops/s':>8} {'of peak':>8}",
        ]
        for product in self.products:
            size = f"{product.rows} x {product.inner} x {product.columns}"
            size += f", {product.count} times" if product.count > 1 else ""
            lines.append(self._row(product.layer, product.kind, size, product.operations, product.cycles(self.side)))
        lines.append(self._row("total", "", "", self.operations, self.cycles))
        if self.uncounted:
            lines.append(f"not counted: {', '.join(name or 'parameters of no layer' for name in self.uncounted)}")
        return "\n".join(lines)

    def _row(self, layer: str, kind: str, size: str, operations: int, cycles: int) -> str:
        seconds = cycles / self.array.clock_hz
        rate = operations / seconds
        return (
            f"{layer:<20} {kind:<9} {size:<26} {operations / 1e6:>10.3f} {cycles:>12,} {1e3 * seconds:>9.4f} "
            f"{rate / 1e9:>8.1f} {rate / self.peak:>8.1%}"
        )


def estimate(
    module: nn.Module,
    input_shape: Sequence[int],
    *,
    batch_size: int = 1,
    word_length: int | None = None,
    activation_word_length: int | None = None,
    training: bool = False,
    array: SystolicArray | None = None,
) -> Estimate:
    """DSPs, cycles and operations a second of one batch: an estimate.

    Linear layers and convolutions are matrix products (of patches, a product per group); memory, and everything that is
    no such product, is taken to cost nothing.

    Args:
        module: run once on zeros.
        input_shape: of one example, without a batch.
        batch_size: examples that go through the array together.
        word_length: of weights; ``None``: the widest that the module stores.
        activation_word_length: ``None``: as the weights.
        training: count the products of the backward pass too; the first layer's input needs no error.
        array: the hardware; ``None``: the paper's.

    Raises:
        ValueError: for a word length outside 2 to 24, if there is none, for a size below 1, if the module does not run
            on such an input, or has no linear layer or convolution.
    """
    check_kind(module, nn.Module, "module")
    check_kind(training, bool, "training")
    if array is not None:
        check_kind(array, SystolicArray, "array")
    if not isinstance(input_shape, Sequence) or isinstance(input_shape, str | bytes):
        raise OptionError(Option.given("input_shape", input_shape), " is not a sequence of sizes, such as (3, 32, 32)")
    for size in input_shape:
        check_integer(size, "input_shape: a size")
    if min(input_shape, default=1) < 1:
        raise OptionError(Option.given("input_shape", tuple(input_shape)), " of one example has a size below 1")
    check_integer(batch_size, "batch_size", 1)
    array = array or SystolicArray()
    stored = [param.format.word_length for param in module.parameters() if isinstance(param, FixedPointTensor)]
    if word_length is None and not stored:
        raise OptionError("the module is in float, and has no word length of its own: give ", Option("word_length"))
    word_length = max(stored) if word_length is None else word_length
    activation_word_length = word_length if activation_word_length is None else activation_word_length
    check_word_length(word_length)
    check_word_length(activation_word_length, "activation_word_length")
    forwards, uncounted = _forwards(module, (batch_size, *input_shape))
    products = [each for number, layer in enumerate(forwards) for each in _passes(layer, training, first=number == 0)]
    terms = max(product.inner for product in products)
    adders = array.adders(word_length, activation_word_length, terms)
    per_unit = array.multipliers(word_length, activation_word_length) + adders - 1
    side = array.side(per_unit, adders)
    return Estimate(
        array, word_length, activation_word_length, side, per_unit, adders, tuple(products), tuple(uncounted)
    )


def _pieces(word_length: int, port: int) -> int:
    return 1 + max(0, math.ceil((word_length - port) / (port - 1)))


def _passes(layer: Product, training: bool, first: bool) -> list[Product]:
    rows, inner, columns, count = layer.rows, layer.inner, layer.columns, layer.count
    passes = [layer]
    if training:
        passes += [] if first else [Product(layer.layer, "error", rows, columns, inner, count)]
        passes.append(Product(layer.layer, "gradient", inner, rows, columns, count))
    return passes


@torch.no_grad()
def _forwards(module: nn.Module, shape: tuple[int, ...]) -> tuple[list[Product], list[str]]:
    names = {each: name for name, each in module.named_modules()}
    products: list[Product] = []

    def seen(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        weight: Tensor = layer.weight  # type: ignore[assignment]
        groups = int(getattr(layer, "groups", 1))
        rows = output.numel() // weight.shape[0]
        inner = math.prod(weight.shape[1:])
        products.append(Product(names[layer], "forward", rows, inner, weight.shape[0] // groups, groups))

    def counted(layer: nn.Module) -> bool:
        return isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))

    hooks = [layer.register_forward_hook(seen) for layer in names if counted(layer)]
    were_training = {each: each.training for each in names}  # a frozen norm may not be as the rest
    weight = next(module.parameters(), torch.empty(0))
    try:
        module.eval()(torch.zeros(shape, dtype=weight.dtype, device=weight.device))
    except Exception as error:  # of whatever kind the network's own code raises
        raise ValueError(f"the network does not take a batch of shape {shape}: {error}") from error
    finally:
        for each, training in were_training.items():
            each.training = training
        for hook in hooks:
            hook.remove()
    if not products:
        raise ValueError(f"{type(module).__name__} ran no Linear and no convolution: there is nothing to estimate")
    ran = {product.layer for product in products}
    holding = [name for layer, name in names.items() if any(p.dim() > 1 for p in layer.parameters(recurse=False))]
    return products, [name for name in holding if name not in ran]
