"""``lowprec fit``, ``validate``, ``test`` and ``predict``: LightningCLI, with one line of why it cannot start."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningCLI

from lowprec_plugin.trainings import cause_of, raised_in


class _CLI(LightningCLI):
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
        except (ValueError, MisconfigurationException) as error:
            cause = cause_of(error)
            if not any(raised_in(cause, package) for package in ("lightning", "lowprec_plugin")):
                raise
            raise _CannotStartError(str(cause)) from error


class _CannotStartError(Exception):
    """Its message says why the command cannot start."""


def run_lightning(command: str, given: Sequence[str] | None) -> int:
    """Run a command of LightningCLI. Returns the exit status.

    Args:
        given: the command and its arguments; ``None``: those of this process (LightningCLI warns where it is given
            arguments besides).
    """
    try:
        _CLI(args=None if given is None else list(given), save_config_kwargs={"overwrite": True})
    except _CannotStartError as error:
        print(f"lowprec {command}: {error}", file=sys.stderr)
        return 2
    return 0


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
