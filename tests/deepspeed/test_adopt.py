"""ZeRO's real engine on two processes: what it holds, how it steps, and that it resumes bit for bit."""

from __future__ import annotations

import contextlib
import io
import re
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lowprec_plugin import FixedPointTensor, optim
from tests.comm import ranks
from tests.deepspeed import engines

pytestmark = pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")

#: Small buckets, so that there are several a step and none hides a copy; nothing kept gathered in stage 3.
ZERO = {"reduce_bucket_size": 20000, "stage3_prefetch_bucket_size": 20000, "stage3_param_persistence_threshold": 0}


def _life(rank: int, stage: int, folder: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    engine = engines.engine(rank, stage, zero=ZERO)
    from deepspeed.utils import safe_get_full_fp32_param
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    from lowprec_plugin.deepspeed import adopt_engine

    elements = sum(getattr(param, "ds_numel", param.numel()) for param in engine.module.parameters())
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        adopted = adopt_engine(engine)
    found["printed"] = printed.getvalue()
    found["losses"] = engines.train(engine, 4)
    found["floats"], found["elements"], found["said"] = engines.float_bytes(elements), elements, adopted.said
    found["traffic"] = adopted.wire.traffic if adopted.wire else None
    found["per parameter"] = sum(
        plane.nbytes for plane in engines.planes(adopted) if plane.dim() > 0
    ) / sum(param.numel() for param in adopted.partitions)  # fmt: skip
    engine.save_checkpoint(folder, tag="four")
    saved = engines.planes(adopted)
    full = {name: safe_get_full_fp32_param(param) for name, param in engine.module.named_parameters()}
    found["losses"] += engines.train(engine, 4, first=4)
    straight = engines.planes(adopted)

    def resumed(seed: int = 0, adopt_first: bool = True, load: bool = True) -> bool:
        other = engines.engine(rank, stage, zero=ZERO)
        held = adopt_engine(other, seed=seed) if adopt_first else None
        if load:
            other.load_checkpoint(folder, tag="four")
        held = held or adopt_engine(other, seed=seed)
        found["restored"] = found.get("restored", True) and (engines.same(engines.planes(held), saved) or not load)
        engines.train(other, 4, first=4)
        return engines.same(engines.planes(held), straight)

    found["resumes"] = resumed(), resumed(adopt_first=False)
    found["controls"] = resumed(seed=1), resumed(load=False)
    found["skipped"] = engine.skipped_steps
    engines.train(engine, 1, first=8, poison=8)
    found["skipped"] = engine.skipped_steps - found["skipped"], engines.same(engines.planes(adopted), straight)
    adopted.optimizer.fixed_point.counting = True
    engines.train(engine, 1, first=9)
    found["counts"] = adopted.optimizer.fixed_point.counts
    found["partitions"] = {param.label: param.numel() for param in adopted.partitions}
    if rank == 0:
        with contextlib.redirect_stdout(io.StringIO()):
            merged = get_fp32_state_dict_from_zero_checkpoint(folder, tag="four")
        found["merged"] = [torch.equal(merged[name].reshape(-1), full[name].reshape(-1)) for name in full]
    before = engines.float_bytes(elements)
    control = engines.engine(rank, stage, zero=ZERO)
    engines.train(control, 4)
    after = engines.float_bytes(elements)
    found["control"] = {key: after[key] - before.get(key, 0) for key in after if after[key] > before.get(key, 0)}
    return found


@pytest.fixture(scope="module", params=[1, 2, 3])
def life(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What happened on either process; with the stage."""
    folder: Path = tmp_path_factory.mktemp("zero")
    return [each | {"stage": request.param} for each in ranks.run(2, _life, request.param, str(folder))]


def test_no_float_of_a_partitions_size_outlives_the_step(life: list[dict[str, Any]]) -> None:
    for found in life:
        # The engine's own: in stages 1 and 2 its flat bfloat16 parameters, in 3 its share of them and of the gradients.
        own = {3: [found["elements"]] * 2}.get(found["stage"], [2 * found["elements"]])
        held = sorted(nbytes for (_, nbytes), count in found["floats"].items() for _ in range(count))
        assert {dtype for dtype, _ in found["floats"]} == {"bfloat16"}
        assert held == pytest.approx(own, abs=16)
        # The control: float32 master and moments of an engine that was not adopted.
        assert sum(count for (dtype, _), count in found["control"].items() if dtype == "float32") == 3
        assert found["per parameter"] == pytest.approx(6 + 3 / 256, abs=0.01)


def test_the_table_says_what_is_stored(life: list[dict[str, Any]]) -> None:
    said = life[0]["said"]
    assert said in life[0]["printed"]
    assert life[1]["printed"] == ""
    assert f"ZeRO {life[0]['stage']} (weights fixed16" in said
    assert "AdamW 0  fixed16   fixed16, fixed16^2" in said
    assert "engine   bfloat16  -" in said
    assert "between processes: 16 bits" in said


def test_partitions_are_counted(life: list[dict[str, Any]]) -> None:
    for found in life:
        assert {label: each.elements for label, each in found["counts"].items()} == found["partitions"]
        for each in found["counts"].values():
            assert each.elements >= each.moved > each.elements // 2
            assert each.saturated == 0
            assert 0 < each.noise_to_update < 1


def test_resume_is_bit_for_bit(life: list[dict[str, Any]]) -> None:
    for found in life:
        assert found["restored"]
        assert found["resumes"] == (True, True)
        assert found["controls"] == (False, False)  # another seed; no checkpoint


def test_zero_to_fp32_gives_the_weights(life: list[dict[str, Any]]) -> None:
    assert life[0]["merged"] == [True] * 6


def test_an_infinite_gradient_on_one_process_skips_the_step_on_all(life: list[dict[str, Any]]) -> None:
    for found in life:
        assert found["skipped"] == (1, True)


def test_gradients_travel_in_sixteen_bits(life: list[dict[str, Any]]) -> None:
    for found in life:
        assert 0.5 < found["traffic"].bytes_sent / found["traffic"].float32_bytes < 0.52


def _settings(rank: int, stage: int) -> dict[str, list[float]]:
    def losses(adopt: bool = True, optimizer: Any = torch.optim.AdamW, **given: Any) -> list[float]:
        engine = engines.engine(
            rank, stage, "float32", optimizer=lambda params: optimizer(params, lr=1e-3), gradient_accumulation_steps=2,
        )  # fmt: skip
        if adopt:
            from lowprec_plugin.deepspeed import adopt_engine

            adopt_engine(engine, **given)
        return engines.train(engine, 12)

    # Without ZeRO the network of engines.engine is stored from the start, and so an engine must be adopted.
    found = {"float32": losses(adopt=False)} if stage else {}
    return found | {
        "float wire": losses(comm_word_length=None),
        "16": losses(),
        "16 again": losses(),
        "16/8": losses(state_word_length=8),
        "wire 8": losses(comm_word_length=8),
        "static": losses(format="<4,12>"),
        "NAdam": losses(optimizer=torch.optim.NAdam),
        "SGD": losses(optimizer=torch.optim.SGD),
    }


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_settings(stage: int) -> None:
    found = ranks.run(2, _settings, stage)[0]
    if stage == 0:  # a static format is chosen where the module is quantised
        assert found["static"] == found["16"]
    assert found["16"] == found["16 again"]
    assert found["16"] == pytest.approx(found.get("float32", found["float wire"]), rel=2e-3)
    for name in ("float wire", "wire 8", "16/8", "NAdam", "SGD"):
        assert found[name] != found["16"], name  # what it sets is used
    for name in ("float wire", "wire 8", "16/8"):
        assert found[name] == pytest.approx(found["16"], rel=0.05), name


def _refusals(rank: int) -> dict[str, str]:
    said = {}

    def refused(name: str, stage: int, dtype: str = "bfloat16", adopt: Any = None, **given: Any) -> None:
        engine = engines.engine(rank, stage, dtype, **given)
        from lowprec_plugin.deepspeed import adopt_engine

        try:
            (adopt or adopt_engine)(engine)
            said[name] = "nothing"
        except ValueError as error:
            said[name] = str(error)
        if stage and name != "twice":
            engines.train(engine, 1)  # is as it was

    def with_options(**options: Any) -> Any:
        from lowprec_plugin.deepspeed import adopt_engine

        return lambda engine: adopt_engine(engine, **options)

    def twice(engine: Any) -> None:
        with_options()(engine)
        with_options()(engine)

    def infinite_on_one(engine: Any) -> None:
        if engine.global_rank == 1:
            engine.optimizer.single_partition_of_fp32_groups[0].data[5] = torch.inf
        try:
            with_options()(engine)
        finally:
            assert not isinstance(engine.optimizer.single_partition_of_fp32_groups[0], FixedPointTensor)

    def infinite_state_on_one(engine: Any) -> None:
        engines.train(engine, 1)
        optimizer, masters = engine.basic_optimizer, list(engine.optimizer.single_partition_of_fp32_groups)
        if engine.global_rank == 1:
            optimizer.state[masters[0]]["exp_avg"][5] = torch.inf
        before = dict(optimizer.state)
        try:
            with_options(state_word_length=8)(engine)
        finally:
            assert type(optimizer) is torch.optim.AdamW
            held = engine.optimizer.single_partition_of_fp32_groups
            assert all(one is other for one, other in zip(held, masters, strict=True))
            assert all(optimizer.state[param] is before[param] for param in masters)

    offload = {"offload_optimizer": {"device": "cpu"}}
    refused("offload", 2, zero=offload, zero_force_ds_cpu_optimizer=False)
    refused("float accumulation", 1, data_types={"grad_accum_dtype": "fp32"})
    refused("overflow", 2, bf16={"enabled": True, "check_grad_overflow": False})
    refused("wire", 2, zero={"reduce_scatter": False})
    refused("elastic", 2, zero={"elastic_checkpoint": True})
    refused("universal", 2, checkpoint={"load_universal": True})
    refused("twice", 2, adopt=twice)
    refused("seeds", 2, adopt=with_options(seed=rank))
    refused("rounding", 2, adopt=with_options(rounding="up"))
    refused("comm", 2, adopt=with_options(comm_word_length=5))
    refused("quantised before", 2, quantized=True)
    refused("infinite", 2, adopt=infinite_on_one)
    refused("infinite state", 2, adopt=infinite_state_on_one)
    refused("optimizer of ours without ZeRO", 0, "float32", optimizer=optim.SGD)
    refused("bfloat16 without ZeRO", 0)
    refused("module", 2, adopt=lambda engine: with_options()(engine.module))
    return said


def test_refusals_name_the_remedy() -> None:
    said = ranks.run(2, _refusals)[0]
    for name, text in {
        "offload": "offload_optimizer moves floats to the cpu.*drop offload_optimizer",
        "float accumulation": "BF16_Optimizer.*use stage 2",
        "overflow": "check_grad_overflow is false.*Leave it at true",
        "wire": "reduce_scatter is false.*comm_word_length=None",
        "elastic": "elastic_checkpoint is not supported",
        "universal": "load_universal is not supported",
        "twice": "stores fixed-point already",
        "seeds": "disagree on seed",
        "rounding": "rounding='up' is not one of",
        "comm": "comm_word_length=5 is not one of",
        "bfloat16 without ZeRO": "float32 copies beside torch.bfloat16.*use stage 1, 2 or 3",
        "quantised before": r"drop quantize_\(model\)",
        "infinite": "the master weights of process 1: a NaN or an infinity",
        "infinite state": "state 'exp_avg' of process 1: a NaN or an infinity",
        "optimizer of ours without ZeRO": r"stores fixed-point already.* in stage 0 give that a torch\.optim",
        "module": "Sequential is not a DeepSpeedEngine",
    }.items():
        assert re.search(text, said[name]), f"{name}: {said[name]}"


def test_another_make_of_engine_is_refused_by_the_name_that_it_lacks() -> None:
    from lowprec_plugin.compat.deepspeed import open_engine

    with pytest.raises(ValueError, match=r"no SimpleNamespace.basic_optimizer, .*tested versions: 0\.19"):
        open_engine(SimpleNamespace(zero_optimization_stage=lambda: 2))
