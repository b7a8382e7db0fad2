"""An algorithm is one record, and whatever knows it by name or number has the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from lowprec_plugin import FixedPointFormat
from lowprec_plugin.arithmetic import ops
from lowprec_plugin.arithmetic.formulas import ADAM, ALGORITHMS, SGD, Algorithm
from lowprec_plugin.arithmetic.native import library as native
from lowprec_plugin.arithmetic.updates import Update


def half(p: Tensor, g: Tensor, *, lr: float) -> tuple[Tensor, ...]:
    return (p - g * lr / 2,)


def with_three_states(p: Tensor, g: Tensor, a: Tensor, b: Tensor, c: Tensor, *, lr: float) -> tuple[Tensor, ...]:
    return p - g * lr, a, b, c


#: No kernel has it.
UNKNOWN = Algorithm(77, half)


def test_numbers_and_names_are_its_own() -> None:
    assert [each.number for each in ALGORITHMS] == list(range(len(ALGORITHMS)))
    assert len({each.name for each in ALGORITHMS}) == len(ALGORITHMS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"law": half, "states": ("sum",)}, r"half takes \(p, g\), and its states are \('sum',\)"),
        ({"law": half, "squared": ("sum",)}, r"of squares \('sum',\): declare one state for each argument"),
        ({"law": with_three_states, "states": ("a", "b", "c")}, "3 states and 1 hyperparameters: .* room for 2 and 10"),
    ],
)
def test_a_record_that_does_not_fit_its_law_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Algorithm(9, **given)


@pytest.mark.parametrize("given", [{"sign": 1.0, "l2": 0.0}, {"sign": 1.0, "l2": 0.0, "lr": 0.1, "rate": 0.1}])
def test_hyperparameters_go_by_their_names(given: dict[str, float]) -> None:
    assert SGD.hyper(lr=0.1, l2=0.0, sign=1.0) == (1.0, 0.0, 0.1)
    with pytest.raises(ValueError, match=r"sgd takes the hyperparameters sign, l2, lr, not sign, l2"):
        SGD.hyper(**given)


def test_an_algorithm_that_no_kernel_has_is_refused() -> None:
    format = FixedPointFormat(16)
    blocks, _ = ops.quantize(torch.ones(3, 40), format)
    before = [plane.clone() for plane in blocks.planes]
    with pytest.raises(ValueError, match="is not one that kernels know: they have sgd, momentum, adam"):
        ops.update_(UNKNOWN, [torch.ones(3, 40)], [[ops.Stored(blocks, format)]], [(0.1,)])
    if native.available()[0]:
        with pytest.raises(ValueError, match=r"the native kernels have no formula 77 \(half\)"):
            native.update(Update(UNKNOWN, [torch.ones(3, 40)], [[ops.Stored(blocks, format)]], [0], [(0.1,)], [0]))
    assert all(torch.equal(a, b) for a, b in zip(blocks.planes, before, strict=True))


@pytest.fixture
def anew() -> Iterator[None]:
    """The native library is looked at again, by the test and after it."""
    native._load.cache_clear()
    yield
    native._load.cache_clear()


@pytest.mark.usefixtures("anew")
@pytest.mark.skipif(not native.available()[0], reason=native.available()[1])
def test_a_library_of_other_formulas_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "ALGORITHMS", (SGD, UNKNOWN))
    able, reason = native.available()
    assert not able
    assert "formula 77 of the native kernels is none, not half/0(lr): they are of another version" in reason
    assert "reinstall" in reason
    native._load.cache_clear()
    monkeypatch.setattr(native, "ALGORITHMS", (Algorithm(ADAM.number, half),))
    assert "formula 2 of the native kernels is adam/2(sign, l2, step_size" in native.available()[1]


def test_triton_has_every_formula() -> None:
    pytest.importorskip("triton")
    from lowprec_plugin.arithmetic.triton.step import law_of

    for algorithm in ALGORITHMS:
        assert law_of(algorithm).__name__ == algorithm.name
    with pytest.raises(ValueError, match=r"half needs a Triton formula of that name, .* there is none"):
        law_of(UNKNOWN)

    def sgd(p: Tensor, g: Tensor, *, lr: float) -> tuple[Tensor, ...]:
        return (p - g * lr,)

    with pytest.raises(ValueError, match=r"sgd needs .* states and lr: it takes p, g, sign, l2, lr"):
        law_of(Algorithm(0, sgd))
