"""A plan as text."""

from __future__ import annotations

from collections.abc import Sequence

from lowprec_plugin.plan.amounts import Amounts
from lowprec_plugin.plan.planning import Plan
from lowprec_plugin.text.tables import columns

#: Memory of GPUs in GiB, as they are sold (a driver keeps a little of it), and cards that are known to have it.
SIZES = {
    8: "", 12: "", 16: "NVIDIA T4", 24: "NVIDIA RTX 3090, RTX 4090", 32: "", 40: "NVIDIA A100", 48: "", 64: "",
    80: "NVIDIA A100, H100", 96: "", 128: "", 141: "NVIDIA H200", 192: "AMD MI300X",
}  # fmt: skip
KINDS = ("weights", "state", "gradients", "working", "wire", "buffers", "activations")


def as_text(plan: Plan) -> str:
    """Bytes by kind, what is sent, what it fits in, where the figures are from, and what was assumed."""
    every = [plan.ours, *plan.others]
    kinds = [kind for kind in KINDS if any(getattr(each, kind) for each in every)]
    unit, name = _unit(max(max(each.held, each.peak) for each in every))
    where = "1 GPU" if plan.ranks == 1 else f"each of {plan.ranks} GPUs, {plan.sharding}"
    header = [name, *kinds, "held", "of float32", "peak", "of float32", "sent per step", "of float32"]
    rows = []
    for each in every:
        sent = [f"{each.sent / unit:.3f}", _share(each.sent, plan.float32.sent)] if plan.ranks > 1 else ["-", "-"]
        held = [f"{getattr(each, kind) / unit:.3f}" for kind in kinds] + [f"{each.held / unit:.3f}"]
        peak = [f"{each.peak / unit:.3f}", _share(each.peak, plan.float32.peak)]
        rows.append([each.name, *held, _share(each.held, plan.float32.held), *peak, *sent])
    lines = [f"{plan.parameters:,} parameters, {plan.optimizer}, {where}", *columns([header, *rows], texts=1), ""]
    lines += [f"{each.name}: {each.source}" for each in every]
    lines += ["", "what is left of a GPU's memory, in GiB", *_fits(every), ""]
    return "\n".join([*lines, *(f"assumed: {each}" for each in plan.assumptions)])


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


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"
