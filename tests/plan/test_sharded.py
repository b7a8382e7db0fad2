"""Plans of several GPUs, beside processes that talk over gloo."""

from __future__ import annotations

import gc
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from lowprec_plugin import comm, memory, optim
from lowprec_plugin.arithmetic.formulas import ADAM
from lowprec_plugin.comm import exchange
from lowprec_plugin.optim.options import PluginOptions
from lowprec_plugin.plan import plan
from lowprec_plugin.plan.amounts import gathered_bytes
from lowprec_plugin.plan.inventory import of_module
from lowprec_plugin.plan.storages import fixed_point
from tests.comm import ranks
from tests.deepspeed import engines
from tests.plan.models import Shardable, batch, small_transformer

#: Options of the plan, and of the run.
FIXED = {"16": {}, "16/8": {"state_word_length": 8, "comm_word_length": 8}, "12": {"word_length": 12}}


def step(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    module(batch(getattr(module, "module", module))).square().mean().backward()
    optimizer.step()


def make(bits: dict[str, Any], model: Any, **quantized: Any) -> nn.Module:
    torch.manual_seed(0)
    module = model()
    optim.quantize_(module, f"fixed{bits.get('word_length', 16)}", **quantized)
    return module


def _fsdp2(rank: int, keep_float: list[str]) -> dict[str, Any]:
    found = {}
    for name, bits in FIXED.items():
        module = make(bits, Shardable, keep_float=keep_float)
        for block in module.blocks:
            fully_shard(block)
        fully_shard(module)
        held: dict[str, int] = {}

        def look(part: nn.Module, args: Any, path: str, held: dict[str, int] = held) -> None:
            # As gathered for the forward pass, the padding of shards too.
            planes = [plane for param in part.parameters(False) for plane in param.blocks.planes]
            held[path] = sum(plane.untyped_storage().nbytes() for plane in planes)

        for index, block in enumerate(module.blocks):
            block.register_forward_pre_hook(lambda part, args, path=f"blocks.{index}": look(part, args, path))
        state = comm.FSDPState(module, bits.get("comm_word_length", 16))
        optimizer = optim.AdamW(module.parameters(), state_word_length=bits.get("state_word_length"))
        step(module, optimizer)
        found[name] = vars(memory.report(module, optimizer)), state.report(), held
    return found


@pytest.mark.parametrize(("count", "keep_float"), [(2, []), (3, ["norm.*"])], ids=str)
def test_fsdp2(count: int, keep_float: list[str]) -> None:
    for rank, found in enumerate(ranks.run(count, _fsdp2, keep_float)):
        for name, (report, traffic, held) in found.items():
            options = {"ranks": count, "sharding": "fsdp2", "keep_float": keep_float, **FIXED[name]}
            planned = plan(Shardable(), rank=rank, **options).ours
            for kind in ("weights", "state", "gradients", "buffers"):
                assert getattr(planned, kind) == pytest.approx(report[kind], rel=0.02), (rank, name, kind)
            assert planned.sent_gradients == pytest.approx(traffic["bytes_sent_per_step"], rel=0.02)
            assert planned.sent_weights == pytest.approx(traffic["weight_bytes_sent_per_step"], rel=0.02)
            inventory = of_module(Shardable(), keep_float)
            bits = FIXED[name].get("word_length", 16)
            storage = fixed_point(PluginOptions(word_length=bits), ADAM, 4)
            for path, nbytes in held.items():
                assert gathered_bytes(storage, inventory.units()[path], count) == pytest.approx(nbytes, rel=0.02)
            assert set(held) == {"blocks.0", "blocks.1", "blocks.2"}
        first = plan(Shardable(), rank=0, **options).ours
        assert first.weights >= planned.weights


def _ddp(rank: int) -> dict[str, Any]:
    found = {}
    for name, bits in FIXED.items():
        module = make(bits, small_transformer)
        model = DistributedDataParallel(module)
        state = comm.DDPState(model, bits.get("comm_word_length", 16), error_feedback=name == "16/8")
        model.register_comm_hook(state, comm.ddp_hook)
        optimizer = optim.SGD(
            module.parameters(), lr=0.1, momentum=0.9, state_word_length=bits.get("state_word_length")
        )
        step(model, optimizer)
        residuals = sum(blocks.nbytes for blocks in state._residuals.values())
        found[name] = vars(memory.report(module, optimizer)), state.report(), residuals
    return found


def test_ddp() -> None:
    for found in ranks.run(2, _ddp):
        for name, (report, traffic, residuals) in found.items():
            options: Any = {"optimizer": "sgd-momentum", "ranks": 2, "sharding": "ddp", **FIXED[name]}
            planned = plan(small_transformer(), **options)
            for kind in ("weights", "state", "gradients", "buffers"):
                assert getattr(planned.ours, kind) == report[kind]
            assert planned.ours.sent_gradients == pytest.approx(traffic["bytes_sent_per_step"], rel=0.02)
            assert planned.float32.sent_gradients == pytest.approx(traffic["float32_bytes_per_step"], rel=0.001)
            if name == "16/8":
                fed_back = plan(small_transformer(), comm_error_feedback=True, **options)
                assert fed_back.ours.wire - planned.ours.wire == residuals > 0
            views = plan(small_transformer(), bucket_view=True, **options)
            assert planned.ours.wire - views.ours.wire == report["gradients"]


def _buckets(rank: int, views: bool) -> int:
    """Bytes that DDP and a backward pass leave behind in float32, the gradients aside."""
    gc.collect()  # what went before is not to go in between
    module, x = small_transformer(), torch.randint(256, (2, 16))
    module(x).square().mean().backward()
    module.zero_grad()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        model = DistributedDataParallel(module, gradient_as_bucket_view=views)
        model(x).square().mean().backward()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return sum(event.nbytes() for event in events) - (0 if views else memory.report(module).gradients)


def _both(rank: int) -> dict[bool, int]:
    # The least of several: what torch's other threads have not let go of yet only adds.
    return {views: min(_buckets(rank, views) for _ in range(5)) for views in (False, True)}


def test_buckets_of_ddp_are_a_second_copy_of_the_gradients() -> None:
    for found in ranks.run(2, _both):
        for views, left in found.items():
            planned = plan(small_transformer(), ranks=2, sharding="ddp", bucket_view=views).float32
            assert planned.wire + (planned.gradients if views else 0) == pytest.approx(left, rel=0.02)


@pytest.mark.parametrize("word_length", [4, 8, 12, 16])
@pytest.mark.parametrize("count", [2, 3, 8])
def test_messages_of_large_gradients_are_those_of_their_parts(count: int, word_length: int) -> None:
    """More than a million numbers go in several parts, small gradients with the first; nothing is sent here."""
    sizes = [3_000_000, 0, 17, 255, 256, 70_000]
    meta = [exchange.Gradient(torch.empty(size, device="meta"), 0, 0) for size in sizes]
    how = exchange.Exchange(word_length, "nearest", None)
    parts = [exchange._Part(how, pieces, plain, count).stride for pieces, plain in exchange._parts(meta)]
    assert exchange.message_bytes(sizes, count, word_length) == parts
    assert len(parts) == 3
    assert exchange.message_bytes([17], count, word_length) == [-(-4 * -(-17 // count) // 16) * 16]


ZERO = {"reduce_bucket_size": 20000, "stage3_param_persistence_threshold": 0}


def _zero(rank: int) -> dict[Any, Any]:
    found = {}
    for stage, dtype in ((1, "bfloat16"), (2, "float32"), (3, "bfloat16")):
        engine = engines.engine(rank, stage, dtype, zero=ZERO)
        from lowprec_plugin.deepspeed import adopt_engine

        adopted = adopt_engine(engine, state_word_length=8, comm_word_length=8, log=lambda said: None)
        engines.train(engine, 1)
        own = [getattr(param, "ds_tensor", param) for param in engine.module.parameters()]
        state = [each for param in adopted.partitions for each in adopted.optimizer.state[param].values()]
        found[stage, dtype] = {
            "weights": sum(tensor.numel() * tensor.element_size() for tensor in own)
            + sum(partition.blocks.nbytes for partition in adopted.partitions),
            "state": sum(_nbytes(each) for each in state),
            "sent": adopted.wire.traffic.bytes_sent,
            "kept": engine.optimizer.grad_partitions_flat_buffer.nbytes if stage == 3 else None,
        }
    return found


def _nbytes(tensor: Tensor) -> int:
    return tensor.blocks.nbytes if hasattr(tensor, "blocks") else tensor.nbytes


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
def test_zero() -> None:
    for found in ranks.run(2, _zero):
        for (stage, dtype), measured in found.items():
            options: Any = {"ranks": 2, "sharding": f"zero{stage}", "compute_dtype": dtype, "persistent": 0}
            planned = plan(
                engines.network(), state_word_length=8, comm_word_length=8, reduce_bucket_size=20000, **options
            ).ours
            assert planned.weights == pytest.approx(measured["weights"], rel=0.02), (stage, dtype)
            assert planned.state == pytest.approx(measured["state"], rel=0.02), (stage, dtype)
            assert planned.sent_gradients == pytest.approx(measured["sent"], rel=0.02), (stage, dtype)
            if stage == 3:  # beside it there is a float32 copy during the step
                itemsize = 2 if dtype == "bfloat16" else 4
                assert planned.gradients * itemsize / (itemsize + 4) == pytest.approx(measured["kept"], rel=0.02)
