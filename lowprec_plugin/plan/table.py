"""A plan as text."""

from __future__ import annotations

from collections.abc import Sequence

from lowprec_plugin.memory import Kinds, Part, side_by_side
from lowprec_plugin.memory.kinds import TOTAL
from lowprec_plugin.plan.amounts import Amounts
from lowprec_plugin.plan.planning import Plan
from lowprec_plugin.text.tables import columns

#: Memory of GPUs in GiB, as they are sold (a driver keeps a little of it), and cards that are known to have it.
SIZES = {
    8: "", 12: "", 16: "NVIDIA T4", 24: "NVIDIA RTX 3090, RTX 4090", 32: "", 40: "NVIDIA A100", 48: "", 64: "",
    80: "NVIDIA A100, H100", 96: "", 128: "", 141: "NVIDIA H200", 192: "AMD MI300X",
}  # fmt: skip
#: What the most at a time is called.
PEAK = "peak"
KINDS = (*Kinds._fields, "working", "wire")


def as_text(plan: Plan) -> str:
    """Bytes by kind and as shares of float32's, what is sent, what it fits in, sources, and what was assumed."""
    every = [plan.ours, *plan.others]
    kinds = [kind for kind in KINDS if any(getattr(each, kind) for each in every)]
    unit, name = _unit(max(each.peak for each in every))
    where = "1 GPU" if plan.ranks == 1 else f"each of {plan.ranks} GPUs, {plan.sharding}"
    sends = ["sent per step"] if plan.ranks > 1 else []
    rows = [[name, *kinds, TOTAL, PEAK, *sends]]
    for each in every:
        amounts = [*(getattr(each, kind) for kind in kinds), each.held, each.peak, *([each.sent] if sends else [])]
        rows.append([each.name, *(f"{amount / unit:.3f}" for amount in amounts)])
    lines = [f"{plan.parameters:,} parameters, {plan.optimizer}, {where}", *columns(rows, texts=1), ""]
    lines += [*_shares(plan, every), ""]
    lines += [f"{each.name}: {each.source}" for each in every]
    lines += ["", "what is left of a GPU's memory, in GiB", *_fits(every), ""]
    return "\n".join([*lines, *(f"assumed: {each}" for each in plan.assumptions)])


def _shares(plan: Plan, every: Sequence[Amounts]) -> list[str]:
    rows = []
    for each in every:
        parts = list(side_by_side(each.kinds, plan.float32.kinds).values())
        parts.append(Part(PEAK, each.peak, plan.float32.peak))
        if plan.ranks > 1:
            parts.append(Part("sent per step", each.sent, plan.float32.sent))
        rows.append([each.name, *(part.text for part in parts)])
    return columns([["of float32's bytes", *(part.name for part in parts)], *rows], texts=1)


def _fits(every: Sequence[Amounts]) -> list[str]:
    rows = [["GiB", *(each.name for each in every), "such as"]]
    for size, cards in SIZES.items():
        if len(rows) > 1 and all(cell != "no" for cell in rows[-1]):
            break  # everything fits in the size before
        left = [size - each.peak / 2**30 for each in every]
        rows.append([str(size), *(f"{each:.1f}" if each >= 0 else "no" for each in left), cards])
    return columns(rows, texts=1)


def _unit(most: int) -> tuple[int, str]:
    return (2**30, "GiB") if most >= 2**30 else (2**20, "MiB") if most >= 2**20 else (2**10, "KiB")
