"""Sharded fixed-point parameters under FSDP2, on processes that talk over gloo."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.utils.checkpoint import checkpoint

from lowprec_plugin import memory, optim
from lowprec_plugin.arithmetic.update_counts import UpdateCounts, total
from lowprec_plugin.checkpoints.load import read_file
from lowprec_plugin.optim.finite import NonFiniteGradientError
from lowprec_plugin.tensor import FixedPointTensor
from lowprec_plugin.tensor.dtensor import fixed_part, in_place_of, local_part, on_any_rank, place_of, stored_part
from tests.comm import ranks

# Rows that no number of ranks here divides, more ranks than rows, several blocks to a row, and bare rows.
SIZES = [(37, 300), (37,), (5, 37), (5,), (2, 600)]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.few = nn.Linear(300, 37), nn.Linear(37, 5), nn.Linear(600, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(x))).square().mean() + self.few(x.repeat(1, 2)).square().mean()


def sharded(order: str = "after", format: str = "fixed16", model: nn.Module | None = None, **options: Any) -> nn.Module:
    """``order``: whether the parameters are swapped before or after fully_shard; ``"float"``: not at all."""
    model = Model() if model is None else model
    if order == "before":
        optim.quantize_(model, format)
    for part in model.children():
        fully_shard(part, **options)
    fully_shard(model, **options)
    if order == "after":
        optim.quantize_(model, format)
    return model


def batch(step: int) -> Tensor:
    return torch.randn(8, 300, generator=torch.Generator().manual_seed(step))


def set_gradients(model: nn.Module, step: int) -> None:
    """The same gradients on any number of ranks, cut out of the whole."""
    generator = torch.Generator().manual_seed(step)
    for param in model.parameters():
        grad = torch.randn(param.shape, generator=generator) * 2.0 ** float(torch.randn((), generator=generator))
        if isinstance(param, DTensor):
            start = place_of(param)
            grad = in_place_of(grad[start : start + len(local_part(param))].clone(), param)
        param.grad = grad


def whole(tensor: Tensor) -> dict[str, Tensor]:
    """Every plane of ``tensor``, put together from all ranks' shards."""
    part = fixed_part(tensor)
    assert part is not None
    names = [name for name, plane in zip(("codes", "low", "exponents"), part.blocks, strict=True) if plane is not None]
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, [plane.clone() for plane in part.blocks.planes])
    if not isinstance(tensor, DTensor):
        return dict(zip(names, every[0], strict=True))
    return {name: torch.cat([planes[index] for planes in every]) for index, name in enumerate(names)}


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    found = {}
    for name, param in model.named_parameters():
        found[name] = whole(param)
        for key, value in optimizer.state[param].items():
            if isinstance(value, Tensor) and value.dim():
                found[f"{name}.{key}"] = whole(value)
    return found


def assert_same(one: dict[str, dict[str, Tensor]], other: dict[str, dict[str, Tensor]]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].keys() == other[name].keys()
        for plane in one[name]:
            assert torch.equal(one[name][plane], other[name][plane]), (name, plane)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW": lambda params: optim.AdamW(params, lr=1e-2),
    "AdamW 16/8": lambda params: optim.AdamW(params, lr=1e-2, state_word_length=8),
    "SGD": lambda params: optim.SGD(params, lr=1e-2, momentum=0.9, nesterov=True),
    "Lion 24": lambda params: optim.Lion(params, lr=1e-2, state_word_length=24),
    "NAdam": lambda params: optim.adopt(torch.optim.NAdam(params, lr=1e-2)),
}


def _update(rank: int, order: str, format: str, optimizers: list[str], steps: int) -> list[Any]:
    results = []
    for name in optimizers:
        model = sharded(order, format) if order != "whole" else Model()
        if order == "whole":
            optim.quantize_(model, format)
        else:
            model(batch(0)).backward()  # FSDP2 looks at its shards at the first forward pass
        optimizer = OPTIMIZERS[name](model.parameters())
        for step in range(steps):
            set_gradients(model, step)
            optimizer.step()
        results.append(everything(model, optimizer))
    return results


def assert_codes_are_those_of_one_process(
    format: str, optimizers: list[str], steps: int, runs: list[tuple[int, str]]
) -> None:
    alone = ranks.run(1, _update, "whole", format, optimizers, steps)[0]
    for count, order in runs:
        for result in ranks.run(count, _update, order, format, optimizers, steps):
            for one, other in zip(alone, result, strict=True):
                assert_same(one, other)


