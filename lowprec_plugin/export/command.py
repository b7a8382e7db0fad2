"""``lowprec export`` and ``lowprec cost``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lowprec_plugin.checkpoints.load import described_module, network_with, read_state
from lowprec_plugin.export.c_header import to_c
from lowprec_plugin.export.float_file import to_float
from lowprec_plugin.export.hls import to_hls
from lowprec_plugin.export.onnx_file import to_onnx
from lowprec_plugin.export.safetensors_file import to_safetensors
from lowprec_plugin.export.systolic_array import Estimate, SystolicArray, estimate
from lowprec_plugin.text.option_error import Option, OptionError

Kind = Literal["safetensors", "c", "hls", "onnx", "float"]


def run_export(
    to: Kind,
    checkpoint: str,
    out: str,
    module: str | None = None,
    config: str | None = None,
    network: str = "",
    input_shape: Sequence[int] = (),
    activations: str | dict[str, str] | None = None,
    leave_out: Sequence[str] = (),
) -> None:
    """Write the fixed-point weights of a checkpoint for hardware or another tool.

    Args:
        to: "safetensors", "c", "hls", "onnx", or "float" (a plain state_dict).
        checkpoint: of Lightning, or a state_dict that torch.save wrote.
        out: the file to write, whole or not at all.
        module: package.function or package.Class that makes the network without arguments (onnx; c and hls for more
            than arrays).
        config: instead, a LightningCLI configuration with the network under model.
        network: name of the submodule to export, such as "network".
        input_shape: of one example, without a batch.
        activations: format of layer outputs such as "<6,10>", or formats by patterns of module names.
        leave_out: names or patterns of entries not to write (c, hls).

    Raises:
        ValueError: for an option that this kind of file has no use for, and for what it cannot hold.
    """
    structure = module is not None or config is not None
    given = {
        "module": module, "config": config, "network": network, "input_shape": tuple(input_shape),
        "activations": activations, "leave_out": tuple(leave_out),
    }  # fmt: skip
    uses = {"c": set(given), "hls": set(given), "onnx": set(given) - {"leave_out"}}.get(to, set())
    for option, value in given.items():
        if value and option not in uses:
            raise OptionError(
                Option.given(option, value), " is of no use with ", Option.given("to", to), ": leave it out"
            )
    if (network or input_shape or activations) and not structure:
        raise OptionError(
            Option("network"), ", ", Option("input_shape"), " and ", Option("activations"), " are of a network: give ",
            Option("module"), " or ", Option("config"), " too",
        )  # fmt: skip
    state = read_state(checkpoint)
    if to == "safetensors":
        to_safetensors(state, out)
    elif to == "float":
        to_float(state, out)
    elif to == "onnx":
        if not input_shape:
            raise OptionError(
                Option.given("to", to), " needs input_shape, of one example without a batch, such as [1,28,28]"
            )
        made = network_with(state, module, config)
        to_onnx(made, out, input_shape=input_shape, network=network, activations=activations)
    elif to in ("c", "hls"):
        options: dict[str, Any] = {"leave_out": leave_out, "network": network, "activations": activations}
        made_or_state = network_with(state, module, config) if structure else state
        write = to_c if to == "c" else to_hls
        write(made_or_state, out, input_shape=tuple(input_shape) or None, **options)
    else:
        raise OptionError(Option.given("to", to), " is not one of 'safetensors', 'c', 'hls', 'onnx' and 'float'")
    print(f"wrote {out}, {Path(out).stat().st_size:,} bytes")


def run_cost(
    input_shape: Sequence[int],
    module: str | None = None,
    config: str | None = None,
    batch_size: int = 1,
    word_length: int = 16,
    activation_word_length: int | None = None,
    training: bool = False,
    dsps: int = 840,
    clock_mhz: float = 166.0,
) -> Estimate:
    """Estimate DSPs, cycles and G-ops/s on the systolic array of Gupta et al. 2015.

    Args:
        input_shape: of one example, without a batch.
        module: package.function or package.Class that makes the network without arguments.
        config: instead, a LightningCLI configuration with the network under model.
        batch_size: examples that go through the array together.
        word_length: bits of weights.
        activation_word_length: bits of activations; as the weights if not given.
        training: count the backward pass too.
        dsps: of the chip; the paper's Kintex-7 325T has 840.
        clock_mhz: of the array.

    Raises:
        ValueError: as lowprec_plugin.export.estimate.
    """
    if not clock_mhz > 0:
        raise OptionError(Option.given("clock_mhz", clock_mhz), " must be above 0")
    result = estimate(
        described_module(module, config),
        input_shape,
        batch_size=batch_size,
        word_length=word_length,
        activation_word_length=activation_word_length,
        training=training,
        array=SystolicArray(dsps, 1e6 * clock_mhz),
    )
    print(result)
    return result
