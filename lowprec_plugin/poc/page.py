"""The report as one HTML file that opens from disk: no script, nothing fetched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lowprec_plugin.poc import charts, tables
from lowprec_plugin.poc.contents import Contents
from lowprec_plugin.poc.curves import Point
from lowprec_plugin.poc.figures import BF16_MIXED, CARDS
from lowprec_plugin.poc.groups import KINDS
from lowprec_plugin.poc.outcomes import SPOKEN, Outcome
from lowprec_plugin.poc.pace import pace
from lowprec_plugin.poc.variants import FLOAT32, TWIN
from lowprec_plugin.poc.words import bytes_text, spoken
from lowprec_plugin.quality import LIMIT, MIN_SEEDS

#: A sign beside the word of each outcome: never a colour alone.
SIGNS: dict[Outcome, str] = {
    "equal": "✓", "tolerated": "✓", "worse": "✗", "better": "≠", "unsettled": "?", "few seeds": "…", "diverged": "✗",
    "failed": "–", "no run": "…", "no yardstick": "?",
}  # fmt: skip
#: The memory, in GB, of the card that is pictured.
PICTURED = 80


def html(contents: Contents) -> str:
    """The page."""
    environment = Environment(
        loader=PackageLoader("lowprec_plugin.poc", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["spoken"] = spoken
    page = environment.get_template("report.html").render(
        contents=contents, study=contents.study, verdict=contents.verdict, tables=tables, cards=_cards(contents),
        quality=_quality(contents), curves=_curves(contents), memory=_memory(contents), time=_time(contents),
        models=_models(contents), kinds=KINDS, gpus=CARDS, pictured=PICTURED, limit=100 * LIMIT, min_seeds=MIN_SEEDS,
    )  # fmt: skip
    return page + "\n"


@dataclass(frozen=True)
class Card:
    """What the page says of a variant first."""

    name: str
    outcome: Outcome
    sign: str
    word: str
    sentence: str
    figures: list[tuple[str, tables.Cell]]


def _cards(contents: Contents) -> list[Card]:
    cards = []
    for finding in contents.verdict.findings:
        variant = finding.variant
        time = pace(contents.groups, variant)
        word = ", slower" if time and time.word == "slower" else ""
        word += ", very uncertain" if time and time.noisy else ""
        figures = {
            "of float32's bytes": [tables.part(contents, variant, "held/share")],
            f"of its step time{word}": tables.ratio_of_steps(contents, variant),
        }
        cards.append(
            Card(
                spoken(variant), finding.outcome, SIGNS[finding.outcome], SPOKEN[finding.outcome],
                contents.verdict.sentences[variant],
                [(label, cell) for label, cell in figures.items() if cell[0].name],
            )
        )  # fmt: skip
    return cards


def _quality(contents: Contents) -> Markup | None:
    scale, metric = contents.verdict.scale, contents.study.metric
    rows = []
    for variant, group in contents.groups.of.items():
        if not group.values:
            continue
        centre, zone = (contents.figure(variant, f"metric/{name}") for name in ("baseline", "zone"))
        rows.append(
            charts.Dots(
                spoken(variant), contents.text(variant, "metric/mean"), list(group.values.values()),
                contents.figures[variant]["metric/mean"].value,
                (centre.value - zone.value, centre.value + zone.value) if centre and zone else None,
            )
        )  # fmt: skip
    if not rows:
        return None
    low, high = _span(rows)
    described = "; ".join(f"{row.label} {row.text}" for row in rows)
    marks = {scale.value(at): at for at in charts.ticks(low, high)}  # none twice, where all values are as good as alike
    return charts.dots(
        f"{metric} by variant and seed",
        f"Means: {described}. A mean within the zone of its line is equal to float32.",
        rows, [(at, text) for text, at in marks.items()], (low, high),
    )  # fmt: skip


def _span(rows: Sequence[charts.Dots]) -> tuple[float, float]:
    """An axis for what is near float32; what is far off would press all else together."""
    near = [value for row in rows if row.label in (FLOAT32.name, TWIN.name) for value in row.values]
    near += [end for row in rows if row.zone for end in row.zone]
    near = near or list(rows[0].values)
    low, high = min(near), max(near)
    room = 3 * max(high - low, 1e-6 * abs(high), 1e-12)
    shown = [value for row in rows for value in row.values if low - room <= value <= high + room]
    low, high = min([low, *shown]), max([high, *shown])
    edge = 0.06 * max(high - low, 1e-6 * abs(high), 1e-12)
    return low - edge, high + edge


@dataclass(frozen=True)
class Panels:
    """Small pictures of one curve, a variant each, all to the same axes; the axes' ends as text."""

    name: str
    low: str
    high: str
    last: str
    pictures: list[tuple[str, Markup]]


