"""The report's files: every figure is computed again from the run files, by code that is not the package's."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lowprec_plugin.poc.report.command import FILES, write
from lowprec_plugin.poc.run.variants import spoken
from tests.poc import staged

SIZES = (16, 24, 40, 80, 141, 192)
KINDS = ("weights", "state", "gradients", "activations", "buffers")
PRICE = 2.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on every kind of variant, with a price, on two processes that send gradients."""
    path = tmp_path_factory.mktemp("poc")
    sending = [
        staged.replace(each, sent=85_002 * (4 if each.variant.startswith("float32") else 2), float32_sent=85_002 * 4.0)
        for each in staged.full()
    ]
    staged.folder(path, sending, price=PRICE, devices=2)
    write(path)
    return path


class Page(HTMLParser):
    """Tables as text, and the figures in them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.figures: list[tuple[str, str, float, str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._caption, self._rows, self._cell, self._data = "", [[""]], False, None
        self._in_caption = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append((tag, given))
        if tag == "table":
            self._rows = []
        elif tag == "caption":
            self._caption, self._in_caption = "", True
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
            self._cell = True
        elif tag == "data":
            self._data = [str(given["data-of"]), str(given["data-name"]), float(str(given["value"])), ""]

    def handle_endtag(self, tag: str) -> None:
        if tag == "caption":
            self._in_caption = False
        elif tag in ("td", "th"):
            self._cell = False
            self._rows[-1][-1] = " ".join(self._rows[-1][-1].split())
        elif tag == "table":
            self.tables[self._caption] = self._rows
        elif tag == "data":
            assert self._data is not None
            self.figures.append(tuple(self._data))  # type: ignore[arg-type]
            self._data = None

    def handle_data(self, data: str) -> None:
        if self._in_caption:
            self._caption += data
        if self._cell:
            self._rows[-1][-1] += data
        if self._data is not None:
            self._data[3] += data


def raw(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The run files as they are, by variant and in the order of the seeds."""
    found = [json.loads(path.read_text()) for path in folder.glob("runs/*/run.json")]
    names = json.loads((folder / "poc.json").read_text())["variants"]
    return {
        name: sorted((run for run in found if run["variant"] == name), key=lambda run: run["seed"]) for name in names
    }


def middle(values: list[float]) -> float | None:
    values = [value for value in values if value]
    return statistics.median(values) if values else None