def test_codes_do_not_depend_on_the_number_of_ranks() -> None:
    """From the same gradients, 50 steps: the random bits are keyed by the element's place in the whole tensor."""
    runs = [(1, "after"), (2, "before"), (4, "after")]
    assert_codes_are_those_of_one_process("fixed16", list(OPTIMIZERS), 50, runs)


@pytest.mark.parametrize("format", ["fixed24", "<4,12>", "fixed8"])
def test_codes_of_other_formats_do_not_either(format: str) -> None:
    assert_codes_are_those_of_one_process(format, ["AdamW", "NAdam"], 5, [(3, "after")])


def _counts(rank: int, order: str, name: str) -> dict[str, UpdateCounts]:
    model = sharded(order) if order != "whole" else Model()
    if order == "whole":
        optim.quantize_(model)
    else:
        model(batch(0)).backward()
    optimizer: Any = OPTIMIZERS[name](model.parameters())
    for step in range(3):
        optimizer.fixed_point.counting = step == 2
        set_gradients(model, step)
        optimizer.step()
    return optimizer.fixed_point.counts  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["AdamW", "NAdam"])
def test_shards_count_their_own_rows(name: str) -> None:
    """Added up over the ranks, what is counted of the whole."""
    whole = ranks.run(1, _counts, "whole", name)[0]
    shards = ranks.run(3, _counts, "after", name)
    assert list(whole) == ["one.weight", "one.bias", "two.weight", "two.bias", "few.weight"]
    for label, counts in whole.items():
        summed = total([each[label] for each in shards])
        assert summed[:5] == counts[:5], label
        assert summed[5:] == pytest.approx(counts[5:], rel=1e-12)
    assert shards[0]["one.weight"].elements == 13 * 300
    assert shards[2]["one.weight"].elements == 11 * 300


def _train(rank: int, order: str, options: dict[str, Any]) -> Any:
    given = dict(options)
    kind, mesh = given.pop("kind", ""), given.pop("mesh", None)
    if mesh:
        given["mesh"] = init_device_mesh("cpu", mesh, mesh_dim_names=("replicate", "shard"))
    model = Model()
    if kind == "checkpointing":
        inner = model.one.forward
        model.one.forward = lambda x: checkpoint(inner, x, use_reentrant=False)  # type: ignore[method-assign]
    if kind == "compile":
        for part in model.children():
            part.compile(backend="aot_eager")
    model = sharded(order, model=model, **given)
    make = torch.optim.AdamW if order == "float" else optim.AdamW
    optimizer = make(model.parameters(), lr=1e-2)
    losses = []
    for step in range(6):
        for half in range(2):
            if kind == "accumulation":
                model.set_requires_gradient_sync(half == 1)  # type: ignore[operator]
            loss = model(batch(10 * step + 2 * dist.get_rank() + half))
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    floats = {name: param.full_tensor().clone() for name, param in model.state_dict().items()}
    stored = all(fixed_part(param) is not None for param in model.parameters())
    return losses, floats, stored


MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "kept gathered": {"reshard_after_forward": False},
    "bfloat16": {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)},
    "checkpointing": {"kind": "checkpointing"},
    "accumulation": {"kind": "accumulation"},
    "compile": {"kind": "compile"},
    "replicated": {"mesh": (2, 2)},
}


@pytest.mark.parametrize("mode", MODES)
def test_a_model_trains_as_in_float(mode: str) -> None:
    count = 4 if mode == "replicated" else 2
    floats = ranks.run(count, _train, "float", MODES[mode])
    fixed = ranks.run(count, _train, "after", MODES[mode])
    assert all(stored for _, _, stored in fixed)
    for (float_losses, float_weights, _), (losses, weights, _) in zip(floats, fixed, strict=True):
        assert losses == pytest.approx(float_losses, rel=2e-2 if mode == "bfloat16" else 5e-3)
        for name, weight in weights.items():
            # Six steps of at most 1e-2 each: what came to something else entirely would be 6e-2 off.
            assert (weight - float_weights[name]).abs().mean() < 2e-3, name
            assert torch.equal(weight, fixed[0][1][name])


def _bytes(rank: int) -> list[tuple[float, int, list[Any]]]:
    return [_held(16, False), _held(8, False), _held(16, True)]


