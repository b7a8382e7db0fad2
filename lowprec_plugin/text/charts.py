"""Pictures as inline SVG: no script, no fonts or colours of their own, widths in per cent so that text keeps its size.

Colours and dashes are classes of the page's style sheet, which knows light and dark. Every picture has a title and a
description for those who do not see it; every figure in it stands in a table beside it too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from xml.etree import ElementTree as ET

from lowprec_plugin.text.svg import add, joined, markup, picture, ticks


class Point(NamedTuple):
    """Of a curve: the mean over the seeds that got so far, and the lowest and highest of them."""

    step: float
    mean: float
    low: float
    high: float


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
    places: Sequence[tuple[float, str]],
    span: tuple[float, float],
) -> str:
    """A line for each variant: a dot for each seed, a diamond at their mean, the zone of equal quality behind.

    Args:
        places: of the axis below, where and what.
        span: what the axis shows; a mean outside is an arrow at its end.
    """
    line, top = 46, 4
    height = top + line * len(rows) + 22
    svg = picture(title, description, class_="dots", width="100%", height=height)

    def x(value: float) -> str:
        return f"{2 + 96 * (value - span[0]) / (span[1] - span[0]):.2f}%"

    for at, label in places:
        add(svg, "line", x1=x(at), x2=x(at), y1=top, y2=height - 18, class_="grid")
        add(svg, "text", label, x=x(at), y=height - 4, class_="tick", text_anchor="middle")
    for index, row in enumerate(rows):
        y = top + line * index
        add(svg, "text", row.label, x="0", y=y + 14, class_="name")
        add(svg, "text", row.text, x="100%", y=y + 14, class_="figure", text_anchor="end")
        middle = y + 30
        if row.zone is not None:
            left, right = (max(span[0], min(span[1], each)) for each in row.zone)
            width = 96 * (right - left) / (span[1] - span[0])
            add(svg, "rect", x=x(left), width=f"{max(width, 0.3):.2f}%", y=middle - 10, height=20, rx=3, class_="zone")
        for number, value in enumerate(row.values):
            if span[0] <= value <= span[1]:
                alike = list(row.values[:number]).count(value)  # seeds that end alike stand above one another
                add(svg, "circle", cx=x(value), cy=middle - 6 * alike, r=4, class_="seed")
        _mean(svg, row.mean, middle, x, span)
    return markup(svg)


def _mean(svg: ET.Element, mean: float, y: float, x: Callable[[float], str], span: tuple[float, float]) -> None:
    # A nested svg moves its origin to a place in per cent, which a path cannot.
    at = add(svg, "svg", x=x(min(max(mean, span[0]), span[1])), y=y, overflow="visible")
    if span[0] <= mean <= span[1]:
        add(at, "path", d="M0,-9 L5,0 L0,9 L-5,0 Z", class_="mean")
        return
    side = 1 if mean > span[1] else -1
    add(at, "path", d=f"M0,-7 L{10 * side},0 L0,7 Z", class_="mean")
    add(at, "text", "off the scale", x=-8 * side, y=4, class_="tick", text_anchor="end" if side > 0 else "start")


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
    svg = picture(title, description, class_="bars", width="100%", height=line * len(rows) + 2)
    longest = max([sum(size for _, size, _ in row.parts) for row in rows] + [mark or 0.0]) or 1.0
    for index, row in enumerate(rows):
        y, start = line * index, 0.0
        add(svg, "text", row.label, x="0", y=y + 14, class_="name")
        add(svg, "text", row.text, x="100%", y=y + 14, class_="figure", text_anchor="end")
        for kind, size, name in row.parts:
            width = 100 * size / longest
            part = add(
                svg, "rect", x=f"{start:.3f}%", width=f"{width:.3f}%", y=y + 19, height=17, class_=f"part {kind}"
            )
            add(part, "title", name)
            start += width
        if mark is not None:
            at = f"{100 * mark / longest:.2f}%"
            add(svg, "line", x1=at, x2=at, y1=y + 16, y2=y + 39, class_="mark")
    return markup(svg)


def panel(
    title: str,
    description: str,
    ours: Sequence[Point],
    float32: Sequence[Point],
    low: float,
    high: float,
    last: float,
    marks: Iterable[float] = (),
) -> str:
    """One variant's curve, solid with its range over the seeds, before float32's, dashed; both to the same axes.

    Args:
        low, high: of the upright axis. last: the end of the level one, in steps.
        marks: steps at which words widened: upright lines.
    """
    width, height = 200.0, 110.0
    svg = picture(
        title, description, class_="panel", viewBox=f"0 0 {width:.0f} {height:.0f}", preserveAspectRatio="none"
    )

    def place(step: float, value: float) -> tuple[float, float]:
        inside = min(max(value, low), high)
        return width * step / max(last, 1e-9), 2 + (height - 4) * (high - inside) / max(high - low, 1e-30)

    for middle in (0.0, 0.5, 1.0):
        y = 2 + (height - 4) * middle
        add(svg, "line", x1=0.0, x2=width, y1=y, y2=y, class_="grid")
    for step in marks:
        x, _ = place(step, low)
        add(svg, "line", x1=x, x2=x, y1=0.0, y2=height, class_="widened")
    for points, name in ((float32, "theirs"), (ours, "ours")):
        if not points:
            continue
        edge = [place(point.step, point.high) for point in points]
        edge += [place(point.step, point.low) for point in reversed(points)]
        add(svg, "polygon", points=joined(edge), class_=f"band {name}")
    for points, name in ((float32, "theirs"), (ours, "ours")):
        if points:
            add(svg, "polyline", points=joined(place(p.step, p.mean) for p in points), class_=f"curve {name}")
    return markup(svg)


def axis_of(rows: Sequence[Dots], near_to: Sequence[str]) -> tuple[float, float]:
    """An axis for what is near to these rows, by their labels; what is far off would press all else together."""
    near = [value for row in rows if row.label in near_to for value in row.values]
    near += [end for row in rows if row.zone for end in row.zone]
    near = near or list(rows[0].values)
    low, high = min(near), max(near)
    room = 3 * max(high - low, 1e-6 * abs(high), 1e-12)
    shown = [value for row in rows for value in row.values if low - room <= value <= high + room]
    low, high = min([low, *shown]), max([high, *shown])
    edge = 0.06 * max(high - low, 1e-6 * abs(high), 1e-12)
    return low - edge, high + edge


def round_axis(curve: Sequence[Point]) -> tuple[float, float]:
    """An axis with round ends for a curve: another that leaves it runs along the edge."""
    low, high = min(point.low for point in curve), max(point.high for point in curve)
    if not high > low:
        return low - 0.5, high + 0.5
    at = ticks(low, high, 8)
    step = at[1] - at[0] if len(at) > 1 else high - low
    return math.floor(low / step) * step, math.ceil(high / step) * step
