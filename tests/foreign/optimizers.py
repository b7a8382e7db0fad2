"""The optimizers of other people that the table tries, each with what it takes to train in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tests.foreign import wrappers
from tests.foreign.training import Way, in_backward, with_closure, with_gradients_and_closure, with_loss

Make = Callable[[nn.Module], Any]
LINE_SEARCH = Way(with_closure, one_batch=True)


@dataclass
class Row:
    """One optimizer: made of a network by ``make``, used in a ``way``."""

    package: str
    name: str
    make: Make
    way: Way = field(default_factory=Way)
    within: Callable[[], AbstractContextManager[Any]] = nullcontext

    def __str__(self) -> str:
        return f"{self.package}: {self.name}"


def of(kind: Any, **options: Any) -> Make:
    """An optimizer of a network's parameters."""
    return lambda net: kind(net.parameters(), **options)


def of_matrices(kind: Any, **options: Any) -> Make:
    """One that takes matrices alone: the rest of the network stays what it is."""
    return lambda net: kind([param for param in net.parameters() if param.ndim == 2], **options)


def of_model(kind: Any, **options: Any) -> Make:
    return lambda net: kind(net, **options)


def of_two_kinds(kind: Any, **options: Any) -> Make:
    """One that has a rule for matrices and another for the rest, said in its groups."""

    def make(net: nn.Module) -> Any:
        groups = [
            {"params": [param for param in net.parameters() if (param.ndim == 2) == matrices], "use_muon": matrices}
            for matrices in (True, False)
        ]
        return kind(groups, **options)

    return make


def to_average(optimizer: Any) -> None:
    """Schedule-free optimizers: the weights to evaluate are not those to train."""
    optimizer.eval()


def to_train(make: Make) -> Make:
    def made(net: nn.Module) -> Any:
        optimizer = make(net)
        optimizer.train()
        return optimizer

    return made


# ---- torch ----


@contextmanager
def one_rank() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def sharded(net: nn.Module) -> Any:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    return ZeroRedundancyOptimizer(net.parameters(), torch.optim.Adam, lr=0.01)


#: Learning rates with which each gets somewhere in the steps of the table.
TORCH: dict[str, dict[str, Any]] = {
    "ASGD": {"lr": 0.2},
    "Adadelta": {"lr": 1.0},
    "Adafactor": {"lr": 0.02},
    "Adagrad": {"lr": 0.02},
    "Adam": {"lr": 0.01},
    "AdamW": {"lr": 0.01},
    "Adamax": {"lr": 0.01},
    "LBFGS": {"lr": 0.1, "max_iter": 4},
    "Muon": {"lr": 0.01},
    "NAdam": {"lr": 0.01},
    "RAdam": {"lr": 0.01},
    "RMSprop": {"lr": 0.003},
    "Rprop": {"lr": 0.003, "step_sizes": (1e-6, 0.02)},
    "SGD": {"lr": 0.1, "momentum": 0.9},
    "SparseAdam": {"lr": 0.01},
}


def torch_rows() -> Iterator[Row]:
    for name, options in TORCH.items():
        kind = getattr(torch.optim, name, None)
        if kind is not None:  # Muon came with torch 2.9
            make = of_matrices(kind, **options) if name == "Muon" else of(kind, **options)
            yield Row("torch", name, make, LINE_SEARCH if name == "LBFGS" else Way())
    yield Row("torch", "Adam, amsgrad", of(torch.optim.Adam, lr=0.01, amsgrad=True))
    yield Row("torch", "Adam, foreach", of(torch.optim.Adam, lr=0.01, foreach=True))
    yield Row("torch", "RMSprop, centered", of(torch.optim.RMSprop, lr=0.003, momentum=0.5, centered=True))
    yield Row("torch", "ZeroRedundancyOptimizer", sharded, within=one_rank)


# ---- pytorch_optimizer ----

