"""Importing the package changes nothing for who does not use it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

#: What others share with the package: all that an import may leave changed, as text, by name.
STATE = """
import json, logging, os, random, signal, sys, threading, warnings
import torch, torch._dynamo
import torch.distributed.fsdp, torch.distributed.tensor, torch.nn.utils.parametrizations
from torch.nn.modules import module as modules
from torch.optim import optimizer as optimizers
from torch.utils import _pytree

def state():
    loggers = [logging.getLogger(), *map(logging.getLogger, sorted(logging.root.manager.loggerDict))]
    found = {
        "hooks of optimizers": [len(hooks) for name, hooks in vars(optimizers).items() if name.startswith("_global")],
        "hooks of modules": [
            (name, str(hooks)) for name, hooks in vars(modules).items() if name.startswith("_global")
        ],
        "filters of warnings": [warnings.filters, warnings.showwarning],
        "handlers of logs": [(log.name, log.level, log.handlers) for log in loggers],
        "environment": sorted(os.environ.items()),
        "random numbers": [hash(random.getstate()), torch.get_rng_state().tolist()],
        "defaults": [
            torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled(), torch.get_num_threads(),
            torch.get_num_interop_threads(), torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(),
        ],
        "trees": [str(kind) for kind in _pytree.SUPPORTED_NODES],
        "kernels": torch._C._dispatch_dump("aten::_has_compatible_shallow_copy_type"),
        "threads": [thread.name for thread in threading.enumerate()],
        "signals": [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)],
        # The flag and the monitor wait there for the other Lightning, and look at two names alone (decision 11).
        "interpreter": [sys.excepthook, sys.displayhook, sys.path]
        + [each for each in sys.meta_path if type(each).__module__ != "lowprec_plugin.compat.bases"],
    }
    for kind in (torch.Tensor, torch.nn.Module, torch.nn.Parameter, torch.optim.Optimizer, torch.optim.AdamW):
        found[kind.__name__] = [(name, id(value)) for name, value in vars(kind).items() if not name.startswith("__")]
    for part in (torch, torch.nn.functional, torch.utils, torch.serialization, torch.autograd, torch.optim):
        found[part.__name__] = [(name, id(value)) for name, value in vars(part).items() if callable(value)]
    return {name: str(value) for name, value in found.items()}

before, names = state(), set(logging.root.manager.loggerDict)
{act}
for name in set(logging.root.manager.loggerDict) - names:  # what is new is its owner's
    del logging.root.manager.loggerDict[name]
after = state()
print(json.dumps([name for name in before if before[name] != after[name]]))
"""


def run(program: str, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


IMPORTED = [
    "",
    "lowprec_plugin.plugin.precision",
    "lowprec_plugin.monitoring",
    "lowprec_plugin.cli.main",
    "lowprec_plugin.deepspeed",
]


def test_an_import_leaves_everything_of_torch_and_python_as_it_was() -> None:
    # Lightning and DeepSpeed first: what they change is theirs.
    hosts = "import lightning.pytorch, deepspeed, jsonargparse, torch.distributed.checkpoint, wandb\nbefore = state()\n"
    names = ", ".join(f"lowprec_plugin{name.removeprefix('lowprec_plugin')}" for name in IMPORTED)
    act = hosts + f"names = set(logging.root.manager.loggerDict)\nimport {names}, lowprec_plugin.optim.unadopted"
    assert run(STATE.replace("{act}", act)) == []


def test_the_first_tensor_does_and_is_seen_to() -> None:
    """The control: what an import would change is changed, once, by the first fixed-point tensor."""
    act = """
import lowprec_plugin
for _ in range(2):
    lowprec_plugin.FixedPointTensor.quantize(torch.ones(3), 'fixed16')
assert len(optimizers._global_optimizer_pre_hooks) == 1
"""
    assert run(STATE.replace("{act}", act)) == ["hooks of optimizers", "kernels"]


#: Twenty optimizers of torch on the same network; a digest of the weights and the state of each. Then wrappers that
#: have less than torch's optimizers do.
FLOAT32 = """
import hashlib, json, sys
import torch
from torch import nn
if sys.argv[1] != "without":
    import lowprec_plugin, lowprec_plugin.plugin.precision
