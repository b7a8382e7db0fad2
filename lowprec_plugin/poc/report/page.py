"""The report as one HTML file that opens from disk: no script, nothing fetched."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lowprec_plugin.poc.report import tables
from lowprec_plugin.poc.report.contents import Contents
from lowprec_plugin.poc.report.quantities import CARDS
from lowprec_plugin.poc.run.variants import FLOAT32, TWIN, spoken
from lowprec_plugin.poc.verdict.groups import KINDS
from lowprec_plugin.poc.verdict.outcomes import SPOKEN
from lowprec_plugin.quality import LIMIT, MIN_SEEDS
from lowprec_plugin.text import charts
from lowprec_plugin.text.numbers import bytes_text
from lowprec_plugin.text.svg import ticks

#: The memory, in GB, of the card that is pictured.
PICTURED = 80


def html(contents: Contents) -> str:
    """The page."""
    loader = PackageLoader("lowprec_plugin.poc.report", ".")
    options = {"autoescape": True, "undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=loader, **options)  # type: ignore[arg-type]
    environment.filters["spoken"] = spoken
    page = environment.get_template("page.html").render(
        contents=contents,
        study=contents.study,
        verdict=contents.verdict,
        tables=tables,
        cards=_cards(contents),
        quality=_quality(contents),
        curves=_curves(contents),
        memory=_bars(contents, "Bytes held by kind and variant", "held/total", "held/share"),
        time=_bars(contents, "Time of a training step by variant", "step/median", "step/ratio"),
        models=_bars(contents, f"Largest network in {PICTURED} GB, in parameters", f"model/{PICTURED}", "model/ratio"),
        kinds=KINDS,
        gpus=CARDS,
        pictured=PICTURED,
        limit=100 * LIMIT,
        min_seeds=MIN_SEEDS,
    )
    return page + "\n"


def _cards(contents: Contents) -> list[dict[str, Any]]:
    """What the page says of each variant first."""
    cards = []
    for finding in contents.verdict.findings:
        variant = finding.variant
        names = {"of float32's bytes": "held/share", "of its step time": "step/ratio ± step/error"}
        figures = [(label, tables.cell(contents, variant, name)) for label, name in names.items()]
        cards.append({
            "name": spoken(variant), "outcome": finding.outcome, "spoken": SPOKEN[finding.outcome],
            "sentence": contents.verdict.sentences[variant], "figures": [each for each in figures if each[1][0].name],
        })  # fmt: skip
    return cards


def _quality(contents: Contents) -> Markup | None:
    scale, metric, rows = contents.verdict.scale, contents.study.metric, []
    for variant, group in contents.groups.of.items():
        if group.values:
            centre, zone = (contents.quantity(variant, f"metric/{name}") for name in ("baseline", "zone"))
            ends = (centre.value - zone.value, centre.value + zone.value) if centre and zone else None
            mean = contents.quantities[variant]["metric/mean"]
            values = list(group.values.values())
            rows.append(charts.Dots(spoken(variant), contents.text(mean), values, mean.value, ends))
    if not rows:
        return None
    low, high = charts.axis_of(rows, (FLOAT32.name, TWIN.name))
    described = "; ".join(f"{row.label} {row.text}" for row in rows)
    described = f"Means: {described}. A mean within the zone of its line is equal to float32."
    marks = {scale.value(at): at for at in ticks(low, high)}  # none twice, where all values are alike
    places = [(at, text) for text, at in marks.items()]
    return Markup(charts.dots(f"{metric} by variant and seed", described, rows, places, (low, high)))


def _curves(contents: Contents) -> list[dict[str, Any]]:
    """Small pictures of each curve, a variant each, all to the same axes; the axes' ends as text."""
    found = []
    for name, curves in contents.curves.items():
        theirs = curves.get(FLOAT32.name, [])
        shown = {variant: points for variant, points in curves.items() if variant not in (FLOAT32.name, TWIN.name)}
        every = [point for points in [theirs, *shown.values()] for point in points]
        if not shown or max(map(len, [theirs, *shown.values()]), default=0) < 2:
            continue
        low, high = charts.round_axis(theirs or every)
        last = max(point.step for point in every)
        write = contents.verdict.scale.value if name == contents.study.metric else lambda value: f"{value:.3g}"
        pictures = []
        for variant, ours in shown.items():
            marks = [float(each["step"]) for run in contents.groups.of[variant].runs for each in run.widened]
            text = f"{spoken(variant)} ends at {ours[-1].mean:.4g}"
            text += f", float32 at {theirs[-1].mean:.4g}" if theirs else ""
            text += f"; words widened at step {min(marks):,.0f} first." if marks else "."
            title = f"{name} of {spoken(variant)} by step"
            pictures.append((variant, Markup(charts.panel(title, text, ours, theirs, low, high, last, marks))))
        ends = {"low": write(low), "high": write(high), "last": f"step {last:,.0f}"}
        found.append({"name": name, "pictures": pictures, **ends})
    return found


def _bars(contents: Contents, title: str, name: str, ratio: str) -> Markup | None:
    """A bar for each variant, with its share or multiple of float32's; bytes by kind, networks with the verdict."""
    words = {each.variant: SPOKEN[each.outcome].word for each in contents.verdict.findings if each.outcome != "equal"}
    rows = []
    for variant, quantities in contents.quantities.items():
        if variant == TWIN.name or name not in quantities:
            continue
        said = [contents.text(quantities[name])]
        if variant != FLOAT32.name:
            said += [contents.text(quantities[ratio])] if ratio in quantities else []
            said += [words[variant]] if name.startswith("model") and variant in words else []
        parts = [("plain", quantities[name].value, said[0])]
        if name == "held/total":
            sizes = {kind: quantities[f"held/{kind}"].value for kind in KINDS}
            parts = [(kind, size, f"{kind}: {bytes_text(size)}") for kind, size in sizes.items() if size]
        rows.append(charts.Bar(spoken(variant), ", ".join(said), parts))
    if not rows:
        return None
    whole = contents.quantity(FLOAT32.name, name)
    described = "; ".join(f"{row.label} {row.text}" for row in rows) + ". Parts and multiples are of float32's."
    return Markup(charts.bars(title, described, rows, whole.value if whole else None))
