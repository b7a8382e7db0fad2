"""Run the core of the tests in the oldest and the newest versions that the package declares: ``make versions``.

Each environment is a virtual environment of its own under ``.venv-versions``, made once and again when its line in the
table changes. What came out is written to ``docs/results/versions.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from tools import cuda_stubs

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".venv-versions"
RECORD = ROOT / "docs" / "results" / "versions.md"
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"


class Environment(NamedTuple):
    """What is installed in one environment; everything else is the newest that fits.

    Attributes:
        name: of its folder.
        python: the interpreter's version, such as ``"3.10"``.
        pins: the exact version of each package that matters.
    """

    name: str
    python: str
    pins: dict[str, str]


ENVIRONMENTS = (
    Environment(
        "oldest", "3.10", {"torch": "2.10.0", "lightning": "2.6.0", "jsonargparse": "4.51.0", "triton": "3.6.0"}
    ),
    Environment(
        "newest", "3.13", {"torch": "2.15.0", "lightning": "2.6.6", "jsonargparse": "4.53.0", "triton": "3.9.0"}
    ),
)

#: What the core leaves out, and why.
LEFT_OUT = {
    "tests/poc": "long trainings through the same plugin",
    "tests/tune": "long trainings through the same plugin",
    "tests/export": "the versions of onnx and of compilers matter there",
    "tests/bench": "timings",
}

#: Requirements of a CUDA build of torch that a run on the CPU does without.
_CUDA_ONLY = re.compile(r"^Requires-Dist: (nvidia-|cuda-|triton).*\n", re.MULTILINE)


def make(environment: Environment, interpreter: str) -> str:
    """Make the virtual environment of ``environment``, unless it is there as the table says.

    Returns:
        which build of torch it has, in words.

    Raises:
        subprocess.CalledProcessError: if something cannot be installed.
    """
    folder = FOLDER / environment.name
    made = folder / "made.json"
    wanted = [environment.python, environment.pins]
    if made.exists():
        before = json.loads(made.read_text())
        if before["wanted"] == wanted:
            return str(before["build"])
    shutil.rmtree(folder, ignore_errors=True)
    _run(interpreter, "-m", "venv", folder)
    _pip(folder, "--upgrade", "pip")
    build = _install_torch(folder, environment.pins["torch"])
    constraints = folder / "constraints.txt"
    constraints.write_text("".join(f"{package}=={version}\n" for package, version in environment.pins.items()))
    _pip(folder, "--constraint", constraints, "--editable", ".[dev]", *environment.pins)
    made.write_text(json.dumps({"wanted": wanted, "build": build}))
    return build


def _install_torch(folder: Path, version: str) -> str:
    """Install a CPU build, or where none is to be had, a CUDA build with stubs for the libraries that it lacks."""
    for source in ([f"torch=={version}+cpu"], [f"torch=={version}", "--index-url", CPU_WHEELS, "--retries", "1"]):
        if subprocess.run(_pip_command(folder, *source), cwd=ROOT, stderr=subprocess.DEVNULL).returncode == 0:
            return "CPU build"
    _pip(folder, "--no-deps", f"torch=={version}")
    packages = next(folder.glob("lib/python*/site-packages"))
    metadata = next(packages.glob("torch-*.dist-info")) / "METADATA"
    metadata.write_text(_CUDA_ONLY.sub("", metadata.read_text()))
    stubs = cuda_stubs.install(packages / "torch" / "lib")
    return f"CUDA build, {len(stubs)} libraries stubbed" if stubs else "CUDA build"


def run_core(environment: Environment, build: str) -> dict[str, Any]:
    """Run the core of the tests in ``environment``: what was run, what came out, and how long it took.

    Raises:
        SystemExit: if pytest came to no end.
    """
    folder = FOLDER / environment.name
    report = folder / "report.xml"
    ignored = [f"--ignore={path}" for path in LEFT_OUT]
    command = ["python", "-m", "pytest", "-q", "tests", *ignored]
    extensions = folder / "extensions"
    for lock in extensions.rglob("lock"):  # of a run that was stopped while it compiled; another would wait for it
        lock.unlink()
    variables = {
        **os.environ, "OMP_NUM_THREADS": "1", "TORCH_EXTENSIONS_DIR": str(extensions),
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    report.unlink(missing_ok=True)
    began = time.monotonic()
    ended = subprocess.run(
        [folder / "bin" / "python", *command[1:], "-p", "no:cacheprovider", f"--junitxml={report}"],
        cwd=ROOT, env=variables, check=False,
    )  # fmt: skip
    seconds = time.monotonic() - began
    if not report.exists():
        raise SystemExit(f"{environment.name}: pytest ended with {ended.returncode} and left no report")
    result = {
        "name": environment.name, "python": _python_of(folder), "build": build,
        "versions": {package: _version_of(folder, package) for package in environment.pins},
        "command": " ".join(command), "commit": _commit(), "seconds": round(seconds), **outcomes(report),
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    return result


def outcomes(report: Path) -> dict[str, Any]:
    """How many tests of a JUnit ``report`` passed, failed and were skipped, and the names of those that failed."""
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    failed = [each for each in cases if each.find("failure") is not None or each.find("error") is not None]
    skipped = [each for each in cases if each.find("skipped") is not None]
    return {
        "passed": len(cases) - len(failed) - len(skipped),
        "failed": len(failed),
        "skipped": len(skipped),
        "names": sorted({f"{each.get('classname', '')}.{each.get('name', '')}" for each in failed}),
    }


def document(results: list[dict[str, Any]]) -> str:
    """The record as Markdown."""
    packages = list(ENVIRONMENTS[0].pins)
    head = ["environment", "Python", *packages, "build of torch", "passed", "failed", "skipped", "seconds", "commit"]
    lines = [
        "# Versions that were run", "",
        "`make versions` wrote this. It runs the core of the tests in the oldest and the newest versions of what the",
        "package depends on, on the CPU. Everything else is the newest that fits. In a CUDA build whose libraries are",
        "stubbed, stubs let torch be imported without CUDA; what is computed is the same as in a CPU build.", "",
        f"| {' | '.join(head)} |", f"|{'---|' * len(head)}",
    ]  # fmt: skip
    for each in results:
        cells = [each["name"], each["python"], *(each["versions"][package] for package in packages), each["build"]]
        counts = [each[what] for what in ("passed", "failed", "skipped", "seconds", "commit")]
        lines.append(f"| {' | '.join(map(str, cells + counts))} |")
    lines += ["", "Run in each:", ""]
    lines += [f"    {command}" for command in sorted({each["command"] for each in results})]
    lines += ["", "The core leaves out:", "", *(f"- `{path}`: {reason}" for path, reason in LEFT_OUT.items())]
    for each in results:
        if each["names"]:
            lines += ["", f"Failed in {each['name']}:", "", *(f"- `{name}`" for name in each["names"])]
    return "\n".join(lines) + "\n"


def _python_of(folder: Path) -> str:
    return _ask(folder, "import platform; print(platform.python_version())")


def _version_of(folder: Path, package: str) -> str:
    return _ask(folder, f"from importlib.metadata import version; print(version({package!r}))")


def _ask(folder: Path, code: str) -> str:
    return subprocess.run(
        [folder / "bin" / "python", "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


def _commit() -> str:
    git = ["git", "describe", "--always", "--dirty=, changed"]
    return subprocess.run(git, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def _pip_command(folder: Path, *arguments: Any) -> list[Any]:
    return [folder / "bin" / "python", "-m", "pip", "install", "--quiet", *arguments]


def _pip(folder: Path, *arguments: Any) -> None:
    _run(*_pip_command(folder, *arguments))


def _run(*command: Any) -> None:
    subprocess.run(command, cwd=ROOT, env={**os.environ, "DS_BUILD_OPS": "0"}, check=True)


def _interpreter(version: str, given: dict[str, str]) -> str:
    """The path of an interpreter: as given, or ``python3.x`` on the PATH, or this one.

    Raises:
        SystemExit: if there is none that runs.
    """
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    for found in (given.get(version), shutil.which(f"python{version}"), sys.executable if here == version else None):
        if found and subprocess.run([found, "--version"], capture_output=True).returncode == 0:
            return found
    raise SystemExit(f"there is no python{version} on the PATH: give its path, --python {version}=/path/to/python")


def main() -> int:
    """Run the environments that are named, or all; write the record of all that have been run."""
    parser = argparse.ArgumentParser(prog="python -m tools.versions", description=__doc__)
    names = [each.name for each in ENVIRONMENTS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; all, without any")
    parser.add_argument("--python", action="append", default=[], metavar="3.x=PATH", help="where an interpreter is")
    args = parser.parse_args()
    if unknown := set(args.names) - set(names):
        parser.error(f"there is no environment {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    given = dict(each.partition("=")[::2] for each in args.python)
    wanted = [each for each in ENVIRONMENTS if each.name in (args.names or names)]
    failed = 0
    for environment, interpreter in [(each, _interpreter(each.python, given)) for each in wanted]:
        print(f"{environment.name}: Python {environment.python}, {environment.pins}", flush=True)
        build = make(environment, interpreter)
        print(f"{environment.name}: torch is a {build}", flush=True)
        failed += run_core(environment, build)["failed"]
    files = [FOLDER / name / "result.json" for name in names]
    RECORD.write_text(document([json.loads(file.read_text()) for file in files if file.exists()]))
    print(f"wrote {RECORD.relative_to(ROOT)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
