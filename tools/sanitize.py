"""Run the native kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer: ``make sanitize``.

A copy of the package is built with sanitizers by its own ``setup.py``, in a folder of its own, and the tests run there,
once for every instruction set of this machine. What a sanitizer reports is written to files, for pytest would swallow
it; any report fails the command. So does a fault made on purpose that is not reported: a sanitizer that is not active
cannot pass.

Undefined behaviour is reported and the run goes on (GCC's default), so that one run tells of all of it.
AddressSanitizer ends the process at its first report: after that, memory is not what it was.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lowprec_plugin.arithmetic.native import library as native
from lowprec_plugin.text.files import whole_text
from lowprec_plugin.text.tables import markdown_table
from tools.sanitize_driver import CONTROLS

ROOT = Path(__file__).resolve().parent.parent
NATIVE = Path("lowprec_plugin", "arithmetic", "native")
COPIED = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "lowprec_plugin", "tests", "tools")
# A float that no integer holds is converted by undefined behaviour too, which "undefined" leaves out. Divisions by
# zero are left out on purpose: floats have infinities.
ADDRESS = ["-fsanitize=address,undefined,float-cast-overflow", "-fno-omit-frame-pointer", "-g1"]
THREAD = ["-fsanitize=thread", "-g1"]
INSTRUCTION_SETS = ("baseline", "avx2", "avx512")
TESTS = (
    "tests/arithmetic/test_native.py", "tests/arithmetic/test_wire.py", "tests/arithmetic/test_update.py",
    "tests/arithmetic/test_update_counts.py", "tests/arithmetic/test_gradients.py", "tests/activations/test_packed.py",
    "tests/tensor/test_tensor.py", "tests/tensor/test_gradient.py", "tests/tensor/test_integrity.py", "tests/optim",
)  # fmt: skip
# It counts the bytes of glibc's allocator, whose place AddressSanitizer takes.
LEFT_OUT = "tests/activations/test_packed.py::test_a_transformer_holds_fewer_bytes_and_frees_them_as_it_goes"
HOSTILE = 400
STEPS = ("controls", "driver", "tests", "hostile", "threads")
# Both runtimes have a function of this name, and each would set the other's path.
SITE = """import ctypes, os
ctypes.CDLL({ubsan!r}).__sanitizer_set_report_path(os.environ["LOWPREC_REPORTS"].encode())
"""


class Run(NamedTuple):
    """One row of the record."""

    instruction_set: str
    what: str
    result: str
    reports: list[str]
    good: bool


def compiler() -> str:
    """The C++ compiler that builds the kernels."""
    return os.environ.get("CXX", "g++")


def runtime(name: str) -> str:
    """The path of one of the compiler's libraries.

    Raises:
        ValueError: if it has none.
    """
    found = subprocess.run([compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = Path(found.stdout.strip())
    if not path.is_absolute():
        raise ValueError(f"{compiler()} has no {name}: install GCC's sanitizers, or set CXX to a GCC that has them")
    return str(path.resolve())


def build(folder: Path, flags: list[str]) -> Path:
    """A copy of the package in ``folder``, its kernels built with ``flags`` on top of its own."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copy2(source, folder)
    flag, cxx = " ".join(flags), compiler()
    environment = os.environ | {"CC": cxx, "CXX": cxx, "CFLAGS": flag, "CXXFLAGS": flag, "LDFLAGS": flag}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=folder, env=environment, check=True)
    if not (folder / NATIVE / "_native.so").exists():
        raise ValueError(f"{cxx} could not build the kernels with {flag}")
    return folder


