"""``lowprec fit``, ``validate``, ``test`` and ``predict``: LightningCLI, with one line of why it cannot start."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowprec_plugin.compat.lightnings import LIGHTNINGS, Lightning
from lowprec_plugin.experiments import Config, cause_of, raised_in, read_yaml
from lowprec_plugin.experiments.lightnings import lightning_of_config

#: Whose refusals are one line.
_OURS = ("lowprec_plugin", *(name.partition(".")[0] for each in LIGHTNINGS for name in (each.name, each.fabric)))


class _CannotStartError(Exception):
    """Its message says why the command cannot start."""


def run_lightning(command: str, given: Sequence[str] | None) -> int:
    """Run a command of LightningCLI, that of the module's own Lightning. Returns the exit status.

    Args:
        given: the command and its arguments; ``None``: those of this process (LightningCLI warns where it is given
            arguments besides).
    """
    arguments = sys.argv[1:] if given is None else list(given)
    try:
        cli = _cli_of(_lightning_of(arguments))
        cli(args=None if given is None else arguments, save_config_kwargs={"overwrite": True})
    except _CannotStartError as error:
        print(f"lowprec {command}: {error}", file=sys.stderr)
        return 2
    return 0


def _cli_of(lightning: Lightning) -> Any:
    """LightningCLI of ``lightning``, which refuses in one line."""
    misconfiguration = lightning.get("utilities.exceptions.MisconfigurationException")

    class CLI(lightning.get("cli.LightningCLI")):  # type: ignore[misc]
        def parse_arguments(self, parser: Any, args: Any) -> None:
            """As LightningCLI's; jsonargparse reads every file as UTF-8, and does not name the one that is not."""
            try:
                super().parse_arguments(parser, args)
            except UnicodeDecodeError as error:
                given = sys.argv[1:] if args is None else args
                raise _CannotStartError(f"{_undecodable(given)} cannot be read: {error}") from error

        def instantiate_classes(self) -> None:
            """As LightningCLI's; an error of the user's own code passes as it is."""
            try:
                super().instantiate_classes()
            except (ValueError, misconfiguration) as error:
                cause = cause_of(error)
                if not any(raised_in(cause, package) for package in _OURS):
                    raise
                raise _CannotStartError(str(cause)) from error

    return CLI


def _lightning_of(arguments: Sequence[str]) -> Lightning:
    try:
        return lightning_of_config(_named(arguments))
    except ValueError as error:
        raise _CannotStartError(str(error)) from error


def _named(arguments: Sequence[str]) -> Config:
    """The classes that a command line names, or its configuration; LightningCLI itself reads them with all the rest."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", "-c", action="append", default=[])
    for part in ("model", "data"):
        parser.add_argument(f"--{part}", f"--{part}.class_path")
    try:
        given, _ = parser.parse_known_args(arguments)
    except argparse.ArgumentError:  # an option without its value
        return {}
    named: Config = {}
    for path in given.config:
        try:
            content = read_yaml(path)
        except ValueError:
            continue
        named |= content if isinstance(content, dict) else {}
    return named | {part: path for part in ("model", "data") if (path := getattr(given, part)) is not None}


def _undecodable(given: Sequence[str]) -> str:
    """Which file is not UTF-8: the argument, or, if no argument is it, a file that the configuration names."""
    for argument in given:
        path = Path(argument.partition("=")[2] if argument.startswith("-") else argument)
        try:
            path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            return str(path)
        except OSError:
            continue
    return "a file that the configuration names"
