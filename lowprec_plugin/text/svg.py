"""The pieces of pictures in SVG: elements, points and the numbers of an axis."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any
from xml.etree import ElementTree as ET


def add(parent: ET.Element, tag: str, text: str | None = None, **attributes: Any) -> ET.Element:
    """A child; ``class_`` is ``class``, and ``_`` is ``-``."""
    child = ET.SubElement(parent, tag, {_name(key): _value(value) for key, value in attributes.items()})
    child.text = text
    return child


def _name(key: str) -> str:
    return key.rstrip("_").replace("_", "-")


def _value(value: Any) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def picture(title: str, description: str, **attributes: Any) -> ET.Element:
    """An ``svg`` that a screen reader announces by its title and reads the description of."""
    name = "-".join(re.findall(r"\w+", f"picture {title}"))
    svg = ET.Element("svg", {_name(key): _value(value) for key, value in attributes.items()})
    svg.set("role", "img")
    svg.set("aria-labelledby", f"{name}-title {name}-text")
    add(svg, "title", title, id=f"{name}-title")
    add(svg, "desc", description, id=f"{name}-text")
    return svg


def markup(svg: ET.Element) -> str:
    """Its text."""
    return ET.tostring(svg, encoding="unicode")  # ElementTree has escaped all text and attributes


def joined(places: Iterable[tuple[float, float]]) -> str:
    """Points as a line or a polygon takes them."""
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
