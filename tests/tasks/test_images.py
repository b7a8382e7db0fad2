"""Loaders that cut batches out at once give the batches that torch's own give."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader, TensorDataset

from lowprec_plugin.tasks.images import ImageDataModule, Images


class Random(ImageDataModule):
    def __init__(self) -> None:
        super().__init__(batch_size=8, test_batch_size=5)
        self.train = Images(torch.rand(37, 1, 4, 4), torch.arange(37))
        self.test = Images(torch.rand(12, 1, 4, 4), torch.arange(12))


def test_the_batches_are_those_of_a_plain_loader() -> None:
    data = Random()
    torch.manual_seed(3)
    ours = list(data.train_dataloader())
    torch.manual_seed(3)
    theirs = list(DataLoader(TensorDataset(*data.train.tensors), 8, shuffle=True, drop_last=True))
    assert len(ours) == len(theirs) == 4
    assert all(
        torch.equal(a, b) for mine, other in zip(ours, theirs, strict=True) for a, b in zip(mine, other, strict=True)
    )
    labels = torch.cat([batch[1] for batch in data.val_dataloader()])
    assert labels.tolist() == list(range(12))
