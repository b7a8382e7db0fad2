"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

# One thread, of processes that tests start too: the tensors are small. Tests of threads set their own number.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

from lowprec_plugin.arithmetic.native import library as native
from tests import strategies

torch.set_num_threads(1)
# How long an example takes depends on what else the machine does.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")
# Lightning's own calls of jsonargparse.
os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = "off"

# Lightning is chatty about loaders, loggers and small epochs, and its own dependencies deprecate things: none of it is
# this package's doing. Everything else that warns fails the test.
_HOST_WARNINGS = (
    "ignore:.*does not have many workers.*",
    "ignore:The `srun` command is available on your system.*",
    "ignore:.*number of training batches.*is smaller than the logging interval.*",
    "ignore:.*isinstance\\(treespec, LeafSpec\\).*",
    "ignore:.*Checkpoint directory .* exists and is not empty.*",
    "ignore:.*LeafSpec.*",
    "ignore:.*You defined a `validation_step` but have no `val_dataloader`.*",
    "ignore:.*Starting from v1.9.0, `tensorboardX` has been removed.*",
    "ignore:.*`litlogger`.*",
    "ignore:.*enable_nested_tensor.*:UserWarning",
    "ignore:.*torch.jit.*:DeprecationWarning",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--strategies", metavar="FILE", help="write the table of strategies that this run's tests prove")
    parser.addoption("--instruction-set", metavar="NAME", help="run the native kernels of this instruction set alone")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    file = config.getoption("--strategies")
    if file is None:
        return
    outcomes: dict[str, set[str]] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            name = report.nodeid.removeprefix("tests/").split("[")[0]
            outcomes.setdefault(name, set()).add(outcome)
    passed = {name for name, found in outcomes.items() if found == {"passed"}}
    Path(file).write_text(strategies.document(passed))
    terminalreporter.write_line(f"wrote {file}")


def pytest_configure(config: pytest.Config) -> None:
    if (instruction_set := config.getoption("--instruction-set")) is not None:
        native.select_instruction_set(instruction_set)
    for line in _HOST_WARNINGS:
        config.addinivalue_line("filterwarnings", line)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    slow_wanted = "slow" in (config.getoption("-m") or "")
    for item in items:
        if "slow" in item.keywords and not slow_wanted:
            item.add_marker(pytest.mark.skip(reason="slow: run with -m slow"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _repeatable() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def mnist_root() -> Path:
    """The folder of the real MNIST files; skips where there is none (set LOWPREC_MNIST)."""
    for candidate in (os.environ.get("LOWPREC_MNIST"), "data/mnist", "../shared/data/mnist"):
        if candidate and (Path(candidate) / "train-images-idx3-ubyte.gz").exists():
            return Path(candidate)
    pytest.skip("no MNIST here: set LOWPREC_MNIST to the folder of its four files")


@pytest.fixture
def no_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """LightningCLI warns where it is given arguments beside a command line, here pytest's own; in an empty folder."""
    monkeypatch.setattr("sys.argv", ["lowprec"])
    monkeypatch.chdir(tmp_path)
