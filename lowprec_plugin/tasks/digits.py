"""scikit-learn's handwritten digits: 1,797 real 8x8 images that come with the library, no download."""

from __future__ import annotations

import torch

from lowprec_plugin.tasks.images import ImageDataModule, Images


class DigitsDataModule(ImageDataModule):
    """Images in [0, 1] of shape (1, 8, 8); every second is for validation and test.

    Args:
        batch_size: of training.
    """

    def __init__(self, batch_size: int = 32) -> None:
        super().__init__(batch_size, test_batch_size=1000)

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
        self.train = Images(images[~held_out], labels[~held_out])
        self.test = Images(images[held_out], labels[held_out])
