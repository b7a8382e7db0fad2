"""The report's tables, once for HTML and Markdown: every number in a cell is a named figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from lowprec_plugin.poc.contents import Contents
from lowprec_plugin.poc.figures import BF16_MIXED, CARDS
from lowprec_plugin.poc.groups import KINDS
from lowprec_plugin.poc.outcomes import SPOKEN
from lowprec_plugin.poc.words import Scale, share, significant, spoken
from lowprec_plugin.telemetry import Layer
from lowprec_plugin.text.tables import markdown_table

#: Layers, and parameters left in float, that are listed of a variant.
MOST = 12
#: In a cell without a figure.
NONE = "–"


@dataclass(frozen=True)
class Part:
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


def part(contents: Contents, variant: str, name: str, bar: float | None = None) -> Part:
    """A figure in a cell."""
    figure = contents.figure(variant, name)
    return Part(NONE) if figure is None else Part(contents.written(figure), variant, name, figure.value, bar)


def plain(contents: Contents, caption: str, columns: dict[str, str], variants: Sequence[str]) -> Table:
    """One row for each variant, one column for each figure; variants and columns without any are left out."""
    shown = {heading: name for heading, name in columns.items() if any(contents.figure(v, name) for v in variants)}
    rows = [
        [[Part(spoken(variant))], *([part(contents, variant, name)] for name in shown.values())]
        for variant in variants
        if any(contents.figure(variant, name) for name in shown.values())
    ]
    return Table(caption, ["variant", *shown], rows)


def quality(contents: Contents) -> Table:
    """The metric by variant, and its difference from float32."""
    header = ["variant", "mean", "lowest seed", "highest seed", "difference from float32", "seeds", "verdict"]
    table = Table(f"{contents.study.metric} at the end, by variant", header)
    found = {finding.variant: finding for finding in contents.verdict.findings}
    for variant in contents.groups.of:
        finding = found.get(variant)
        table.rows.append(
            [
                [Part(spoken(variant))],
                *([part(contents, variant, f"metric/{name}")] for name in ("mean", "low", "high")),
                difference(contents, variant),
                [Part(_seeds(contents, variant))],
                [Part(SPOKEN[finding.outcome] if finding else NONE)],
            ]
        )
    return table


def _seeds(contents: Contents, variant: str) -> str:
    """How many finished, and of how many the difference is, where that is not the same."""
    finished, compared = len(contents.groups.of[variant].values), len(contents.groups.paired(variant))
    said = f"{finished} of {len(contents.study.seeds)}"
    return said if compared == finished else f"{said}, {compared} compared"


def summary(contents: Contents) -> Table:
    """The decision in a table."""
    header = [
        "variant", contents.study.metric, "difference from float32", "verdict", "bytes held", "of float32's bytes",
        "step", "of float32's step, seed by seed",
    ]  # fmt: skip
    found = {finding.variant: SPOKEN[finding.outcome] for finding in contents.verdict.findings}
    names = ("metric/mean", "held/total", "held/share", "step/median", "step/ratio")
    rows = []
    for variant in contents.groups.of:
        mean, *costs = ([part(contents, variant, name)] for name in names)
        outcome = [Part(found.get(variant, NONE))]
        rows.append([[Part(spoken(variant))], mean, difference(contents, variant), outcome, *costs])
    return Table("In short", header, rows)


def difference(contents: Contents, variant: str) -> Cell:
    """From float32, with its standard error."""
    names = ("metric/difference", "metric/standard_error")
    return _apart(contents, variant, contents.verdict.scale, names) or [Part(NONE)]


def _apart(contents: Contents, variant: str, scale: Scale, names: tuple[str, str]) -> Cell:
    """The difference and the standard error of these names; empty if there are none."""
    value, error = (contents.figure(variant, name) for name in names)
    if value is None or error is None:
        return []
    left, right = scale.difference(value.value, error.value).removesuffix(scale.difference_unit).split(" ± ")
    return [
        Part(left, variant, names[0], value.value),
        Part(" ± "),
        Part(right, variant, names[1], error.value),
        Part(scale.difference_unit),
    ]


def tested(contents: Contents) -> Table:
    """Every metric that the test logged beside: its mean, and its difference from float32 with its standard error."""
    names = contents.groups.tested
    left = f", {MOST} of {len(names):,}; report.json has all" if len(names) > MOST else ""
    table = Table(f"Logged by the test, without a verdict{left}", ["metric", *map(spoken, contents.groups.of)])
    for name in names[:MOST]:
        groups = contents.groups.by(name).of.values()
        scale = Scale.of(name, [value for group in groups for value in group.values.values()])
        table.rows.append([[Part(name)], *(_tested(contents, variant, name, scale) for variant in contents.groups.of)])
    return table


def _tested(contents: Contents, variant: str, name: str, scale: Scale) -> Cell:
    mean = contents.figure(variant, f"test_mean/{name}")
    if mean is None:
        return [Part(NONE)]
    apart = _apart(contents, variant, scale, (f"test_difference/{name}", f"test_standard_error/{name}"))
    beside = [Part(" ("), *apart, Part(")")] if apart else []
    return [Part(scale.value(mean.value), variant, f"test_mean/{name}", mean.value), *beside]


def ratio_of_steps(contents: Contents, variant: str) -> Cell:
    """A step's time over float32's, with its standard error."""
    ratio, error = (part(contents, variant, f"step/{name}") for name in ("ratio", "error"))
    if not error.name:
        return [ratio]
    return [replace(ratio, text=ratio.text.removesuffix(" ×")), Part(" ± "), error]


def memory(contents: Contents) -> Table:
    """Bytes held, by kind."""
    columns = {"in all": "total", "of float32's": "share", **{kind: kind for kind in KINDS}}
    table = plain(
        contents,
        "Bytes held by one process at the end of training, by kind",
        {heading: f"held/{name}" for heading, name in columns.items()},
        list(contents.groups.of),
    )
    if contents.figure(BF16_MIXED, "computed/total"):
        names = [f"computed/{columns[heading]}" for heading in table.header[1:]]
        table.rows.append([[Part(BF16_MIXED)], *([part(contents, BF16_MIXED, name)] for name in names)])
    return table


def wire(contents: Contents) -> Table:
    """Bytes sent."""
    columns = {"sent": "wire/sent", "float32 would send": "wire/float32", "of float32's": "wire/share"}
    return plain(contents, "Gradients sent per step by one process", columns, list(contents.groups.of))


def time(contents: Contents) -> Table:
    """Milliseconds of a step."""
    columns = {
        "median": "step/median", "of float32's, seed by seed": "step/ratio", "±": "step/error",
        "a tenth is below": "step/fast", "a tenth is above": "step/slow", "peak memory": "peak/bytes",
    }  # fmt: skip
    return plain(contents, "Time of a training step, and the most memory in use", columns, list(contents.groups.of))


def fits(contents: Contents, kind: str, caption: str) -> Table:
    """``model`` or ``batch`` by the cards' memory."""
    variants = [*contents.groups.of, BF16_MIXED]
    columns = {f"{size} GB": f"{kind}/{size}" for size in CARDS} | {"of float32's": f"{kind}/ratio"}
    return plain(contents, caption, columns, [name for name in variants if name != "float32 twin"])