def _held(state_word_length: int, gathered: bool) -> tuple[float, int, list[Any]]:
    model = nn.Sequential(*(nn.Linear(512, 512) for _ in range(4)))
    before = memory.live_storages().keys()
    model = sharded(model=model, reshard_after_forward=not gathered)
    optimizer = optim.AdamW(model.parameters(), state_word_length=state_word_length)
    for _ in range(2):
        loss = model(torch.randn(4, 512)).square().mean()
        if not gathered:
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    del loss
    held = memory.report(model, optimizer)
    rows = 512 // dist.get_world_size()
    found = {address: about for address, about in memory.live_storages().items() if address not in before}
    floats = [(size, kind) for size, kind in found.values() if kind[0] == torch.float32 and size >= 4 * rows * 512]
    return held.per_parameter, held.elements, floats


def test_bytes_per_rank() -> None:
    for count in (2, 4):
        for lean in ranks.run(count, _bytes):
            for (per_parameter, elements, floats), expected in zip(lean[:2], (6.0, 4.0), strict=True):
                assert per_parameter == pytest.approx(expected + 3 / 256, rel=0.02)
                assert elements == 4 * (512 * 512 + 512) // count
                assert floats == []
            assert lean[2][2] == []  # gathered, and kept so, weights are codes too


def _float_control(rank: int) -> list[Any]:
    """What the search for floats finds in an ordinary run."""
    model = sharded("float", model=nn.Sequential(*(nn.Linear(512, 512) for _ in range(4))))
    model(torch.randn(4, 512)).square().mean().backward()
    return [about for about in memory.live_storages().values() if about[0] >= 4 * 256 * 512]


def test_the_search_for_floats_finds_them_in_float32() -> None:
    assert len(ranks.run(2, _float_control)[0]) >= 4


def _refusals(rank: int) -> dict[str, str]:
    said = {}

    def refused(name: str, call: Callable[[], Any], error: type[Exception] = ValueError) -> None:
        with pytest.raises(error) as info:
            call()
        said[name] = str(info.value)

    model = sharded()
    optimizer = optim.AdamW(model.parameters())
    model(batch(0)).backward()
    weight = next(model.parameters())
    if rank == 1:
        local_part(weight.grad)[0, 0] = float("nan")
    before = whole(weight)
    refused("non-finite", optimizer.step, NonFiniteGradientError)
    assert all(torch.equal(before[name], plane) for name, plane in whole(weight).items())
    optimizer.fixed_point.nonfinite = "skip"
    optimizer.step()
    assert optimizer.fixed_point.skipped_steps == 1

    late = sharded("float")
    late(batch(0))
    refused("late", lambda: optim.quantize_(late))

    infinite = sharded("float")
    if rank == 0:
        with torch.no_grad():
            local_part(infinite.one.weight)[0, 0] = float("inf")
    refused("infinite", lambda: optim.quantize_(infinite))
    assert fixed_part(infinite.two.weight) is None  # nothing was changed

    mesh = init_device_mesh("cpu", (2,))
    columns = nn.Linear(4, 4)
    columns.weight = nn.Parameter(DTensor.from_local(torch.ones(4, 2), mesh, [Shard(1)]))
    refused("columns", lambda: optim.quantize_(columns))

    grid = init_device_mesh("cpu", (1, 2), mesh_dim_names=("data", "tensor"))
    both = parallelize_module(nn.Sequential(nn.Linear(4, 4)), grid["tensor"], {"0": ColwiseParallel()})
    refused("both", lambda: optim.quantize_(fully_shard(both, mesh=grid["data"])))
    assert on_any_rank(rank == 1, [weight])
    assert not on_any_rank(False, [weight])
    return said


def test_what_cannot_be_done_is_refused_on_every_rank() -> None:
    first, second = ranks.run(2, _refusals)
    assert "the gradient of a parameter, in the shard of another rank, holds a NaN" in first["non-finite"]
    assert "the gradient of parameter 'one.weight' holds a NaN" in second["non-finite"]
    assert "'one.weight' has been gathered by a forward pass" in first["late"]
    assert "parameter 'one.weight'" in first["infinite"]
    assert "a shard on another rank was refused" in second["infinite"]
    assert "along dimension 0 only" in first["columns"]
    assert "not by FSDP2 over tensor parallelism" in first["both"]


