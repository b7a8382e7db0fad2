"""What the collectives of two ranks that were called differently say, and that they leave everything as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from lowprec_plugin import comm
from tests.comm import ranks

#: The tensors of the call under way, which a refused call must leave as they were.
_tensors: list[Tensor] = []


def _given(*tensors: Tensor) -> tuple[Tensor, ...]:
    _tensors[:] = tensors
    return tensors


def _reduce(size: int = 1000, op: str = "mean", dtype: torch.dtype = torch.float32, **options: Any) -> Tensor:
    (tensor,) = _given(torch.ones(size, dtype=dtype))
    return comm.all_reduce(tensor, op, **options)


def _scatter(share: int = 1000, given: int | None = None, **options: Any) -> Tensor:
    output, input = _given(torch.ones(share), torch.ones(2 * share if given is None else given))
    return comm.reduce_scatter(output, input, **options)


def _gather(shape: tuple[int, ...] = (100, 4), **options: Any) -> Tensor:
    output, input = _given(torch.ones(2, *shape), torch.ones(shape))
    return comm.all_gather(output, input, **options)


class Case(NamedTuple):
    """What each of two ranks calls, and what both must say."""

    calls: tuple[Callable[[], Any], Callable[[], Any]]
    said: str


def case(call: Callable[..., Any], ours: dict[str, Any], theirs: dict[str, Any], said: str) -> Case:
    return Case((lambda: call(**ours), lambda: call(**theirs)), said)


DISAGREE = "the ranks disagree on"
CASES = [
    # Of one message length: silently wrong unless they are compared.
    case(_reduce, {"size": 256}, {"size": 512}, f"{DISAGREE} shape: rank 0 has [256], rank 1 has [512]"),
    case(_reduce, {"size": 793}, {"size": 676}, f"{DISAGREE} shape: rank 0 has [793], rank 1 has [676]"),
    case(_reduce, {"size": 1000}, {"size": 1001}, f"{DISAGREE} shape: rank 0 has [1000], rank 1 has [1001]"),
    case(_reduce, {"size": 3}, {"size": 4}, f"{DISAGREE} shape: rank 0 has [3], rank 1 has [4]"),
    case(_reduce, {"size": 1}, {"size": 0}, f"{DISAGREE} shape: rank 0 has [1], rank 1 has [0]"),
    case(_reduce, {}, {"op": "sum"}, f"{DISAGREE} op: rank 0 has 'mean', rank 1 has 'sum'"),
    case(_reduce, {}, {"rounding": "nearest"}, f"{DISAGREE} rounding: rank 0 has 'stochastic', rank 1 has 'nearest'"),
    case(_reduce, {}, {"dtype": torch.bfloat16}, f"{DISAGREE} dtype: rank 0 has torch.float32, rank 1 has torch.bf"),
    case(_reduce, {}, {"seed": 1}, f"{DISAGREE} seed: rank 0 has 0, rank 1 has 1"),
    case(_reduce, {"name": "a"}, {"name": "b"}, f"{DISAGREE} name: rank 0 has 'a', rank 1 has 'b'"),
    case(_reduce, {"step": 3}, {"step": 4}, f"{DISAGREE} step: rank 0 has 3, rank 1 has 4"),
    case(_scatter, {"share": 300}, {"share": 301}, f"{DISAGREE} elements: rank 0 has 600, rank 1 has 602"),
    case(_scatter, {}, {"op": "sum"}, f"{DISAGREE} op: rank 0 has 'mean', rank 1 has 'sum'"),
    case(_gather, {}, {"shape": (100, 5)}, f"{DISAGREE} elements: rank 0 has 400, rank 1 has 500"),
    case(_gather, {}, {"shape": (101, 4)}, f"{DISAGREE} elements: rank 0 has 400, rank 1 has 404"),
    # Of several: gloo would end a process.
    case(_reduce, {}, {"word_length": 8}, f"{DISAGREE} word_length: rank 0 has 16, rank 1 has 8"),
    case(_reduce, {"size": 1000}, {"size": 100_000}, f"{DISAGREE} shape: rank 0 has [1000], rank 1 has [100000]"),
    case(_scatter, {"share": 10}, {"share": 9999}, f"{DISAGREE} elements: rank 0 has 20, rank 1 has 19998"),
    case(_gather, {}, {"word_length": 12}, f"{DISAGREE} word_length: rank 0 has 16, rank 1 has 12"),
    Case((_reduce, _gather), f"{DISAGREE} the collective: rank 0 has 'all_reduce', rank 1 has 'all_gather'"),
    # Refused by one of them: the other would wait for it.
    case(_reduce, {}, {"op": "max"}, f"{DISAGREE} what is refused: rank 0 has 'nothing', rank 1 has \"op='max' is not"),
    case(_reduce, {"word_length": 10}, {}, f"{DISAGREE} what is refused: rank 0 has 'word_length=10 is not one of"),
    case(_scatter, {}, {"given": 1999}, "rank 1 has \"input has 1999 elements, but 2 ranks times output's 1000 are"),
    case(_reduce, {"dtype": torch.float64}, {}, "rank 0 has 'only float32, bfloat16 and float16 tensors can travel"),
    # Refused by both for one reason, which they say.
    case(_reduce, {"op": "max"}, {"op": "max"}, "op='max' is not one of ('mean', 'sum')"),
]  # fmt: skip


def _all(rank: int) -> list[tuple[str, bool]]:
    results = []
    for each in CASES:
        with pytest.raises(ValueError) as info:  # noqa: PT011
            each.calls[rank]()
        results.append((str(info.value), all(bool((tensor == 1).all()) for tensor in _tensors)))
        assert _reduce().tolist() == [1] * 1000, "the next call works"
    return results


def test_ranks_that_were_called_differently_all_say_so_and_write_nothing() -> None:
    ours, theirs = ranks.run(2, _all)
    for each, (said, untouched), (other, theirs_untouched) in zip(CASES, ours, theirs, strict=True):
        assert each.said in said
        assert other == said
        assert untouched
        assert theirs_untouched


def _third(rank: int) -> str:
    with pytest.raises(ValueError, match="disagree") as info:
        comm.all_reduce(torch.ones(300), step=int(rank == 2))
    return str(info.value)


def test_the_rank_that_differs_is_named() -> None:
    for said in ranks.run(3, _third):
        assert said == (
            "the ranks disagree on step: rank 0 has 0, rank 2 has 1; call it on every rank with the same arguments"
        )
