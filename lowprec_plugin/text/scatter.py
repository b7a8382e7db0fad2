"""A picture of many marks by two figures, as an SVG file of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from lowprec_plugin.text.svg import add, joined, markup, picture, ticks


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
    svg = picture(title, description, viewBox=f"0 0 {width:.0f} {height:.0f}", xmlns="http://www.w3.org/2000/svg")
    add(svg, "style", _STYLE)
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
    add(svg, "rect", x=left, width=right - left, y=upper, height=lower - upper, class_="zone")
    for at in ticks(low, high, 8):
        x, _ = place(at, 0)
        add(svg, "line", x1=x, x2=x, y1=top, y2=bottom, class_="grid")
        add(svg, "text", f"{at:g}", x=x, y=bottom + 18, text_anchor="middle")
    for at in ticks(*span, 6):
        _, y = place(low, at)
        add(svg, "line", x1=left, x2=right, y1=y, y2=y, class_="axis" if at == 0 else "grid")
        add(svg, "text", f"{at:.6g}".replace("-", "−"), x=left - 8, y=y + 4, text_anchor="end")
    add(svg, "text", labels[0], x=(left + right) / 2, y=bottom + 40, text_anchor="middle")
    add(svg, "text", labels[1], transform=f"translate(16 {(top + bottom) / 2:.0f}) rotate(-90)", text_anchor="middle")
    steps = [corner for (_, before), (x, y) in pairwise(line) for corner in (place(x, before), place(x, y))]
    if line:
        add(svg, "polyline", points=joined([place(*line[0]), *steps]), class_="line")
    for each in marks:
        for at, value, error in each.places:
            x, y = place(at, value)
            bar = [place(at, value + side)[1] - y for side in (error, -error)]
            ends = "".join(f" M-4,{end:.1f} h8" for end in bar) + f" M0,{bar[0]:.1f} V{bar[1]:.1f}" if error else ""
            add(svg, "path", d=each.path + ends, class_=each.kind, transform=f"translate({x:.1f} {y:.1f})")
    legend = [(label, None) for label in labels[2:]] + [(each.label, each) for each in marks if each.places]
    for row, (label, mark) in enumerate(legend):
        y = top + 14 + 24 * row
        if mark is not None:
            add(svg, "path", d=mark.path, class_=mark.kind, transform=f"translate({right + 26:.0f} {y - 4:.0f})")
        elif row == 0:
            add(svg, "rect", x=right + 16, width=20, y=y - 11, height=14, class_="zone")
        else:
            add(svg, "path", d=f"M{right + 16:.0f},{y - 4:.0f} h20", class_="line")
        add(svg, "text", label, x=right + 46, y=y)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + markup(svg) + "\n"
