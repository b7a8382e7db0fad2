"""Float32 runs of twenty optimizers: ``python float_runs.py [lowprec_plugin]``, with the package imported or not."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

NAMES = [
    *("adabelief", "adabound", "adan", "adopt", "aggmo", "came", "dadaptsgd", "diffgrad", "lamb", "lion", "madgrad"),
    *("mars", "novograd", "prodigy", "qhadam", "ranger", "schedulefreeadamw", "soap", "spam", "yogi"),
]


def digests_of_runs(imported: bool) -> dict[str, str]:
    command = [sys.executable, __file__, *(["lowprec_plugin"] if imported else [])]
    root = str(Path(__file__).parent.parent.parent)
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root, timeout=250)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def _digests() -> dict[str, str]:
    import pytorch_optimizer
    import torch

    torch.set_num_threads(1)
    makers: dict[str, Any] = {name: pytorch_optimizer.load_optimizer(name) for name in NAMES}
    makers["Lookahead"] = lambda params: pytorch_optimizer.Lookahead(torch.optim.AdamW(params))
    makers["TRAC"] = lambda params: pytorch_optimizer.TRAC(torch.optim.AdamW(params))
    makers["torch's Adam"] = torch.optim.Adam
    found = {}
    for name, make in makers.items():
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        optimizer = make(net.parameters())
        for _ in range(10):
            optimizer.zero_grad()
            net(torch.randn(4, 8)).square().mean().backward()
            optimizer.step()
        flat = torch.cat([param.detach().flatten() for param in net.parameters()])
        found[name] = hashlib.sha256(flat.numpy().tobytes()).hexdigest()
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.path[0] = str(Path(__file__).parent.parent.parent)  # the package's, not this folder's
    if "lowprec_plugin" in sys.argv:
        __import__("lowprec_plugin")
    digests = _digests()
    if "lowprec_plugin" not in sys.argv:
        assert "lowprec_plugin" not in sys.modules
    print(json.dumps(digests))