MUONS = ("adago", "adamuon", "distributedmuon", "muon", "muonclip", "normuon")
#: What a kind needs, or the learning rate with which it gets somewhere.
OPTIONS: dict[str, dict[str, Any]] = {
    "accsgd": {"lr": 0.02},
    "adahessian": {"lr": 0.01},
    "adai": {"lr": 0.1},
    "adammini": {"lr": 0.02},
    "adamod": {"lr": 0.1},
    "adashift": {"lr": 0.01},
    "adatam": {"lr": 1e-4},
    "alig": {"max_lr": 0.1},
    "alice": {"rank": 4, "leading_basis": 4, "lr": 0.005},
    "ano": {"lr": 0.002},
    "asgd": {"lr": 0.1},
    "bsam": {"num_data": 64, "lr": 0.01},
    "dadaptadagrad": {"d0": 1e-3},
    "dadaptadam": {"growth_rate": 1.2},
    "dadaptadan": {"growth_rate": 1.05, "d0": 1e-4},
    "demo": {"lr": 0.003, "compression_top_k": 64},  # all frequencies: which are the greatest is soon another matter
    "ftrl": {"lr": 0.05},
    "grokfastadamw": {"lr": 0.001},
    "kate": {"lr": 1e-5},
    "lars": {"lr": 0.02},
    "lbfgs": {"lr": 0.1, "max_iter": 4},
    "lion": {"lr": 0.001},
    "lomo": {"lr": 0.1},
    "adalomo": {"lr": 0.01},
    "pid": {"lr": 0.05},
    "pnm": {"lr": 0.05},
    "prodigy": {"growth_rate": 1.1, "d0": 1e-4},
    "qhm": {"lr": 0.05},
    "radam": {"lr": 0.01},
    "ranger": {"lr": 0.02},
    "ranger21": {"num_iterations": 60, "lr": 0.01},
    "rmsprop": {"lr": 0.003},
    "sara": {"lr": 0.01},
    "schedulefreeradam": {"lr": 0.02},
    "sgd": {"lr": 0.1, "momentum": 0.9},
    "sgdp": {"lr": 0.05},
    "sgdw": {"lr": 0.05},
    "shampoo": {"lr": 0.05},
    "simplifiedademamix": {"lr": 1e-3},
    "spectralsphere": {"lr": 0.01, "solver_max_iterations": 8, "power_iteration_steps": 3},
    "tam": {"lr": 0.02},
    "vsgd": {"lr": 0.02},
}
IN_BACKWARD = Way(in_backward, backward=lambda optimizer, loss: optimizer.fused_backward(loss, optimizer.lr))
OF_CURVATURE = Way(backward=lambda optimizer, loss: loss.backward(create_graph=True))
WAYS: dict[str, Way] = {
    "adahessian": OF_CURVATURE,
    "adalomo": IN_BACKWARD,
    "alig": Way(with_loss),
    "conda": Way(state_bits=24),
    "dadaptadan": Way(state_bits=24),
    "soap": Way(state_bits=24),
    "bsam": Way(with_gradients_and_closure),
    "lbfgs": LINE_SEARCH,
    "lomo": IN_BACKWARD,
    "sophiah": OF_CURVATURE,
    **{name: Way(after=to_average) for name in ("schedulefreeadamw", "schedulefreeradam", "schedulefreesgd")},
}
MAKERS: dict[str, Callable[..., Make]] = {
    **dict.fromkeys(MUONS, of_two_kinds),
    **dict.fromkeys(("adalomo", "adammini", "lomo"), of_model),
    "spectralsphere": of_matrices,
}


def said_of(way: Way) -> str:
    return f", {way.state_bits} bits of state" if way.state_bits else ""


def pytorch_optimizer_rows() -> Iterator[Row]:
    import pytorch_optimizer

    for name in pytorch_optimizer.get_supported_optimizers():
        kind: Any = pytorch_optimizer.load_optimizer(name)
        make = MAKERS.get(name, of)(kind, **OPTIONS.get(name, {}))
        if name.startswith("schedulefree"):
            make = to_train(make)
        within = one_rank if name in ("demo", "distributedmuon") else nullcontext
        way = WAYS.get(name, Way())
        yield Row("pytorch_optimizer", kind.__name__ + said_of(way), make, way, within)
    adam, sgd = torch.optim.Adam, torch.optim.SGD
    for name, make, way in wrappers.rows(pytorch_optimizer, adam, sgd):
        yield Row("pytorch_optimizer", name, make, way)


# ---- others ----


def schedulefree_rows() -> Iterator[Row]:
    import schedulefree

    for name, options in {
        "AdamWScheduleFree": {"lr": 0.01},
        "AdamWScheduleFreeClosure": {"lr": 0.01},
        "AdamWScheduleFreePaper": {"lr": 0.01},
        "AdamWScheduleFreeReference": {"lr": 0.01},
        "RAdamScheduleFree": {"lr": 0.02},
        "RAdamScheduleFreeClosure": {"lr": 0.02},
        "SGDScheduleFree": {"lr": 1.0},
        "SGDScheduleFreeClosure": {"lr": 1.0},
        "SGDScheduleFreeReference": {"lr": 1.0},
    }.items():
        closure = name.endswith("Closure")  # these average within step, around the closure
        make = of(getattr(schedulefree, name), **options)
        way = Way(with_closure) if closure else Way(after=to_average)
        yield Row("schedulefree", name, make if closure else to_train(make), way)
    for name in ("ScheduleFreeWrapper", "ScheduleFreeWrapperReference"):
        kind = getattr(schedulefree, name)

        def make(net: nn.Module, kind: Any = kind) -> Any:
            return kind(torch.optim.SGD(net.parameters(), lr=0.5), momentum=0.9)

        yield Row("schedulefree", name, to_train(make), Way(after=to_average))


