from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from lowprec_plugin import FixedPointTensor, comm
from lowprec_plugin.arithmetic.random_bits import stream_of
from lowprec_plugin.arithmetic.reference.wire import WORD_LENGTHS
from lowprec_plugin.comm import exchange
from lowprec_plugin.comm.exchange import Exchange, Gradient, keys
from tests.comm import ranks

SIZES = (0, 1, 255, 256, 257, 1000, 70_001)


def gradient(rank: int, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * size + rank)
    return (torch.randn(size, generator=generator) * (1 + rank)).to(dtype)


def _all_reduce(rank: int) -> dict[Any, Tensor]:
    exchange.PART = 100  # several parts
    results = {}
    for word_length in WORD_LENGTHS:
        for op in ("mean", "sum"):
            given = [gradient(rank, size) for size in SIZES]
            run = Exchange(word_length, "stochastic", None, op == "mean")
            run.run([Gradient(x, *keys(stream_of(3, str(x.numel())), 0, rank)) for x in given])
            results.update({(word_length, x.numel(), op): x for x in given})
        alone = comm.all_reduce(gradient(rank, 1000), word_length=word_length, seed=3, name="1000")
        assert torch.equal(alone, results[word_length, 1000, "mean"])  # whatever it travels with
    transposed = gradient(rank, 900).view(30, 30).t()
    results["transposed"] = comm.all_reduce(transposed, word_length=16)
    assert results["transposed"] is transposed
    for dtype in (torch.bfloat16, torch.float16):
        results[dtype] = comm.all_reduce(gradient(rank, 1000, dtype), word_length=16)
    hurt = gradient(rank, 1000)
    if rank == dist.get_world_size() - 1:
        hurt[300] = torch.inf
    results["not finite"] = comm.all_reduce(hurt)
    small = gradient(rank, 10)
    small[0] = torch.nan if rank == 0 else 1.0
    results["small, not finite"] = comm.all_reduce(small)
    return results


@pytest.mark.parametrize("count", [2, 3, 4, 8])
def test_all_reduce(count: int) -> None:
    every = ranks.run(count, _all_reduce)
    for other in every[1:]:
        for case, tensor in every[0].items():
            assert torch.equal(tensor.nan_to_num(7.0), other[case].nan_to_num(7.0)), case
    for (word_length, size, op), got in ((case, t) for case, t in every[0].items() if isinstance(case, tuple)):
        total = torch.stack([gradient(rank, size).double() for rank in range(count)]).sum(dim=0)
        divisor = count if op == "mean" else 1
        # A code is at most 2**(2 - word_length) of a block's largest magnitude; each rank rounds once, and the result.
        largest = sum(float(gradient(rank, size).abs().max()) for rank in range(count)) if size else 0.0
        bound = 2.0 ** (2 - word_length) * 2 * largest / divisor if size >= 256 else 1e-6 * largest
        assert bool(((got.double() - total / divisor).abs() <= bound).all()), (word_length, size, op)
    assert every[0]["not finite"][256:512].isnan().all()
    assert every[0]["not finite"][:256].isfinite().all()
    assert every[0]["small, not finite"][0].isnan()
    assert every[0]["small, not finite"][1:].isfinite().all()
    mean = torch.stack([gradient(rank, 900).double() for rank in range(count)]).mean(dim=0).view(30, 30).t()
    assert torch.allclose(every[0]["transposed"].double(), mean, atol=1e-3)


def _others(rank: int) -> dict[str, Tensor]:
    count = dist.get_world_size()
    share = 1000
    given = gradient(rank, count * share)
    results = {}
    for word_length in WORD_LENGTHS:
        name = f"{word_length}"
        results[f"scatter {name}"] = comm.reduce_scatter(torch.empty(share), given, word_length=word_length, seed=1)
        results[f"gather {name}"] = comm.all_gather(
            torch.empty(count, share), gradient(rank, share), word_length=word_length, seed=1
        )
    huge = torch.full((count * share,), torch.finfo(torch.float32).max)
    results["huge"] = comm.reduce_scatter(torch.empty(share), huge)
    return results


def test_reduce_scatter_and_all_gather() -> None:
    count, share = 3, 1000
    every = ranks.run(count, _others)
    mean = torch.stack([gradient(rank, count * share).double() for rank in range(count)]).mean(dim=0)
    inputs = torch.stack([gradient(rank, share) for rank in range(count)])
    for word_length in WORD_LENGTHS:
        step = 2.0 ** (2 - word_length)
        scattered = torch.cat([result[f"scatter {word_length}"] for result in every])
        assert float((scattered.double() - mean).abs().max()) <= 5 * 3 * step
        assert float((scattered.double() - mean).abs().max()) > 0
        for result in every:
            assert torch.equal(result[f"gather {word_length}"], every[0][f"gather {word_length}"])
        assert float((every[0][f"gather {word_length}"] - inputs).abs().max()) <= 5 * 3 * step
    assert all(bool(torch.isfinite(result["huge"]).all()) for result in every)


def _bytes(rank: int) -> dict[int, tuple[int, float]]:
    counted = {}
    for word_length in WORD_LENGTHS:
        run = Exchange(word_length, "stochastic", None)
        run.run([Gradient(gradient(rank, 2**20), *keys(1, 0, rank))])
        counted[word_length] = (run.traffic.bytes_sent, run.traffic.float32_bytes)
    return counted


