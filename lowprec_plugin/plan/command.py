"""``lowprec plan``."""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from torch import nn

from lowprec_plugin.checkpoints.load import described_module
from lowprec_plugin.plan.planning import Plan, plan
from lowprec_plugin.plan.table import as_text
from lowprec_plugin.text.files import whole_text
from lowprec_plugin.text.option_error import Option, OptionError


def run_plan(
    module: str | None = None,
    config: str | None = None,
    parameters: float | None = None,
    activations_gib: float = 0.0,
    allocate: bool = False,
    json_file: str | None = None,
    **options: Any,
) -> Plan:
    """Predict the bytes that each GPU holds and sends, beside float32 and others.

    Args:
        module: package.function or package.Class that makes the network without arguments; made without its weights.
        config: instead, a LightningCLI configuration with the network under model.
        parameters: instead, a number of weights, such as 7e9, taken to be in rows of 256 and equal layers.
        activations_gib: what a run has been measured to hold for the backward pass; it is not predicted.
        allocate: make the network with its weights in this machine's memory, if it cannot be made without.
        json_file: also write the figures, in bytes, to this file.
        options: see :func:`lowprec_plugin.plan.plan`.

    Raises:
        ValueError: for a value outside its limits, or options that do not go together.
    """
    if not 0 <= activations_gib < math.inf:
        raise OptionError(
            Option.given("activations_gib", activations_gib),
            " is negative or not finite: give what a run has been measured to hold",
        )
    model: nn.Module | int
    if module is None and config is None and parameters is None:
        raise OptionError(
            "nothing is given to plan: give ", Option("module"), ", ", Option("config"), " or ", Option("parameters")
        )
    if parameters is None:
        model = _made(module, config, allocate)
    elif module is not None or config is not None:
        raise OptionError(
            Option("parameters", f"{parameters:g}"), " beside ", Option("module"), " or ", Option("config"),
            ": give one of the three",
        )  # fmt: skip
    elif not (math.isfinite(parameters) and parameters == int(parameters)):
        raise OptionError(Option.given("parameters", parameters), " is not a whole number")
    else:
        model = int(parameters)
    planned = plan(model, activations=round(activations_gib * 2**30), batch=None, **options)
    print(as_text(planned))
    if json_file is not None:
        whole_text(json_file, json.dumps(planned.as_dict(), indent=1) + "\n")
    return planned


def _made(module: str | None, config: str | None, allocate: bool) -> nn.Module:
    if allocate:
        return described_module(module, config)
    try:
        with torch.device("meta"):
            return described_module(module, config)
    except (RuntimeError, ValueError) as error:
        cause = error.__cause__ if isinstance(error, ValueError) else error
        if not isinstance(cause, RuntimeError):
            raise
        raise OptionError(
            f"{module or config} cannot be made without memory for its weights ({str(cause).splitlines()[0]}): ",
            Option("allocate", "true"), " makes it with them, in this machine's memory",
        ) from cause  # fmt: skip
