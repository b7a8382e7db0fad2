"""Why a module or its data could not be made, in short: jsonargparse lists every type that it tried."""

from __future__ import annotations

import inspect
import pkgutil
import sysconfig
import traceback
from argparse import ArgumentError
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lowprec_plugin.experiments.config import Config, class_path
from lowprec_plugin.text.option_error import Option, OptionError

PARTS = {"model": "LightningModule", "data": "LightningDataModule"}
#: Folders of code that is not the user's own; and the names of those that packages are installed in, of which there may
#: be several: an environment's, the user's, the system's.
_OTHERS = (Path(__file__).parents[1], Path(sysconfig.get_path("stdlib")))
_INSTALLED = {"site-packages", "dist-packages"}


@contextmanager
def refused_in_short(config: Config, where: str = "the configuration") -> Iterator[None]:
    """Word what jsonargparse refuses of ``config``, within the context, as the path, the reason and the remedy.

    Args:
        where: what is refused when no part of ``config`` is to blame.

    Raises:
        ValueError: from the refusal's own cause. What a class or function raises when it is called passes as it is,
            unless jsonargparse wraps it.
    """
    try:
        yield
    except (ArgumentError, ValueError) as error:
        if not _is_of_parser(error):
            raise
        cause = cause_of(error)
        raise OptionError(*_in_short(error, cause, config, where)) from cause


def cause_of(error: BaseException) -> BaseException:
    """What jsonargparse has wrapped in ``error``; of another's error, that itself."""
    while _is_of_parser(error) and error.__cause__ is not None:
        error = error.__cause__
    return error


def raised_in(error: BaseException, package: str) -> bool:
    """Whether the code of ``package`` raised it, and not what that called."""
    name: str = _last(error)[0].f_globals.get("__name__", "")
    return name.partition(".")[0] == package


def users_line(error: BaseException) -> str:
    """`` (net.py, line 12)``: the user's own line that raised it, or called what did; empty if none was at work."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        path = Path(frame.f_code.co_filename)
        others = any(path.is_relative_to(folder) for folder in _OTHERS) or _INSTALLED & {*path.parts}
        if path.is_file() and not others:
            return f" ({path.name}, line {line})"
    return ""


def _is_of_parser(error: BaseException) -> bool:
    return raised_in(error, "jsonargparse")


def _in_short(error: Exception, cause: BaseException, config: Config, where: str) -> tuple[str | Option, ...]:
    for part, base in PARTS.items():
        given = config.get(part)
        if given and class_path(given) in str(error):
            return Option(part, repr(class_path(given))), f" {_reason(cause, given, part, base)}"
    return (f"{where} is refused: {error}",)


def _reason(cause: BaseException, given: Any, part: str, base: str) -> str:
    path = class_path(given)
    if isinstance(cause, ImportError | AttributeError) and _is_of_parser(cause):
        return f"cannot be imported: {cause}"
    if isinstance(cause, ValueError) and _is_of_parser(cause) and f"subclass of {base}" in str(cause):
        if _is_unannotated(path):
            name = path.rpartition(".")[2]
            return f"is a function without a return annotation: write def {name}() -> Net, the {base} that it returns"
        return f"is no {base}, and no function annotated with the one that it returns, as in def make() -> Net"
    why = str(cause)
    if not _is_of_parser(cause):
        frame, line = _last(cause)
        why = f"{type(cause).__name__}: {cause} ({Path(frame.f_code.co_filename).name}, line {line})"
    if isinstance(given, Mapping) and given.get("init_args"):
        return f"cannot be made with its init_args: {why}"
    return (
        f"cannot be made without arguments: {why}. Give a configuration, --config, with {part}.class_path and its "
        f"arguments, {part}.init_args; or the path of a function without arguments, annotated with the {base} that it "
        "returns, as in def make() -> Net"
    )


def _is_unannotated(path: str) -> bool:
    try:
        found = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError):  # a name without its package, which jsonargparse looks up
        return False
    return inspect.isroutine(found) and "return" not in getattr(found, "__annotations__", {})


def _last(error: BaseException) -> tuple[Any, int]:
    """The frame that raised it, and the line."""
    return list(traceback.walk_tb(error.__traceback__))[-1]