class Sanitized:
    """A copy built with AddressSanitizer and UndefinedBehaviorSanitizer, and what runs in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.logs = build(folder, ADDRESS), folder / "reports"
        ubsan = runtime("libubsan.so")
        (folder / "sitecustomize.py").write_text(SITE.format(ubsan=ubsan))
        # The last one, or an exception thrown in torch finds no thrower.
        preloaded = [runtime("libasan.so"), ubsan, runtime("libstdc++.so.6")]
        prefix = str(self.logs / "report")
        self.environment = os.environ | {
            "LD_PRELOAD": " ".join(preloaded), "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1",
            "LOWPREC_REPORTS": prefix,
            "ASAN_OPTIONS": f"detect_leaks=0:log_path={prefix}",
            "UBSAN_OPTIONS": f"print_stacktrace=1:log_path={prefix}",
        }  # fmt: skip

    def run(self, *arguments: str) -> tuple[int, str]:
        """Run Python in the copy: its exit status, and what was reported."""
        return ran([sys.executable, *arguments], self.logs, cwd=self.folder, env=self.environment)

    def controls(self, instruction_set: str) -> list[Run]:
        """Faults on purpose, each of which has to be reported."""
        _, said = self.run("-m", "tools.sanitize_driver", instruction_set, "controls")
        return [control(instruction_set, name, words, said) for name, (_, words) in CONTROLS.items()]

    def driver(self, instruction_set: str) -> Run:
        """Every kernel on every word length."""
        status, said = self.run("-m", "tools.sanitize_driver", instruction_set)
        return checked(instruction_set, "every kernel, 2 to 24 bits", status, said)

    def tests(self, instruction_set: str, tests: Sequence[str]) -> Run:
        """Tests of the package, with pytest."""
        results = self.folder / "results.xml"
        results.unlink(missing_ok=True)
        options = ["-q", "-p", "no:cacheprovider", "--timeout=3000", f"--junitxml={results}", f"--deselect={LEFT_OUT}"]
        status, said = self.run("-m", "pytest", *options, f"--instruction-set={instruction_set}", *tests)
        row = checked(instruction_set, "tests", status, said)
        if not results.exists():  # the process has ended early
            return row
        suite = ET.parse(results).getroot()[0].attrib
        count, skipped = int(suite["tests"]), int(suite["skipped"])
        failed = int(suite["failures"]) + int(suite["errors"])
        return row._replace(result=f"{count - skipped - failed} passed, {failed} failed, {skipped} skipped")

    def hostile(self, instruction_set: str) -> Run:
        """Planes that do not fit their format, by every way in, read and written to by the kernels that load."""
        status, said = self.run("-m", "tools.faults", "hostile", "--cases", str(HOSTILE))
        return checked(instruction_set, f"hostile tensors, {HOSTILE} by each way in", status, said)


def ran(command: Sequence[str], logs: Path, cwd: Path, env: dict[str, str]) -> tuple[int, str]:
    """The exit status of ``command``, and all that sanitizers wrote to the folder ``logs``."""
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir()
    status = subprocess.run(command, cwd=cwd, env=env, check=False).returncode
    return status, "".join(log.read_text(errors="replace") for log in sorted(logs.iterdir()))


def checked(instruction_set: str, what: str, status: int, said: str) -> Run:
    """The row of a run that has to end well and to say nothing."""
    lines = [line.strip() for line in said.splitlines()]
    marks = ("runtime error:", "ERROR: ", "WARNING: ThreadSanitizer")
    found = [line for line in lines if any(mark in line for mark in marks)] or lines[:1]
    return Run(instruction_set, what, f"exit status {status}", found, status == 0 and not said)


def control(instruction_set: str, name: str, words: str, said: str) -> Run:
    """The row of a fault made on purpose, of which ``words`` have to be said."""
    seen = words in said
    return Run(instruction_set, f"control: {name}", f"reported: {words}" if seen else "NOT REPORTED", [], seen)


def threads(folder: Path, instruction_sets: Sequence[str]) -> list[Run]:
    """The kernels with four threads under ThreadSanitizer, and two threads that write one tensor."""
    folder = build(folder, THREAD)
    library, program, logs = folder / NATIVE, folder / "threads", folder / "reports"
    command = [compiler(), "-std=c++17", "-O1", *THREAD, "-pthread", "-I", str(library / "csrc"), "-o", str(program)]
    command += [str(folder / "tools" / "sanitize_threads.cpp"), str(library / "_native.so"), f"-Wl,-rpath,{library}"]
    subprocess.run(command, check=True)
    environment = os.environ | {"TSAN_OPTIONS": f"log_path={logs / 'report'}"}
    rows = []
    for name in instruction_sets:
        _, said = ran([str(program), name, "race"], logs, cwd=folder, env=environment)
        rows.append(control(name, "two threads write one tensor", "data race", said))
        rows.append(checked(name, "every kernel, 4 threads", *ran([str(program), name], logs, folder, environment)))
    return rows


def here() -> list[str]:
    """The instruction sets of this machine."""
    able, reason = native.available()
    if not able:
        raise ValueError(f"{reason}: build them first (python setup.py build_ext --inplace)")
    return list(INSTRUCTION_SETS[: INSTRUCTION_SETS.index(native.instruction_set()) + 1])


def record(rows: list[Run], command: str, seconds: float) -> str:
    """The rows as a page, with what they were run on."""
    version = subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=True).stdout.splitlines()
    table = [["instruction set", "run", "result", "reports"]]
    table += [[row.instruction_set, row.what, row.result, str(len(row.reports))] for row in rows]
    said = sorted({line for row in rows for line in row.reports})
    verdict = "clean" if all(row.good for row in rows) else "NOT CLEAN"
    return "\n".join([
        "# The native kernels under sanitizers", "",
        f"`{command}`: **{verdict}**, in {seconds / 60:.0f} minutes.", "",
        f"- Compiler: {version[0]}", f"- Processor: {processor()}",
        f"- Address and undefined behaviour: `{' '.join(ADDRESS)}`,", "  on top of `setup.py`'s own flags",
        f"- Threads: `{' '.join(THREAD)}`, likewise", f"- Tests: {', '.join(f'`{test}`' for test in TESTS)};",
        f"  without `{LEFT_OUT.split('::')[1]}`, which", "  counts the bytes of an allocator that is not there", "",
        "A control is a fault made on purpose: the command fails if it is not reported. Threads are `std::thread`:",
        "torch's OpenMP, which shares the same queue, is not built for ThreadSanitizer and would be misread by it.", "",
        markdown_table(table), "", *(f"    {line}" for line in said),
    ]).rstrip() + "\n"  # fmt: skip


def processor() -> str:
    """The processor's name, and which of its features choose an instruction set."""
    information = Path("/proc/cpuinfo")
    fields = dict(
        (part.strip() for part in line.split(":", 1))
        for line in (information.read_text() if information.exists() else "").splitlines()
        if ":" in line
    )
    wanted = ("avx2", "avx512f", "avx512bw", "avx512vl", "avx512dq")
    features = [name for name in wanted if name in fields.get("flags", "").split()]
    return f"{fields.get('model name', platform.machine())}; {', '.join(features) or 'none that chooses'}"


