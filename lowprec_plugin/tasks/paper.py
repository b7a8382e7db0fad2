"""The experiments of Gupta et al. 2015, "Deep Learning with Limited Numerical Precision", with its hyperparameters.

Ordinary Lightning modules and networks: what is rounded, and how, is the precision plugin's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lowprec_plugin.compat.bases import LightningModule
from lowprec_plugin.experiments.making import perturb_last_bit_


class CifarCNN(nn.Sequential):
    """The paper's network for CIFAR-10: three 5x5 convolutions of 64 maps, each with 3x3 max pooling at stride 2.

    No normalisation and no dropout. Images of shape ``(batch, 3, 32, 32)``.
    """

    def __init__(self, classes: int = 10) -> None:
        layers: list[nn.Module] = []
        for channels in (3, 64, 64):
            layers += [nn.Conv2d(channels, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)]
        super().__init__(*layers, nn.Flatten(), nn.Linear(64 * 4 * 4, classes))


class VelocitySGD(torch.optim.Optimizer):
    """SGD whose momentum is kept as the update itself: ``v = momentum v - lr (g + weight_decay w)``, ``w = w + v``.

    With a constant rate that is ``torch.optim.SGD``, which keeps ``-v / lr``. Here the state is in the weights' own
    units, and a fixed-point format of theirs suits it: this is the paper's "weight update", a number that is rounded.

    Args:
        params: as for any optimizer of ``torch.optim``.
        lr, momentum, weight_decay: as of ``torch.optim.SGD``.
    """

    squared_states = ()  # so that one radix point will do for all of its state

    def __init__(self, params: Any, lr: float, momentum: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient, in place."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in (param for param in group["params"] if param.grad is not None):
                velocity = self.state[param].setdefault("velocity", torch.zeros_like(param))
                velocity *= group["momentum"]
                velocity -= group["lr"] * (param.grad + group["weight_decay"] * param)
                param += velocity
        return loss


class PaperClassifier(LightningModule):
    """Cross entropy and SGD; the learning rate is multiplied by ``lr_factor`` after each of ``lr_milestones``.

    Args:
        network: maps images to one logit per class.
        lr, momentum, weight_decay: SGD's.
        lr_factor: what the rate is multiplied by.
        lr_milestones: after which epochs; ``None``: after every one.
        init_std: standard deviation of the normal distribution that weights are drawn from, biases being zero;
            ``None``: torch's own initial values.
        loss: ``"mean"``: errors are those of the mean over the batch; ``"sum"``: each image's own errors go back, and
            the update divides by the batch.
        twin: move each weight by a last bit before training: what that changes is chance.
    """

    def __init__(
        self,
        network: nn.Module,
        lr: float = 0.1,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        lr_factor: float = 1.0,
        lr_milestones: Sequence[int] | None = None,
        init_std: float | None = 0.01,
        loss: Literal["mean", "sum"] = "mean",
        twin: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.lr_factor, self.lr_milestones = lr_factor, lr_milestones
        self.loss = loss
        with torch.no_grad():
            for name, param in network.named_parameters():
                if init_std is not None:
                    param.zero_() if name.endswith("bias") else param.normal_(0.0, init_std)
        if twin:
            perturb_last_bit_(network)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch."""
        return self.network(images)  # type: ignore[no-any-return]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross entropy of a batch."""
        images, labels = batch
        loss = nn.functional.cross_entropy(self(images), labels, reduction=self.loss)
        self.log("train_loss", loss / (len(images) if self.loss == "sum" else 1), on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the loss and the error, in percent."""
        images, labels = batch
        logits = self(images)
        self.log("val_loss", nn.functional.cross_entropy(logits, labels))
        self.log("val_error", 100.0 * (logits.argmax(-1) != labels).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> Any:
        """SGD and its schedule."""
        batch = self.trainer.datamodule.batch_size if self.loss == "sum" else 1  # type: ignore[attr-defined]
        # The gradient of a sum is that of the mean times the batch, and so is its weight decay.
        rate, decay = self.lr / batch, self.weight_decay * batch
        optimizer = (
            VelocitySGD(self.parameters(), rate, self.momentum, decay)
            if self.momentum
            else torch.optim.SGD(self.parameters(), rate, weight_decay=decay)
        )
        epochs = range(1, 10_000) if self.lr_milestones is None else self.lr_milestones
        return [optimizer], [torch.optim.lr_scheduler.MultiStepLR(optimizer, list(epochs), self.lr_factor)]
