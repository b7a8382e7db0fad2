"""Versions of Triton: those that CUDA builds of torch require, and the newest, each in a folder of its own.

``tritons.txt`` is the one list of them. ``make tritons`` puts them there, compiles the kernels by each and writes the
record: ``python -m tests.arithmetic.triton.tritons docs/results/triton_versions.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

from lowprec_plugin.text.tables import markdown_table

ROOT = Path(__file__).parents[3]
FOLDERS = Path(sys.prefix) / "tritons"
_ROWS = [line.split() for line in Path(__file__).with_suffix(".txt").read_text().splitlines()[1:]]
#: By torch's minor version, the Triton that its CUDA builds require.
REQUIRED = {torch: triton for torch, triton in _ROWS if torch != "-"}
#: All of them, the oldest first.
VERSIONS = list(dict.fromkeys(triton for _, triton in _ROWS))
#: The targets of the record; for the first one every kernel is compiled, for the others the usual ones.
TARGETS = ("sm_90", "sm_80", "sm_100", "gfx942")


def missing(version: str) -> str | None:
    """What to do about a version that is not there."""
    folder = FOLDERS / version
    return None if folder.exists() else f"no Triton {version} in {folder}: make .venv/tritons/{version}"


def environment(version: str, cache: Path) -> dict[str, str]:
    """The environment of a process that compiles by a version of Triton and keeps the binaries in ``cache``."""
    paths = [str(FOLDERS / version), str(ROOT), os.environ.get("PYTHONPATH", "")]
    ours = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "TRITON_CACHE_DIR": str(cache), "TRITON_INTERPRET": "0"}
    return os.environ | ours


def compile_kernels(version: str, *arguments: str) -> list[dict[str, Any]]:
    """What ``python -m tools.aot --json``, run by a version of Triton, says of each kernel.

    Raises:
        RuntimeError: if it did not come to an end, or if another Triton compiled.
    """
    command = [sys.executable, "-m", "tools.aot", "--json", *arguments]
    with tempfile.TemporaryDirectory() as cache:  # a fresh one, so that everything is compiled
        env = environment(version, Path(cache))
        run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"Triton {version} ended with {run.returncode}:\n{run.stdout}{run.stderr}")
    return outcomes(run.stdout, version, FOLDERS / version)


def outcomes(output: str, version: str, folder: Path) -> list[dict[str, Any]]:
    """The lines of ``output``, all of which the Triton of ``version`` in ``folder`` must have written."""
    lines = [json.loads(line) for line in output.splitlines()]
    compilers = {(line["triton"], line["folder"]) for line in lines}
    if compilers != {(version, str(folder))}:
        raise RuntimeError(f"Triton {version} in {folder} was to compile, but these did: {sorted(compilers)}")
    return lines


def record(found: dict[tuple[str, str], list[dict[str, Any]]]) -> str:
    """The page of what was ``found`` by version and target."""
    rows = [["Triton", "required by torch", "target", "kernels", "compiled", "failed", "compiled with a fault"]]
    wrong = [["Triton", "target", "kernel", "fault"]]
    for (version, target), lines in found.items():
        torches = ", ".join(torch for torch, required in REQUIRED.items() if required == version) or "none yet"
        compiled = [line for line in lines if line["compiled"]]
        counts = [len(lines), len(compiled), len(lines) - len(compiled), sum(bool(line["faults"]) for line in compiled)]
        rows.append([version, torches, target, *map(str, counts)])
        wrong += [[version, target, line["kernel"], "; ".join(line["faults"])] for line in lines if line["faults"]]
    text = f"""# The kernels by every version of Triton

`make tritons` wrote this page: the kernels compiled by the versions of Triton that CUDA builds of torch require, and by
the newest, for GPUs that were not there. For {TARGETS[0]} they are all that
`python -m tools.aot --all` knows, for the other targets the usual ones. A fault is arithmetic other
than IEEE's, a spilled register, or a memory access narrower than 128 bits.

{markdown_table(rows)}
"""
    return text if len(wrong) == 1 else f"{text}\n## What is wrong\n\n{markdown_table(wrong)}\n"


def main(file: Path) -> None:
    """Compile the kernels by every version and write the record to ``file``."""
    absent = [how for how in map(missing, VERSIONS) if how]
    if absent:
        sys.exit("\n".join(absent))

    def compiled(job: tuple[str, str]) -> list[dict[str, Any]]:
        version, target = job
        lines = compile_kernels(version, "--target", target, *["--all"] * (target == TARGETS[0]))
        print(f"Triton {version}, {target}: {len(lines)} kernels", flush=True)
        return lines

    jobs = list(product(VERSIONS, TARGETS))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = dict(zip(jobs, pool.map(compiled, jobs), strict=True))
    file.write_text(record(found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    main(parser.parse_args().file)