def _saved(rank: int, path: str) -> Any:
    model = sharded()
    optimizer = optim.AdamW(model.parameters(), lr=1e-2, state_word_length=8)
    _advance(model, optimizer, 0, 3)
    states = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    dcp.save(states, checkpoint_id=path)
    at = everything(model, optimizer)
    _advance(model, optimizer, 3, 6)
    return at, everything(model, optimizer)


def _advance(model: nn.Module, optimizer: torch.optim.Optimizer, start: int, stop: int) -> None:
    if start == 0:
        model(batch(0)).backward()
    for step in range(start, stop):
        set_gradients(model, step)
        optimizer.step()


def _loaded(rank: int, path: str, order: str) -> Any:
    model = sharded(order)
    with torch.no_grad():
        for param in model.parameters():
            param.zero_()
    optimizer = optim.AdamW(model.parameters(), lr=1e-2, state_word_length=8)
    states = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    dcp.load(states, checkpoint_id=path)
    set_state_dict(model, optimizer, model_state_dict=states["model"], optim_state_dict=states["optimizer"])
    at = everything(model, optimizer)
    model(batch(0)).backward()
    _advance(model, optimizer, 3, 6)
    return at, everything(model, optimizer)


def test_saved_on_four_ranks_and_loaded_on_any_number(tmp_path: Path) -> None:
    at, later = ranks.run(4, _saved, str(tmp_path / "saved"))[0]
    for count, order in ((2, "after"), (1, "after"), (3, "after"), (3, "before")):
        found_at, found_later = ranks.run(count, _loaded, str(tmp_path / "saved"), order)[0]
        assert_same(at, found_at)
        assert_same(later, found_later)


class DiesWhileWriting(dcp.FileSystemWriter):
    """Rank 1 leaves without a farewell, as if killed, when its shards are written and nobody knows of it yet."""

    def write_data(self, plan: Any, planner: Any) -> Any:
        future = super().write_data(plan, planner)
        future.wait()
        if dist.get_rank() == 1:
            os._exit(0)
        return future


def _cut_off(rank: int, folder: str) -> str:
    model = sharded()
    optimizer = optim.AdamW(model.parameters(), lr=1e-2, state_word_length=8)
    _advance(model, optimizer, 0, 3)
    for name, writer in (("good", dcp.FileSystemWriter), ("cut", DiesWhileWriting)):
        states = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
        try:
            dcp.save(states, storage_writer=writer(f"{folder}/{name}"))
        except (RuntimeError, dcp.api.CheckpointException) as error:
            return str(error)
    return "no error"


def test_a_process_killed_while_saving_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    assert ranks.run_one_of(2, partial(_cut_off, folder=str(tmp_path)), tmp_path, timeout=20.0) != "no error"
    assert list((tmp_path / "cut").glob("*.distcp"))
    assert not (tmp_path / "cut" / ".metadata").exists()
    whole_run = ranks.run(2, _saved, str(tmp_path / "whole"))[0]
    for found, expected in zip(ranks.run(2, _loaded, str(tmp_path / "good"), "after")[0], whole_run, strict=True):
        assert_same(found, expected)


def to_nearest(model: nn.Module) -> nn.Module:
    for param in model.parameters():
        stored_part(param).rounding = "nearest"
    return model


def _exported(rank: int, path: str) -> Any:
    full = StateDictOptions(full_state_dict=True, cpu_offload=True)
    model = sharded()
    expected = {name: param.full_tensor().clone() for name, param in model.state_dict().items()}
    exported = get_model_state_dict(model, options=full)
    # A checkpoint of a float run, sharded, is taken up.
    dcp.save(get_model_state_dict(sharded("float")), checkpoint_id=path)
    taken = to_nearest(sharded())
    with torch.no_grad():
        for param in taken.parameters():
            param.zero_()
    states = get_model_state_dict(taken)
    dcp.load(states, checkpoint_id=path)
    set_model_state_dict(taken, states)
    # And so is one float state dict of the whole.
    whole_model = to_nearest(sharded())
    with torch.no_grad():
        for param in whole_model.parameters():
            param.zero_()
    set_model_state_dict(
        whole_model, dict(expected), options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=False)
    )
    codes = [{name: whole(param) for name, param in each.named_parameters()} for each in (model, taken, whole_model)]
    return expected, exported, codes


