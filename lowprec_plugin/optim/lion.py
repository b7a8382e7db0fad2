"""Lion on ordinary parameters, which torch.optim does not have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class FloatLion(torch.optim.Optimizer):
    """What :class:`lowprec_plugin.optim.Lion` does for parameters that are kept in float."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
    ) -> None:
        if lr < 0 or weight_decay < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"lr={lr} and weight_decay={weight_decay} must be >= 0, betas={betas} in [0, 1)")
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for param in group["params"]:
                grad = -param.grad if group["maximize"] else param.grad
                moment = self.state[param].setdefault("exp_avg", torch.zeros_like(param))
                direction = torch.lerp(moment, grad, 1 - beta1).sign_()
                param.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
                moment.lerp_(grad, 1 - beta2)
