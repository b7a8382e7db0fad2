"""The options of the plugin: one record, which everything that takes some of them takes up."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest
import torch

from lowprec_plugin import Emulation, FixedPointPrecision, WordLengthRamp, optim
from lowprec_plugin.deepspeed import FixedPointDeepSpeedPrecision, adopt_engine
from lowprec_plugin.optim.options import RESUMED, VARIED, PluginOptions, StepOptions, names
from lowprec_plugin.plan import plan
from lowprec_plugin.text.option_error import OptionError

#: What takes options, and where its default is another, with the reason.
TAKERS: dict[Callable[..., Any], dict[str, Any]] = {
    FixedPointPrecision: {},
    FixedPointDeepSpeedPrecision: {"compute_dtype": torch.bfloat16},  # DeepSpeed's usual one
    adopt_engine: {},
    plan: {"compute_dtype": None},  # that of the plugin that is planned for
    optim.SGD: {}, optim.Adam: {}, optim.AdamW: {}, optim.Lion: {}, optim.StepSettings: {},
}  # fmt: skip
#: Something else than the default, of each.
OTHERS: dict[str, Any] = {
    "word_length": 12, "fraction_length": 10, "state_word_length": 8, "state_fraction_length": 6, "comm_word_length": 8,
    "comm_error_feedback": True, "rounding": "nearest", "block_size": 64, "compute_dtype": torch.bfloat16,
    "keep_float": ("head.*",), "ramp": WordLengthRamp((16, 20)), "emulation": Emulation("<4,12>"),
    "activation_word_length": 8, "gradient_word_length": 8, "gradient_dtype": torch.bfloat16,
    "nonfinite": "skip", "leave_float": True, "seed": 3,
}  # fmt: skip
#: What it needs beside it.
BESIDE: dict[str, dict[str, Any]] = {
    "state_fraction_length": {"state_word_length": 8}, "comm_error_feedback": {"comm_word_length": 8},
}  # fmt: skip


def by_name(options: type[StepOptions]) -> dict[str, Any]:
    return {each.name: each.default for each in fields(options)}


@pytest.mark.parametrize("taker", TAKERS, ids=lambda taker: taker.__name__)
def test_defaults_are_the_records(taker: Callable[..., Any]) -> None:
    taken = {name: each.default for name, each in inspect.signature(taker).parameters.items()}
    shared = taken.keys() & by_name(PluginOptions).keys()
    assert shared
    assert {name: taken[name] for name in shared} == {
        name: value for name, value in (by_name(PluginOptions) | TAKERS[taker]).items() if name in shared
    }


def test_the_plugin_takes_all_by_name_and_documents_each() -> None:
    parameters = inspect.signature(FixedPointPrecision).parameters
    assert parameters.keys() == by_name(PluginOptions).keys()
    assert list(parameters)[:2] == ["word_length", "fraction_length"]
    assert [each.kind.name for each in parameters.values()] == ["POSITIONAL_OR_KEYWORD"] * 2 + ["KEYWORD_ONLY"] * 16
    arguments = (inspect.getdoc(FixedPointPrecision) or "").partition("Args:")[2].partition("Raises:")[0]
    documented = re.findall(r"^    (\w+): ", arguments, re.M)
    assert documented == list(parameters)


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, optim.AdamW, optim.Lion, optim.StepSettings])
def test_optimizers_take_those_of_the_step(kind: Any) -> None:
    assert by_name(StepOptions).keys() <= inspect.signature(kind).parameters.keys()
    if kind is not optim.StepSettings:
        weight = torch.nn.Parameter(torch.ones(3))
        made = kind([weight], lr=0.5, **{name: OTHERS[name] for name in by_name(StepOptions)})
        assert made.fixed_point.given() == {name: OTHERS[name] for name in by_name(StepOptions)}
        assert made.defaults["lr"] == 0.5
        assert not made.defaults.keys() & by_name(StepOptions).keys()


@pytest.mark.parametrize("name", by_name(PluginOptions))
def test_the_plugin_has_what_it_was_given(name: str) -> None:
    asked = {name: OTHERS[name], **BESIDE.get(name, {})}
    options = FixedPointPrecision(**asked).options
    assert options == replace(PluginOptions(), **asked)
    assert getattr(options, name) == OTHERS[name] != getattr(PluginOptions(), name)
    assert options.terms()[name] != PluginOptions().terms()[name]


def test_the_record_is_frozen_and_the_settings_of_a_step_are_not() -> None:
    with pytest.raises(FrozenInstanceError):
        PluginOptions().seed = 3  # type: ignore[misc]
    settings = optim.StepSettings.of(PluginOptions(nonfinite="skip", state_word_length=8))
    assert settings.given() == {
        "state_word_length": 8, "rounding": "stochastic", "nonfinite": "skip", "state_fraction_length": None
    }  # fmt: skip
    settings.nonfinite = "raise"  # type: ignore[misc]
    assert settings.given()["nonfinite"] == "raise"
    settings.skipped_steps = 3
    assert replace(settings).skipped_steps == 0


def test_what_makes_a_variant_and_what_a_resumed_run_says() -> None:
    assert set(names(PluginOptions, VARIED)) == {
        "word_length", "fraction_length", "state_word_length", "state_fraction_length", "comm_word_length",
        "comm_error_feedback", "rounding", "ramp", "gradient_word_length", "gradient_dtype", "seed",
    }  # fmt: skip
    assert set(names(PluginOptions, RESUMED)) == {
        "seed", "rounding", "compute_dtype", "keep_float", "comm_word_length", "comm_error_feedback", "emulation",
        "activation_word_length", "gradient_word_length", "gradient_dtype",
    }  # fmt: skip


BAD = [
    ({"word_length": 25}, "word_length=25 is not supported: choose 2 to 24 bits"),
    ({"fraction_length": 300}, "fraction_length=300 puts the radix point out of float32's reach"),
    ({"state_word_length": 1}, "state_word_length=1 is not supported"),
    ({"state_fraction_length": 3}, "state_fraction_length=3 needs state_word_length"),
    ({"comm_word_length": 5}, "comm_word_length=5 is not one of"),
    ({"comm_error_feedback": True}, "comm_error_feedback=True costs a byte per parameter, and at 16 bits mends "
     "nothing: use comm_word_length=8 or 4, or leave it out"),
    ({"comm_error_feedback": True, "comm_word_length": None}, "comm_error_feedback=True needs gradients in "
     "fixed-point: use comm_word_length=8 or 4"),
    ({"rounding": "up"}, "rounding='up' is not one of"),
    ({"block_size": 3}, "block_size=3 is not one of"),
    ({"compute_dtype": "float16"}, "compute_dtype='float16' is not one of"),
    ({"keep_float": 3}, "keep_float=3 is not a name or several"),
    ({"ramp": [12, 16]}, r"ramp=[12, 16] is not a WordLengthRamp: write WordLengthRamp(ladder=[12, 16])"),
    ({"ramp": WordLengthRamp((12, 20))}, "word_length=16 is not a rung of the ramp's ladder, (12, 20)"),
    ({"emulation": "<4,12>"}, "emulation='<4,12>' is not an Emulation: write Emulation('<4,12>')"),
    ({"emulation": Emulation(), "compute_dtype": "bfloat16"}, "compute_dtype='bfloat16' is other arithmetic"),
    ({"activation_word_length": 40}, "activation_word_length=40 is not supported"),
    ({"gradient_word_length": "none"}, "gradient_word_length='none' is neither a number of bits nor \"release\""),
    ({"gradient_dtype": torch.float32}, "gradient_dtype=torch.float32 is not one of bfloat16, float16"),
    ({"gradient_dtype": "float16", "gradient_word_length": 8}, "gradient_dtype='float16' beside "
     "gradient_word_length=8: a gradient is kept in one way; leave one out"),
    ({"gradient_word_length": "release", "nonfinite": "skip"}, "nonfinite='skip' beside "
     "gradient_word_length='release': a step cannot be skipped once a part of it is made"),
    ({"nonfinite": "go"}, "nonfinite='go' is not one of"),
    ({"leave_float": 1}, "leave_float=1 is of type int, not bool"),
    ({"seed": 1.5}, "seed=1.5 is not an integer"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), BAD, ids=str)
@pytest.mark.parametrize("kind", [PluginOptions, FixedPointPrecision])
def test_bad_options_are_named_as_data(kind: Callable[..., Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=f"^{re.escape(message)}") as error:
        kind(**options)
    assert {each.name for each in error.value.options} & {*options, "word_length"}