def test_floats_out_and_in(tmp_path: Path) -> None:
    expected, exported, codes = ranks.run(2, _exported, str(tmp_path / "float"))[0]
    assert expected.keys() == exported.keys()
    for name, tensor in exported.items():
        assert type(tensor) is Tensor
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected[name])
    assert_same(codes[0], codes[1])
    assert_same(codes[0], codes[2])


def test_rows_of_a_tensor_are_tensors_of_their_own() -> None:
    x = FixedPointTensor.quantize(torch.randn(10, 300), "fixed16")
    part = x[2:5]
    assert part.is_whole
    assert part.first_row == 2
    assert part.codes.data_ptr() == x.codes[2:].data_ptr()
    with torch.no_grad():
        part.zero_()
    assert not x[2:5].dequantize().any()
    assert x[1].dequantize().all()
    assert [len(each) for each in x.split(4)] == [4, 4, 2]
    assert [len(each) for each in x.split([7, 3])] == [7, 3]
    assert torch.equal(x[-3:].dequantize(), x.dequantize()[-3:])
    assert x[5:2].shape == (0, 300)


def test_new_zeros_is_an_ordinary_tensor() -> None:
    x = FixedPointTensor.quantize(torch.randn(10, 300), "fixed16")
    for size in ((10, 300), (4, 300), (3,)):
        assert type(x.new_zeros(size)) is Tensor
    assert x.new_zeros(3, dtype=torch.int64).dtype == torch.int64


def test_room_for_a_copy_on_a_device_that_is_named_is_for_codes() -> None:
    """So asynchronous checkpoints make room; all else gets floats."""
    x = FixedPointTensor.quantize(torch.randn(10, 300), "fixed16", first_row=3)
    room = x.new_empty(x.shape, device="cpu")
    assert isinstance(room, FixedPointTensor)
    assert (room.format, room.first_row) == (x.format, 3)
    assert room.codes.data_ptr() != x.codes.data_ptr()
    room.copy_(x)
    assert torch.equal(room.codes, x.codes)
    for other in (
        x.new_empty(x.shape), x.new_empty((4, 300), device="cpu"), x.new_empty(x.shape, device="cpu", dtype=torch.half),
    ):  # fmt: skip
        assert type(other) is Tensor


def _zeroed(order: str = "after") -> nn.Module:
    model = sharded(order)
    with torch.no_grad():
        for param in model.parameters():
            param.zero_()
    return model


