"""Errors name options as data: Python and a command line each word them in their own form."""

from __future__ import annotations

import ast
import inspect
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name

import pytest

import lowprec_plugin
from lowprec_plugin.cli.main import OWN
from lowprec_plugin.plan import plan
from lowprec_plugin.text.option_error import Option, OptionError, parts_of

PACKAGE = Path(lowprec_plugin.__file__).parent


def test_an_error_reads_as_its_reader_writes() -> None:
    error = OptionError(
        Option.given("mode", "a seeds=1"), " is none: give ", Option("mode", "max"), ", or ", Option("steps"),
        " (seeds=2)",
    )  # fmt: skip
    assert str(error) == "mode='a seeds=1' is none: give mode=max, or steps= (seeds=2)"
    assert (
        error.on_command_line({"mode", "seeds", "steps"})
        == "--mode='a seeds=1' is none: give --mode=max, or --steps (seeds=2)"
    )
    assert error.on_command_line({"steps"}) == "mode='a seeds=1' is none: give mode=max, or --steps (seeds=2)"
    assert error.options == (("mode", "'a seeds=1'"), ("mode", "max"), ("steps", ""))


def test_an_error_is_the_same_in_another_process_and_in_another_message() -> None:
    error = OptionError(Option.given("seeds", 0), " must be at least 1")
    for other in (pickle.loads(pickle.dumps(error)), OptionError("no: ", *parts_of(error))):
        assert other.options == error.options
        assert str(other).endswith(str(error))
    assert parts_of(ValueError("no")) == ("no",)


def commands_in(*folders: str) -> set[str]:
    """Options of the commands whose functions lie in ``folders``."""
    functions = [resolve_name(path) for path, _ in OWN.values()] + [plan]
    return {
        name
        for function in functions
        if function.__module__.split(".")[1] in folders
        for name in inspect.signature(function).parameters
    }


#: Where commands get their errors from, and the commands that do.
PLACES = {
    ("plan",): ("plan",), ("poc",): ("poc",), ("tune",): ("tune",), ("export",): ("export",), ("bench",): ("bench",),
    ("experiments", "quality.py"): ("poc", "tune"), ("checkpoints",): ("plan", "export", "checkpoints"),
    ("formats.py", "compute_dtype.py", "arithmetic", "optim/options.py", "optim/naming.py", "optim/quantize.py",
     "activations/emulation"): ("plan", "export", "tune"),
}  # fmt: skip


def raised(path: Path) -> Iterator[tuple[int, str]]:
    """The texts of the ``ValueError``s that the module at ``path`` raises, ``?`` standing for what is put in."""
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.Raise)
            and isinstance(node.exc, ast.Call)
            and ast.unparse(node.exc.func) == "ValueError"
        ):
            yield node.lineno, "".join(map(text_of, node.exc.args))


def text_of(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text_of, node.values))
    return str(node.value) if isinstance(node, ast.Constant) else "?"


def in_text(text: str, names: set[str]) -> bool:
    """Whether an option is named in ``text``, outside a call in Python."""
    outside = re.sub(r"\w\([^()]*\)", "", text)
    return re.search(rf"(?<![\w.-])(?:{'|'.join(names)}|\?)=", outside) is not None


@pytest.mark.parametrize("places", PLACES, ids=lambda places: places[0])
def test_what_commands_refuse_names_options_as_data(places: tuple[str, ...]) -> None:
    names = commands_in(*PLACES[places])
    assert names
    files = [
        file
        for place in places
        for file in ([PACKAGE / place] if place.endswith(".py") else (PACKAGE / place).rglob("*.py"))
    ]
    assert files
    assert [
        f"{file.name}:{line}: {text}" for file in files for line, text in raised(file) if in_text(text, names)
    ] == []


def test_an_option_in_a_text_is_seen(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text('def f(x, y):\n    raise ValueError(f"{x}={y!r} is " "none")\n')
    assert [in_text(text, {"mode"}) for _, text in raised(tmp_path / "one.py")] == [True]
    assert in_text("give mode=max", {"mode"})
    assert not in_text("write Ramp(mode=max), or trainer.mode=max", {"mode"})
