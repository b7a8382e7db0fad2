"""The report's tables, once for HTML and Markdown: every number in a cell is a named figure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from lowprec_plugin.poc.report.contents import COUNTED, Contents
from lowprec_plugin.poc.report.quantities import BF16_MIXED, CARDS
from lowprec_plugin.poc.run.metrics import Scale
from lowprec_plugin.poc.run.variants import TWIN, spoken
from lowprec_plugin.poc.verdict.groups import KINDS
from lowprec_plugin.poc.verdict.outcomes import SPOKEN
from lowprec_plugin.text.numbers import share, significant
from lowprec_plugin.text.tables import markdown_table

#: Layers, and parameters left in float, that are listed of a variant.
MOST = 12
#: In a cell without a figure.
NONE = "–"
_DIFFERENCE = "metric/difference ± metric/standard_error"


class Spec(NamedTuple):
    """A table with a row for each variant: its caption, and the figure of each column.

    ``whole``: with rows and columns that have no figure, which are left out else.
    """

    caption: str
    columns: dict[str, str]
    whole: bool = False


SPECS = {
    "summary": Spec(
        "In short",
        {
            "{metric}": "metric/mean",
            "difference from float32": _DIFFERENCE,
            "verdict": "verdict",
            "bytes held": "held/total",
            "of float32's bytes": "held/share",
            "step": "step/median",
            "of float32's step, seed by seed": "step/ratio",
        },
        whole=True,
    ),
    "quality": Spec(
        "{metric} at the end, by variant",
        {
            "mean": "metric/mean",
            "lowest seed": "metric/low",
            "highest seed": "metric/high",
            "difference from float32": _DIFFERENCE,
            "seeds": "seeds",
            "verdict": "verdict",
        },
        whole=True,
    ),
    "memory": Spec(
        "Bytes held by one process at the end of training, by kind",
        {"in all": "held/total", "of float32's": "held/share", **{kind: f"held/{kind}" for kind in KINDS}},
    ),
    "wire": Spec(
        "Gradients sent per step by one process",
        {"sent": "wire/sent", "float32 would send": "wire/float32", "of float32's": "wire/share"},
    ),
    "time": Spec(
        "Time of a training step, and the most memory in use",
        {
            "median": "step/median",
            "of float32's, seed by seed": "step/ratio",
            "±": "step/error",
            "a tenth is below": "step/fast",
            "a tenth is above": "step/slow",
            "peak memory": "peak/bytes",
        },
    ),
    "model": Spec(
        "Largest network of this kind, in parameters, by the memory of one GPU",
        {**{f"{size} GB": f"model/{size}" for size in CARDS}, "of float32's": "model/ratio"},
    ),
    "batch": Spec(
        "Largest batch of this very network, by the memory of one GPU",
        {f"{size} GB": f"batch/{size}" for size in CARDS},
    ),
    "updates": Spec(
        "Updates by variant: shares over all layers and steps",
        {
            "out of range": "updates/saturated",
            "smaller than half a code": "updates/lost",
            "left the number as it was": "updates/unchanged",
        },
    ),
    "cost": Spec("Hours of one such training, and their price", {"hours": "cost/hours", "price": "cost/price"}),
}


class Part(NamedTuple):
    """A piece of a cell's text; ``name`` says which figure of ``variant`` it is, if it is one.

    ``value`` is that figure, in its own unit, and ``bar`` the length of a bar beneath it, 0 to 1.
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
    """One of :data:`SPECS`."""
    caption, columns, whole = SPECS[which]
    variants = [*contents.groups.of, BF16_MIXED] if not whole else list(contents.groups.of)
    if which in ("model", "batch"):
        variants.remove(TWIN.name)
    rows = {each: {heading: cell(contents, each, name) for heading, name in columns.items()} for each in variants}
    if not whole:
        rows = {variant: row for variant, row in rows.items() if any(each[0].name for each in row.values())}
    shown = [heading for heading in columns if whole or any(row[heading][0].name for row in rows.values())]
    metric = contents.study.metric
    return Table(
        caption.format(metric=metric),
        ["variant", *(heading.format(metric=metric) for heading in shown)],
        [[[Part(spoken(variant))], *(row[heading] for heading in shown)] for variant, row in rows.items()],
    )


def cell(contents: Contents, variant: str, name: str, scale: Scale | None = None) -> Cell:
    """A figure, two that are joined by ``±``, the verdict, or the number of seeds."""
    if name == "verdict":
        found = (each.outcome for each in contents.verdict.findings if each.variant == variant)
        return [Part(SPOKEN[outcome]) for outcome in found] or [Part(NONE)]
    if name == "seeds":  # that finished, and that the difference is of, where these are not the same
        finished, compared = len(contents.groups.of[variant].values), len(contents.groups.paired(variant))
        said = f"{finished} of {len(contents.study.seeds)}"
        return [Part(said if compared == finished else f"{said}, {compared} compared")]
    if variant == BF16_MIXED:
        name = name.replace("held/", "computed/")
    first, _, second = name.partition(" ± ")
    figure, error = contents.figure(variant, first), contents.figure(variant, second)
    if figure is None or (second and error is None and figure.unit != "times"):
        return [Part(NONE)]
    text, scale = contents.text(variant, first), scale or contents.verdict.scale
    if figure.unit == "metric":
        text = scale.value(figure.value)
    if error is None:
        return [Part(text, variant, first, figure.value)]
    if figure.unit == "times":
        left, right, unit = text.removesuffix(" ×"), contents.text(variant, second), ""
    else:
        unit = scale.difference_unit
        left, right = scale.difference(figure.value, error.value).removesuffix(unit).split(" ± ")
    parts = [Part(left, variant, first, figure.value), Part(" ± "), Part(right, variant, second, error.value)]
    return [*parts, Part(unit)] if unit else parts


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
    """Every table that has figures, but for the summary."""
    quality, *others, cost = (table(contents, which) for which in SPECS if which != "summary")
    counted = [layers(contents, variant) for variant in contents.layers]
    return [each for each in (quality, tested(contents), *others, *counted, cost) if each.rows and each.header[1:]]