def paced(each: list[dict[str, Any]], runs: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Ratio of step times and its error, from the logarithms."""
    sides = [
        {run["seed"]: math.log(run["step_ms"]["median"]) for run in side if run["step_ms"]}
        for side in (each, runs["float32"], runs["float32 twin"])
    ]
    seeds = sorted(set.intersection(*map(set, sides)))
    apart = [sides[0][seed] - sides[1][seed] for seed in seeds]
    noise = statistics.median(abs(sides[2][seed] - sides[1][seed]) for seed in seeds)
    middle = statistics.median(apart)
    if each is runs["float32"]:
        return {"step/ratio": 1.0}
    spread = max(noise, statistics.median(abs(one - middle) for one in apart))
    return {"step/ratio": math.exp(middle), "step/error": math.exp(middle) * 1.858 * spread / math.sqrt(len(seeds))}


def compared(runs: dict[str, list[dict[str, Any]]], metric: str) -> dict[str, dict[str, float]]:
    """What is said of a metric, by variant."""
    ended = {
        name: {run["seed"]: run["metrics"][metric] for run in each if run["status"] == "finished" and run["metrics"]}
        for name, each in runs.items()
    }
    found: dict[str, dict[str, float]] = {name: {} for name in runs}
    for name, mine in found.items():
        if ended[name]:
            values = list(ended[name].values())
            mine |= {"mean": statistics.fmean(values), "low": min(values), "high": max(values)}
        if ended[name] and name != "float32":
            seeds = sorted(set(ended[name]) & set(ended["float32"]) & set(ended["float32 twin"]))
            apart = [ended[name][seed] - ended["float32"][seed] for seed in seeds]
            twins = [ended["float32 twin"][seed] - ended["float32"][seed] for seed in seeds]
            noise = math.sqrt(sum(each**2 for each in twins) / len(seeds))
            own = 0.0 if name == "float32 twin" else statistics.stdev(apart)
            error = max(noise, own) / math.sqrt(len(seeds))
            mean = statistics.fmean(ended["float32"][seed] for seed in seeds)
            mine |= {
                "baseline": mean, "difference": statistics.fmean(apart), "standard_error": error, "noise": noise,
                "zone": min(2 * error, 0.003 * mean),
            }  # fmt: skip
    return found


def recomputed(folder: Path) -> dict[str, dict[str, float]]:
    """Every figure from the raw run files."""
    runs = raw(folder)
    by_metric = {name: compared(runs, name) for name in ("val_accuracy", "test_accuracy")}
    held = {name: [run["held"] for run in each if run["held"]] for name, each in runs.items()}
    base = {kind: statistics.median(one[kind] for one in held["float32"]) for kind in KINDS}
    found: dict[str, dict[str, float]] = {}
    for name, each in runs.items():
        mine = found[name] = {f"metric/{what}": value for what, value in by_metric["val_accuracy"][name].items()}
        for what, value in by_metric["test_accuracy"][name].items():
            if what in ("mean", "difference", "standard_error"):
                mine[f"test_{what}/test_accuracy"] = value
        if held[name]:
            kinds = {kind: statistics.median(one[kind] for one in held[name]) for kind in KINDS}
            total, parameters = sum(kinds.values()), 85_002
            mine |= {f"held/{kind}": value for kind, value in kinds.items()}
            mine |= {
                "held/total": total,
                "held/share": total / sum(base.values()),
                "model/ratio": sum(base.values()) / total,
            }
            mine |= {f"model/{size}": parameters * size * 2**30 / total for size in SIZES}
            per_example = kinds["activations"] / 32
            mine |= {
                f"batch/{size}": math.floor((size * 2**30 - total + 32 * per_example) / per_example) for size in SIZES
            }
        step = middle([run["step_ms"]["median"] for run in each])
        if step:
            mine |= {"step/median": step} | paced(each, runs)
            mine |= {
                f"step/{kind}": statistics.median(run["step_ms"][kind] for run in each) for kind in ("fast", "slow")
            }
            if any(run["status"] == "finished" for run in each):
                hours = step * 645 * 2 / 3_600_000
                mine |= {"cost/hours": hours, "cost/price": hours * PRICE}
        mine |= {"peak/bytes": statistics.median(run["peak"] for run in each)}
        mine |= {"wire/sent": each[0]["sent"], "wire/float32": each[0]["float32_sent"]}
        mine["wire/share"] = mine["wire/sent"] / mine["wire/float32"]
        for what in ("saturated", "lost", "unchanged"):
            layers = [layer for run in each for layer in run["layers"] if layer[what] is not None]
            if layers:
                weights = [layer["elements"] for layer in layers]
                mine[f"updates/{what}"] = statistics.fmean([layer[what] for layer in layers], weights)
    return found


def reported(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return content


def test_every_figure_is_recomputed_from_the_run_files(folder: Path) -> None:
    expected = recomputed(folder)
    variants = reported(folder)["variants"]
    assert list(variants) == list(expected)
    for variant, figures in expected.items():
        found = {name: each["value"] for name, each in variants[variant]["figures"].items()}
        assert found == pytest.approx(figures, rel=1e-12), variant


def test_bfloat16_is_computed_where_it_was_not_run(tmp_path: Path) -> None:
    staged.folder(tmp_path, [*staged.float32(), *staged.runs("16", 0.975)])
    write(tmp_path)
    figures = reported(tmp_path)["variants"]["bf16 mixed, computed"]["figures"]
    held = raw(tmp_path)["float32"][0]["bf16"]
    assert {kind: figures[f"held/{kind}"]["value"] for kind in KINDS} == held
    assert figures["held/total"]["value"] == sum(held.values())


def test_every_figure_says_how_and_from_which_files(folder: Path) -> None:
    report = reported(folder)
    for variant, found in report["variants"].items():
        assert set(found["figures"]) <= set(report["how"])
        for seed, file in found["runs"].items():
            run = json.loads((folder / file).read_text())
            assert (run["variant"], str(run["seed"])) == (variant, seed)
    for finding in report["verdict"]["findings"]:
        assert len(finding["files"]) == 3 * len(finding["seeds"])
        assert all((folder / file).exists() for file in finding["files"])


def test_layers_are_means_over_the_runs(folder: Path) -> None:
    for variant, found in reported(folder)["variants"].items():
        for layer in found["layers"]:
            runs = [one for run in raw(folder)[variant] for one in run["layers"] if one["name"] == layer["name"]]
            for what in ("saturated", "lost", "unchanged", "noise_to_update"):
                values = [one[what] for one in runs if one[what] is not None]
                assert layer[what] == (pytest.approx(statistics.fmean(values)) if values else None)


@pytest.mark.parametrize("name", ["val_accuracy", "train_loss"])
def test_curves_are_means_and_ranges_over_the_runs(folder: Path, name: str) -> None:
    """The metric's few points one by one; the loss's 129 in 60 bins."""
    for variant, found in reported(folder)["variants"].items():
        curves = [run["curves"][name] for run in raw(folder)[variant] if name in run["curves"]]
        if not curves:
            assert name not in found["curves"]
            continue
        steps = sorted({step for curve in curves for step, _ in curve})
        width = (steps[-1] - steps[0]) / 60 if len(steps) > 60 else None
        bins: dict[Any, list[list[float]]] = defaultdict(list)
        for curve in curves:
            mine: dict[Any, list[float]] = defaultdict(list)
            for step, value in curve:
                mine[step if width is None else min(59, math.floor((step - steps[0]) / width))].append(value)
            for at, values in mine.items():
                bins[at].append(values)
        means = [[statistics.fmean(seed) for seed in bins[at]] for at in sorted(bins)]
        points = found["curves"][name]
        assert [point[1] for point in points] == pytest.approx([statistics.fmean(seeds) for seeds in means])
        assert [point[2:] for point in points] == [pytest.approx([min(seeds), max(seeds)]) for seeds in means]


def written(text: str, unit: str) -> tuple[float, float]:
    """The number that a text stands for, and half of its last digit."""
    number = text.replace("−", "-").replace(",", "").split(" ")[0]
    factors = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "million": 1e6, "billion": 1e9, "trillion": 1e12, "%": 0.01}
    factor = next((size for word, size in factors.items() if word in text), 0.01 if unit == "difference" else 1.0)
    return float(number) * factor, 0.5 * 10.0 ** -len(number.partition(".")[2]) * factor


def test_the_page_shows_the_figures_of_the_json(folder: Path) -> None:
    """Every ``data`` element carries its figure, and its text is that figure rounded to what is written."""
    report, page = reported(folder), Page((folder / "report.html").read_text())
    figures = {
        (variant, name): each
        for variant, found in report["variants"].items()
        for name, each in found["figures"].items()
    }
    layers = {
        (variant, layer["name"]): layer for variant, found in report["variants"].items() for layer in found["layers"]
    }
    assert len(page.figures) > 300
    for variant, name, value, text in page.figures:
        if name.startswith("layer/"):
            _, layer, what = name.split("/")
            expected, unit = layers[variant, layer][what], ""
        else:
            expected, unit = figures[variant, name]["value"], figures[variant, name]["unit"]
        assert value == expected
        if text == "< 0.01 %":
            assert 0 < value < 0.0001
        else:
            number, half = written(text, unit)
            assert abs(number - value) <= half * 1.0001, (name, text, value)


def test_no_number_in_a_table_is_without_a_figure(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    without = Page(re.sub(r"<data.*?</data>", "", page, flags=re.DOTALL))
    for caption, (header, *rows) in without.tables.items():
        for row in rows:
            for heading, cell in zip(header[1:], row[1:], strict=True):
                named = heading == "seeds" or ("layer" in caption and heading in ("numbers", "weights", "state"))
                assert named or not re.search(r"\d", cell), (caption, heading, cell)


def test_markdown_has_the_tables_of_the_page(folder: Path) -> None:
    page, text = Page((folder / "report.html").read_text()), (folder / "report.md").read_text()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    for caption, rows in page.tables.items():
        if not caption.startswith("Largest"):
            assert f"## {caption}" in text
        for row in rows[1:]:
            assert row in lines


def test_sentences_carry_the_figures(folder: Path) -> None:
    expected = recomputed(folder)
    for finding in reported(folder)["verdict"]["findings"]:
        figures = expected[finding["variant"]]
        if finding["comparison"] is None:
            continue
        difference = f"{100 * figures['metric/difference']:+.2f}".replace("-", "−")
        evidence = (
            f"val_accuracy {100 * figures['metric/mean']:.2f} % against {100 * figures['metric/baseline']:.2f} %, "
            f"{difference} ± {100 * figures['metric/standard_error']:.2f} points over 4 seeds"
        )
        assert evidence in finding["sentence"]


def test_the_summary_has_bytes_and_time_beside_float32s(folder: Path) -> None:
    expected, text = recomputed(folder), (folder / "report.md").read_text()
    lines = [line for line in text.partition("## ")[0].splitlines() if line.startswith("| ")]
    rows = {row[0]: row for row in ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)}
    for finding in reported(folder)["verdict"]["findings"]:
        figures, row = expected[finding["variant"]], rows[spoken(finding["variant"])]
        if "step/ratio" in figures and "held/share" in figures:
            noise = 2 * figures["step/error"] / figures["step/ratio"]
            slower = ", slower" if math.log(figures["step/ratio"]) > max(math.log(1.05), noise) else ""
            assert row[-1] == f"{figures['step/ratio']:.2f} ± {figures['step/error']:.2f} ×{slower}"
            assert row[-3] == f"{100 * figures['held/share']:.0f} %"


def pictures(folder: Path) -> dict[str, str]:
    """The figures of the page, by their titles."""
    figures = (folder / "report.html").read_text().split("<figure>")[1:]
    return {re.split("<title[^>]*>|</title>", figure)[1]: figure.split("</figure>")[0] for figure in figures}


def test_bars_are_as_long_as_their_bytes(folder: Path) -> None:
    expected, picture = recomputed(folder), pictures(folder)["Bytes held by kind and variant"]
    widths = [float(width) for width in re.findall(r'<rect x="[\d.]+%" width="([\d.]+)%"', picture)]
    shown = [each for name, each in expected.items() if "held/total" in each and name != "float32 twin"]
    sizes = [each[f"held/{kind}"] for each in shown for kind in KINDS]
    longest = max(each["held/total"] for each in shown)
    assert widths == pytest.approx([100 * size / longest for size in sizes], abs=0.001)


def test_dots_are_where_their_seeds_are(folder: Path) -> None:
    """All dots lie on one straight line from value to place, which the axis below shares."""
    picture = pictures(folder)["val_accuracy by variant and seed"]
    places = sorted({float(place) for place in re.findall(r'<circle cx="([\d.]+)%"', picture)})
    values = sorted(
        {
            run["metrics"]["val_accuracy"]
            for name, runs in raw(folder).items()
            for run in runs
            if run["metrics"] and run["status"] == "finished" and name != "8"
        }
    )
    ends = re.findall(r'<text x="([\d.]+)%"[^>]*class="tick"[^>]*>([\d.]+) %</text>', picture)
    (left, low), (right, high) = ((float(place), float(text) / 100) for place, text in (ends[0], ends[-1]))
    expected = sorted({round(left + (value - low) / (high - low) * (right - left), 2) for value in values})
    assert places == pytest.approx(expected, abs=0.011)
    assert "off the scale" in picture, "8 bits are too far away to be shown beside the others"


def test_slower_and_silent_fallbacks_are_said(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert " ×, slower" in page
    assert "<code>net.0.bias</code>: named in keep_float" in page
    assert "8-bit wire: one process sends nothing" in page
    for name in FILES[1:]:
        assert "net.0.bias" in (folder / name).read_text()


def test_a_price_is_never_invented(folder: Path, tmp_path: Path) -> None:
    assert "your price of 2.5 per hour" in (folder / "report.html").read_text()
    staged.folder(tmp_path, staged.full())
    write(tmp_path)
    for name in FILES:
        text = (tmp_path / name).read_text()
        assert "cost/" not in text
        assert "your price" not in text
        assert "Hours" not in text


def test_nothing_is_fetched_and_nothing_is_run(folder: Path) -> None:
    page = Page((folder / "report.html").read_text())
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & {
        tag for tag, given in page.tags if given.get("href") != "data:,"
    }
    for tag, given in page.tags:
        assert not [name for name in given if name.startswith("on")], tag
        for name in ("src", "href", "xlink:href"):
            assert str(given.get(name, "#")).startswith(("#", "data:")), (tag, given)
    assert not re.search(r"url\(|@import|https?://", (folder / "report.html").read_text())


def test_the_same_files_give_the_same_report(folder: Path) -> None:
    before = [(folder / name).read_bytes() for name in FILES]
    write(folder)
    assert [(folder / name).read_bytes() for name in FILES] == before
