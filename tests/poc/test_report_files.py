"""The report's files, whatever is in a folder: very much, very odd, damaged or nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lowprec import main
from lowprec_plugin.poc.report import FILES, write
from tests.poc import staged
from tests.poc.test_report import pictures, reported


def test_of_very_many_layers_a_report_lists_a_few(tmp_path: Path) -> None:
    layers = [
        staged.Layer(f"net.{at}.weight", 64, "fixed16", "fixed16", 300, 0.0, at / 200, 0.1, 0.7) for at in range(200)
    ]
    kept = {f"net.{at}.bias": "named in keep_float" for at in range(200)}
    staged.folder(tmp_path, [*staged.float32(), *staged.runs("16", 0.97, layers=layers, kept_in_float=kept)])
    write(tmp_path)
    for name in FILES[:2]:
        text = (tmp_path / name).read_text()
        assert "layer by layer: the 12 of 200 that lose most; report.json has all" in text
        assert "net.199.weight" in text
        assert "net.187.weight" not in text
        assert "and 188 more" in text
        assert "net.12.bias" not in text
    assert len(reported(tmp_path)["variants"]["16"]["layers"]) == len(
        reported(tmp_path)["variants"]["16"]["kept_in_float"]
    )


def test_an_axis_names_no_place_twice(tmp_path: Path) -> None:
    """Where all values are alike, all ticks are."""
    staged.folder(
        tmp_path, [staged.record(name, seed) for name in ("float32", "float32 twin", "16") for seed in range(4)]
    )
    write(tmp_path)
    picture = pictures(tmp_path)["val_accuracy by variant and seed"]
    assert len(re.findall(r'class="tick"[^>]*>97.00 %<', picture)) == 1


def test_what_users_write_is_escaped(tmp_path: Path) -> None:
    nasty = '<script>alert("1")</script> & "quotes"'
    bad = staged.record("16", 0, status="failed", reason=nasty, metrics={}, kept_in_float={nasty: nasty})
    staged.folder(tmp_path, [*staged.float32(), bad], title=nasty, left_out={nasty: nasty}, command=nasty)
    write(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    staged.folder(tmp_path, [*staged.float32(), bad], metric="val|acc")
    write(tmp_path)
    assert r"| val\|acc |" in (tmp_path / "report.md").read_text()
    json.loads((tmp_path / "report.json").read_text())


def test_the_command_writes_it_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    staged.folder(tmp_path, staged.full())
    assert main(["poc", "report", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert reported(tmp_path)["verdict"]["headline"] in printed
    assert "| 16/8-bit " in printed
    assert main(["poc", "report", str(tmp_path / "nothing")]) == 2
    assert "poc.json: give the folder that lowprec poc --output was given" in capsys.readouterr().err


def test_a_damaged_run_leaves_the_report_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    staged.folder(tmp_path, staged.full())
    write(tmp_path)
    before = [(tmp_path / name).read_bytes() for name in FILES]
    (tmp_path / "runs" / "16-seed0" / "run.json").write_text("{")
    assert main(["poc", "report", str(tmp_path)]) == 2
    assert "16-seed0" in capsys.readouterr().err
    assert [(tmp_path / name).read_bytes() for name in FILES] == before
    assert not list(tmp_path.glob("*.partial"))


def test_a_study_without_an_ended_run(tmp_path: Path) -> None:
    staged.folder(tmp_path, [])
    with pytest.raises(ValueError, match=r"no run in .* has ended yet"):
        write(tmp_path)


def test_a_report_in_the_middle_says_of_how_many_seeds_it_is(tmp_path: Path) -> None:
    records = [*staged.float32(3), *staged.runs("16", 0.975, seeds=2)][:-1]
    records = [run for run in records if (run.variant, run.seed) != ("float32 twin", 2)]
    staged.folder(tmp_path, [*records, staged.record("16", 2)], seeds=list(range(4)), tolerance="2%")
    write(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert re.search(r"\| 16-bit stochastic .* \| 2 of 4, 1 compared \| too few seeds \|", text)
    assert re.search(r"\| float32 .* \| 3 of 4, 2 compared \|", text)
    assert "worse by 2% at most, two standard errors included" in (tmp_path / "report.html").read_text()


def test_before_a_variant_has_run_there_are_no_curves(tmp_path: Path) -> None:
    staged.folder(tmp_path, staged.float32(1))
    write(tmp_path)
    assert ">Curves<" not in (tmp_path / "report.html").read_text()
