"""The report as Markdown and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from lowprec_plugin.poc import tables
from lowprec_plugin.poc.contents import Contents
from lowprec_plugin.poc.figures import BF16_MIXED, CARDS, how
from lowprec_plugin.poc.variants import FLOAT32
from lowprec_plugin.poc.words import listed, spoken

#: Of the layout of ``report.json``.
VERSION = 1


def summary(contents: Contents) -> str:
    """Verdict and table, for the terminal."""
    verdict = contents.verdict
    rows = tables.summary(contents).markdown()
    said = [f"{verdict.sentences[each.variant]} {verdict.costs[each.variant]}".rstrip() for each in verdict.findings]
    return "\n".join([verdict.headline, "", rows, "", *(f"- {each}" for each in said), "", *_numbered(verdict.next)])


def as_markdown(contents: Contents) -> str:
    """All tables and sentences, without pictures."""
    study = contents.study
    cards = "; ".join(f"{size} GB: {names}" for size, names in CARDS.items())
    made = [
        tables.quality(contents), tables.tested(contents), tables.memory(contents), tables.wire(contents),
        tables.time(contents),
        tables.fits(contents, "model", f"Largest network of this kind, all that was measured growing alike ({cards})"),
        tables.fits(contents, "batch", "Largest batch of this very network, its activations growing with the batch"),
        tables.updates(contents), *(tables.layers(contents, variant) for variant in contents.layers),
        *([tables.cost(contents)] if study.price is not None else []),
    ]  # fmt: skip
    kept = []
    for variants, reasons in contents.kept:
        where = listed([spoken(variant) for variant in variants])
        kept += [f"- `{name}`, {why}: in {where}" for name, why in list(reasons.items())[: tables.MOST]]
        if len(reasons) > tables.MOST:
            kept.append(f"- and {len(reasons) - tables.MOST:,} more in {where}: report.json has all")
    left_out = [f"- {spoken(variant)}: {why}" for variant, why in study.left_out.items()]
    processes = "1 process" if study.devices == 1 else f"{study.devices} processes"
    versions = ", ".join(f"{name} {version}" for name, version in study.versions.items())
    return "\n".join(
        [
            f"# Low precision beside float32: {study.title}", "", summary(contents), "",
            *(f"## {table.caption}\n\n{table.markdown()}\n" for table in made if table.rows and len(table.header) > 1),
            "## Left in float", "", *(kept or ["Nothing: every parameter of every fixed-point variant is codes."]), "",
            *(["## Left out", "", *left_out, ""] if left_out else []),
            "## How to run it again", "", f"    {study.command}", "",
            f"Seeds {', '.join(map(str, study.seeds))}; {processes} on {study.device}; {versions}. "
            f"Compared: {study.metric}, {study.metric_chosen}", "",
        ]
    )  # fmt: skip


def as_json(contents: Contents) -> str:
    """Every figure, the run files of each variant, and how a figure comes from them."""
    verdict, study = contents.verdict, contents.study
    variants: dict[str, Any] = {}
    for variant, figures in contents.figures.items():
        variants[variant] = {
            "runs": contents.files.get(FLOAT32.name if variant == BF16_MIXED else variant, {}),
            "figures": {name: {"value": each.value, "unit": each.unit} for name, each in figures.items()},
            "layers": [asdict(layer) for layer in contents.layers.get(variant, [])],
            "kept_in_float": {} if variant == BF16_MIXED else contents.kept_in_float(variant),
            "curves": {name: curves[variant] for name, curves in contents.curves.items() if variant in curves},
        }
    names = sorted({name for figures in contents.figures.values() for name in figures})
    content = {
        "version": VERSION,
        "study": json.loads(json.dumps(asdict(study)), parse_constant=str),  # a configuration may have .inf, JSON not
        "verdict": {
            "headline": verdict.headline,
            "baseline": verdict.baseline,
            "caution": verdict.caution,
            "next": verdict.next,
            "findings": [
                {
                    **asdict(each),
                    "sentence": verdict.sentences[each.variant],
                    "cost": verdict.costs[each.variant],
                    "files": _compared(contents, each.variant, each.seeds),
                }
                for each in verdict.findings
            ],
        },
        "how": {name: how(name) for name in names},
        "variants": variants,
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _compared(contents: Contents, variant: str, seeds: tuple[int, ...]) -> list[str]:
    sides = (FLOAT32.name, contents.groups.twin.variant, variant)
    return [contents.files[side][seed] for side in sides for seed in seeds if side in contents.files]


def _numbered(items: list[str]) -> list[str]:
    return [f"{number}. {item}" for number, item in enumerate(items, 1)]
