"""What is read of the hosts' insides is there, and where a host has renamed it, the feature refuses to begin."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from lowprec_plugin import FixedPointPrecision, WordLengthRamp, optim
from lowprec_plugin.compat import autograd, compiling, lightning, optimizers, process_group


def _hook(state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    raise NotImplementedError


def test_lightnings_insides_are_where_they_are_looked_for() -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    assert lightning.loaded_checkpoint(trainer) == {}
    assert lightning.comm_hook_of(DDPStrategy()) is None
    assert lightning.comm_hook_of(DDPStrategy(ddp_comm_hook=_hook)) is _hook
    assert not lightning.to_be_compiled_again(LightningModule())
    assert not lightning.to_be_compiled_again(nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("ask", "name"),
    [
        (lightning.loaded_checkpoint, "_checkpoint_connector"),
        (lightning.comm_hook_of, "_ddp_comm_hook"),
        (lambda thing: lightning.loaded_checkpoint(SimpleNamespace(_checkpoint_connector=thing)), "_loaded_checkpoint"),
    ],
)
def test_a_renamed_part_of_lightning_is_named(ask: Callable[[Any], object], name: str) -> None:
    with pytest.raises(ValueError, match=rf"^lightning \S+ has no SimpleNamespace\.{name}, which is needed "):
        ask(SimpleNamespace())


def test_a_ramp_is_refused_where_lightning_has_no_hook_before_the_update(monkeypatch: pytest.MonkeyPatch) -> None:
    FixedPointPrecision(12, ramp=WordLengthRamp())
    monkeypatch.delattr(Precision, "_after_closure")
    FixedPointPrecision(12)
    with pytest.raises(ValueError, match=r"has no Precision\._after_closure, which is needed for a ramp"):
        FixedPointPrecision(12, ramp=WordLengthRamp())


def test_a_module_that_lightning_unwrapped_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    module = LightningModule()
    module._compiler_ctx = {"compiler": "dynamo"}
    assert lightning.to_be_compiled_again(module)
    del module._compiler_ctx
    with pytest.raises(ValueError, match=r"has no LightningModule\._compiler_ctx"):
        lightning.to_be_compiled_again(module)


def test_compiled_modules_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, in_place = nn.Linear(1, 1), nn.Linear(1, 1)
    in_place.compile(backend="eager")
    assert not compiling.is_compiled(plain)
    assert compiling.is_compiled(in_place)
    assert compiling.is_compiled(torch.compile(plain, backend="eager"))  # type: ignore[arg-type]
    monkeypatch.delattr(torch._dynamo, "OptimizedModule")
    with pytest.raises(ValueError, match=r"has no torch\._dynamo\.OptimizedModule, "):
        compiling.is_compiled(plain)
    monkeypatch.delattr(nn.Module, "_compiled_call_impl")
    with pytest.raises(ValueError, match=r"has no Linear\._compiled_call_impl, "):
        compiling.is_compiled(plain)


def test_copies_of_weights_in_another_dtype_are_seen_and_other_numbers_are_not() -> None:
    weight = nn.Parameter(torch.ones(2))
    with torch.no_grad():
        assert autograd.is_copy_of_leaf(weight.bfloat16().grad_fn) is False
    assert autograd.is_copy_of_leaf(weight.half().grad_fn)
    assert not autograd.is_copy_of_leaf((weight * 2).half().grad_fn)
    assert not autograd.is_copy_of_leaf((weight * 2).grad_fn)
    assert not autograd.is_copy_of_leaf(None)


def test_the_step_of_a_float_class_comes_without_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = optim.adopt(torch.optim.Adamax([nn.Parameter(torch.ones(2))]))
    step = optimizers.unhooked_step(optimizer, torch.optim.Adamax)
    assert not getattr(step, "hooked", False)
    assert step.__code__ is not torch.optim.Adamax.step.__code__  # the wrapper's
    monkeypatch.delattr(type(optimizer).step, "hooked")
    with pytest.raises(ValueError, match=r"has no step\.hooked, which is needed to run the hooks of a step once"):
        optimizers.unhooked_step(optimizer, torch.optim.Adamax)
    with pytest.raises(ValueError, match=r"has no SimpleNamespace\._optimizer_step_pre_hooks, "):
        optimizers.without_hooks(SimpleNamespace())  # type: ignore[arg-type]


def test_codes_move_with_their_module_or_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(nn.Module, "_apply")
    with pytest.raises(ValueError, match=r"has no Linear\._apply, which is needed to move codes with their module"):
        optim.quantize_(nn.Linear(2, 2))


def test_the_time_out_of_a_group_is_the_one_it_was_made_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = timedelta(seconds=77)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1, timeout=wanted)
    try:
        group, device = dist.group.WORLD, torch.device("cpu")
        assert group is not None
        assert process_group.timeout_of(group, device) == wanted
        renamed = SimpleNamespace(options=SimpleNamespace())
        monkeypatch.setattr(process_group, "_SAYING", SimpleNamespace)
        with pytest.raises(ValueError, match=r"has no SimpleNamespace\._timeout, which is needed to wait"):
            process_group.timeout_of(SimpleNamespace(_get_backend=lambda _: renamed), device)  # type: ignore[arg-type]
    finally:
        dist.destroy_process_group()