def cost(contents: Contents) -> Table:
    """Hours and their price, if the user gave one."""
    columns = {"hours": "cost/hours", "price": "cost/price"}
    return plain(contents, "Hours of one such training, and their price", columns, list(contents.groups.of))


def updates(contents: Contents) -> Table:
    """Saturated and lost, by variant."""
    columns = {
        "out of range": "updates/saturated", "smaller than half a code": "updates/lost",
        "left the number as it was": "updates/unchanged",
    }  # fmt: skip
    return plain(contents, "Updates by variant: shares over all layers and steps", columns, list(contents.layers))


def layers(contents: Contents, variant: str) -> Table:
    """One variant's layers, those that lose most first, and no more of them than a reader takes in."""
    header = ["layer", "numbers", "weights", "state", "out of range", "smaller than half a code", "unchanged", "noise"]
    ordered = sorted(contents.layers[variant], key=lambda layer: (-(layer.lost or 0), -(layer.saturated or 0)))
    rows = [_layer(variant, layer) for layer in ordered[:MOST]]
    left = f": the {MOST} of {len(ordered):,} that lose most; report.json has all" if len(ordered) > MOST else ""
    return Table(f"{spoken(variant)}, layer by layer{left}", header, rows)


def _layer(variant: str, layer: Layer) -> list[Cell]:
    def counted(what: str, text: Callable[[float], str]) -> Cell:
        value: float | None = getattr(layer, what)
        if value is None:
            return [Part(NONE)]
        bar = min(1.0, value) if text is share else None
        return [Part(text(value), variant, f"layer/{layer.name}/{what}", value, bar)]

    return [
        [Part(layer.name)], [Part(f"{layer.elements:,}")], [Part(layer.weights)], [Part(layer.state)],
        counted("saturated", share), counted("lost", share), counted("unchanged", share),
        counted("noise_to_update", lambda value: f"{significant(value)} ×"),
    ]  # fmt: skip
