"""Pictures as SVG."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from lowprec_plugin.text.scatter import Marks, scatter
from lowprec_plugin.text.svg import ticks

SVG = "{http://www.w3.org/2000/svg}"


def drawn(marks: list[Marks], line: list[tuple[float, float]]) -> ET.Element:
    text = scatter(
        "A & B", "<of both>", marks, line, (-9.0, 1.0), (-2.0, 3.0), ("cost", "worse", "allowed", "frontier")
    )
    return ET.fromstring(text.encode())


def test_marks_of_a_scatter_are_where_their_values_are() -> None:
    """Across and up by the same rule as the ticks of the axes; what is too far up stands at the rim."""
    given = [(10.0, 0.0, 0.0), (20.0, 1.0, 0.5), (50.0, 99.0, 0.0)]
    svg = drawn([Marks("passed", "M0,0 h4", "good", given)], [])
    texts = {each.text: each for each in svg.iter(f"{SVG}text")}
    found = [re.match(r"translate\((.*) (.*)\)", each.get("transform", "")) for each in svg.iter(f"{SVG}path")]
    places = [tuple(map(float, each.groups())) for each in found if each][: len(given)]
    (left, right), (zero, one) = (
        (float(texts[at].get("x", "")) for at in ("10", "50")),
        (float(texts[at].get("y", "")) - 4 for at in ("0", "1")),
    )
    assert [round(x) for x, _ in places] == [round(left + (right - left) * (x - 10) / 40) for x, _, _ in given]
    assert [round(y) for _, y in places] == [round(zero + (one - zero) * y) for y in (0, 1, 3)]
    bar = [each for each in svg.iter(f"{SVG}path") if each.get("class") == "good"][1].get("d", "")
    low, high = map(float, re.search(r" M0,(\S+) V(\S+)$", bar).groups())  # type: ignore[union-attr]
    assert high - low == round(zero - one, 1)


def test_a_line_is_a_staircase_and_only_what_is_there_is_in_the_legend() -> None:
    svg = drawn(
        [Marks("passed", "M0,0 h4", "good", []), Marks("bad & worse", "M0,0 h4", "bad", [(1, 1, 0)])], [(1, 2), (3, 1)]
    )
    (line,) = svg.iter(f"{SVG}polyline")
    corners = [tuple(map(float, each.split(","))) for each in line.get("points", "").split()]
    assert len(corners) == 3
    assert (corners[0][1], corners[1][0]) == (corners[1][1], corners[2][0])
    texts = [each.text for each in svg.iter(f"{SVG}text")]
    assert {"allowed", "frontier", "bad & worse", "cost", "worse"} <= set(texts)
    assert "passed" not in texts
    assert [each.text for each in (svg.find(f"{SVG}title"), svg.find(f"{SVG}desc")) if each is not None] == [
        "A & B",
        "<of both>",
    ]


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0.0, 1.0) == [0.0, 0.5, 1.0]
    assert ticks(0.93, 3.1) == [1.0, 2.0, 3.0]
    assert ticks(2.0, 2.0) == [2.0]
