"""The report as Markdown and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from lowprec_plugin.poc.report import tables
from lowprec_plugin.poc.report.contents import Contents
from lowprec_plugin.poc.report.quantities import CARDS, known_of
from lowprec_plugin.poc.run.variants import BF16_MIXED, FLOAT32, TWIN, spoken
from lowprec_plugin.text.numbers import counted, listed

#: Of the layout of ``report.json``.
VERSION = 1


def summary(contents: Contents) -> str:
    """Verdict and table, for the terminal."""
    verdict = contents.verdict
    said = [f"- {sentence}" for sentence in verdict.sentences.values()]
    steps = [f"{number}. {step}" for number, step in enumerate(verdict.next, 1)]
    head = [verdict.headline, *([verdict.caution] if verdict.caution else [])]
    return "\n".join([*head, "", tables.table(contents, "summary").markdown(), "", *said, "", *steps])


def as_markdown(contents: Contents) -> str:
    """All tables and sentences, without pictures."""
    study, kept = contents.study, []
    for variants, reasons in contents.kept:
        where = listed([spoken(variant) for variant in variants])
        kept += [f"- `{name}`, {why}: in {where}" for name, why in list(reasons.items())[: tables.MOST]]
        if len(reasons) > tables.MOST:
            kept.append(f"- and {len(reasons) - tables.MOST:,} more in {where}: report.json has all")
    left_out = "\n".join(f"- {spoken(variant)}: {why}" for variant, why in study.left_out.items())
    cards = "; ".join(f"{size} GB: {names}" for size, names in CARDS.items())
    where = f"{counted(study.devices, 'process', 'processes')} on {study.device}"
    versions = ", ".join(f"{name} {version}" for name, version in study.versions.items())
    parts = [
        f"# Low precision beside float32: {study.title}",
        summary(contents),
        *(f"## {made.caption}\n\n{made.markdown()}" for made in tables.all_tables(contents)),
        f"What fits is computed. Networks: all that was measured grows alike; batches: activations alone. {cards}",
        "## Left in float",
        "\n".join(kept) or "Nothing: every parameter of every fixed-point variant is stored in codes.",
        *(["## Left out", left_out] if left_out else []),
        "## How to run it again",
        f"    {study.command}",
        f"Seeds {', '.join(map(str, study.seeds))}; {where}; {versions}. "
        f"Compared: {study.metric}, {study.metric_chosen}",
    ]
    return "\n\n".join(parts) + "\n"


def as_json(contents: Contents) -> str:
    """Every quantity, the run files of each variant, and how a quantity comes from them."""
    verdict, variants = contents.verdict, {}
    for variant, quantities in contents.quantities.items():
        run = variant != BF16_MIXED
        variants[variant] = {
            "runs": contents.files.get(variant if run else FLOAT32.name, {}),
            "figures": {name: quantity._asdict() for name, quantity in quantities.items()},
            "layers": [asdict(layer) for layer in contents.layers.get(variant, [])],
            "kept_in_float": contents.kept_in_float(variant) if run else {},
            "curves": {name: curves[variant] for name, curves in contents.curves.items() if variant in curves},
        }
    findings: list[dict[str, Any]] = []
    for each in verdict.findings:
        files = [contents.files[side][seed] for side in (FLOAT32.name, TWIN.name, each.variant) for seed in each.seeds]
        findings.append({**asdict(each), "sentence": verdict.sentences[each.variant], "files": files})
    names = sorted({name for quantities in contents.quantities.values() for name in quantities})
    said_of_all = {name: getattr(verdict, name) for name in ("headline", "baseline", "caution", "next")}
    content = {
        "version": VERSION,
        "study": json.loads(json.dumps(asdict(contents.study)), parse_constant=str),  # JSON has no .inf
        "verdict": {**said_of_all, "findings": findings},
        "how": {name: known_of(name).how for name in names},
        "variants": variants,
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"
