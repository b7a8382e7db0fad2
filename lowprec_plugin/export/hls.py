"""HLS: ``ap_fixed`` types with their modes written out, and integer arrays.

``ap_fixed<W, I, Q, O>`` has ``W`` bits, ``I`` of them before the radix point with the sign counted: ``<IL,FL>`` is
``ap_fixed<IL + FL, IL, AP_RND_CONV, AP_SAT>``. ``AP_RND_CONV`` rounds to the nearest, ties to even, and ``AP_SAT``
saturates at both ends of two's complement: rounding ``"nearest"`` of a static format. Left out, they would be
``AP_TRN`` and ``AP_WRAP``, which truncate and wrap.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import nn

from lowprec_plugin.activations.emulation.settings import Formats
from lowprec_plugin.export.c_arrays import codes, in_comment, shape_text
from lowprec_plugin.export.headers import header_of, write_header
from lowprec_plugin.export.integers import State, Words
from lowprec_plugin.export.network import Layer, layers_if_asked
from lowprec_plugin.formats import FixedPointFormat
from lowprec_plugin.version import __version__


def ap_fixed(format: FixedPointFormat) -> str:
    """The type whose assignment does what rounding to nearest in ``format`` does.

    Raises:
        ValueError: for a dynamic format.
    """
    if format.dynamic:
        raise ValueError(
            f"{format} has a radix point per block, and ap_fixed has one per type: train with a fraction_length, or "
            "export a C header, which holds the exponents"
        )
    return f"ap_fixed<{format.word_length}, {format.integer_length}, AP_RND_CONV, AP_SAT>"


def to_hls(
    module_or_state: nn.Module | State,
    path: str | Path,
    *,
    leave_out: Iterable[str] = (),
    network: str = "",
    input_shape: Sequence[int] | None = None,
    activations: Formats = None,
) -> None:
    """Write a C++ header: per tensor an ``ap_fixed`` type and the array of its codes.

    With ``input_shape`` and ``activations``, also the types of the network's input, of every layer's output, and of an
    accumulator per layer that holds its widest sum, so that the one rounding is the assignment to the output.

    Args: as :func:`lowprec_plugin.export.to_c`.

    Raises:
        ValueError: for what is in float and not left out, for dynamic formats, and as
            :func:`lowprec_plugin.export.network.layers_of`.
    """
    prefix, words, names = header_of(module_or_state, path, leave_out, network, "an HLS header")
    parts = [
        f"// Written by lowprec {__version__}. ap_fixed<W, I, rounding, overflow>: W bits, I of them before the radix\n"
        "// point, the sign included. AP_RND_CONV: to the nearest, ties to even. AP_SAT: saturate.",
        f"#ifndef {prefix.upper()}_H\n#define {prefix.upper()}_H\n\n#include <ap_fixed.h>\n#include <stdint.h>",
        f"// The number that a code stands for.\ntemplate <typename T> T {prefix}_number(int32_t code)\n{{\n"
        "    T number;\n    number.range(T::width - 1, 0) = code;\n    return number;\n}",
        *(_tensor(names[name], each) for name, each in words.items()),
    ]
    layers = layers_if_asked(module_or_state, network, input_shape, activations, "types of layers need")
    if layers is not None:
        parts.append(f"// What goes in.\ntypedef {ap_fixed(layers[0].input)} {prefix}_input_t;")
        parts += _layers(layers, prefix)
    parts.append(f"#endif // {prefix.upper()}_H\n")
    write_header(path, parts)


def _tensor(name: str, words: Words) -> str:
    try:
        type = ap_fixed(words.format)
    except ValueError as error:
        raise ValueError(f"{words.name!r}: {error}") from None
    return (
        f"// {words.name}, {shape_text(words.codes.shape)}: {words.format}\n"
        f"typedef {type} {name}_t;\n{codes(f'{name}_codes', words)}"
    )


def _layers(layers: Iterable[Layer], prefix: str) -> Iterable[str]:
    types: dict[str, str] = {}
    for layer in layers:
        if layer.weight is not None:
            made = _layer(layer, prefix)
            if types.setdefault(layer.name, made) != made:
                raise ValueError(
                    f"layer {layer.name!r} comes twice, and what goes into it has two formats, for which it has one "
                    "accumulator type: give both the same"
                )
    return types.values()


def _layer(layer: Layer, prefix: str) -> str:
    name = f"{prefix}_{re.sub(r'[^A-Za-z0-9]', '_', layer.name)}"
    kind, bits, integer = type(layer.module).__name__, layer.sum_bits, layer.sum_bits - layer.sum_fraction
    return (
        f"// {in_comment(layer.name)}: {kind}. The accumulator holds every sum: it never rounds or wraps.\n"
        f"typedef ap_fixed<{bits}, {integer}, AP_TRN, AP_WRAP> {name}_sum_t;\n"
        f"typedef {ap_fixed(layer.output)} {name}_out_t;"
    )
