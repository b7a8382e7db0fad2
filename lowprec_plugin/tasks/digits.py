"""scikit-learn's handwritten digits: 1,797 real 8x8 images that come with the library, no download."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

Batch = tuple[Tensor, ...]


class DigitsDataModule(LightningDataModule):
    """Images in [0, 1] of shape (1, 8, 8); every second is for validation and test.

    Args:
        batch_size: of training.
    """

    def __init__(self, batch_size: int = 32) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        """Read and split the images.

        Raises:
            ModuleNotFoundError: if scikit-learn is not installed.
        """
        try:
            from sklearn.datasets import load_digits
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError('the digits come with scikit-learn: pip install "lowprec-plugin[poc]"') from error

        digits = load_digits()
        images = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
        labels = torch.tensor(digits.target)
        held_out = torch.arange(len(labels)) % 2 == 0
        self.train = TensorDataset(images[~held_out], labels[~held_out])
        self.test = TensorDataset(images[held_out], labels[held_out])

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled batches."""
        return DataLoader(self.train, self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The held-out images, in one batch."""
        return DataLoader(self.test, len(self.test))

    def test_dataloader(self) -> DataLoader[Batch]:
        """The held-out images, in one batch."""
        return self.val_dataloader()
