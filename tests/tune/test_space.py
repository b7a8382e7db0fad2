"""What can be chosen, and the options that the plugin gets."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from lowprec_plugin.tune.space import KINDS, make_space, narrower, read_options

NOTHING: dict[str, Any] = dict.fromkeys(KINDS, ())


def space_of(layers: tuple[str, ...] = (), rounding: tuple[str, ...] = ("stochastic",), **ladders: Any) -> Any:
    return make_space({**NOTHING, **ladders}, rounding, layers, {})


def test_ladders_rise_whatever_their_order() -> None:
    space = space_of(weights=(16, "<2,6>", "fixed4"), kept=(None, 8))
    assert space.ladders == {
        "weights": ("fixed4", "<2,6>", "fixed16"), "kept": ("fixed8", "float32"), "rounding": ("stochastic",),
    }  # fmt: skip
    assert space.size == len(list(space.settings())) == 6


def test_options_say_what_the_setting_says() -> None:
    space = space_of(
        ("head", "body.*"), ("nearest",), weights=["<2,10>"], state=[8], activations=[8, 12], errors=[12, None],
        kept=[8], wire=[8],
    )  # fmt: skip
    setting = {
        **space.at(0.0, "nearest"), "weights@head": "float32", "activations@head": "fixed12", "errors@head": "float32",
    }  # fmt: skip
    options = space.options(setting, {"keep_float": "*.bias", "nonfinite": "skip"}, seed=3)
    assert options == {
        "word_length": 12, "fraction_length": 10, "block_size": 256, "state_word_length": 8, "rounding": "nearest",
        "keep_float": ["*.bias", "head.*"], "activation_word_length": 8, "comm_word_length": 8, "nonfinite": "skip",
        "emulation": {
            "activations": {"head": "fixed12", "body.*": "fixed8", "*": "fixed8"},
            "errors": {"head": None, "body.*": "fixed12", "*": "fixed12"},
            "rounding": "nearest",
        },
        "seed": 3,
    }  # fmt: skip
    read = read_options(options)
    assert str(read.format) == "<2,10>"
    assert read.emulation is not None
    assert str(read.emulation.activation_format("head")) == "fixed12"
    assert read.emulation.error_format("head") is None
    assert str(read.emulation.activation_format("body.1")) == "fixed8"


def test_what_is_not_tuned_stays_in_float32() -> None:
    """Errors are not rounded because activations are, as Emulation's default would have it."""
    space = space_of(activations=[8, None])
    assert space.options(space.at(0.0, "stochastic"), {}, 0)["emulation"]["errors"] is None
    assert space.options(space.at(1.0, "stochastic"), {}, 0)["emulation"]["activations"] is None


def test_an_emulation_of_the_configuration_stays_but_for_what_is_tuned() -> None:
    space = space_of(activations=["<4,8>"])
    base = {"emulation": {"activations": "<6,10>", "errors": "<2,14>", "accumulate": "exact"}}
    assert space.options(space.at(0.0, "stochastic"), base, 0)["emulation"] == {
        "activations": "<4,8>", "errors": "<2,14>", "accumulate": "exact", "rounding": "stochastic",
    }  # fmt: skip


def test_narrower_is_a_partial_order() -> None:
    space = space_of(
        ("head",), ("stochastic", "nearest"), weights=["<2,6>", "<4,4>", "<4,12>", 16], errors=["fixed8", "fixed12"],
    )  # fmt: skip
    settings = list(space.settings())
    relation = {
        (a, b) for a, b in itertools.product(range(len(settings)), repeat=2) if narrower(settings[a], settings[b])
    }
    for a in range(len(settings)):
        assert (a, a) in relation
    assert not any((b, a) in relation for a, b in relation if a != b)
    following = {a: {b for c, b in relation if c == a} for a in range(len(settings))}
    assert all(following[b] <= following[a] for a, b in relation)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [("<2,6>", "<4,12>", True), ("<4,4>", "<2,6>", False), ("<2,6>", "<4,4>", False), ("fixed8", "fixed12", True),
     ("<2,6>", "fixed16", True), ("fixed8", "<4,12>", False)],
)  # fmt: skip
def test_a_format_is_narrower_than_one_that_holds_it(one: str, other: str, expected: bool) -> None:
    settings = [{"weights": format, "rounding": "nearest"} for format in (one, other)]
    assert narrower(*settings) is expected
    assert not narrower(settings[0], {**settings[1], "rounding": "stochastic"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "nothing to tune"),
        ({"weights": [32]}, "weights=32: word_length=32"),
        ({"weights": ["fixed8^2"]}, "give a word length"),
        ({"weights": [None]}, "may be left in float32"),
        ({"weights": "fixed8"}, "not a list"),
        ({"state": ["<2,6>"]}, "state='<2,6>': give a word length"),
        ({"wire": [4, 10, 16]}, "wire=10 is not one of"),
        ({"weights": [8], "rounding": ()}, "names no rounding"),
        ({"weights": [8], "rounding": ("up",)}, "rounding='up'"),
        ({"state": [8], "layers": ("head",)}, "nothing of their own"),
    ],
)
def test_bad_ladders(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("^", r"\^")):
        space_of(**arguments)
