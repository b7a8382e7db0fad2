"""The report in a real browser: a desktop, a phone, the dark, and what a screen reader is told."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lowprec_plugin.poc.report.command import write
from tests.browser import Browser, needs_chromium
from tests.poc import staged

pytestmark = needs_chromium
DESKTOP, PHONE = 1280, 390
#: Width, dark, touch.
WINDOWS = {"desktop": (DESKTOP, False, False), "phone": (PHONE, False, True), "dark": (DESKTOP, True, False),
           "dark phone": (PHONE, True, True)}  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page")
    staged.folder(path, staged.full(), price=2.5, left_out={"8-bit wire": "one process sends nothing"})
    write(path)
    return path / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as opened:
        yield opened


def show(browser: Browser, report: Path, window: str) -> None:
    """Open the report with everything unfolded that can be."""
    width, dark, touch = WINDOWS[window]
    browser.open(report, width, dark=dark, touch=touch)
    browser.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")


#: What reaches beyond the window, other than inside a box that scrolls.
OVERFLOWING = """
[...document.querySelectorAll('body *')].filter(each => {
  const box = each.getBoundingClientRect();
  const out = box.width > 0 && (box.right > innerWidth + 0.5 || box.left < -0.5);
  return out && !each.closest('.scroll') && !each.closest('.skip');
}).map(each => each.outerHTML.slice(0, 120))
"""

#: Ratio of contrast of every text with what is behind it, and of every drawn part with the page.
CONTRASTS = """
(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => {
    const linear = each => (each /= 255) <= 0.03928 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4;
    const [x, y, z] = [r, g, b].map(linear);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  const behind = node => {
    for (; node; node = node.parentElement) {
      const colour = rgba(getComputedStyle(node).backgroundColor);
      if (colour[3] > 0) return colour;
    }
    return [255, 255, 255, 255];
  };
  const texts = [], parts = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const text = walk.currentNode.textContent.trim(), node = walk.currentNode.parentElement;
    if (!text || !node.getClientRects().length || ['TITLE', 'DESC', 'title', 'desc'].includes(node.tagName)) continue;
    const style = getComputedStyle(node), ink = node.closest('svg') ? style.fill : style.color;
    texts.push([ratio(rgba(ink), behind(node)), text.slice(0, 40)]);
  }
  for (const node of document.querySelectorAll('svg :is(.part, .curve, .seed, .mean, .widened, .mark)')) {
    const style = getComputedStyle(node);
    const ink = node.matches('.part, .mean') ? style.fill : style.stroke;
    parts.push([ratio(rgba(ink), behind(node.parentElement)), node.getAttribute('class')]);
  }
  return [texts, parts];
})()
"""


@pytest.mark.parametrize("window", WINDOWS)
def test_it_fits_the_window(browser: Browser, report: Path, window: str) -> None:
    show(browser, report, window)
    width = browser.evaluate("innerWidth")
    assert width == WINDOWS[window][0]
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(OVERFLOWING) == []
    browser.evaluate("document.querySelector('main').innerHTML += '<div style=\"width:2000px\">wide</div>'")
    assert len(browser.evaluate(OVERFLOWING)) == 1, "the probe sees what does not fit"


#: Names of rows of a picture that reach into the figures at their ends.
COLLIDING = """
[...document.querySelectorAll('svg.bars .name, svg.dots .name')].filter(each =>
  each.getBoundingClientRect().right > each.nextElementSibling.getBoundingClientRect().left
).map(each => each.parentElement.textContent)
"""


def test_long_words_find_room_on_a_phone(browser: Browser, tmp_path: Path) -> None:
    """Of a class, a failure and a verdict that is still open."""
    word = "EnterpriseTransformerFactoryProxy" * 5
    failed = [staged.record("16/8", 0, status="failed", reason=f"{word}Error: {word}", metrics={}, held={})]
    records = [*staged.float32(1), *staged.runs("16", 0.97, seeds=1), *staged.runs("12", 0.97, seeds=1), *failed]
    staged.folder(tmp_path, records, title=f"package.{word} on package.Data")
    write(tmp_path)
    show(browser, tmp_path / "report.html", "phone")
    assert browser.evaluate(OVERFLOWING) == []
    assert browser.evaluate(COLLIDING) == []


def test_it_fits_a_very_small_phone_with_large_letters(browser: Browser, report: Path) -> None:
    browser.open(report, 320, touch=True)
    browser.evaluate("document.documentElement.style.fontSize = '130%'")
    assert browser.evaluate("document.documentElement.scrollWidth") <= 320


@pytest.mark.parametrize("window", ["desktop", "dark"])
def test_contrast(browser: Browser, report: Path, window: str) -> None:
    """4.5 for text and 3 for what is drawn, as WCAG 2.2 asks (1.4.3 and 1.4.11)."""
    show(browser, report, window)
    texts, parts = browser.evaluate(CONTRASTS)
    assert len(texts) > 500
    assert len(parts) > 60
    assert [each for each in texts if each[0] < 4.5] == []
    assert [each for each in parts if each[0] < 3] == []
    browser.evaluate("document.querySelector('h1').style.color = '#888'; document.body.style.background = '#777'")
    assert [each for each in browser.evaluate(CONTRASTS)[0] if each[0] < 4.5], "the probe sees pale text"


@pytest.mark.parametrize("window", WINDOWS)
def test_nothing_is_asked_for_and_nothing_complains(browser: Browser, report: Path, window: str) -> None:
    show(browser, report, window)
    browser.evaluate("1")  # what was under way has been reported before this answer
    assert browser.requests == [report.resolve().as_uri()]
    assert browser.messages == []


@pytest.mark.parametrize("window", WINDOWS)
def test_the_picture_is_a_page(browser: Browser, report: Path, window: str, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    width, dark, _ = WINDOWS[window]
    show(browser, report, window)
    picture = image.open(io.BytesIO(browser.screenshot(tmp_path / "page.png"))).convert("RGB")
    assert picture.size == (width, 900)
    colours = picture.getcolors(maxcolors=1 << 24)
    assert len(colours) > 100, "not blank"
    most, paper = max(colours)
    assert most > 0.4 * width * 900
    assert (sum(paper) < 3 * 60) == dark
    assert (sum(paper) > 3 * 230) == (not dark)


def test_a_screen_reader_finds_its_way(browser: Browser, report: Path) -> None:
    show(browser, report, "desktop")
    found = browser.accessible()
    roles = [role for role, _ in found]
    assert [roles.count(role) for role in ("banner", "main", "contentinfo")] == [1, 1, 1]
    assert {name for role, name in found if role == "region"} >= {
        "What to do next", "Quality: val_accuracy", "Curves", "Memory held", "Time of a step", "What fits in a GPU",
        "Updates, and what was left in float", "Cost", "How to run it again",
    }  # fmt: skip
    levels = browser.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map(each => +each.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels)), levels
    assert browser.evaluate("document.documentElement.lang") == "en"


def test_pictures_have_names_and_descriptions(browser: Browser, report: Path) -> None:
    show(browser, report, "desktop")
    pictures: list[Any] = browser.evaluate(
        "[...document.querySelectorAll('svg')]"
        ".filter(each => !each.closest('[aria-hidden]') && !each.parentElement.closest('svg'))"
        ".map(each => [each.getAttribute('role'), each.getAttribute('aria-labelledby').split(' ')"
        ".map(id => document.getElementById(id).textContent)])"
    )
    assert len(pictures) > 15
    assert all(role == "img" and all(texts) for role, texts in pictures)
    names = [name for role, name in browser.accessible() if role in ("image", "img")]
    assert sum("bf16 92" in name or "16/8-bit 920 KiB" in name for name in names) >= 1, "figures are read out"
    ids = browser.evaluate("[...document.querySelectorAll('[id]')].map(each => each.id)")
    assert len(ids) == len(set(ids))


def test_tables_say_what_their_cells_are(browser: Browser, report: Path) -> None:
    show(browser, report, "phone")
    tables: list[Any] = browser.evaluate(
        "[...document.querySelectorAll('table')].map(each => [each.caption.textContent, "
        "[...each.querySelectorAll('th')].every(th => ['row', 'col'].includes(th.scope)), "
        "each.closest('.scroll').tabIndex])"
    )
    assert len(tables) > 8
    assert all(caption and scoped and focus == 0 for caption, scoped, focus in tables)


def test_a_colour_is_never_alone(browser: Browser, report: Path) -> None:
    """Every outcome has a sign and a word; float32's curve is dashed and ours is not."""
    show(browser, report, "desktop")
    chips = browser.evaluate(
        "[...document.querySelectorAll('.chip')].map(each => each.textContent.trim().split(/\\s+/))"
    )
    assert len(chips) == 8
    assert all(len(chip) > 1 for chip in chips)
    dashes = "getComputedStyle(document.querySelector('.curve.%s')).strokeDasharray"
    assert browser.evaluate(dashes % "theirs") != "none"
    assert browser.evaluate(dashes % "ours") == "none"


def test_it_reads_without_script(browser: Browser, report: Path) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(report, DESKTOP)
        names = [name for role, name in browser.accessible() if role == "heading"]
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
    assert names[0].startswith("Low precision beside float32")
    assert "within seed noise of float32" in names[1]
