"""A run beside parameters that are no plain tensors of floats: what becomes of them is in its table."""

from __future__ import annotations

import logging
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from lowprec_plugin import FixedPointMonitor, FixedPointPrecision, FixedPointTensor
from tests.optim.test_plain import Halves, OnManifold
from tests.plugin import users


class OfManyKinds(users.Regressor):
    """A frozen base in halves, a part that TorchScript compiled, a manifold, a sparse mask and a table of integers."""

    def __init__(self) -> None:
        super().__init__(lambda params: torch.optim.AdamW(params, 1e-2))
        self.base = nn.Linear(12, 12)
        self.base.weight = nn.Parameter(Halves(torch.eye(12).half()), requires_grad=False)
        self.compiled = torch.jit.script(nn.Linear(12, 12))
        self.turned = OnManifold(torch.eye(12))
        self.mask = nn.Parameter(torch.eye(12).to_sparse(), requires_grad=False)
        self.order = nn.Parameter(torch.arange(12), requires_grad=False)
        self.references = [weakref.ref(param) for param in self.net.parameters()]

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sparse.mm(self.mask, (self.compiled(self.base(x)) @ self.turned)[:, self.order].T).T
        return self.net(x)  # type: ignore[no-any-return]


LEFT = {
    "base.weight": "its class is Halves",
    "turned": "its class is OnManifold",
    "mask": "its layout is sparse_coo",
    "order": "its dtype is int64",
    "compiled.weight": "TorchScript has compiled 'compiled'",
    "compiled.bias": "TorchScript has compiled 'compiled'",
}


@pytest.mark.parametrize("options", [{}, {"word_length": 12, "nonfinite": "skip"}], ids=str)
def test_the_table_lists_what_is_left_and_why(
    options: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module, plugin = OfManyKinds(), FixedPointPrecision(**options)
    before = dict(module.named_parameters())
    compiled = module.compiled.weight.detach().clone()
    trainer = Trainer(
        accelerator="cpu", default_root_dir=tmp_path, plugins=plugin, callbacks=[FixedPointMonitor(2, layers=True)],
        max_epochs=1, logger=True, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        trainer.fit(module, users.vectors())
    assert plugin.kept_in_float == LEFT
    for name, reason in LEFT.items():
        assert f"left as it is: {name} ({reason})" in caplog.text
        assert dict(module.named_parameters())[name] is before[name]
        assert not isinstance(before[name], FixedPointTensor)
    stored = [param for name, param in module.named_parameters() if name not in LEFT]
    assert all(isinstance(param, FixedPointTensor) for param in stored)
    assert all(
        reference() is param for reference, param in zip(module.references, module.net.parameters(), strict=True)
    )
    assert not torch.equal(module.compiled.weight, compiled)  # it trains, in float
    assert not torch.equal(module.turned, torch.eye(12))
