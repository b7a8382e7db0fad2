"""C99: a header of integer arrays and formats, and a network's inference in integers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import nn

from lowprec_plugin.activations.emulation.settings import Formats
from lowprec_plugin.export.c_arrays import array, codes, constants, shape_text
from lowprec_plugin.export.c_network import program
from lowprec_plugin.export.headers import header_of, write_header
from lowprec_plugin.export.integers import State, Words
from lowprec_plugin.export.network import layers_if_asked
from lowprec_plugin.version import __version__


def to_c(
    module_or_state: nn.Module | State,
    path: str | Path,
    *,
    leave_out: Iterable[str] = (),
    network: str = "",
    input_shape: Sequence[int] | None = None,
    activations: Formats = None,
) -> None:
    """Write a self-contained C99 header: per tensor its codes, and its ``<IL,FL>`` or its block exponents.

    With ``input_shape`` and ``activations`` it also holds a function that runs the network on codes, integer for
    integer what ``emulate`` gives with ``accumulate="exact"`` and rounding to nearest.

    Args:
        module_or_state: a module, or a state dict if no function is wanted.
        path: of the header. All names in it begin with the file's own name.
        leave_out: names or patterns of what not to write.
        network: the name of the ``nn.Sequential`` in the module; ``""``: the module itself.
        input_shape: of one image, without a batch.
        activations: formats of what layers put out, such as ``"<6,10>"``.

    Raises:
        ValueError: for what is in float and not left out, and for networks that integers cannot run; see
            :func:`lowprec_plugin.export.network.layers_of`.
    """
    prefix, words, names = header_of(module_or_state, path, leave_out, network, "a C header")
    parts = [
        f"/* Written by lowprec {__version__}. A number is code * 2^exponent, its code in two's complement.\n"
        "   <IL,FL>: IL bits before the radix point, the sign included, and FL behind it; the exponent is -FL. */",
        f"#ifndef {prefix.upper()}_H\n#define {prefix.upper()}_H\n\n#include <stdint.h>",
        *(_tensor(names[name], each) for name, each in words.items()),
    ]
    layers = layers_if_asked(
        module_or_state, network, input_shape, activations, "a function that runs the network needs"
    )
    if layers is not None:
        used = {each.name for layer in layers for each in (layer.weight, layer.bias) if each is not None}
        if used - words.keys():
            raise ValueError(f"leave_out names {sorted(used - words.keys())[0]!r}, which the network needs")
        parts += program(layers, prefix, names)
    parts.append(f"#endif /* {prefix.upper()}_H */\n")
    write_header(path, parts)


def _tensor(name: str, words: Words) -> str:
    format, shape = words.format, shape_text(words.codes.shape)
    if words.exponents is None:
        lengths = {"IL": format.word_length + format.static_exponent, "FL": -format.static_exponent}
        return (
            f"/* {words.name}, {shape}: {format}, value = code * 2^{format.static_exponent} */\n"
            f"{constants(name, lengths)}\n{codes(name, words)}"
        )
    rows, blocks = words.exponents.shape
    row = words.codes.numel() // rows
    lengths = {"WL": format.word_length, "ROWS": rows, "ROW": row, "BLOCK": format.block_size, "ROW_BLOCKS": blocks}
    exponents = array(f"{name}_exponents", "int8_t", words.exponents.flatten().tolist(), rows * blocks)
    return (
        f"/* {words.name}, {shape}: {format}, {row} numbers a row, an exponent for each {format.block_size} of them:\n"
        f"   value of number i of row r = code[r * {row} + i] * 2^exponent[r * {blocks} + i / {format.block_size}] */\n"
        f"{constants(name, lengths)}\n{codes(name, words)}\n{exponents}"
    )
