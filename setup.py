"""Builds the native kernels. Everything else is in pyproject.toml.

One plain shared library, loaded with ctypes: its sources are compiled once per instruction set, with that set's flags,
and the library picks one when it is loaded. No torch header is used, so one build serves every torch version. If there
is no compiler the install succeeds without it, and the package says so when it runs.
"""

import platform
import shutil
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CSRC = "lowprec_plugin/arithmetic/native/csrc"
FLAGS = [
    "-O3",
    "-std=c++17",
    "-fPIC",
    "-pthread",
    "-fvisibility=hidden",
    "-ffp-contract=off",  # fused multiply-adds would round differently from the reference
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
]
INSTRUCTION_SETS = {"baseline": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    INSTRUCTION_SETS["avx2"] = ["-mavx2"]
    INSTRUCTION_SETS["avx512"] = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512"]


class BuildKernels(build_ext):
    def get_ext_filename(self, name: str) -> str:
        return str(Path(*name.split(".")).with_suffix(".so"))

    def build_extension(self, extension: Extension) -> None:
        sources = {f"{CSRC}/lowprec.cpp": []}
        sources |= {f"{CSRC}/kernels_{name}.cpp": flags for name, flags in INSTRUCTION_SETS.items()}
        objects = []
        for source, flags in sources.items():
            objects += self.compiler.compile([source], self.build_temp, extra_postargs=[*FLAGS, *flags])
        target = Path(self.get_ext_fullpath(extension.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        built = Path(self.build_temp) / "_native.so"
        libraries = ["dl"] if platform.system() == "Linux" else []
        self.compiler.link_shared_object(
            objects, str(built), libraries=libraries, extra_postargs=["-pthread"], target_lang="c++"
        )
        target.unlink(missing_ok=True)  # never written over: a running process may have it mapped
        shutil.copy2(built, target)


setup(
    ext_modules=[Extension("lowprec_plugin.arithmetic.native._native", sources=[], optional=True)],
    cmdclass={"build_ext": BuildKernels},
)