def main() -> int:
    """Run what the command line asks for; 0 if all of it is clean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "sanitize", help="where to build and run")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=STEPS, help="these steps alone")
    parser.add_argument("--sets", nargs="+", choices=INSTRUCTION_SETS, help="these instruction sets alone")
    parser.add_argument("--output", type=Path, help="write the record to this file as well")
    given = parser.parse_args()
    started, rows = time.monotonic(), []
    sets = given.sets or here()
    folder = given.folder.resolve()
    if set(given.only) - {"threads"}:
        sanitized = Sanitized(folder / "address")
        for name in sets:
            rows += sanitized.controls(name) if "controls" in given.only else []
            rows += [sanitized.driver(name)] if "driver" in given.only else []
            rows += [sanitized.tests(name, TESTS)] if "tests" in given.only else []
        # No test option selects the kernels of its processes: those of this machine's best set are read and written.
        rows += [sanitized.hostile(here()[-1])] if "hostile" in given.only else []
    if "threads" in given.only:
        rows += threads(folder / "thread", sets)
    text = record(rows, "make sanitize" if given.output else "python -m tools.sanitize", time.monotonic() - started)
    print(text)
    if given.output:
        whole_text(given.output, text)
    return int(not all(row.good for row in rows))


if __name__ == "__main__":
    sys.exit(main())