def _losses(model: nn.Module, steps: int = 4) -> list[float]:
    optimizer = optim.AdamW(model.parameters(), lr=1e-2)
    found = []
    for step in range(steps):
        loss = model(batch(step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def _exchanges(rank: int, folder: str) -> dict[str, Any]:
    """Ways in which shards come to be others than FSDP2 first saw."""
    expected = _losses(sharded())
    found = {}
    state = sharded().state_dict()
    torch.save(state, f"{folder}/{rank}.pt")
    for name, loaded in (("assign", state), ("file", torch.load(f"{folder}/{rank}.pt", weights_only=False))):
        for when in ("before", "after"):
            model = _zeroed()
            if when == "after":
                model(batch(0))
            model.load_state_dict({key: value.clone() for key, value in loaded.items()}, assign=True)
            found[f"{name}, {when}"] = _losses(model) == expected
    moved = sharded()
    moved(batch(0)).backward()
    moved._apply(torch.clone)
    moved.zero_grad()
    found["apply"] = _losses(moved) == expected
    modes = [torch.no_grad(), torch.inference_mode()]
    for mode in modes if dist.get_world_size() > 1 else modes[:1]:  # torch 2.13 cannot on one rank, in float neither
        evaluated = sharded()
        with mode:
            evaluated(batch(0))
        found[type(mode).__name__] = _losses(evaluated) == expected
    return found


@pytest.mark.parametrize("count", [1, 2])
def test_shards_may_be_exchanged_at_any_time(count: int, tmp_path: Path) -> None:
    for found in ranks.run(count, _exchanges, str(tmp_path)):
        assert all(found.values()), found


def _before_the_first_step(rank: int) -> list[dict[str, dict[str, Tensor]]]:
    found = []
    for order in ("after", "before"):
        model = sharded(order)
        with torch.no_grad():
            for param in model.parameters():
                param.mul_(0.9)
        found.append({name: whole(param) for name, param in model.named_parameters()})
    return found


def test_arithmetic_in_place_has_the_bits_of_the_whole_tensor_from_the_start() -> None:
    (one, _), (after, before) = ranks.run(1, _before_the_first_step)[0], ranks.run(3, _before_the_first_step)[0]
    assert_same(one, after)
    assert_same(one, before)


def _put_together(rank: int) -> Any:
    """Shards that are quantized apart, each from row 0 on, and put together as one parameter."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    here = slice(12 // mesh.size() * rank, 12 // mesh.size() * (rank + 1))
    generator = torch.Generator().manual_seed(0)
    values, grad = torch.randn(12, 300, generator=generator), torch.randn(12, 300, generator=generator)
    params = []
    for _ in range(2):
        shard = FixedPointTensor.quantize(values[here], "fixed12", rounding="nearest")
        params.append(nn.Parameter(DTensor.from_local(shard, mesh, [Shard(0)])))
    optimizer = optim.adopt(torch.optim.AdamW(params[:1], lr=1e-2))
    optimizer.add_param_group({"params": params[1:]})
    for param in params:
        param.grad = DTensor.from_local(grad[here].clone(), mesh, [Shard(0)])
    optimizer.step()
    for param in params:
        part = stored_part(param)
        assert (part.first_row, part.whole_rows) == (here.start, 12)
    return [whole(param) for param in params] + [whole(optimizer.state[param]["exp_avg"]) for param in params]


def test_shards_that_were_made_elsewhere_are_placed_when_an_optimizer_gets_them() -> None:
    for one, other in zip(ranks.run(1, _put_together)[0], ranks.run(3, _put_together)[2], strict=True):
        assert all(torch.equal(one[plane], other[plane]) for plane in one)


def _in_columns(rank: int) -> None:
    mesh = init_device_mesh("cpu", (2,))
    shard = FixedPointTensor.quantize(torch.ones(4, 2), "fixed16")
    columns = nn.Parameter(DTensor.from_local(shard, mesh, [Shard(1)]))
    plain = torch.optim.AdamW([columns])
    with pytest.raises(ValueError, match="along dimension 0 only"):
        optim.adopt(plain)
    assert type(plain) is torch.optim.AdamW
    optimizer = optim.AdamW([nn.Parameter(FixedPointTensor.quantize(torch.ones(4), "fixed16"))])
    with pytest.raises(ValueError, match="along dimension 0 only"):
        optimizer.add_param_group({"params": [columns]})
    assert len(optimizer.param_groups) == 1


def test_an_optimizer_refuses_shards_of_columns() -> None:
    ranks.run(2, _in_columns)


def _single_number(rank: int) -> float:
    module, mesh = nn.Module(), init_device_mesh("cpu", (2,))
    module.scale = nn.Parameter(DTensor.from_local(torch.ones(()), mesh, [Replicate()]))
    optim.quantize_(module)
    optimizer = optim.SGD(module.parameters(), lr=0.5)
    module.scale.grad = DTensor.from_local(torch.ones(()), mesh, [Replicate()])
    optimizer.step()
    return stored_part(module.scale).dequantize().item()


def test_a_single_number_on_all_ranks_has_no_rows_to_be_placed_by() -> None:
    assert ranks.run(2, _single_number) == [0.5, 0.5]


def _floats_before_the_first_pass(rank: int) -> list[Any]:
    model = nn.Sequential(*(nn.Linear(512, 512) for _ in range(4)))
    before = memory.live_storages().keys()
    model = sharded(model=model)
    found = {address: about for address, about in memory.live_storages().items() if address not in before}
    return [about for about in found.values() if about[1][0] == torch.float32 and about[0] >= 4 * 256 * 512]


def test_no_float_shard_outlives_quantize() -> None:
    assert ranks.run(2, _floats_before_the_first_pass) == [[], []]


def _interchange(rank: int) -> bool:
    model = sharded()
    optimizer = optim.AdamW(model.parameters(), lr=1e-2)
    _advance(model, optimizer, 0, 1)
    state = optim.float_state_dict(model)
    plain = optim.plain_optimizer_state(optimizer)
    assert all(type(local_part(value)) is Tensor for value in state.values())
    moments = [value for each in plain["state"].values() for value in each.values()]
    assert all(fixed_part(value) is None for value in moments)
    for name, param in model.named_parameters():
        assert torch.equal(state[name].full_tensor(), param.full_tensor())
    return True


def test_interchange_with_plain_torch() -> None:
    assert all(ranks.run(2, _interchange))


def _other_dimension(rank: int) -> str:
    model = Model()
    optim.quantize_(model)
    with pytest.raises(ValueError, match="along another dimension than 0") as info:
        fully_shard(model, shard_placement_fn=lambda param: Shard(param.dim() - 1))
    return str(info.value)


def test_another_dimension_is_refused_after_quantize_too() -> None:
    assert "keep_float" in ranks.run(2, _other_dimension)[0]


def test_meta_parameters_are_refused() -> None:
    with torch.device("meta"):
        model = Model()
    with pytest.raises(ValueError, match=r"'one.weight' is on the meta device: to_empty\(\)"):
        optim.quantize_(model)


def _sharded_on_meta(rank: int) -> bool:
    with torch.device("meta"):
        model = Model()
    model = sharded("float", model=model)
    with pytest.raises(ValueError, match=r"'one.weight' is on the meta device: to_empty\(\)"):
        optim.quantize_(model)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for param in model.parameters():
            param.fill_(0.01)
    optim.quantize_(model)
    return _losses(model)[-1] > 0


def test_shards_on_meta_are_refused_until_they_are_made() -> None:
    assert all(ranks.run(2, _sharded_on_meta))


def _stored_in_the_background(rank: int, folder: str) -> Any:
    model = sharded()
    optimizer = optim.AdamW(model.parameters(), lr=1e-2)
    _advance(model, optimizer, 0, 2)
    states = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    at = everything(model, optimizer)
    dcp.save(states, checkpoint_id=f"{folder}/at once")
    # It saves in a thread: on the training's own group, ranks could meet in collectives of one and of the other.
    future = dcp.async_save(states, checkpoint_id=f"{folder}/later", process_group=dist.new_group())
    _advance(model, optimizer, 2, 3)
    future.result()
    other = _zeroed()
    other_optimizer = optim.AdamW(other.parameters(), lr=1e-2)
    states = dict(zip(("model", "optimizer"), get_state_dict(other, other_optimizer), strict=True))
    dcp.load(states, checkpoint_id=f"{folder}/later")
    set_state_dict(other, other_optimizer, model_state_dict=states["model"], optim_state_dict=states["optimizer"])
    return at, everything(other, other_optimizer)


def test_asynchronous_checkpoints(tmp_path: Path) -> None:
    at, found = ranks.run(2, _stored_in_the_background, str(tmp_path))[0]
    assert_same(at, found)
    sizes = [sum(file.stat().st_size for file in (tmp_path / name).glob("*.distcp")) for name in ("at once", "later")]
    assert sizes[1] <= 1.1 * sizes[0]


def _one_file(rank: int, folder: str) -> dict[str, Tensor]:
    model = sharded()
    dcp.save(get_model_state_dict(model), checkpoint_id=folder)
    return {name: param.full_tensor().clone() for name, param in model.state_dict().items()}


def test_a_sharded_checkpoint_becomes_one_file(tmp_path: Path) -> None:
    """By the command that is named to whoever inspects the folder."""
    expected = ranks.run(2, _one_file, str(tmp_path / "sharded"))[0]
    with pytest.raises(ValueError, match=r"as distributed checkpoints are: .* dcp_to_torch_save") as told:
        read_file(tmp_path / "sharded")
    command = shlex.split(str(told.value).partition("with python ")[2])
    subprocess.run([sys.executable, *command], check=True, cwd=tmp_path)  # it writes FILE
    found = torch.load(tmp_path / "FILE", weights_only=True)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert type(tensor) is Tensor
        assert torch.equal(tensor, expected[name])
    Model().load_state_dict(found)


def _shared_out(rank: int) -> dict[str, str]:
    tensor = FixedPointTensor.quantize(torch.full((4, 300), 1.0 + rank), "fixed16")
    said = {}
    for name, call in (
        ("scatter", lambda: distribute_tensor(tensor, init_device_mesh("cpu", (2,)), [Shard(0)])),
        ("window", lambda: dist.broadcast(tensor.t(), 0)),
    ):
        with pytest.raises(ValueError) as info:  # noqa: PT011
            call()
        said[name] = str(info.value)
        dist.barrier()
    return said


def test_what_shares_out_a_tensor_is_refused() -> None:
    said = ranks.run(2, _shared_out)[0]
    assert "before optim.quantize_" in said["scatter"]
    assert "a window" in said["window"]
