"""Optimizers around other optimizers, and one that keeps float copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tests.foreign.training import Way, in_two_calls, with_closure, with_gradients_and_closure, with_outputs


def rows(package: Any, adam: Any, sgd: Any) -> Iterator[tuple[str, Callable[[nn.Module], Any], Way]]:
    """pytorch_optimizer's: name, how it is made, and how it is used."""

    def around(kind: Any, base: Any = adam, lr: float = 0.01, **options: Any) -> Callable[[nn.Module], Any]:
        return lambda net: kind(base(net.parameters(), lr=lr), **options)

    def sharp(kind: Any, **options: Any) -> Callable[[nn.Module], Any]:
        return lambda net: kind(net.parameters(), base_optimizer=sgd, lr=0.1, momentum=0.9, **options)

    def averaging(net: nn.Module) -> Any:
        optimizer = package.ScheduleFreeWrapper(sgd(net.parameters(), lr=0.5), momentum=0.9)
        optimizer.train()
        return optimizer

    primed = Way(with_gradients_and_closure)
    yield "Lookahead of Adam", around(package.Lookahead), Way()
    yield "Lookahead of SGD, pulling back", around(package.Lookahead, sgd, 0.1, pullback_momentum="pullback"), Way()
    yield "OrthoGrad of Adam", around(package.OrthoGrad), Way()
    yield "TRAC of Adam", around(package.TRAC, s_prev=1e-2), Way()
    yield "ScheduleFreeWrapper of SGD", averaging, Way(after=lambda optimizer: optimizer.eval())
    yield "SAM of SGD", sharp(package.SAM), primed
    yield "SAM of SGD, adaptive", sharp(package.SAM, adaptive=True), primed
    yield "LookSAM of SGD", sharp(package.LookSAM, k=3), primed
    yield "FriendlySAM of SGD", sharp(package.FriendlySAM), primed
    yield "WSAM of SGD", lambda net: package.WSAM(net, net.parameters(), sgd, lr=0.1, momentum=0.9), Way(with_closure)
    yield "GSAM of SGD", lambda net: _gsam(package, net, sgd), Way(with_outputs)
    yield "SAM of SGD, two calls", sharp(package.SAM), Way(in_two_calls)


def _gsam(package: Any, net: nn.Module, sgd: Any) -> Any:
    from pytorch_optimizer.lr_scheduler import ProportionScheduler

    base = sgd(net.parameters(), lr=0.1, momentum=0.9)
    rates = torch.optim.lr_scheduler.ConstantLR(base, factor=1.0)
    scheduler = ProportionScheduler(rates, max_lr=0.1, min_lr=0.1, max_value=0.05, min_value=0.05)
    return package.GSAM(net.parameters(), base, net, scheduler, lr=0.1)


class MasterWeights(torch.optim.Optimizer):
    """Steps float copies of the parameters and copies them back, as apex's FP16_Optimizer does."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})
        self.masters = [param.detach().clone().float() for group in self.param_groups for param in group["params"]]
        self.momenta = [torch.zeros_like(master) for master in self.masters]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        params: list[Tensor] = [param for group in self.param_groups for param in group["params"]]
        for param, master, momentum in zip(params, self.masters, self.momenta, strict=True):
            if param.grad is not None:
                momentum.mul_(0.9).add_(param.grad.float())
                master.sub_(momentum, alpha=self.param_groups[0]["lr"])
                param.copy_(master)
