"""ONNX, opset 21: weights as integers behind DequantizeLinear, activations through QuantizeLinear.

DequantizeLinear is ``(code - 0) * scale`` in float32. A scale is a power of two and a code has at most 16 bits, so the
product is exact: the weights that a runtime computes with are the stored ones, bit for bit. A static format has one
scale; a dynamic one has a scale per block, along the elements of each row (axis 1 of the flattened tensor).
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Container, Sequence
from keyword import iskeyword
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowprec_plugin.activations.emulation.settings import Formats
from lowprec_plugin.export.integers import Words, split
from lowprec_plugin.export.network import Layer, layers_of, part_of
from lowprec_plugin.formats import FixedPointFormat
from lowprec_plugin.optim import float_state_dict
from lowprec_plugin.text.files import whole_file

OPSET = 21
#: protobuf's own limit.
_MOST_BYTES = 2**31 - 1


def _onnx() -> Any:
    try:
        import onnx
        import onnxscript  # noqa: F401  torch.onnx needs it
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'ONNX needs {error.name}: pip install "lowprec-plugin[export]"') from error
    return onnx


def to_onnx(
    module: nn.Module,
    path: str | Path,
    *,
    input_shape: Sequence[int],
    network: str = "",
    activations: Formats = None,
) -> None:
    """Write a module that ``torch.onnx`` can export, its fixed-point weights as codes and scales.

    The graph has one input, ``"input"``, of shape ``(batch, *input_shape)`` in float32, and one output, ``"output"``.

    Args:
        module: not changed. Exported as in evaluation.
        input_shape: of one example, without a batch.
        network: the name of the submodule to export; ``""``: the module itself.
        activations: formats of what layers put out, for networks that
            :func:`lowprec_plugin.export.network.layers_of` covers: up to QuantizeLinear's 16 bits. ``None``:
            float32, as without emulation.

    Raises:
        ValueError: if nothing is in fixed-point, for weights of more than 16 bits, if ``torch.onnx`` cannot export the
            module or loses one of the weights, and for activations that QuantizeLinear cannot round.
    """
    onnx = _onnx()
    layers = [] if activations is None else layers_of(module, network, input_shape, activations)
    for layer in layers:
        for format in (layer.input, layer.output):
            if format.word_length > 16:
                raise ValueError(
                    f"layer {layer.name!r}: QuantizeLinear rounds to 16 bits at most, and {format} has "
                    f"{format.word_length}: choose narrower words, or export a C header"
                )
    cut = len(network) + 1 if network else 0
    words = {name[cut:]: each for name, each in split(part_of(module, network))[0].items()}
    for each in words.values():
        if each.format.word_length > 16:
            raise ValueError(
                f"{each.name!r} is in {each.format}, and ONNX quantises to 16 bits at most: use narrower words, "
                "or export safetensors or a plain float state dict"
            )
    exported = module.get_submodule(network)
    for name in ("input", "output"):
        if name in exported.state_dict():
            raise ValueError(f"{name!r} is what the graph's own {name} is called: rename the parameter or buffer")
    model = _exported(exported, input_shape)
    there = {each.name for each in model.graph.initializer}
    called = _called(exported, there)
    _store_codes(onnx, model.graph, {called.get(name, name): each for name, each in words.items()})
    weights = {layer.weight.name[cut:]: layer for layer in layers if layer.weight is not None}
    for name, layer in weights.items():
        _round_output(onnx, model.graph, called.get(name, name), layer)
    if layers:
        _round_input(onnx, model.graph, layers[0].input)
    if sum(len(each.raw_data) for each in model.graph.initializer) > _MOST_BYTES:
        raise ValueError(f"the model is larger than protobuf's {_MOST_BYTES:,} bytes: export safetensors")
    onnx.checker.check_model(model, full_check=True)
    with whole_file(path) as partial:
        partial.write_bytes(model.SerializeToString())


def _called(module: nn.Module, there: Container[str]) -> dict[str, str]:
    """What the graph, with the names ``there``, calls parameters of modules that it knows by another of their names."""
    params = dict(module.named_parameters(remove_duplicate=False))
    found = {id(param): name for name, param in params.items() if name in there}
    return {name: found[id(param)] for name, param in params.items() if name not in there and id(param) in found}


def _exported(module: nn.Module, input_shape: Sequence[int]) -> Any:
    """torch.onnx's model of the module with its weights in float32, under their own names."""
    floats = copy.deepcopy(module).cpu()
    floats.load_state_dict(float_state_dict(floats), assign=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own dependencies; what it cannot do raises
        try:
            program = torch.onnx.export(
                floats.eval(),
                (torch.zeros(2, *input_shape),),
                dynamo=True,
                opset_version=OPSET,
                optimize=False,  # which would fold weights into constants of its own
                verbose=False,
                input_names=["input"],
                output_names=["output"],
                dynamic_shapes=({0: torch.export.Dim.AUTO},),
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            named = [name for name, _ in module.named_modules() if any(map(iskeyword, name.split(".")))]
            remedy = f"rename module {named[0]!r}, for Python's keywords are no names to it" if named else error
            raise ValueError(
                f"torch.onnx cannot export {type(module).__name__} for an input of {tuple(input_shape)}: {remedy}"
            ) from error
    assert program is not None
    return program.model_proto


def _store_codes(onnx: Any, graph: Any, words: dict[str, Words]) -> None:
    """Replace initializers in float by codes, scales and a DequantizeLinear that puts out the same name."""
    there = {each.name: each for each in graph.initializer}
    decoders = []
    for name, each in words.items():
        if name not in there:
            raise ValueError(
                f"{each.name!r} is not in torch.onnx's graph under its name, so that its codes cannot be: the forward "
                "does not use it, or it is another parameter's twin; take it out of the module"
            )
        graph.initializer.remove(there[name])
        decoders += _decoder(onnx, graph, name, each)
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend(decoders + nodes)


def _decoder(onnx: Any, graph: Any, name: str, words: Words) -> list[Any]:
    code = words.codes.to((torch.int8, torch.int16)[words.format.container_bytes - 1])
    shape, attributes, reshape = tuple(code.shape), {}, False
    if words.exponents is None:
        scale = torch.tensor(2.0**words.format.static_exponent)
    else:
        rows, blocks = words.exponents.shape
        scale = torch.tensor([math.ldexp(1.0, e) for e in words.exponents.flatten().tolist()])
        if not shape:
            scale = scale.reshape(())
        elif blocks == 1:
            attributes = {"axis": 0}
        else:
            attributes = {"axis": 1, "block_size": words.format.block_size}
            scale, reshape = scale.reshape(rows, blocks), len(shape) > 2
            code = code.reshape(rows, -1)
    _add(onnx, graph, f"{name}.codes", code)
    _add(onnx, graph, f"{name}.scale", scale)
    # The default, but onnxruntime 1.23 takes codes without it for unsigned ones as it moves nodes about.
    _add(onnx, graph, f"{name}.zero", torch.zeros(scale.shape, dtype=code.dtype))
    decoded = f"{name}.rows" if reshape else name
    inputs = [f"{name}.{part}" for part in ("codes", "scale", "zero")]
    nodes = [onnx.helper.make_node("DequantizeLinear", inputs, [decoded], name, **attributes)]
    if reshape:
        _add(onnx, graph, f"{name}.shape", torch.tensor(shape))
        nodes.append(onnx.helper.make_node("Reshape", [decoded, f"{name}.shape"], [name]))
    return nodes


def _round_output(onnx: Any, graph: Any, weight: str, layer: Layer) -> None:
    """Round what the layer with this weight puts out, wherever it is called."""
    seen = [weight]
    nodes = list(graph.node)
    for index, node in enumerate(nodes):
        if node.op_type == "Transpose" and node.input[0] in seen:
            seen.append(node.output[0])
        elif node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in seen:
            exact = f"{node.output[0]}.exact"
            rounding = _rounding(onnx, graph, exact, node.output[0], layer.output)
            node.output[0] = exact
            nodes[index : index + 1] = [node, *rounding]
    del graph.node[:]
    graph.node.extend(nodes)


def _round_input(onnx: Any, graph: Any, format: FixedPointFormat) -> None:
    for node in graph.node:
        node.input[:] = ["input.rounded" if name == "input" else name for name in node.input]
    nodes = [*_rounding(onnx, graph, "input", "input.rounded", format), *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _rounding(onnx: Any, graph: Any, source: str, target: str, format: FixedPointFormat) -> list[Any]:
    """Nodes that round ``source`` to the nearest number of ``format``, ties to even, saturating, as ``target``."""
    clipped, codes, scale, zero = (f"{target}.{name}" for name in ("clipped", "codes", "scale", "zero"))
    step = 2.0**format.static_exponent
    _add(onnx, graph, scale, torch.tensor(step))
    _add(onnx, graph, zero, torch.tensor(0, dtype=torch.int16))
    nodes = [
        onnx.helper.make_node("QuantizeLinear", [source, scale, zero], [codes]),
        onnx.helper.make_node("DequantizeLinear", [codes, scale, zero], [target]),
    ]
    if format.word_length < 16:  # QuantizeLinear itself saturates to all of int16
        _add(onnx, graph, f"{target}.low", torch.tensor(format.min_code * step))
        _add(onnx, graph, f"{target}.high", torch.tensor(format.max_code * step))
        nodes[0].input[0] = clipped
        nodes.insert(0, onnx.helper.make_node("Clip", [source, f"{target}.low", f"{target}.high"], [clipped]))
    return nodes


def _add(onnx: Any, graph: Any, name: str, value: Tensor) -> None:
    graph.initializer.append(onnx.numpy_helper.from_array(value.numpy(), name))
