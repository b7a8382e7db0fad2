"""What is read of the hosts' insides is there, and where a host has renamed it, the feature refuses to begin."""

from __future__ import annotations

import runpy
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
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from lowprec_plugin import Emulation, FixedPointPrecision, FixedPointTensor, WordLengthRamp, optim
from lowprec_plugin.activations.emulation.emulator import Emulator
from lowprec_plugin.compat import (
    autograd,
    compiling,
    ddp,
    dtensor,
    exchanging,
    lightning,
    modules,
    operators,
    optimizers,
    overrides,
    process_group,
    shallow_copies,
    sparse,
)
from lowprec_plugin.optim.options import PluginOptions
from lowprec_plugin.plugin.gradients import connect_wire


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


@pytest.mark.parametrize(
    ("ask", "name"),
    [
        (lambda it: autograd.version_of(it), "_version"),
        (lambda it: autograd.viewed_by(it), "_base"),
        (lambda it: ddp.registered_hook(it), "_comm_hooks"),
        (lambda it: dtensor.shard_of(it), "_local_tensor"),
        (lambda it: exchanging.holder_of(it), "_use_count"),
        (lambda it: exchanging.is_used_elsewhere(it), "_use_count"),
        (lambda it: modules.hooks_of(it), "_forward_pre_hooks"),
        (lambda it: modules.hung_on(it), "_parameters"),
        (lambda it: modules.own_parameters(it), "_parameters"),
        (lambda it: modules.find_weights_again(it), "_init_flat_weights"),
        (lambda it: operators.schema_of(it), "_schema"),
        (lambda it: operators.is_composite(it), "_can_decompose"),
        (lambda it: sparse.tensors_in(it), "_indices"),
        (lambda it: lightning.step_of_logs(SimpleNamespace(fit_loop=SimpleNamespace(epoch_loop=it))), "_batches_"),
        (lambda it: lightning.name_in(it, "x"), "_prefix"),
    ],
)
def test_what_else_a_host_has_renamed_is_named(ask: Callable[[Any], object], name: str) -> None:
    thing = _Bare(layout="torch.sparse_coo")
    with pytest.raises(ValueError, match=rf"has no _Bare\.{name}.*, which is needed to .*; tested versions: "):
        ask(thing)


class _Bare(SimpleNamespace):
    """Has none of the names that are looked for."""

    __hash__ = object.__hash__


@pytest.mark.parametrize(
    ("ask", "name"),
    [
        (autograd.backward_pass, "_current_graph_task_id"),
        (overrides.outside_overrides, "DisableTorchFunction"),
        (lambda: shallow_copies.refuse_as_data(torch.Tensor, ""), "_ExcludeDispatchKeyGuard"),
        (lambda: exchanging.exchange(nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))), "_swap_tensor_impl"),
    ],
)
def test_functions_that_torch_has_renamed_are_named(
    ask: Callable[[], object], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch._C, name)
    with pytest.raises(ValueError, match=rf"^torch \S+ has no torch\._C\.{name}, which is needed to "):
        ask()


@pytest.mark.parametrize(
    ("file", "holder", "name"),
    [
        ("trees.py", torch.utils._pytree, "tree_map_only"),
        ("subclasses.py", torch._C, "_disabled_torch_function_impl"),
        ("tracing.py", torch.jit._trace, "_trace_module_map"),
    ],
)
def test_names_that_are_read_once_are_looked_for_then(
    file: str, holder: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(modules.__file__).with_name(file)
    runpy.run_path(str(path))
    monkeypatch.delattr(holder, name)
    with pytest.raises(ValueError, match=rf"^torch \S+ has no {holder.__name__}\.{name}, which is needed to "):
        runpy.run_path(str(path))


def test_emulation_is_refused_where_the_kernels_that_it_cannot_see_have_other_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Emulator(Emulation("<4,12>"))
    monkeypatch.delattr(torch, "_native_multi_head_attention")
    with pytest.raises(ValueError, match=r"has no torch\._native_multi_head_attention, which is needed to refuse"):
        Emulator(Emulation("<4,12>"))


def test_gradients_do_not_replace_a_hook_that_cannot_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model, options = DistributedDataParallel(nn.Linear(2, 2)), PluginOptions(rounding="nearest")
        assert ddp.registered_hook(model) is None
        model.register_comm_hook(None, allreduce_hook)
        assert ddp.registered_hook(model) is allreduce_hook
        assert connect_wire(model, options, 16, None) == (
            None,
            "through allreduce_hook, the strategy's own ddp_comm_hook",
        )
        monkeypatch.delattr(model, "_comm_hooks")
        with pytest.raises(ValueError, match=r"has no DistributedDataParallel\._comm_hooks, which is needed to leave"):
            connect_wire(model, options, 16, None)
    finally:
        dist.destroy_process_group()


def test_a_step_that_a_scheduler_watches_is_known_by_its_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    def watched() -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD([nn.Parameter(FixedPointTensor.quantize(torch.ones(2), "fixed16"))], 0.1)
        torch.optim.lr_scheduler.ConstantLR(optimizer)
        return optimizer

    assert optimizers.counts_calls(watched().step)
    assert not optimizers.counts_calls(torch.optim.SGD.step)
    optim.adopt(watched())
    for mark in ("_WRAPPED", "_CALLED"):
        optimizers._check_counting.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(optimizers, mark, "_otherwise")
            with pytest.raises(ValueError, match=r"\._otherwise, which is needed to leave a scheduler in place"):
                optim.adopt(watched())
    optimizers._check_counting.cache_clear()


def test_a_gradient_scaler_is_not_taken_in_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    def fused() -> torch.optim.Optimizer:
        return torch.optim.SGD([nn.Parameter(torch.ones(2))], 0.1, fused=True)

    optimizer = optim.adopt(fused())
    assert optimizer._step_supports_amp_scaling is False
    optimizers._check_scaling.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(optimizers, "_SCALES", "_otherwise")
        with pytest.raises(ValueError, match=r"has no SGD\._otherwise, which is needed to have a GradScaler divide"):
            optim.adopt(fused())
        optim.adopt(torch.optim.SGD([nn.Parameter(torch.ones(2))], 0.1))
    optimizers._check_scaling.cache_clear()


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
def test_the_parts_of_sparse_tensors_are_theirs(layout: torch.layout) -> None:
    tensor = torch.eye(5).to_sparse(layout=layout)
    parts = sparse.tensors_in(tensor)
    assert parts[-1].shape == (5,)
    assert sum(part.nbytes for part in parts) == 5 * 4 + 8 * (10 if layout is torch.sparse_coo else 6 + 5)
    assert sparse.tensors_in(torch.eye(5)) == []


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
