"""The versions that are declared are those that are run, and the command that runs them."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lowprec_plugin.compat.lookup import LIGHTNING, TORCH, Host
from tools import cuda_stubs, versions

ROOT = Path(__file__).parent.parent
OLDEST, NEWEST = versions.ENVIRONMENTS[0], versions.ENVIRONMENTS[-1]


def _declared(package: str) -> str:
    found = re.search(
        rf'^    "{package}(?:\[\w+\])?(>=[^";]*)[";]', (ROOT / "pyproject.toml").read_text(), re.MULTILINE
    )
    assert found
    return found[1]


@pytest.mark.parametrize("package", ["torch", "lightning", "jsonargparse"])
def test_a_declared_range_begins_with_the_oldest_version_that_is_run(package: str) -> None:
    lower = _declared(package).split(",")[0].removeprefix(">=")
    run = OLDEST.pins[package]
    assert run in (lower, f"{lower}.0"), f"{lower} is declared, {run} is run"


def test_torch_ends_before_the_first_minor_version_that_is_not_run() -> None:
    major, minor = NEWEST.pins["torch"].split(".")[:2]
    assert _declared("torch").split(",")[1] == f"<{major}.{int(minor) + 1}"


def test_python_is_run_at_both_ends() -> None:
    major, minor = NEWEST.python.split(".")
    declared = f'requires-python = ">={OLDEST.python},<{major}.{int(minor) + 1}"'
    assert declared in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("host", [TORCH, LIGHTNING])
def test_errors_name_the_versions_that_are_run(host: Host) -> None:
    assert host.tried == f"{OLDEST.pins[host.package]} to {NEWEST.pins[host.package]}"


def test_what_the_core_leaves_out_is_there() -> None:
    assert [path for path in versions.LEFT_OUT if not (ROOT / path).is_dir()] == []


def test_outcomes_are_counted_and_failures_named(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="tests.a" name="one"/><testcase classname="tests.a" name="two">'
        '<failure/></testcase><testcase classname="tests.b" name="three"><error/></testcase>'
        '<testcase classname="tests.b" name="four"><skipped/></testcase></testsuite></testsuites>'
    )
    found = versions.outcomes(report)
    assert found == {"passed": 1, "failed": 2, "skipped": 1, "names": ["tests.a.two", "tests.b.three"]}
    result = {
        **found, "name": "oldest", "python": "3.10.1", "build": "CPU build", "versions": OLDEST.pins,
        "command": "python -m pytest", "commit": "abc", "seconds": 7,
    }  # fmt: skip
    text = versions.document([result])
    pins = " | ".join(OLDEST.pins.values())
    assert f"| oldest | 3.10.1 | {pins} | CPU build | 1 | 2 | 1 | 7 | abc |" in text
    assert "Failed in oldest:\n\n- `tests.a.two`\n- `tests.b.three`\n" in text


def test_an_environment_that_is_there_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "FOLDER", tmp_path)
    folder = tmp_path / OLDEST.name
    folder.mkdir()
    (folder / "made.json").write_text(json.dumps({"wanted": [OLDEST.python, OLDEST.pins], "build": "CPU build"}))
    assert versions.make(OLDEST, "no interpreter at all") == "CPU build"
    with pytest.raises(FileNotFoundError):  # another version: it is made from the start
        versions.make(OLDEST._replace(pins=OLDEST.pins | {"torch": "2.9.0"}), "no interpreter at all")
    assert not folder.exists()


@pytest.mark.skipif(not (shutil.which("cc") and shutil.which("readelf")), reason="needs cc and readelf")
def test_a_library_loads_whose_own_libraries_are_missing(tmp_path: Path) -> None:
    """Made as NVIDIA's are: with versions of their symbols, and without."""

    def compiled(name: str, source: str, *options: str) -> Path:
        (tmp_path / "source.c").write_text(source)
        command = ["cc", "-shared", "-fPIC", "source.c", "-o", name, f"-Wl,-soname,{name}", *options]
        subprocess.run(command, check=True, cwd=tmp_path)
        return tmp_path / name

    (tmp_path / "script").write_text("VERSION_3 { cudaCount; cudaTable; };\n")
    versioned = compiled(
        "libcuversioned.so.3",
        "int cudaTable[4]; int cudaCount(void) { return 3; }",
        "-Wl,--version-script=script",
    )
    plain = compiled(
        "libncclplain.so.1",
        "int ncclCount(void) { return 2; } const char *ncclGetErrorString(int error) { return 0; }",
    )
    library = compiled(
        "libuser.so",
        "extern int cudaTable[]; int cudaCount(void); int ncclCount(void); const char *ncclGetErrorString(int);"
        "int count(void) { return cudaCount() + ncclCount() + cudaTable[0]; }"
        "const char *said(void) { return ncclGetErrorString(1); }",
        versioned.name, plain.name, "-Wl,-rpath,$ORIGIN", "-Wl,-z,now",
    )  # fmt: skip
    versioned.unlink()
    plain.unlink()
    with pytest.raises(OSError, match="cannot open shared object"):
        ctypes.CDLL(str(library))
    assert cuda_stubs.install(tmp_path) == [versioned.name, plain.name]
    loaded = ctypes.CDLL(str(library))
    assert loaded.count() == 2 * cuda_stubs.NO_DEVICE
    loaded.said.restype = ctypes.c_char_p
    assert b"a stub" in loaded.said()
