"""Other people's optimizers in float32 make the same steps, to the bit, with this package imported or at use beside."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROGRAM = """
import hashlib, importlib, json, sys
import torch
from torch import nn

if sys.argv[1] != "without":
    import lowprec_plugin
if sys.argv[1] == "used":
    lowprec_plugin.FixedPointTensor.quantize(torch.ones(3), "fixed16")

def po(name):
    return getattr(importlib.import_module("pytorch_optimizer"), name)

SGD = lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)
made = {
    "pytorch_optimizer: Lookahead": lambda p: po("Lookahead")(SGD(p)),
    "pytorch_optimizer: TRAC": lambda p: po("TRAC")(SGD(p)),
    "pytorch_optimizer: ScheduleFreeWrapper": lambda p: po("ScheduleFreeWrapper")(SGD(p)),
    "pytorch_optimizer: Lamb": lambda p: po("Lamb")(p, lr=1e-2),
    "pytorch_optimizer: AdaBelief": lambda p: po("AdaBelief")(p, lr=1e-2),
    "pytorch_optimizer: MADGRAD": lambda p: po("MADGRAD")(p, lr=1e-2),
    "schedulefree: AdamWScheduleFree": lambda p: importlib.import_module("schedulefree").AdamWScheduleFree(p, lr=1e-2),
    "prodigyopt: Prodigy": lambda p: importlib.import_module("prodigyopt").Prodigy(p),
    "geoopt: RiemannianAdam": lambda p: importlib.import_module("geoopt").optim.RiemannianAdam(p, lr=1e-2),
}
for name in "adabound adan adopt aggmo came dadaptsgd diffgrad lion mars novograd qhadam".split():
    made[name] = lambda p, name=name: po("load_optimizer")(name)(p)
digests = {}
for name, make in made.items():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    try:
        optimizer = make(net.parameters())
    except ModuleNotFoundError:
        continue
    if hasattr(optimizer, "train"):
        optimizer.train()
    for _ in range(12):
        optimizer.zero_grad()
        net(torch.randn(8, 8)).square().mean().backward()
        optimizer.step()
    digest = hashlib.sha256()
    for param in net.parameters():
        digest.update(param.detach().numpy().tobytes())
    digests[name] = digest.hexdigest()
print(json.dumps(digests))
"""


def digests(how: str) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, how], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def test_float32_runs_are_the_same_to_the_bit() -> None:
    without = digests("without")
    if not without:
        pytest.skip("none of these packages is installed")
    assert len(set(without.values())) == len(without)
    assert digests("imported") == without
    assert digests("used") == without