def test_bytes_are_those_of_the_formula() -> None:
    for counted in ranks.run(2, _bytes):
        for word_length, (sent, float32) in counted.items():
            assert sent / float32 == pytest.approx((word_length / 8 + 1 / 256) / 4, rel=0.001)


SEVERAL = (10, 255, 3, 256, 1000, 70_001)


def packed_bytes(count: int, word_length: int) -> int:
    """What a rank sends of ``SEVERAL``, padding included: twice, to every other rank, codes, exponents and floats."""
    blocks = -(-sum(-(-size // 256) for size in SEVERAL if size >= 256) // count)
    floats = -(-sum(size for size in SEVERAL if size < 256) // count)
    codes, exponents, plain = blocks * 32 * word_length, -(-blocks // 16) * 16, -(-4 * floats // 16) * 16
    return 2 * (count - 1) * (codes + exponents + plain)


def _several(rank: int) -> dict[Any, Any]:
    results: dict[Any, Any] = {}
    for word_length in WORD_LENGTHS:
        run = Exchange(word_length, "stochastic", None)
        run.run([Gradient(gradient(rank, size), *keys(1, 0, rank)) for size in SEVERAL])
        results[word_length] = run.traffic.bytes_sent
    run = Exchange(16, "stochastic", None)
    small = [gradient(rank, 250) for _ in range(60)]
    run.run([Gradient(x, *keys(1, 0, rank)) for x in small])
    results["small"] = run.traffic.bytes_sent / run.traffic.float32_bytes
    alone = comm.all_reduce(gradient(rank, 250))
    results["alike"] = all(torch.equal(x, alone) for x in small)  # whichever rank sums it
    results["digest"] = alone.tolist()
    largest = torch.finfo(torch.float32).max
    results["largest"] = comm.all_reduce(torch.full((200,), largest)).unique().tolist() == [largest]
    results["beyond"] = comm.all_reduce(torch.full((200,), largest), "sum").unique().tolist()
    return results


@pytest.mark.parametrize("count", [2, 3, 8])
def test_several_gradients_cost_what_the_formula_and_its_padding_say(count: int) -> None:
    every = ranks.run(count, _several)
    for results in every:
        for word_length in WORD_LENGTHS:
            assert results[word_length] == packed_bytes(count, word_length)
        assert results["small"] == pytest.approx(1, rel=0.01)
        assert results["alike"]
        assert results["digest"] == every[0]["digest"]
        assert results["largest"]
        assert results["beyond"] == [float("inf")]


def _refused(rank: int) -> list[str]:
    said = []
    for call in (
        lambda: comm.reduce_scatter(torch.zeros(20, 30).t(), torch.zeros(1200)),
        lambda: comm.reduce_scatter(torch.zeros(600).double(), torch.zeros(1200)),
        lambda: comm.all_gather(torch.zeros(1200).double(), torch.zeros(600)),
    ):
        with pytest.raises(ValueError) as info:  # noqa: PT011
            call()
        said.append(str(info.value))
    return said


def test_outputs_that_cannot_be_written_are_refused_before_anything_is_sent() -> None:
    for strides, *dtypes in ranks.run(2, _refused):
        assert "output of strides (1, 30) is not contiguous: make it so" in strides
        assert all(
            "float16 tensors can travel in fixed-point, not torch.float64: convert it" in said for said in dtypes
        )


def test_bad_arguments() -> None:
    x = torch.zeros(300)
    with pytest.raises(ValueError, match=r"word_length=10 is not one of \(4, 8, 12, 16\)"):
        comm.all_reduce(x, word_length=10)
    with pytest.raises(ValueError, match=r"op='max' is not one of"):
        comm.all_reduce(x, "max")
    with pytest.raises(ValueError, match="only float32, bfloat16 and float16"):
        comm.all_reduce(x.double())
    with pytest.raises(ValueError, match="rounding='up'"):
        comm.all_reduce(x, rounding="up")
    with pytest.raises(ValueError, match=r"a FixedPointTensor is not floats in memory: give floats \(dequantize\(\)\)"):
        comm.all_reduce(FixedPointTensor.quantize(x, "fixed16"))


def _negated(rank: int) -> list[Tensor]:
    """Of tensors whose memory holds other numbers than they do."""
    z = torch.complex(torch.ones(600), torch.full((600,), 1.0 + rank))
    reduced = comm.all_reduce(z.conj().imag, rounding="nearest")
    share = torch.empty(300)
    comm.reduce_scatter(share, z.conj().imag, rounding="nearest")
    gathered = torch.empty(1200)
    comm.all_gather(gathered, z.conj().imag, rounding="nearest")
    return [reduced.clone(), share, gathered]


def test_numbers_are_what_they_look_like() -> None:
    for reduced, share, gathered in ranks.run(2, _negated):
        assert torch.equal(reduced, torch.full((600,), -1.5))
        assert torch.equal(share, torch.full((300,), -1.5))
        # The first collective has written the mean to the imaginary part itself.
        assert torch.equal(gathered, torch.full((1200,), -1.5))
