"""``tools.faults kills``: it kills, it resumes, and what it would miss if it were broken it finds."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from lowprec_plugin import FixedPointFormat, FixedPointTensor
from tools.faulty import kinds, summary
from tools.faulty.jobs import Death, Job
from tools.faulty.lives import Event, Life
from tools.faulty.states import differing, flat
from tools.faulty.training import last_whole

ROOT = Path(__file__).parent.parent.parent


def kills(out: Path, *args: str) -> tuple[int, list[dict[str, Any]], str]:
    """The exit status, the record and the summary of a run of the command."""
    command = [sys.executable, "-m", "tools.faults", "kills", "--out", str(out), *args]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert (out / "kills.md").exists(), done.stderr
    lines = [json.loads(line) for line in (out / "kills.jsonl").read_text().splitlines()]
    return done.returncode, lines, (out / "kills.md").read_text()


def check(name: str, wanted: int, returned: int, lines: list[dict[str, Any]], text: str) -> None:
    """Kills enough, no bit of difference, and the control noticed."""
    assert returned == 0, text
    assert "Nothing failed." in text
    lives = [line for line in lines if line["event"] == "life" and line["training"] != "control"]
    assert sum(life["outcome"] == "killed" for life in lives) == wanted
    assert {life["kind"] for life in lives} == {name}
    ends = {line["training"]: line for line in lines if line["event"] == "end"}
    assert ends.pop("control")["differing_bits_of_weights"] > 1000
    assert ends
    assert all(end["differing_bits"] == 0 for end in ends.values())


def test_killed_trainings_end_with_the_same_bits(tmp_path: Path) -> None:
    returned, lines, text = kills(tmp_path, "--kinds", "one", "--kills", "5", "--seed", "1")
    check("one", 5, returned, lines, text)
    killed = [line for line in lines if line.get("outcome") == "killed" and line["training"] != "control"]
    assert any("after save" in life["aim"] for life in killed)
    assert any(line.get("resumed") for line in lines if line.get("training", "").startswith("training"))
    assert all("python -m tools.faults kills" in part for part in (lines[0]["command"], text))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "feedback", "ddp-ramp", "fsdp2", "zero2", "zero3"])
def test_two_ranks(tmp_path: Path, name: str) -> None:
    if name.startswith("zero") and find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    check(name, 3, *kills(tmp_path, "--kinds", name, "--kills", "3"))


@pytest.mark.slow
def test_python_started_anew_for_every_life(tmp_path: Path) -> None:
    check("stall", 3, *kills(tmp_path, "--kinds", "stall", "--kills", "3", "--start", "spawn"))


def test_a_life_that_is_too_long_hangs(tmp_path: Path) -> None:
    death = Job(kinds.KINDS["one"], tmp_path, tmp_path, 1, 0, "forkserver").watch(None, 0.1)
    assert death.outcome == "hung"
    assert death.times("begun")  # imports take longer than that, and do not count
    assert not (tmp_path / "final-0.pt").exists()


def line(event: str, **given: Any) -> dict[str, Any]:
    usual = {"kind": "one", "training": "training 1"}
    if event == "life":
        usual |= {"life": 1, "aim": "all, 1 s after its beginning", "resumed": None, "outcome": "killed", "steps": 3}
        usual |= {"saving": False, "seconds": 1.0, "stubborn": [], "cut_off": []}
    else:
        usual |= {"differing_bits": 0, "differing_bits_of_weights": 0, "differing": []}
    return {"event": event} | usual | given


COMMAND = {"event": "command", "command": "python -m tools.faults kills", "processor": "p", "cores": 1, "versions": {}}
CONTROL = line("end", training="control", differing_bits=9, differing_bits_of_weights=9)


def test_every_failure_is_counted() -> None:
    fine = [COMMAND, CONTROL, line("life"), line("life", outcome="finished", aim=None), line("end")]
    text, failures = summary.summary(fine)
    assert failures == 0
    assert "Nothing failed." in text
    for bad, said in (
        (line("end", differing_bits=1, differing=["rank 0 plugin/seed"]), "training 1: rank 0 plugin/seed"),
        (line("life", outcome="hung"), "life 1: hung"),
        (line("life", outcome="failed"), "life 1: failed"),
        (line("life", cut_off=["last.ckpt: RuntimeError"]), "last.ckpt: RuntimeError: does not load"),
    ):
        text, failures = summary.summary([*fine, bad])
        assert failures == 1
        assert said in text
    same = {"differing_bits": 9, "differing_bits_of_weights": 0}  # another seed in the plugin's state is no proof
    for controls in ([], [CONTROL | same]):
        text, failures = summary.summary([COMMAND, *controls, *fine[2:]])
        assert failures == 1
        assert "found no differing weights in its control" in text


def state(weight: torch.Tensor, **plugin: Any) -> Any:
    return flat({"layer": [FixedPointTensor.quantize(weight, FixedPointFormat(16), rounding="nearest")]}, "weights") | (
        flat(plugin, "plugin")
    )


def test_differences_are_counted_in_bits() -> None:
    weight = torch.linspace(-1, 1, 512).view(2, 256)
    one = state(weight, seed=0, losses=[torch.tensor(0.5)])
    assert differing(one, state(weight.clone(), seed=0, losses=[torch.tensor(0.5)])) == {}
    flipped = {name: tensor.clone() for name, tensor in one.items()}
    flipped["weights/layer/0 plane 0"][100] ^= 0b101
    assert differing(one, flipped) == {"weights/layer/0 plane 0": 2}
    other = differing(one, state(weight, seed=1, losses=[torch.tensor(-0.5)]))
    assert other == {"plugin/losses/0": 1, "plugin/seed": 1}  # "0" and "1"; the sign
    assert differing(one, state(weight, seed=0)) == {"plugin/losses/0": 32}
    assert set(differing(one, state(2 * weight, seed=0, losses=[torch.tensor(0.5)]))) == {"weights/layer/0 plane 1"}


@pytest.fixture
def life(tmp_path: Path) -> Any:
    reader, writer = multiprocessing.Pipe(duplex=False)
    given = Life(kinds.KINDS["one"], 0, tmp_path, tmp_path, tmp_path, tmp_path / "log", 0, writer, False)
    given.checkpoints.mkdir()
    yield given, reader
    writer.close()
    reader.close()


def newer(path: Path) -> None:
    """Give ``path`` a later time than all before."""
    newer.time = getattr(newer, "time", 1e9) + 1
    os.utime(path, (newer.time, newer.time))


def test_resumes_from_the_newest_file_that_loads_and_tells_of_others(life: Any) -> None:
    given, reader = life
    assert last_whole(given) is None
    for name in ("step=14.ckpt", "step=7.ckpt", "last.ckpt"):
        path = given.checkpoints / name
        torch.save({"state_dict": torch.zeros(1000)}, path)
        newer(path)
    assert last_whole(given) == given.checkpoints / "last.ckpt"
    os.truncate(given.checkpoints / "last.ckpt", 2000)
    newer(given.checkpoints / "last.ckpt")
    assert not reader.poll()
    assert last_whole(given) == given.checkpoints / "step=7.ckpt"
    assert reader.recv() == Event("cut off", "last.ckpt: RuntimeError")


def test_a_folder_of_shards_is_whole_with_its_metadata(life: Any) -> None:
    given, reader = life
    whole = (".metadata", "meta.pt")
    for name, files in (("step=7", whole), ("step=14", whole[:1]), ("step=21", whole[1:]), ("step=28", whole)):
        folder = given.checkpoints / f"{name}.ckpt"
        folder.mkdir()
        for file in files:
            with (folder / file).open("wb") as opened:  # torch.save itself takes no name that begins with a dot
                torch.save({}, opened)
        newer(folder)
    os.truncate(given.checkpoints / "step=28.ckpt" / "meta.pt", 100)
    assert last_whole(given) == given.checkpoints / "step=7.ckpt"
    assert not reader.poll()  # a folder in the making is no fault


def test_a_death_while_saving_is_known_by_a_save_that_has_not_ended() -> None:
    saved = [(0.1, Event("saving", 7)), (0.2, Event("saved", 7))]
    assert not Death(events=[saved, []]).saving
    assert Death(events=[saved, [*saved, (0.3, Event("saving", 14))]]).saving