def _curves(contents: Contents) -> list[Panels]:
    found = []
    for name, curves in contents.curves.items():
        theirs = curves.get(FLOAT32.name, [])
        shown = {variant: points for variant, points in curves.items() if variant not in (FLOAT32.name, TWIN.name)}
        every = [point for points in [theirs, *shown.values()] for point in points]
        if not shown or max(map(len, [theirs, *shown.values()]), default=0) < 2:
            continue
        low, high = _range(theirs or every)
        last = max(point.step for point in every)
        metric = name == contents.study.metric
        write = contents.verdict.scale.value if metric else lambda value: f"{value:.3g}"
        pictures = [(variant, _panel(contents, name, variant, ours, theirs, (low, high, last)))
                    for variant, ours in shown.items()]  # fmt: skip
        found.append(Panels(name, write(low), write(high), f"step {last:,.0f}", pictures))
    return found


def _panel(contents: Contents, name: str, variant: str, ours: list[Point], theirs: list[Point],
           axes: tuple[float, float, float]) -> Markup:  # fmt: skip
    marks = [float(each["step"]) for run in contents.groups.of[variant].runs for each in run.widened]
    end = f"{spoken(variant)} ends at {ours[-1].mean:.4g}" + (f", float32 at {theirs[-1].mean:.4g}" if theirs else "")
    widened = f"; words widened at step {min(marks):,.0f} first" if marks else ""
    return charts.panel(f"{name} of {spoken(variant)} by step", f"{end}{widened}.", ours, theirs, *axes, marks)


def _range(points: Sequence[Point]) -> tuple[float, float]:
    """An axis with round ends for float32's curve: a variant that leaves it runs along the edge."""
    low, high = min(point.low for point in points), max(point.high for point in points)
    if not high > low:
        return low - 0.5, high + 0.5
    at = charts.ticks(low, high, 8)
    step = at[1] - at[0] if len(at) > 1 else high - low
    return math.floor(low / step) * step, math.ceil(high / step) * step


def _memory(contents: Contents) -> Markup | None:
    rows = []
    for variant, figures in contents.figures.items():
        begin = "computed" if variant == BF16_MIXED else "held"
        if variant == TWIN.name or f"{begin}/total" not in figures:
            continue
        text = contents.text(variant, f"{begin}/total")
        if variant != FLOAT32.name and f"{begin}/share" in figures:
            text = f"{text}, {contents.text(variant, f'{begin}/share')}"
        sizes = {kind: figures[f"{begin}/{kind}"].value for kind in KINDS}
        parts = [(kind, size, f"{kind}: {bytes_text(size)}") for kind, size in sizes.items() if size]
        rows.append(charts.Bar(spoken(variant), text, parts))
    if not rows:
        return None
    described = "; ".join(f"{row.label} {row.text}" for row in rows)
    whole = contents.figure(FLOAT32.name, "held/total")
    return charts.bars(
        "Bytes held by kind and variant", f"{described} of float32's.", rows, whole.value if whole else None
    )


def _models(contents: Contents) -> Markup | None:
    title = f"Largest network of this kind in {PICTURED} GB, in parameters"
    return _beside_float32(contents, title, f"model/{PICTURED}", "model/ratio", judged=True)


def _time(contents: Contents) -> Markup | None:
    return _beside_float32(contents, "Time of a training step by variant", "step/median", "step/ratio")


def _beside_float32(contents: Contents, title: str, name: str, ratio: str, *, judged: bool = False) -> Markup | None:
    """A bar for each variant, with its multiple of float32's; ``judged``: and a word where its quality is not equal."""
    words = {finding.variant: SPOKEN[finding.outcome] for finding in contents.verdict.findings if judged}
    rows = []
    for variant, figures in contents.figures.items():
        if name not in figures or variant == TWIN.name:
            continue
        said = [contents.text(variant, name)]
        if variant != FLOAT32.name:
            said += [
                contents.text(variant, ratio),
                *([words[variant]] if words.get(variant, "equal") != "equal" else []),
            ]
        part = ("plain", figures[name].value, said[0])
        rows.append(charts.Bar(spoken(variant), ", ".join(said), [part]))
    if not rows:
        return None
    whole = contents.figure(FLOAT32.name, name)
    described = "; ".join(f"{row.label} {row.text}" for row in rows)
    return charts.bars(title, f"{described}. Multiples are of float32's.", rows, whole.value if whole else None)
