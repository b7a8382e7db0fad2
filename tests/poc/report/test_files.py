"""The report's files, whatever is in a folder: very much, very odd, damaged or nothing."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lowprec_plugin.cli.main import main
from lowprec_plugin.poc.report.command import FILES, write
from lowprec_plugin.poc.run.study import RunRecord, load
from tests.poc import staged
from tests.poc.report.test_figures import pictures, reported


def test_of_very_many_layers_a_report_lists_a_few(tmp_path: Path) -> None:
    layers = [
        staged.LayerReport(f"net.{at}.weight", 64, "fixed16", "fixed16", 300, 0.0, at / 200, 0.1, 0.7)
        for at in range(200)
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


def test_a_batch_of_unknown_size_is_a_multiple_of_what_was_run(tmp_path: Path) -> None:
    """As of graphs: 16 GiB hold so many times the activations, beside the rest."""
    staged.folder(tmp_path, [replace(each, examples=0) for each in [*staged.float32(), *staged.runs("16", 0.975)]])
    write(tmp_path)
    held = staged.record("16", 0).held
    times = (16 * 2**30 - sum(held.values()) + held["activations"]) // held["activations"]
    figure = reported(tmp_path)["variants"]["16"]["figures"]["batch/16"]
    assert figure == {"value": times, "unit": "batches"}
    for name in FILES[:2]:
        assert f"{times:,} × your batch" in (tmp_path / name).read_text()


def test_every_metric_of_a_test_is_shown_in_its_own_scale(tmp_path: Path) -> None:
    """By whatever names; of none there is no table. Where the compared metric is one, it is not told twice."""

    def tested(variant: str, seed: int, more: float) -> RunRecord:
        rmse = 0.04 + 0.001 * seed + more
        metrics = {"val_accuracy": 0.97, "test/rmse": rmse, "auc": 0.9, "scores/top1_acc": 0.5 + more}
        return staged.record(variant, seed, metrics=metrics, tested=["test/rmse", "auc", "scores/top1_acc"])

    sides = {"float32": 0.0, "float32 twin": 0.0006, "16": 0.003}
    staged.folder(tmp_path, [tested(name, seed, more) for name, more in sides.items() for seed in range(4)])
    write(tmp_path)
    text = (tmp_path / "report.md").read_text()
    lines = [re.split(r" +\| +", line.strip("| ")) for line in text.splitlines()]
    assert "## Logged by the test, without a verdict" in text
    assert ["metric", "float32", "float32 twin", "16-bit stochastic"] in lines
    error = "0.00030"  # the twins', 0.0006 / sqrt(4): the variant's own differences are all alike
    assert ["test/rmse", "0.04150", f"0.04210 (+0.00060 ± {error})", f"0.04450 (+0.00300 ± {error})"] in lines
    assert ["auc", "0.9000", "0.9000 (0.0000 ± 0.0000)", "0.9000 (0.0000 ± 0.0000)"] in lines
    assert ["scores/top1_acc", "50.00 %", "50.06 % (+0.06 ± 0.03 points)", "50.30 % (+0.30 ± 0.03 points)"] in lines
    assert "test/rmse" in (tmp_path / "report.html").read_text()
    figures = reported(tmp_path)["variants"]["16"]["figures"]
    assert figures["test_difference/test/rmse"]["value"] == pytest.approx(0.003)

    staged.folder(tmp_path, staged.float32(), metric="test_accuracy")
    for each in (tmp_path / "runs").glob("16-*"):
        shutil.rmtree(each)
    write(tmp_path)
    for name in FILES[:2]:
        assert "Logged by the test" not in (tmp_path / name).read_text()


def test_of_very_many_metrics_of_a_test_a_few_are_listed(tmp_path: Path) -> None:
    names = [f"test/class{at}" for at in range(30)]
    metrics = {"val_accuracy": 0.97, **dict.fromkeys(names, 0.5)}
    sides = [staged.record(name, 0, metrics=metrics, tested=names) for name in ("float32", "float32 twin")]
    staged.folder(tmp_path, sides)
    write(tmp_path)
    for name in FILES[:2]:
        text = (tmp_path / name).read_text()
        assert "without a verdict, 12 of 30; report.json has all" in text
        assert "test/class11" in text
        assert "test/class12" not in text
    assert "test_mean/test/class29" in reported(tmp_path)["variants"]["float32"]["figures"]


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


WITHOUT_METRICS = json.dumps({"version": 1, **asdict(staged.record("16", 0)), "metrics": None})


@pytest.mark.parametrize("content", ["", "null", '"text"', "[]", WITHOUT_METRICS])
def test_a_damaged_run_is_named_with_what_to_do(content: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"^{path} is not the record of a run .*: delete it"):
        load(path)


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
