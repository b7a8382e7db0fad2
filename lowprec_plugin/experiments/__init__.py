"""Trainings of a user's own module and data, as ``lowprec fit`` would run them: for commands that make many of them.

What makes and runs them is in :mod:`.making`, apart, for it takes Lightning, which reading a configuration does not.
"""

from lowprec_plugin.experiments.config import (
    DIGITS,
    Config,
    class_path,
    plugin_options,
    read_config,
    read_yaml,
    with_plugin,
)
from lowprec_plugin.experiments.refusals import cause_of, raised_in, refused_in_short, users_line

__all__ = [
    "Config", "DIGITS", "read_config", "read_yaml", "class_path", "plugin_options", "with_plugin",
    "cause_of", "raised_in", "refused_in_short", "users_line",
]  # fmt: skip
