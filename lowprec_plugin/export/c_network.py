"""A network as C99: one function per layer, and one that runs them. Plain loops, to be read and compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import nn

from lowprec_plugin.export.c_arrays import constants, in_comment, shape_text
from lowprec_plugin.export.network import Layer

_ROUND = """\
/* A sum without its lowest bits: to the nearest, ties to even, saturated to the word. */
static int32_t {prefix}_round(int64_t sum, int drop, int word_length)
{{
    const int64_t high = ((int64_t)1 << (word_length - 1)) - 1, low = -high - 1;
    if (drop > 0) {{
        const int64_t one = (int64_t)1 << drop;
        int64_t rest = sum % one;
        sum /= one;
        if (rest < 0) {{
            rest += one;
            sum -= 1;
        }}
        if (rest > one / 2 || (rest == one / 2 && sum % 2 != 0))
            sum += 1;
    }} else {{
        sum *= (int64_t)1 << -drop;
    }}
    return (int32_t)(sum < low ? low : sum > high ? high : sum);
}}"""

_LINEAR = """\
    for (int o = 0; o < {outputs}; ++o) {{
        int64_t sum = {bias};
        for (int i = 0; i < {inputs}; ++i)
            sum += (int64_t){weight}[o * {inputs} + i] * x[i];
        y[o] = {prefix}_round(sum, {drop}, {word_length});
    }}"""

_CONV2D = """\
    for (int o = 0; o < {outputs}; ++o)
        for (int r = 0; r < {rows}; ++r)
            for (int c = 0; c < {columns}; ++c) {{
                int64_t sum = {bias};
                for (int i = 0; i < {inputs}; ++i) /* channels of this output's group */
                    for (int kr = 0; kr < {kernel_rows}; ++kr)
                        for (int kc = 0; kc < {kernel_columns}; ++kc) {{
                            const int row = r * {stride_rows} + kr * {dilation_rows} - {padding_rows};
                            const int column = c * {stride_columns} + kc * {dilation_columns} - {padding_columns};
                            if (row < 0 || row >= {height} || column < 0 || column >= {width})
                                continue;
                            sum += (int64_t){weight}[((o * {inputs} + i) * {kernel_rows} + kr) * {kernel_columns} + kc]
                                * x[((o / {group} * {inputs} + i) * {height} + row) * {width} + column];
                        }}
                y[(o * {rows} + r) * {columns} + c] = {prefix}_round(sum, {drop}, {word_length});
            }}"""

_MAXPOOL2D = """\
    for (int o = 0; o < {outputs}; ++o)
        for (int r = 0; r < {rows}; ++r)
            for (int c = 0; c < {columns}; ++c) {{
                int32_t largest = INT32_MIN;
                for (int kr = 0; kr < {kernel_rows}; ++kr)
                    for (int kc = 0; kc < {kernel_columns}; ++kc) {{
                        const int row = r * {stride_rows} + kr - {padding_rows};
                        const int column = c * {stride_columns} + kc - {padding_columns};
                        if (row < 0 || row >= {height} || column < 0 || column >= {width})
                            continue;
                        if (x[(o * {height} + row) * {width} + column] > largest)
                            largest = x[(o * {height} + row) * {width} + column];
                    }}
                y[(o * {rows} + r) * {columns} + c] = largest;
            }}"""

_RELU = """\
    for (int i = 0; i < {size}; ++i)
        y[i] = x[i] > 0 ? x[i] : 0;"""


def program(layers: Sequence[Layer], prefix: str, names: Mapping[str, str]) -> list[str]:
    """Definitions that run ``layers`` on codes.

    Args:
        names: of the tensors' arrays, by name in the state dict.
    """
    first, last = layers[0], layers[-1]
    size = max(math.prod(layer.output_shape) for layer in layers)
    lengths = {
        "INPUT_SIZE": math.prod(first.input_shape),
        "INPUT_IL": first.input.integer_length,
        "INPUT_FL": first.input.fraction_length,
        "OUTPUT_SIZE": math.prod(last.output_shape),
        "OUTPUT_IL": last.output.integer_length,
        "OUTPUT_FL": last.output.fraction_length,
        "WORK_SIZE": 2 * size,
    }
    defined = constants(prefix, {key: value for key, value in lengths.items() if value is not None})
    return [
        f"/* The network, on one image. Input: codes of {first.input}, {shape_text(first.input_shape)}. Output: codes\n"
        f"   of {last.output}, {shape_text(last.output_shape)}. Sums are exact; each is rounded once. */\n{defined}",
        _ROUND.format(prefix=prefix),
        *(_function(layer, f"{prefix}_layer_{index}", prefix, names) for index, layer in enumerate(layers)),
        _run(layers, prefix, size),
    ]


def _function(layer: Layer, function: str, prefix: str, names: Mapping[str, str]) -> str:
    name, kind = in_comment(layer.name), type(layer.module).__name__
    body = {nn.Linear: _LINEAR, nn.Conv2d: _CONV2D, nn.MaxPool2d: _MAXPOOL2D, nn.ReLU: _RELU}[type(layer.module)]
    values: dict[str, object] = {"prefix": prefix, "size": math.prod(layer.output_shape)}
    formats = f"{layer.input}"
    if layer.weight is not None:
        formats += f" times {layer.weight.format}, sums of at most {layer.sum_bits} bits"
        values |= {"weight": names[layer.weight.name], "drop": layer.drop, "word_length": layer.output.word_length}
        values["outputs"], values["inputs"] = layer.weight.codes.shape[:2]
        values["bias"] = "0"
        if layer.bias is not None:
            values["bias"] = f"(int64_t){names[layer.bias.name]}[o] * INT64_C({1 << layer.bias_shift})"
    if len(layer.output_shape) == 3:
        values["outputs"], values["rows"], values["columns"] = layer.output_shape
        values["height"], values["width"] = layer.input_shape[1:]
    if isinstance(layer.module, nn.Conv2d):
        values["group"] = layer.module.out_channels // layer.module.groups
    if isinstance(layer.module, (nn.Conv2d, nn.MaxPool2d)):
        for own in ("kernel_size", "stride", "padding", "dilation"):
            value = getattr(layer.module, own)
            rows, columns = (value, value) if isinstance(value, int) else value
            key = own.removesuffix("_size")
            values[f"{key}_rows"], values[f"{key}_columns"] = rows, columns
    return (
        f"/* {name}: {kind}, {shape_text(layer.input_shape)} to {shape_text(layer.output_shape)}, {formats} to "
        f"{layer.output} */\nstatic void {function}(const int32_t *x, int32_t *y)\n{{\n{body.format(**values)}\n}}"
    )


def _run(layers: Sequence[Layer], prefix: str, size: int) -> str:
    calls, source = [], "input"
    for index in range(len(layers)):
        target = "output" if index == len(layers) - 1 else "work" if index % 2 == 0 else f"work + {size}"
        calls.append(f"    {prefix}_layer_{index}({source}, {target});")
        source = target
    unused = "    (void)work;\n" if len(layers) == 1 else ""
    return (
        f"/* work: room for {prefix.upper()}_WORK_SIZE numbers, overwritten. */\n"
        f"static void {prefix}_run(const int32_t *input, int32_t *output, int32_t *work)\n{{\n{unused}"
        + "\n".join(calls)
        + "\n}"
    )
