"""How many examples a batch holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, TensorDataset

from lowprec_plugin.poc.run.measures import examples_in


@dataclass
class Graphs:
    """Several graphs in one, as libraries of graph networks batch them."""

    atoms: Tensor
    bonds: Tensor
    of: Tensor


def graphs(examples: list[Any]) -> Graphs:
    """Of three atoms and two bonds each."""
    return Graphs(torch.ones(3 * len(examples), 5), torch.ones(2 * len(examples), 2), torch.ones(len(examples)))


class BySize:
    """A batch sampler that fills batches up to a number of atoms, not of examples."""

    def __iter__(self) -> Iterator[list[int]]:
        return iter([[0, 1, 2], [3, 4]])


X, Y = torch.ones(10, 4), torch.ones(10)
WHOLE = {
    "tensor": torch.ones(6, 2), "pair": (torch.ones(6, 2), torch.ones(6)), "list": [torch.ones(6, 2), torch.ones(6)],
    "dict": {"x": torch.ones(6, 2, 2), "y": torch.ones(6)}, "graphs": graphs([1, 2]),
    "lengths": (torch.ones(6, 2), torch.ones(18)), "scalar": (torch.ones(6, 2), torch.tensor(1.0)),
    "names": (torch.ones(6, 2), ["a", "b"]), "nested": {"a": (torch.ones(6), torch.ones(6))}, "none": (),
}  # fmt: skip


def first(loader: Any) -> int:
    return examples_in(next(iter(loader)), loader)


def test_what_the_loader_says() -> None:
    data = TensorDataset(X, Y)
    assert first(DataLoader(data, 4)) == 4
    assert first(DataLoader(data, 4, collate_fn=lambda pairs: {"x": torch.stack([x for x, _ in pairs])})) == 4
    assert first(DataLoader(data, 4, collate_fn=graphs)) == 4  # and not 12 atoms
    fives = BatchSampler(SequentialSampler(data), 5, drop_last=False)
    assert first(DataLoader(data, batch_sampler=fives, collate_fn=graphs)) == 5


def test_what_the_batch_says_where_the_loader_does_not() -> None:
    data = TensorDataset(X, Y)
    assert first(DataLoader(data, batch_sampler=BySize())) == 3  # type: ignore[arg-type]
    assert first(DataLoader(data, batch_sampler=BySize(), collate_fn=graphs)) == 0  # type: ignore[arg-type]
    expected = {"tensor": 6, "pair": 6, "list": 6, "dict": 6}
    for name, batch in WHOLE.items():
        whole = DataLoader([batch], batch_size=None)  # type: ignore[arg-type]
        assert first(whole) == first([batch]) == expected.get(name, 0), name


@pytest.mark.parametrize("kind", [list, dict])
def test_of_several_loaders_together_nothing_is_certain(kind: Any) -> None:
    loaders = [DataLoader(TensorDataset(X, Y), size) for size in (4, 5)]
    batches = [next(iter(loader)) for loader in loaders]
    together = (loaders, batches) if kind is list else (dict(enumerate(loaders)), dict(enumerate(batches)))
    assert examples_in(together[1], together[0]) == 0
