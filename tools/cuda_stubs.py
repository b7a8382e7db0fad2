"""Let a CUDA build of torch be imported, and used on the CPU, where CUDA's libraries are not installed.

A CUDA build links to two dozen of NVIDIA's libraries, which weigh gigabytes. For each that is missing a tiny one is
compiled that defines the functions torch asks it for. Each function returns "no CUDA-capable device is detected", so
that ``torch.cuda.is_available()`` is false and everything else runs on the CPU as in a CPU build.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

#: ``cudaErrorNoDevice``.
NO_DEVICE = 100
#: How names of NVIDIA's libraries begin; some carry no version that says which library they are of.
PREFIXES = ("cu", "nccl", "nv")


class Symbol(NamedTuple):
    """What one library wants of another.

    Attributes:
        name: without its version.
        version: as the linker names it; empty: none.
        is_data: a variable rather than a function.
    """

    name: str
    version: str
    is_data: bool


def install(torch_lib: Path) -> list[str]:
    """Put a stub into ``torch_lib`` for each library that those in it need and that the loader does not find.

    Args:
        torch_lib: the folder ``torch/lib`` of an installed torch. Its libraries look for others in it.

    Returns:
        the names of the libraries that were stubbed.

    Raises:
        FileNotFoundError: without the commands ``readelf`` and ``cc``.
        subprocess.CalledProcessError: if a stub does not compile.
    """
    libraries = sorted(torch_lib.glob("*.so*"))
    missing = {name for each in libraries for name in _needed(each) if not _loads(torch_lib, name)}
    wanted: dict[str, set[Symbol]] = {name: set() for name in missing}
    for library in libraries:
        needed = [name for name in _needed(library) if name in missing]
        for symbol, owner in _undefined(library):
            if owner in missing:
                wanted[owner].add(symbol)
            elif not owner and needed and symbol.name.startswith(PREFIXES):
                wanted[needed[0]].add(symbol)  # the loader looks in all of them
    for name, symbols in wanted.items():
        _compile(torch_lib / name, sorted(symbols))
    return sorted(missing)


def _loads(torch_lib: Path, name: str) -> bool:
    if (torch_lib / name).exists():
        return True
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def _needed(library: Path) -> list[str]:
    return re.findall(r"\(NEEDED\).*\[(.+)\]", _readelf("--dynamic", library))


def _undefined(library: Path) -> list[tuple[Symbol, str]]:
    """What ``library`` must find elsewhere, and in which file; the file is empty where the symbol has no version."""
    files, file = {}, ""
    for line in _readelf("--version-info", library).splitlines():
        if found := re.search(r"File: (\S+)", line):
            file = found[1]
        elif found := re.search(r"Name: (\S+) .*Version: (\d+)", line):
            files[found[2]] = file
    undefined = []
    for line in _symbols(library):
        if line[6] == "UND" and line[4] == "GLOBAL":
            name, _, version = line[7].partition("@")
            number = line[8].strip("()") if len(line) > 8 else ""
            undefined.append((Symbol(name, version, line[3] in ("OBJECT", "TLS")), files.get(number, "")))
    return undefined


def _symbols(library: Path) -> list[list[str]]:
    lines = (line.split() for line in _readelf("--dyn-syms", library).splitlines())
    return [line for line in lines if len(line) > 7 and line[0].endswith(":") and line[0] != "Num:"]


def _readelf(what: str, library: Path) -> str:
    command = ["readelf", "--wide", what, str(library)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _compile(library: Path, symbols: list[Symbol]) -> None:
    source, versions = [], defaultdict(list)
    for symbol in symbols:
        if symbol.is_data:
            source.append(f"char {symbol.name}[4096];")
        elif symbol.name.endswith(("String", "Name")):
            source.append(f'const char *{symbol.name}(void) {{ return "no CUDA is installed: this is a stub"; }}')
        else:
            source.append(f"long {symbol.name}(void) {{ return {NO_DEVICE}; }}")
        if symbol.version:
            versions[symbol.version.strip("@")].append(symbol.name)
    script = library.with_name(f"{library.name}.versions")
    script.write_text("".join(f"{each} {{ {'; '.join(names)}; }};\n" for each, names in versions.items()))
    command = ["cc", "-shared", "-fPIC", "-w", "-fno-builtin", "-x", "c", "-", f"-Wl,-soname,{library.name}"]
    if versions:
        command.append(f"-Wl,--version-script={script}")
    subprocess.run([*command, "-o", str(library)], check=True, input="\n".join(source), text=True)
    script.unlink()


if __name__ == "__main__":
    print("\n".join(install(Path(sys.argv[1]))))
