"""Labelled images that lie in memory, and their loaders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lowprec_plugin.compat.bases import LightningDataModule

Batch = tuple[Tensor, ...]


class Images(TensorDataset):
    """Images and labels, whose batches are cut out at once: one by one they cost more than a small network's step."""

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """What ``DataLoader`` asks for, given a batch of indices."""
        return tuple(tensor[indices] for tensor in self.tensors)


def _as_it_is(batch: Any) -> Any:
    return batch


class ImageDataModule(LightningDataModule):
    """Shuffled batches for training; the test images, in batches of ``test_batch_size``, validate too.

    Classes derived from it set ``train`` and ``test`` in ``setup``.
    """

    train: Images
    test: Images

    def __init__(self, batch_size: int, test_batch_size: int) -> None:
        super().__init__()
        self.batch_size, self.test_batch_size = batch_size, test_batch_size

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled batches; a last one that is smaller is left out."""
        return DataLoader(self.train, self.batch_size, shuffle=True, drop_last=True, collate_fn=_as_it_is)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The test images."""
        return DataLoader(self.test, self.test_batch_size, collate_fn=_as_it_is)

    def test_dataloader(self) -> DataLoader[Batch]:
        """The test images."""
        return self.val_dataloader()
