"""What is planned is what a run holds: :func:`plan` beside :mod:`lowprec_plugin.memory` of runs."""

from __future__ import annotations

import gc
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from lowprec_plugin import FixedPointFormat, memory, optim
from lowprec_plugin.plan import Plan, plan
from lowprec_plugin.telemetry.storage_table import describe
from tests.algorithms import NAMED
from tests.plan.models import MODELS, Odd, batch, small_transformer

OPTIMIZERS: dict[str, Any] = {name: partial(ours, lr=1e-3, **options) for name, (ours, options) in NAMED.items()}
#: Bits of weights, and of state.
BITS = [(16, None), (16, 8), (12, 8), (24, None)]


def measured(module: nn.Module, optimizer: torch.optim.Optimizer) -> memory.MemoryReport:
    """What is held after a step, its gradients too."""
    module(batch(module)).square().mean().backward()
    optimizer.step()
    return memory.report(module, optimizer)


def agrees(planned: Plan, report: memory.MemoryReport, share: float = 0.02) -> None:
    for kind in ("weights", "state", "gradients", "buffers"):
        assert getattr(planned.ours, kind) == pytest.approx(getattr(report, kind), rel=share), kind
    assert planned.parameters == report.elements


@pytest.mark.parametrize("bits", BITS, ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", MODELS)
def test_one_process(model: str, optimizer: Any, bits: tuple[int, int | None]) -> None:
    module = MODELS[model]()
    planned = plan(module, optimizer=optimizer, word_length=bits[0], state_word_length=bits[1])
    optim.quantize_(module, FixedPointFormat(bits[0]))
    held = OPTIMIZERS[optimizer](module.parameters(), state_word_length=bits[1])
    report = measured(module, held)
    agrees(planned, report, share=0)  # to the byte
    assert planned.float32.weights == report.float32_weights
    assert planned.float32.gradients == report.gradients
    if optimizer == "adamw":
        assert planned.float32.state == report.float32_state
    # The table at the start of a run says the same, scalars that count steps aside.
    nbytes = sum(row.nbytes for row in describe(module, [held]) if row.group != "buffers")
    assert planned.ours.weights + planned.ours.state == pytest.approx(nbytes, rel=0.02)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_kept_in_float(optimizer: Any) -> None:
    module, keep_float = Odd(), ["norm.*", "embedding.weight"]
    planned = plan(module, optimizer=optimizer, keep_float=keep_float)
    optim.quantize_(module, keep_float=keep_float)
    agrees(planned, measured(module, OPTIMIZERS[optimizer](module.parameters())), share=0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_baseline_is_what_float32_holds(optimizer: Any) -> None:
    module, (ours, options) = Odd(), NAMED[optimizer]
    planned = plan(module, optimizer=optimizer).float32
    trained = [param for param in module.parameters() if param.requires_grad]
    report = measured(module, ours.float_class(trained, lr=1e-3, **options))
    for kind in ("weights", "state", "gradients", "buffers"):
        assert getattr(planned, kind) == getattr(report, kind)


def test_bfloat16() -> None:
    """The other baseline, and ours that computes in bfloat16, whose parameters kept in float are bfloat16 too."""
    module = Odd().bfloat16()
    planned = plan(Odd())
    report = measured(module, torch.optim.AdamW(module.parameters()))
    baseline = next(each for each in planned.others if each.name == "bf16 + SR")
    for kind in ("weights", "gradients", "buffers"):
        assert getattr(baseline, kind) == getattr(report, kind)
    assert baseline.state == pytest.approx(report.state, rel=0.02)
    module = Odd()
    planned = plan(module, compute_dtype="bfloat16", keep_float=["narrow.weight"])
    optim.quantize_(module, keep_float=["narrow.weight"], dtype=torch.bfloat16)
    module.to(torch.bfloat16)
    report = measured(module, optim.AdamW(module.parameters()))
    for kind in ("weights", "state", "gradients", "buffers"):
        assert getattr(planned.ours, kind) == getattr(report, kind)


def test_static_formats_and_other_blocks() -> None:
    module = MODELS["transformer"]()
    planned = plan(module, word_length=12, fraction_length=8, block_size=32)
    optim.quantize_(module, FixedPointFormat(12, 8, 32))
    agrees(planned, measured(module, optim.AdamW(module.parameters())), share=0)


def test_one_radix_point_for_all_state() -> None:
    module = MODELS["transformer"]()
    planned = plan(module, optimizer="sgd-momentum", state_word_length=12, state_fraction_length=10)
    assert planned.ours.state < plan(module, optimizer="sgd-momentum", state_word_length=12).ours.state
    optim.quantize_(module)
    held = optim.SGD(module.parameters(), 0.1, 0.9, state_word_length=12, state_fraction_length=10)
    agrees(planned, measured(module, held), share=0)


def test_a_wrong_plan_is_noticed() -> None:
    """The control: another word length or optimizer does not agree."""
    module = MODELS["digits"]()
    optim.quantize_(module)
    report = measured(module, optim.AdamW(module.parameters()))
    agrees(plan(module), report)
    for wrong in ({"word_length": 8}, {"state_word_length": 8}, {"optimizer": "lion"}, {"compute_dtype": "bfloat16"}):
        with pytest.raises(AssertionError):
            agrees(plan(module, **wrong), report)


def test_no_weight_is_allocated() -> None:
    with torch.device("meta"):
        module = nn.ModuleList(nn.Linear(2**17, 2**17) for _ in range(4))
    before = memory.live_storages()
    planned = plan(module)
    assert planned.parameters > 2**36
    assert planned.ours.weights / planned.parameters == pytest.approx(2 + 1 / 256, abs=1e-4)
    assert sum(nbytes for at, (nbytes, _) in memory.live_storages().items() if at not in before) < 2**20


def test_a_number_of_parameters() -> None:
    """All in rows of 256: what the table of design says of each byte."""
    planned = plan(7_000_000_000, state_word_length=8)
    assert planned.parameters == 7_000_000_000
    assert (planned.ours.weights + planned.ours.state) / planned.parameters == pytest.approx(4.012, abs=0.001)
    by_name = {each.name: (each.weights + each.state) / planned.parameters for each in planned.others}
    assert {name: round(value, 3) for name, value in by_name.items()} == {
        "float32": 12, "bf16 mixed": 12, "bf16 + SR": 6, "FlashOptim": 5.1, "FlashOptim, released": 5.1,
        "8-bit Adam": 4.03, "lowprec 16/8, bf16": 4.012, "lowprec 16/8, 8-bit gradients": 4.012,
        "lowprec 16/8, gradients released": 4.012,
    }  # fmt: skip
    assert "FlashOptim" not in {each.name for each in plan(1000, optimizer="lion").others}
    assert plan(1001, layers=3).parameters == 1001
    assert any("rows of 256" in said for said in planned.assumptions)


def test_the_leanest_setting_of_seven_billion_is_below_every_rival() -> None:
    planned = plan(7_000_000_000, state_word_length=8, gradient_word_length=8)
    shares = {each.name: each.held / planned.float32.held for each in (planned.ours, *planned.others)}
    assert planned.ours.peak / planned.float32.peak <= 0.33
    assert shares[planned.ours.name] <= 0.33
    rivals = {name: of for name, of in shares.items() if not name.startswith("lowprec")}
    assert set(rivals) == {
        "float32", "bf16 mixed", "bf16 + SR", "FlashOptim", "FlashOptim, released", "8-bit Adam",
    }  # fmt: skip
    assert shares[planned.ours.name] < min(rivals.values())
    released = next(each for each in planned.others if each.name == "lowprec 16/8, gradients released")
    assert released.held / planned.float32.held < released.peak / planned.float32.peak < 0.27
    # Over what is held there is, at its worst moment, one gradient as floats, beside a copy of its weights.
    assert released.peak - released.held == pytest.approx(2 * 4 * 7_000_000_000 / 32, rel=0.001)
    # They are shown whatever is asked for, and once.
    for asked in ({}, {"state_word_length": 8}, {"gradient_word_length": 16}):
        shown = plan(7_000_000_000, **asked)
        assert {each.name for each in shown.others} >= {
            "lowprec 16/8, 8-bit gradients", "lowprec 16/8, gradients released",
        }  # fmt: skip
    assert planned.ours.name not in {each.name for each in planned.others}


@pytest.mark.parametrize("bits", [(16, None, 16), (16, 8, 8), (12, 8, 12)], ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_gradients_in_codes(model: str, bits: tuple[int, int | None, int]) -> None:
    module = MODELS[model]()
    planned = plan(module, word_length=bits[0], state_word_length=bits[1], gradient_word_length=bits[2])
    optim.quantize_(module, FixedPointFormat(bits[0]), gradient_word_length=bits[2])
    report = measured(module, optim.AdamW(module.parameters(), state_word_length=bits[1]))
    agrees(planned, report, share=0)
    assert planned.ours.held == report.total
    assert planned.float32.held == pytest.approx(report.float32_total, abs=4 * 100)
    with pytest.raises(AssertionError):  # the control: gradients in float
        agrees(plan(module, word_length=bits[0], state_word_length=bits[1]), report)


@pytest.mark.parametrize(("asked", "floats"), [(8, 2 * 8192), ("release", 0), (None, 2 * 8192)], ids=str)
def test_gradients_of_vectors(asked: Any, floats: int) -> None:
    """They are no codes, but can be released."""
    planned, module = plan(nn.Linear(1, 8192), gradient_word_length=asked), nn.Linear(1, 8192)
    optim.quantize_(module, gradient_word_length=asked)
    optimizer = optim.SGD(module.parameters(), 0.1)
    module(torch.ones(1, 1)).sum().backward()
    assert memory.report(module, optimizer).gradients == planned.ours.gradients == 4 * floats


@pytest.mark.parametrize("sharding", ["none", "ddp"])
@pytest.mark.parametrize("model", MODELS)
def test_a_peak_from_shapes_is_within_what_can_be_there(model: str, sharding: Any) -> None:
    found = plan(
        MODELS[model](), gradient_word_length=8, activations=1 << 20, sharding=sharding, ranks=1 + (sharding == "ddp")
    )
    for each in (found.ours, *found.others):
        assert each.held - each.activations < each.peak <= each.held + each.working + each.wire


def test_live_storages_are_those_planned() -> None:
    """Whatever is alive after the backward pass: a float gradient would show."""
    gc.collect()
    before = memory.live_storages()
    module = small_transformer()
    planned = plan(module, state_word_length=8, gradient_word_length=8).ours
    optim.quantize_(module, gradient_word_length=8)
    optimizer = optim.AdamW(module.parameters(), state_word_length=8)
    for last in (False, True):
        module(batch(module)).square().mean().backward()
        grads = [param.grad for param in module.parameters()]  # held in Python, where the walk sees them
        if not last:
            optimizer.step()
            optimizer.zero_grad()
    live = sum(nbytes for at, (nbytes, _) in memory.live_storages().items() if at not in before)
    assert len(grads) == len(list(module.parameters()))
    assert live == pytest.approx(planned.held, rel=0.02)


def test_activations_are_those_that_were_given() -> None:
    without, given = plan(10**6), plan(10**6, activations=12345)
    assert given.ours.held - without.ours.held == given.float32.held - without.float32.held == 12345
    assert any("activations are not planned" in said for said in without.assumptions)
    assert not any("activations are not planned" in said for said in given.assumptions)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimizer": "nadam"}, "optimizer='nadam' is not one of sgd, sgd-momentum, adam"),
        ({"sharding": "fsdp1"}, "sharding='fsdp1' is not one of"),
        ({"sharding": "fsdp2", "ranks": 2}, "'scale' is a scalar, which fully_shard refuses"),
        ({"ranks": 2}, "ranks=2 and sharding='none' do not go together"),
        ({"sharding": "ddp"}, "ranks=1 and sharding='ddp' do not go together"),
        ({"sharding": "fsdp2", "ranks": 2, "rank": 2}, "rank=2 is not one of 2"),
        ({"word_length": 40}, "word_length=40"),
        ({"comm_word_length": 5, "sharding": "ddp", "ranks": 2}, "comm_word_length=5"),
        ({"comm_error_feedback": True, "comm_word_length": 8}, "comm_error_feedback=True is of DDP"),
        (
            {"comm_error_feedback": True, "comm_word_length": None, "sharding": "ddp", "ranks": 2},
            "comm_error_feedback=True needs gradients in fixed-point",
        ),
        ({"gradient_word_length": 8, "sharding": "zero1", "ranks": 2}, "gradients under ZeRO are the engine's own"),
        ({"gradient_word_length": 80}, "gradient_word_length=80"),
        ({"activations": -5}, "activations=-5 bytes are less than 0"),
        ({"keep_float": ["nothing"]}, "keep_float='nothing' matches no parameter"),
        ({"units": ["nothing"]}, "units='nothing' matches no module"),
        ({"keep_float": ["norm.*"], "sharding": "zero1", "ranks": 2}, "leave out keep_float"),
        ({"reduce_bucket_size": 0, "sharding": "zero1", "ranks": 2}, "reduce_bucket_size=0 is less than 1"),
        ({"persistent": -1, "sharding": "zero3", "ranks": 2}, "persistent=-1 is less than 0"),
        ({"state_fraction_length": 8}, "state_fraction_length=8 needs state_word_length"),
        (
            {"state_fraction_length": 8, "state_word_length": 12},
            "is a mean of squares, which has to have a radix point",
        ),
        (
            {"state_fraction_length": 8, "state_word_length": 12, "sharding": "zero1", "ranks": 2, "optimizer": "lion"},
            "state under ZeRO has a radix point per block: leave it out",
        ),
    ],
)
def test_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(Odd(), **given)


def test_models_refused() -> None:
    with pytest.raises(ValueError, match="has no parameters"):
        plan(nn.ReLU())
    with pytest.raises(ValueError, match=r"'weight' is lazy"):
        plan(nn.LazyLinear(3))
    with pytest.raises(ValueError, match="keep_float= and units= name parts of a module"):
        plan(100, keep_float=["a"])
    with pytest.raises(ValueError, match="parameters=0 in layers=32"):
        plan(0)
    with pytest.raises(ValueError, match="is not an integer"):
        plan(7e9)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"layers=2\.5 is not an integer"):
        plan(1000, layers=2.5)  # type: ignore[arg-type]
