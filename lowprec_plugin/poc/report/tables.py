"""The report's tables, once for HTML and Markdown: every number in a cell is a named quantity."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from lowprec_plugin.poc.report.contents import COUNTED, Contents
from lowprec_plugin.poc.report.quantities import CARDS, known_of
from lowprec_plugin.poc.run.metrics import Scale
from lowprec_plugin.poc.run.variants import BF16_MIXED, TWIN, spoken
from lowprec_plugin.poc.verdict.groups import KINDS
from lowprec_plugin.poc.verdict.noise import pace
from lowprec_plugin.poc.verdict.outcomes import SPOKEN
from lowprec_plugin.text.numbers import share, significant
from lowprec_plugin.text.tables import markdown_table

#: Layers, and parameters left in float, that are listed of a variant.
MOST = 12
#: In a cell without a quantity.
NONE = "–"
_DIFFERENCE = "metric/difference ± metric/standard_error"
_RATIO = "step/ratio ± step/error"
#: Tables with a row for each variant: caption and quantities.
VARIANTS_BY = {
    "summary": (
        "In short",
        ("metric/mean", _DIFFERENCE, "verdict", "held/total", "held/share", "step/median", _RATIO),
    ),
    "quality": (
        "{metric} at the end, by variant",
        ("metric/mean", "metric/low", "metric/high", _DIFFERENCE, "seeds", "verdict"),
    ),
    "memory": (
        "Bytes held by one process at the end of training, by kind",
        ("held/total", "held/share", *(f"held/{kind}" for kind in KINDS)),
    ),
    "wire": ("Gradients sent per step by one process", ("wire/sent", "wire/float32", "wire/share")),
    "time": (
        "Time of a training step, and the most memory in use",
        ("step/median", _RATIO, "step/fast", "step/slow", "peak/bytes"),
    ),
    "model": (
        "Largest network of this kind, in parameters, by the memory of one GPU",
        (*(f"model/{size}" for size in CARDS), "model/ratio"),
    ),
    "batch": (
        "Largest batch of this very network, by the memory of one GPU",
        tuple(f"batch/{size}" for size in CARDS),
    ),
    "updates": (
        "Updates by variant: shares over all layers and steps",
        ("updates/saturated", "updates/lost", "updates/unchanged"),
    ),
    "cost": ("Hours of one such training, and their price", ("cost/hours", "cost/price")),
}
#: Those that have all rows and columns, with quantities or without.
WHOLE = ("summary", "quality")


class Part(NamedTuple):
    """A piece of a cell's text; ``name`` says which quantity of ``variant`` it is, if it is one.

    ``value`` is its value, in its own unit, and ``bar`` the length of a bar beneath it, 0 to 1.
    """

    text: str
    variant: str = ""
    name: str = ""
    value: float | None = None
    bar: float | None = None


Cell = list[Part]


@dataclass(frozen=True)
class Table:
    """A caption, a header and rows, of which the first cell names the row."""

    caption: str
    header: list[str]
    rows: list[list[Cell]] = field(default_factory=list)

    def markdown(self) -> str:
        """As Markdown."""
        return markdown_table(
            [self.header, *(["".join(part.text for part in cell) for cell in row] for row in self.rows)]
        )


def table(contents: Contents, which: str) -> Table:
    """One of :data:`VARIANTS_BY`; rows and columns without quantities are left out unless it is :data:`WHOLE`."""
    (caption, names), metric = VARIANTS_BY[which], contents.study.metric
    variants = list(contents.groups.of)
    if which not in WHOLE:
        variants = [name for name in [*variants, BF16_MIXED] if name != TWIN.name or which not in ("model", "batch")]
    rows = {variant: {name: cell(contents, variant, name) for name in names} for variant in variants}
    if which not in WHOLE:
        rows = {variant: row for variant, row in rows.items() if any(each[0].name for each in row.values())}
        names = tuple(name for name in names if any(row[name][0].name for row in rows.values()))
    headings = [name if name in ("seeds", "verdict") else known_of(name).heading for name in names]
    named = [each.format(metric=metric, last=name.split("/")[-1]) for each, name in zip(headings, names, strict=True)]
    cells = [[[Part(spoken(variant))], *(row[name] for name in names)] for variant, row in rows.items()]
    return Table(caption.format(metric=metric), ["variant", *named], cells)


def cell(contents: Contents, variant: str, name: str, scale: Scale | None = None) -> Cell:
    """A quantity, two that are joined by ``±``, the verdict, or the number of seeds."""
    if name == "verdict":
        words = [SPOKEN[each.outcome].word for each in contents.verdict.findings if each.variant == variant]
        return [Part(words[0] if words else NONE)]
    if name == "seeds":  # that finished, and that the difference is of, where these are not the same
        finished, compared = len(contents.groups.of[variant].values), len(contents.groups.paired(variant))
        said = f"{finished} of {len(contents.study.seeds)}"
        return [Part(said if compared == finished else f"{said}, {compared} compared")]
    first, _, second = name.partition(" ± ")
    found, error = contents.quantity(variant, first), contents.quantity(variant, second)
    if found is None or (second and error is None):  # float32 beside itself
        return [Part(NONE)]
    if error is None:
        return [Part(contents.text(found, scale), variant, first, found.value)]
    if found.unit == "times":
        paced = pace(contents.groups, variant)
        left, right, unit = f"{found.value:.2f}", f"{error.value:.2f}", f" ×{paced.said if paced else ''}"
    else:
        scale = scale or contents.verdict.scale
        (left, right), unit = scale.difference(found.value, error.value), scale.difference_unit
    return [Part(left, variant, first, found.value), Part(" ± "), Part(right, variant, second, error.value), Part(unit)]


def tested(contents: Contents) -> Table:
    """Every other metric that the test logged: its mean, and its difference from float32 with its standard error."""
    names, variants = contents.groups.tested, list(contents.groups.of)
    left = f", {MOST} of {len(names):,}; report.json has all" if len(names) > MOST else ""
    made = Table(f"Logged by the test, without a verdict{left}", ["metric", *map(spoken, variants)])
    for name in names[:MOST]:
        groups = contents.groups.by(name).of.values()
        scale = Scale.of(name, [value for group in groups for value in group.values.values()])
        row = [[Part(name)]]
        for variant in variants:
            mean = cell(contents, variant, f"test_mean/{name}", scale)
            apart = cell(contents, variant, f"test_difference/{name} ± test_standard_error/{name}", scale)
            row.append([*mean, Part(" ("), *apart, Part(")")] if apart[0].name else mean)
        made.rows.append(row)
    return made


def layers(contents: Contents, variant: str) -> Table:
    """One variant's layers, those that lose most first, and no more of them than a reader takes in."""
    header = ["layer", "numbers", "weights", "state", "out of range", "smaller than half a code", "unchanged", "noise"]
    ordered = sorted(contents.layers[variant], key=lambda layer: (-(layer.lost or 0), -(layer.saturated or 0)))
    left = f": the {MOST} of {len(ordered):,} that lose most; report.json has all" if len(ordered) > MOST else ""
    made = Table(f"{spoken(variant)}, layer by layer{left}", header)
    for layer in ordered[:MOST]:
        row = [[Part(layer.name)], [Part(f"{layer.elements:,}")], [Part(layer.weights)], [Part(layer.state)]]
        for what in COUNTED:
            value: float | None = getattr(layer, what)
            name = f"layer/{layer.name}/{what}"
            if value is None:
                row.append([Part(NONE)])
            elif what == "noise_to_update":
                row.append([Part(f"{significant(value)} ×", variant, name, value)])
            else:
                row.append([Part(share(value), variant, name, value, min(1.0, value))])
        made.rows.append(row)
    return made


def all_tables(contents: Contents) -> list[Table]:
    """Every table that has quantities, but for the summary."""
    quality, *others, cost = (table(contents, which) for which in VARIANTS_BY if which != "summary")
    counted = [layers(contents, variant) for variant in contents.layers]
    return [each for each in (quality, tested(contents), *others, *counted, cost) if each.rows and each.header[1:]]
