"""What works with which strategy, and the tests that prove it: docs/strategies.md is made of this by

    pytest --strategies docs/strategies.md

which writes a cell only where the tests behind it passed in that very run.
"""

from __future__ import annotations

from typing import NamedTuple


class Cell(NamedTuple):
    """What is said, and the tests that must pass for it to be said."""

    said: str
    tests: tuple[str, ...]


COLUMNS = ("stored in fixed-point", "gradients travel", "checkpoint", "limits")

STRATEGIES: dict[str, tuple[Cell, ...]] = {
    "one process": (
        Cell("weights, state", ("test_memory.py::test_bytes_held",)),
        Cell("not at all", ()),
        Cell("Lightning's or `torch.save`; exact", ("plugin/test_plugin.py::test_resume_is_bit_for_bit",)),
        Cell("", ()),
    ),
    "DDP (`strategy=\"ddp\"`)": (
        Cell("weights, state", ("test_memory.py::test_bytes_held",)),
        Cell(
            "16, 12, 8 or 4 bits; the same bits on every process",
            (
                "plugin/test_distributed.py::test_the_hook_is_active_and_every_rank_has_the_same_codes",
                "comm/test_ddp.py::test_every_rank_has_the_same_weights_whatever_the_buckets",
            ),
        ),
        Cell(
            "Lightning's; exact, also after a process was killed",
            (
                "plugin/test_distributed.py::test_resume_is_bit_for_bit",
                "plugin/test_distributed.py::test_a_run_goes_on_from_its_checkpoint_after_a_rank_was_killed",
            ),
        ),
        Cell("small gradients as float32", ("comm/test_collectives.py::test_bytes_are_those_of_the_formula",)),
    ),
    "FSDP2 (`fully_shard`)": (
        Cell("shards of weights and state, gathered weights", ("tensor/test_dtensor.py::test_bytes_per_rank",)),
        Cell(
            "16, 12, 8 or 4 bits, weights as codes",
            (
                "comm/test_fsdp.py::test_gradients_are_averages_within_what_the_word_length_allows",
                "comm/test_fsdp.py::test_bytes_are_counted",
            ),
        ),
        Cell(
            "DCP or Lightning's; exact on any number of processes",
            (
                "tensor/test_dtensor.py::test_saved_on_four_ranks_and_loaded_on_any_number",
                "tensor/test_dtensor.py::test_floats_out_and_in",
                "tensor/test_dtensor.py::test_a_process_killed_while_saving_leaves_the_checkpoint_before",
                "plugin/test_model_parallel.py::test_the_flag_shards_codes",
            ),
        ),
        Cell(
            "dimension 0 only; no error feedback",
            (
                "tensor/test_dtensor.py::test_what_cannot_be_done_is_refused_on_every_rank",
                "plugin/test_model_parallel.py::test_refusals",
            ),
        ),
    ),
    "HSDP (FSDP2 on a mesh with replicas)": (
        Cell("as FSDP2", ("tensor/test_dtensor.py::test_a_model_trains_as_in_float",)),
        Cell(
            "as FSDP2 within a replica; between replicas as FSDP2 itself sends them",
            ("comm/test_fsdp.py::test_gradients_are_averages_within_what_the_word_length_allows",),
        ),
        Cell("as FSDP2", ()),
        Cell("as FSDP2", ()),
    ),
    "DeepSpeed ZeRO 1, 2, 3": (
        Cell(
            "partitions of master weights and state",
            ("deepspeed/test_adopt.py::test_no_float_of_a_partitions_size_outlives_the_step",),
        ),
        Cell(
            "16 bits (or 12, 8, 4); weights in the engine's dtype",
            ("deepspeed/test_adopt.py::test_gradients_travel_in_sixteen_bits",),
        ),
        Cell(
            "DeepSpeed's; exact on as many processes; `zero_to_fp32`",
            (
                "deepspeed/test_adopt.py::test_resume_is_bit_for_bit",
                "deepspeed/test_adopt.py::test_zero_to_fp32_gives_the_weights",
            ),
        ),
        Cell("no offloading, none of its own optimizers", ("deepspeed/test_adopt.py::test_refusals_name_the_remedy",)),
    ),
    "FSDP1, XLA (`strategy=\"fsdp\"`, `\"xla\"`)": (
        Cell(
            "refused",
            (
                "plugin/test_model_parallel.py::test_fsdp1_is_refused_and_the_alternative_named",
                "plugin/test_offered_strategies.py::test_none_is_left_out",
                "plugin/test_offered_strategies.py::test_those_with_a_precision_of_their_own_name_the_alternatives",
            ),
        ),
        Cell("-", ()),
        Cell("-", ()),
        Cell("use FSDP2 or DDP", ()),
    ),
    "Fabric": (
        Cell("refused", ("plugin/test_plugin.py::test_fabric_is_refused_and_told_what_to_do",)),
        Cell("-", ()),
        Cell("-", ()),
        Cell("use `optim.quantize_` and `optim.adopt`", ()),
    ),
}  # fmt: skip


def table(passed: set[str] | None = None) -> str:
    """The table as Markdown; with ``passed``, cells whose tests are not all among them say so."""
    rows = [["strategy", *COLUMNS], ["---"] * (1 + len(COLUMNS))]
    for strategy, cells in STRATEGIES.items():
        assert len(cells) == len(COLUMNS), strategy
        said = [
            cell.said if passed is None or set(cell.tests) <= passed else f"not shown: {cell.said}" for cell in cells
        ]
        rows.append([strategy, *said])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def document(passed: set[str] | None = None) -> str:
    """The page, and under the table which tests are behind each strategy."""
    behind = "\n".join(
        f"- {strategy}: " + ", ".join(dict.fromkeys(f"`{test}`" for cell in cells for test in cell.tests))
        for strategy, cells in STRATEGIES.items()
    )
    return (
        "# Strategies\n\nMade by `pytest --strategies docs/strategies.md` from tests that passed in that run "
        f"(`tests/strategies.py`).\n\n{table(passed)}\n\n## The tests behind it\n\n{behind}\n"
    )
