"""Pictures as inline SVG: no script, no fonts or colours of their own, widths in per cent so that text keeps its size.

Colours and dashes are classes of the page's style sheet, which knows light and dark. Every picture has a title and a
description for those who do not see it; every figure in it stands in a table beside it too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple
from xml.etree import ElementTree as ET


class Point(NamedTuple):
    """Of a curve: the mean over the seeds that got so far, and the lowest and highest of them."""

    step: float
    mean: float
    low: float
    high: float


def _add(parent: ET.Element, tag: str, text: str | None = None, **attributes: Any) -> ET.Element:
    """A child; ``class_`` is ``class``, and ``_`` is ``-``."""
    child = ET.SubElement(parent, tag, {_name(key): _value(value) for key, value in attributes.items()})
    child.text = text
    return child


def _name(key: str) -> str:
    return key.rstrip("_").replace("_", "-")


def _value(value: Any) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _picture(title: str, description: str, **attributes: Any) -> ET.Element:
    """An ``svg`` that a screen reader announces by its title and reads the description of."""
    name = "-".join(re.findall(r"\w+", f"picture {title}"))
    svg = ET.Element("svg", {_name(key): _value(value) for key, value in attributes.items()})
    svg.set("role", "img")
    svg.set("aria-labelledby", f"{name}-title {name}-text")
    _add(svg, "title", title, id=f"{name}-title")
    _add(svg, "desc", description, id=f"{name}-text")
    return svg


def _markup(svg: ET.Element) -> str:
    return ET.tostring(svg, encoding="unicode")  # ElementTree has escaped all text and attributes


@dataclass(frozen=True)
class Dots:
    """One line of :func:`dots`.

    Attributes:
        label, text: the variant, and the mean as it is written.
        values: one for each seed.
        mean: of them.
        zone: where a mean counts as equal to float32's; ``None``: there is nothing to compare with.
    """

    label: str
    text: str
    values: Sequence[float]
    mean: float
    zone: tuple[float, float] | None


def dots(
    title: str,
    description: str,
    rows: Sequence[Dots],
    ticks: Sequence[tuple[float, str]],
    span: tuple[float, float],
) -> str:
    """A line for each variant: a dot for each seed, a diamond at their mean, the zone of equal quality behind.

    Args:
        ticks: of the axis below, where and what.
        span: what the axis shows; a mean outside is an arrow at its end.
    """
    line, top = 46, 4
    height = top + line * len(rows) + 22
    svg = _picture(title, description, class_="dots", width="100%", height=height)

    def x(value: float) -> str:
        return f"{2 + 96 * (value - span[0]) / (span[1] - span[0]):.2f}%"

    for at, label in ticks:
        _add(svg, "line", x1=x(at), x2=x(at), y1=top, y2=height - 18, class_="grid")
        _add(svg, "text", label, x=x(at), y=height - 4, class_="tick", text_anchor="middle")
    for index, row in enumerate(rows):
        y = top + line * index
        _add(svg, "text", row.label, x="0", y=y + 14, class_="name")
        _add(svg, "text", row.text, x="100%", y=y + 14, class_="figure", text_anchor="end")
        middle = y + 30
        if row.zone is not None:
            left, right = (max(span[0], min(span[1], each)) for each in row.zone)
            width = 96 * (right - left) / (span[1] - span[0])
            _add(svg, "rect", x=x(left), width=f"{max(width, 0.3):.2f}%", y=middle - 10, height=20, rx=3, class_="zone")
        for number, value in enumerate(row.values):
            if span[0] <= value <= span[1]:
                alike = list(row.values[:number]).count(value)  # seeds that end alike stand above one another
                _add(svg, "circle", cx=x(value), cy=middle - 6 * alike, r=4, class_="seed")
        _mean(svg, row.mean, middle, x, span)
    return _markup(svg)


def _mean(svg: ET.Element, mean: float, y: float, x: Callable[[float], str], span: tuple[float, float]) -> None:
    # A nested svg moves its origin to a place in per cent, which a path cannot.
    at = _add(svg, "svg", x=x(min(max(mean, span[0]), span[1])), y=y, overflow="visible")
    if span[0] <= mean <= span[1]:
        _add(at, "path", d="M0,-9 L5,0 L0,9 L-5,0 Z", class_="mean")
        return
    side = 1 if mean > span[1] else -1
    _add(at, "path", d=f"M0,-7 L{10 * side},0 L0,7 Z", class_="mean")
    _add(at, "text", "off the scale", x=-8 * side, y=4, class_="tick", text_anchor="end" if side > 0 else "start")


@dataclass(frozen=True)
class Bar:
    """One line of :func:`bars`: a label, what is written at its end, and its parts by class with their titles."""

    label: str
    text: str
    parts: Sequence[tuple[str, float, str]]


def bars(title: str, description: str, rows: Sequence[Bar], mark: float | None = None) -> str:
    """A stacked bar for each row, all to one scale that ends at the longest.

    ``mark`` is where a dashed line goes over each: float32's length.
    """
    line = 42
    svg = _picture(title, description, class_="bars", width="100%", height=line * len(rows) + 2)
    longest = max([sum(size for _, size, _ in row.parts) for row in rows] + [mark or 0.0]) or 1.0
    for index, row in enumerate(rows):
        y, start = line * index, 0.0
        _add(svg, "text", row.label, x="0", y=y + 14, class_="name")
        _add(svg, "text", row.text, x="100%", y=y + 14, class_="figure", text_anchor="end")
        for kind, size, name in row.parts:
            width = 100 * size / longest
            part = _add(
                svg, "rect", x=f"{start:.3f}%", width=f"{width:.3f}%", y=y + 19, height=17, class_=f"part {kind}"
            )
            _add(part, "title", name)
            start += width
        if mark is not None:
            at = f"{100 * mark / longest:.2f}%"
            _add(svg, "line", x1=at, x2=at, y1=y + 16, y2=y + 39, class_="mark")
    return _markup(svg)


def panel(title: str, description: str, ours: Sequence[Point], float32: Sequence[Point], low: float, high: float,
          last: float, marks: Iterable[float] = ()) -> str:  # fmt: skip
    """One variant's curve, solid with its range over the seeds, before float32's, dashed; both to the same axes.

    Args:
        low, high: of the upright axis. last: the end of the level one, in steps.
        marks: steps at which words widened: upright lines.
    """
    width, height = 200.0, 110.0
    svg = _picture(
        title, description, class_="panel", viewBox=f"0 0 {width:.0f} {height:.0f}", preserveAspectRatio="none"
    )

    def place(step: float, value: float) -> tuple[float, float]:
        inside = min(max(value, low), high)
        return width * step / max(last, 1e-9), 2 + (height - 4) * (high - inside) / max(high - low, 1e-30)

    for middle in (0.0, 0.5, 1.0):
        y = 2 + (height - 4) * middle
        _add(svg, "line", x1=0.0, x2=width, y1=y, y2=y, class_="grid")
    for step in marks:
        x, _ = place(step, low)
        _add(svg, "line", x1=x, x2=x, y1=0.0, y2=height, class_="widened")
    for points, name in ((float32, "theirs"), (ours, "ours")):
        if not points:
            continue
        edge = [place(point.step, point.high) for point in points]
        edge += [place(point.step, point.low) for point in reversed(points)]
        _add(svg, "polygon", points=_points(edge), class_=f"band {name}")
    for points, name in ((float32, "theirs"), (ours, "ours")):
        if points:
            _add(svg, "polyline", points=_points(place(p.step, p.mean) for p in points), class_=f"curve {name}")
    return _markup(svg)


def _points(places: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About ``count`` round numbers between ``low`` and ``high``."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw)
    first = math.ceil(low / step - 1e-9)
    return [step * at for at in range(first, math.floor(high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class Marks:
    """One kind of marks of :func:`scatter`.

    Attributes:
        label: in the legend.
        path: the mark, as an SVG path about the origin; ``kind``: its class, ``good``, ``bad`` or ``lost``.
        places: x, y, and the half of an upright bar through it; 0: none.
    """

    label: str
    path: str
    kind: str
    places: Sequence[tuple[float, float, float]]


#: A picture that stands alone has its own style.
_STYLE = """
svg { background: #fff; color: #1b1f24; font: 13px system-ui, sans-serif; } text { fill: currentColor; }
.grid { stroke: #ddd; } .zone { fill: #e3f3eb; } .axis { stroke: #6b6b6b; }
.line { fill: none; stroke: #0b62a8; stroke-width: 2; } path { fill: none; stroke-width: 2; }
.good { stroke: #0a6b45; } .bad { stroke: #a8261c; } .lost { stroke: #6b6b6b; }
@media (prefers-color-scheme: dark) {
  svg { background: #14171b; color: #eceff3; } .grid { stroke: #363c44; } .zone { fill: #17352a; }
  .axis, .lost { stroke: #a3a3a3; } .line { stroke: #5aa9f0; } .good { stroke: #6fd6a6; } .bad { stroke: #ff968a; }
}
"""


def scatter(
    title: str,
    description: str,
    marks: Sequence[Marks],
    line: Sequence[tuple[float, float]],
    zone: tuple[float, float],
    span: tuple[float, float],
    labels: tuple[str, str, str, str],
) -> str:
    """Marks by x and y, as a file of its own.

    Args:
        line: a staircase through these points.
        zone, span: of y: a band behind all, and what is shown; what is outside stands at the rim.
        labels: of the two axes, the zone and the line.
    """
    width, height, left, right, top, bottom = 760.0, 450.0, 80.0, 590.0, 16.0, 400.0
    svg = _picture(title, description, viewBox=f"0 0 {width:.0f} {height:.0f}", xmlns="http://www.w3.org/2000/svg")
    _add(svg, "style", _STYLE)
    xs = [x for each in marks for x, _, _ in each.places] or [0.0, 1.0]
    room = 0.05 * (max(xs) - min(xs)) or 1.0
    low, high = min(xs) - room, max(xs) + room

    def place(x: float, y: float) -> tuple[float, float]:
        inside = min(max(y, span[0]), span[1])
        return (
            left + (right - left) * (x - low) / (high - low),
            bottom - (bottom - top) * (inside - span[0]) / (span[1] - span[0]),
        )

    upper, lower = place(low, zone[1])[1], place(low, zone[0])[1]
    _add(svg, "rect", x=left, width=right - left, y=upper, height=lower - upper, class_="zone")
    for at in ticks(low, high, 8):
        x, _ = place(at, 0)
        _add(svg, "line", x1=x, x2=x, y1=top, y2=bottom, class_="grid")
        _add(svg, "text", f"{at:g}", x=x, y=bottom + 18, text_anchor="middle")
    for at in ticks(*span, 6):
        _, y = place(low, at)
        _add(svg, "line", x1=left, x2=right, y1=y, y2=y, class_="axis" if at == 0 else "grid")
        _add(svg, "text", f"{at:.6g}".replace("-", "−"), x=left - 8, y=y + 4, text_anchor="end")
    _add(svg, "text", labels[0], x=(left + right) / 2, y=bottom + 40, text_anchor="middle")
    _add(svg, "text", labels[1], transform=f"translate(16 {(top + bottom) / 2:.0f}) rotate(-90)", text_anchor="middle")
    steps = [corner for (_, before), (x, y) in pairwise(line) for corner in (place(x, before), place(x, y))]
    if line:
        _add(svg, "polyline", points=_points([place(*line[0]), *steps]), class_="line")
    for each in marks:
        for at, value, error in each.places:
            x, y = place(at, value)
            bar = [place(at, value + side)[1] - y for side in (error, -error)]
            ends = "".join(f" M-4,{end:.1f} h8" for end in bar) + f" M0,{bar[0]:.1f} V{bar[1]:.1f}" if error else ""
            _add(svg, "path", d=each.path + ends, class_=each.kind, transform=f"translate({x:.1f} {y:.1f})")
    legend = [(label, None) for label in labels[2:]] + [(each.label, each) for each in marks if each.places]
    for row, (label, mark) in enumerate(legend):
        y = top + 14 + 24 * row
        if mark is not None:
            _add(svg, "path", d=mark.path, class_=mark.kind, transform=f"translate({right + 26:.0f} {y - 4:.0f})")
        elif row == 0:
            _add(svg, "rect", x=right + 16, width=20, y=y - 11, height=14, class_="zone")
        else:
            _add(svg, "path", d=f"M{right + 16:.0f},{y - 4:.0f} h20", class_="line")
        _add(svg, "text", label, x=right + 46, y=y)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + _markup(svg) + "\n"
