"""A row per parameter."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lowprec_plugin import memory, optim
from lowprec_plugin.arithmetic.update_counts import UpdateCounts
from lowprec_plugin.telemetry import block_exponents, counts_by_name, exponent_spread, layers, peak_bytes
from tests.plan.models import Odd, batch


def test_rows_say_what_is_stored_how_and_add_up() -> None:
    module = Odd()
    optim.quantize_(module, "fixed12", keep_float="norm.*")
    optimizer = optim.AdamW(module.parameters(), state_word_length=8)
    optimizer.fixed_point.counting = True
    module(batch(module)).square().mean().backward()
    optimizer.step()
    counts = counts_by_name(module, [optimizer])
    rows = {row.name: row for row in layers(module, [optimizer], counts)}
    assert list(rows) == [name for name, _ in module.named_parameters()]
    report = memory.report(module, optimizer)
    scalars = sum(4 for state in optimizer.state.values() if "step" in state)
    assert sum(row.nbytes for row in rows.values()) == report.weights + report.state - scalars
    assert sum(row.elements for row in rows.values()) == report.elements
    block, norm, frozen = rows["blocks.0.weight"], rows["norm.weight"], rows["back.bias"]
    assert (block.weights, block.state) == ("fixed12", "fixed8, fixed8^2")
    assert (norm.weights, norm.state) == ("float32", "float32")
    assert (norm.lost, norm.saturated, norm.noise_to_update) == (None, None, None)
    assert (frozen.state, frozen.lost) == ("-", None)
    assert block.lost == counts["blocks.0.weight"].lost_share
    assert block.noise_to_update == counts["blocks.0.weight"].noise_to_update > 0


def test_parameters_that_share_a_label_are_not_mistaken_for_one_another() -> None:
    one, other = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    optim.quantize_(one)
    optim.quantize_(other)
    module = nn.ModuleList([one, other])
    optimizer = optim.SGD(module.parameters(), lr=0.1)
    optimizer.fixed_point.counts = {"weight": UpdateCounts(16, 16), "parameter 1": UpdateCounts(16, 3)}
    assert counts_by_name(module, [optimizer]) == {}


@given(st.lists(st.floats(-60, 60), min_size=1, max_size=12), st.integers(2, 16))
def test_exponents_are_those_of_blocks_that_are_not_all_zero(powers: list[float], word_length: int) -> None:
    module = nn.Linear(256, len(powers), bias=False)
    with torch.no_grad():
        module.weight.copy_(2.0 ** torch.tensor(powers)[:, None] * torch.randn(len(powers), 256))
        module.weight[0] = 0
    optim.quantize_(module, f"fixed{word_length}")
    # Independently: the smallest exponent with which the largest magnitude still fits the codes.
    wanted = []
    for row in module.weight.dequantize().double()[1:]:
        top = row.abs().max().item()
        wanted.append(next(e for e in range(-110, 127) if top <= (2 ** (word_length - 1) - 1) * 2.0**e))
    counts = block_exponents(module)
    assert counts.sum() == len(powers) - 1
    assert all(counts[exponent + 128] == wanted.count(exponent) for exponent in set(wanted))
    assert exponent_spread(counts) == (max(wanted) - min(wanted) if wanted else None)


def test_a_static_format_has_one_exponent_and_floats_none() -> None:
    module = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    assert exponent_spread(block_exponents(module)) is None
    optim.quantize_(module[0], "<4,12>")
    counts = block_exponents(module)
    assert counts[128 - 12] == counts.sum() == 2
    assert exponent_spread(counts) == 0


def test_resident_memory_grows_with_what_is_written() -> None:
    before = peak_bytes(torch.device("cpu"))
    held = torch.ones(2**25)
    after = peak_bytes(torch.device("cpu"))
    assert before is not None
    assert after is not None
    assert 0.9 * held.nbytes < after - before < 1.5 * held.nbytes
