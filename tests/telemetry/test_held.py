"""What is held, beside what the plan says, and what float32 and bf16 mixed precision would hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from lowprec_plugin import FixedPointFormat, keep_activations, memory, optim
from lowprec_plugin.plan import plan
from lowprec_plugin.telemetry import Held, held, predicted
from tests.comm import ranks
from tests.plan.models import MODELS, Odd, Shardable, batch
from tests.plan.test_plan import OPTIMIZERS

KEPT = ["norm.*"]


def step(module: nn.Module, optimizer: torch.optim.Optimizer) -> Held:
    module(batch(module)).square().mean().backward()
    optimizer.step()
    report = memory.report(module, optimizer)
    return held(report, memory.gradients(module))


@pytest.mark.parametrize("bits", [(16, None), (12, 8)], ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", MODELS)
def test_predicted_float32_and_bf16_are_the_plans(model: str, optimizer: Any, bits: tuple[int, int | None]) -> None:
    module: nn.Module = MODELS[model]()
    keep_float = KEPT if isinstance(module, Odd) else []
    planned = plan(
        MODELS[model](), optimizer=optimizer, word_length=bits[0], state_word_length=bits[1], keep_float=keep_float
    )
    optim.quantize_(module, f"fixed{bits[0]}", keep_float=keep_float)
    chosen = OPTIMIZERS[optimizer](module.parameters(), state_word_length=bits[1])
    found = step(module, chosen)
    assert found.ours.total == predicted(module, [chosen], FixedPointFormat(bits[0]), keep_float)
    assert found.ours.total == planned.ours.held
    for kinds, amounts in ((found.float32, planned.float32), (found.bf16_mixed, planned.others[1])):
        assert amounts.name in ("float32", "bf16 mixed")
        scalars = 4 * len(list(module.parameters()))  # that count steps; torch's own SGD has none
        assert kinds == pytest.approx(amounts.kinds, abs=scalars)


def test_state_with_one_radix_point_is_predicted() -> None:
    module = Odd()
    optim.quantize_(module, "<4,12>")
    optimizer = optim.SGD(module.parameters(), lr=0.1, momentum=0.9, state_word_length=16, state_fraction_length=14)
    found = step(module, optimizer)
    assert found.ours.total == predicted(module, [optimizer], FixedPointFormat(16, 12))


def test_a_run_in_float32_saves_nothing() -> None:
    module = Odd()
    optimizer = torch.optim.AdamW(module.parameters())
    found = step(module, optimizer)
    assert found.ours == found.float32 == found.bf16_mixed
    assert predicted(module, [optimizer]) == found.ours.total


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_a_run_in_other_floats_is_predicted_in_these(dtype: torch.dtype) -> None:
    module = torch.nn.Linear(5, 3).to(dtype)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(2, 5, dtype=dtype)).sum().backward()
    optimizer.step()
    found = held(memory.report(module, optimizer), memory.gradients(module))
    assert predicted(module, [optimizer]) == found.ours.total != found.float32.total


def test_a_layer_left_in_float_by_accident_shows_beside_the_prediction() -> None:
    module = MODELS["digits"]()
    optim.quantize_(module, keep_float=lambda name, param: name.startswith("3."))
    optimizer = optim.AdamW(module.parameters())
    found = step(module, optimizer).ours.total
    asked = predicted(module, [optimizer], FixedPointFormat(16))
    assert asked is not None
    assert found > 1.1 * asked


def test_no_plan_no_prediction() -> None:
    module = Odd()
    optim.quantize_(module)
    nadam = optim.adopt(torch.optim.NAdam(module.parameters()))
    assert predicted(module, [nadam], FixedPointFormat(16)) is None


def test_several_optimizers_and_loose_parameters() -> None:
    module = Odd()
    optim.quantize_(module)
    one = optim.AdamW(module.blocks.parameters(), state_word_length=8)
    other = optim.SGD(module.narrow.parameters(), lr=0.1, momentum=0.9)
    for name, param in module.named_parameters():
        param.requires_grad_(name.startswith(("blocks", "narrow")))
    module(batch(module)).square().mean().backward()
    one.step()
    other.step()
    report = memory.report(module, [one, other])
    assert predicted(module, [one, other], FixedPointFormat(16)) == held(report, memory.gradients(module)).ours.total


def test_activations_count_as_they_are_stored() -> None:
    module = MODELS["transformer"]()
    report = memory.report(module)
    with keep_activations(module, 8) as kept:
        module(batch(module)).sum()
    found = held(report, memory.gradients(module), kept.bytes)
    assert kept.bytes.as_float == 4 * kept.bytes.elements > 0
    assert kept.bytes.left > 0
    assert found.ours.activations == kept.bytes.stored + kept.bytes.left
    assert found.float32.activations == kept.bytes.as_float + kept.bytes.left
    assert found.bf16_mixed.activations == kept.bytes.as_float // 2 + kept.bytes.left
    assert found.ours.activations < 0.3 * found.float32.activations


def _sharded(rank: int, gradients: int | None) -> tuple[Held, int | None]:
    module = Shardable()
    optim.quantize_(module, keep_float=KEPT, gradient_word_length=gradients)
    for block in module.blocks:
        fully_shard(block)
    fully_shard(module)
    optimizer = optim.AdamW(module.parameters(), state_word_length=8)
    return step(module, optimizer), predicted(module, [optimizer], FixedPointFormat(16), KEPT, gradients)


@pytest.mark.parametrize("gradients", [None, 8])
def test_of_shards_each_process_has_its_own_prediction(gradients: int | None) -> None:
    found = ranks.run(3, _sharded, gradients)
    for own, asked in found:
        assert asked == own.ours.total
    assert found[0][1] > found[2][1]  # rows that three processes do not share evenly
