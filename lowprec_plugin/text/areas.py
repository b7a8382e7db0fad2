"""A picture of sums over time: one area for each kind, each upon the one before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from xml.etree import ElementTree as ET

from lowprec_plugin.text.numbers import bytes_text
from lowprec_plugin.text.svg import add, joined, markup, picture, ticks

#: At most so many columns: of the moments in one, the highest is drawn, so that no peak is lost.
COLUMNS = 400
_WIDTH, _HEIGHT, _LINE = 800.0, 220.0, 22
#: What a name needs, in per cent of the width.
_NAME = 9
#: Of kinds as they come, in a file that has no style sheet of a page.
COLOURS = ("#0b62a8", "#6b6b6b", "#b85c00", "#00795a", "#9a4392", "#c2a000")


def areas(
    title: str,
    description: str,
    kinds: Sequence[str],
    moments: Sequence[Sequence[float]],
    starts: Sequence[tuple[int, str]] = (),
) -> str:
    """Bytes by kind from left to right, and how many at most. An area's class is its kind.

    Args:
        kinds: from the ground up.
        moments: bytes of each kind, at least one moment.
        starts: moments at which something begins, and its name, which stands above.
    """
    svg = picture(title, description, class_="areas", width="100%", height=_HEIGHT + 2 * _LINE)
    columns = _columns(moments)
    most = max(map(sum, columns)) or 1.0

    def y(value: float) -> float:
        return _HEIGHT * (1 - value / most)

    inside = add(
        svg, "svg", y=_LINE, width="100%", height=_HEIGHT, viewBox=f"0 0 {_WIDTH:.0f} {_HEIGHT:.0f}",
        preserveAspectRatio="none",
    )  # fmt: skip
    width = _WIDTH / len(columns)
    lower = [0.0] * len(columns)
    for index, kind in enumerate(kinds):
        upper = [low + column[index] for low, column in zip(lower, columns, strict=True)]
        if upper != lower:
            edge = [(at, y(value)) for at, value in _corners(upper, width)]
            edge += [(at, y(value)) for at, value in reversed(_corners(lower, width))]
            add(add(inside, "polygon", points=joined(edge), class_=f"part {kind}"), "title", kind)
        lower = upper
    for value in ticks(0.0, most):
        add(inside, "line", x1=0.0, x2=_WIDTH, y1=y(value), y2=y(value), class_="grid")
    written = -math.inf
    for start, name in starts:
        at = 100 * start / len(moments)
        add(svg, "line", x1=f"{at:.2f}%", x2=f"{at:.2f}%", y1=4, y2=_HEIGHT + _LINE, class_="mark")
        if at >= written + _NAME and at <= 100 - _NAME:
            add(svg, "text", name, x=f"{at:.2f}%", dx=4, y=14, class_="tick")
            written = at
    add(svg, "text", f"at most {bytes_text(most)}", x="0", y=_HEIGHT + 2 * _LINE - 6, class_="figure")
    return markup(svg)


def standing_alone(svg: str, kinds: Sequence[str]) -> str:
    """A picture of :func:`areas` as a file of its own: colours, and below it what they stand for."""
    root = ET.fromstring(svg)
    colours = dict(zip(kinds, COLOURS, strict=True))
    style = "".join(f".{kind}{{fill:{colour}}}" for kind, colour in colours.items())
    style += "text{font:13px sans-serif;fill:#1b1f24}.grid{stroke:#d9d6cf}.mark{stroke:#1b1f24;stroke-dasharray:4 4}"
    root.set("xmlns", "http://www.w3.org/2000/svg")
    root.set("width", f"{_WIDTH:.0f}")
    root.set("height", f"{_HEIGHT + 3 * _LINE:.0f}")
    root.insert(2, ET.Element("style"))
    root[2].text = style
    for index, kind in enumerate(kinds):
        x, y = index * _WIDTH / len(kinds), _HEIGHT + 2 * _LINE + 4
        add(root, "rect", x=x, y=y, width=10, height=10, class_=kind)
        add(root, "text", kind, x=x + 14, y=y + 10)
    return markup(root)


def _columns(moments: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    count = min(COLUMNS, len(moments))
    edges = [len(moments) * at // count for at in range(count + 1)]
    return [max(moments[low:high], key=sum) for low, high in pairwise(edges)]


def _corners(values: Sequence[float], width: float) -> list[tuple[float, float]]:
    """The corners of steps: each value from its column's left to its right."""
    return [(width * at, value) for index, value in enumerate(values) for at in (index, index + 1)]