if sys.argv[1] == "used":
    lowprec_plugin.optim.quantize_(nn.Linear(8, 8))
digests = {}

def trained(name, make, *inputs):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 4))
    optimizer = make([param for param in net.parameters() if param.ndim == 2] if "Muon" in name else net.parameters())
    for _ in range(8):
        def closure():
            optimizer.zero_grad()
            loss = net(torch.randn(8, 8)).square().mean()
            loss.backward()
            return loss
        optimizer.step(closure)
    values = [*net.parameters(), *(each for state in optimizer.state.values() for each in state.values())]
    digest = hashlib.sha256()
    for value in values:
        tensor = isinstance(value, torch.Tensor)
        digest.update(value.detach().contiguous().numpy().tobytes() if tensor else repr(value).encode())
    digests[name] = digest.hexdigest()

t = torch.optim
made = {
    "SGD": lambda p: t.SGD(p, 0.1),
    "momentum": lambda p: t.SGD(p, 0.1, 0.9),
    "Nesterov": lambda p: t.SGD(p, 0.1, 0.9, nesterov=True),
    "Adam": lambda p: t.Adam(p),
    "amsgrad": lambda p: t.Adam(p, amsgrad=True),
    "foreach": lambda p: t.Adam(p, foreach=True),
    "fused": lambda p: t.AdamW(p, fused=True),
    "AdamW": lambda p: t.AdamW(p),
    "Adamax": lambda p: t.Adamax(p),
    "NAdam": lambda p: t.NAdam(p),
    "RAdam": lambda p: t.RAdam(p),
    "Adagrad": lambda p: t.Adagrad(p),
    "Adadelta": lambda p: t.Adadelta(p),
    "Adafactor": lambda p: t.Adafactor(p),
    "RMSprop": lambda p: t.RMSprop(p),
    "centered": lambda p: t.RMSprop(p, centered=True, momentum=0.5),
    "Rprop": lambda p: t.Rprop(p),
    "ASGD": lambda p: t.ASGD(p),
    "LBFGS": lambda p: t.LBFGS(p, max_iter=3),
    "Muon": lambda p: t.Muon(p),
    "maximize": lambda p: t.Adam(p, maximize=True),
}
for name, make in made.items():
    trained(name, make)

class Around(torch.optim.Optimizer):
    '''Never calls Optimizer.__init__, and has two of torch's hook tables.'''
    def __init__(self, inner):
        self.inner, self.defaults = inner, inner.defaults
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = {}, {}
        self._patch_step_function()

    @property
    def param_groups(self):
        return self.inner.param_groups

    @property
    def state(self):
        return self.inner.state

    def step(self, closure=None):
        return self.inner.step(closure)

class Bare(Around):
    '''Says nothing of what it updates.'''
    param_groups = property(lambda self: (_ for _ in ()).throw(AttributeError("param_groups")))
    state = property(lambda self: [1, 2])

for kind in (Around, Bare) if sys.argv[1] != "without" else ():
    w = torch.nn.Parameter(torch.ones(2))
    w.grad = torch.ones(2)
    kind(torch.optim.SGD([w], 1.0)).step()
    assert torch.equal(w.detach(), torch.zeros(2))
print(json.dumps(digests))
"""


@pytest.fixture(scope="module")
def without() -> dict[str, str]:
    return run(FLOAT32, "without")  # type: ignore[no-any-return]


@pytest.mark.parametrize("how", ["imported", "used"])
def test_float32_runs_are_the_same_to_the_bit(without: dict[str, str], how: str) -> None:
    """Twenty optimizers, beside a package that is imported, and beside a module that is in fixed-point."""
    assert len(without) >= 20
    assert len(set(without.values())) >= 18  # they do differ
    assert run(FLOAT32, how) == without