def prodigyopt_rows() -> Iterator[Row]:
    import prodigyopt

    yield Row("prodigyopt", "Prodigy", of(prodigyopt.Prodigy, growth_rate=1.1, d0=1e-4))
    yield Row("prodigyopt", "Prodigy, slice_p", of(prodigyopt.Prodigy, growth_rate=1.1, d0=1e-4, slice_p=11))


HEAVYBALL: dict[str, dict[str, Any]] = {
    "AdamW": {"lr": 0.01},
    "ADOPT": {"lr": 0.001},
    "LaProp": {"lr": 0.01},
    "Muon": {"lr": 0.01},
    "NAdam": {"lr": 0.01},
    "PSGDKron": {"lr": 0.01},
    "RMSprop": {"lr": 0.003},
    "SFAdamW": {"lr": 0.01},
    "SGD": {"lr": 0.1},
    "SOAP": {"lr": 0.01},
    "SOLP": {"lr": 0.01},
    "SUDSAdamW": {"lr": 0.01},
}


@contextmanager
def not_compiled() -> Iterator[None]:
    """HeavyBall compiles each of its functions, which takes longer than the training."""
    from heavyball import utils

    mode, utils.compile_mode = utils.compile_mode, None
    try:
        yield
    finally:
        utils.compile_mode = mode


def heavyball_rows() -> Iterator[Row]:
    import heavyball

    for name, options in HEAVYBALL.items():
        way = Way(state_bits=24) if name == "ADOPT" else Way()
        make = of(getattr(heavyball, name), **options)
        yield Row("heavyball", name + said_of(way), make, way, within=not_compiled)


def transformers_rows() -> Iterator[Row]:
    from transformers.optimization import Adafactor

    yield Row("transformers", "Adafactor", of(Adafactor, lr=None))
    constant: dict[str, Any] = {"lr": 0.01, "scale_parameter": False, "relative_step": False, "beta1": 0.9}
    yield Row("transformers", "Adafactor, constant rate", of(Adafactor, **constant))


def torchao_rows() -> Iterator[Row]:
    from torchao import optim

    for name in ("Adam4bit", "Adam8bit", "AdamFp8", "AdamW4bit", "AdamW8bit", "AdamWFp8"):
        yield Row("torchao", name, of(getattr(optim, name), lr=0.01))
    yield Row("torchao", "_AdamW, bf16 stochastic rounding", of(optim._AdamW, lr=0.01, bf16_stochastic_round=True))
    yield Row("torchao", "CPUOffloadOptimizer", of(optim.CPUOffloadOptimizer, optimizer_class=torch.optim.AdamW))


def geoopt_rows() -> Iterator[Row]:
    import geoopt.optim

    yield Row("geoopt", "RiemannianAdam", of(geoopt.optim.RiemannianAdam, lr=0.01))
    yield Row("geoopt", "RiemannianAdam, amsgrad", of(geoopt.optim.RiemannianAdam, lr=0.01, amsgrad=True, stabilize=10))
    yield Row("geoopt", "RiemannianSGD", of(geoopt.optim.RiemannianSGD, lr=0.1, momentum=0.9))
    yield Row("geoopt", "RiemannianLineSearch", of(geoopt.optim.RiemannianLineSearch), LINE_SEARCH)


def own_rows() -> Iterator[Row]:
    yield Row("as apex has it", "master weights", lambda net: wrappers.MasterWeights(net.parameters(), lr=0.05))


PACKAGES: dict[str, Callable[[], Iterator[Row]]] = {
    "torch": torch_rows,
    "pytorch_optimizer": pytorch_optimizer_rows,
    "schedulefree": schedulefree_rows,
    "prodigyopt": prodigyopt_rows,
    "heavyball": heavyball_rows,
    "transformers": transformers_rows,
    "torchao": torchao_rows,
    "geoopt": geoopt_rows,
    "as apex has it": own_rows,
}


def rows() -> list[Row]:
    return [row for package in PACKAGES.values() for row in package()]
