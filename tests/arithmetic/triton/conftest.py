"""Where the kernels run: on the GPU, or, where this process was started with ``TRITON_INTERPRET=1``, interpreted.

Triton decides that when it is imported, which torch's compiler and Lightning do too. So the suite's own process never
interprets: ``test_modes.py`` starts another one for those files that have kernels run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"


@pytest.fixture(autouse=True)
def _float_errors_are_silent() -> Iterator[None]:
    """As on a GPU: numpy, which interprets the kernels, would warn of infinities."""
    numpy = pytest.importorskip("numpy")
    with numpy.errstate(all="ignore"):
        yield
