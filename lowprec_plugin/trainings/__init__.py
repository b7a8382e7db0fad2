"""Trainings of a user's own module and data, as ``lowprec fit`` would run them: for commands that make many of them."""

from lowprec_plugin.trainings.config import (
    DIGITS,
    Config,
    class_path,
    plugin_options,
    read_config,
    read_yaml,
    with_plugin,
)
from lowprec_plugin.trainings.making import (
    IN_THIS_PROCESS,
    instantiate,
    perturb_last_bit_,
    quietly,
    rehearse,
    unseen,
)
from lowprec_plugin.trainings.refusals import refused_in_short

__all__ = [
    "Config", "DIGITS", "read_config", "read_yaml", "class_path", "plugin_options", "with_plugin",
    "IN_THIS_PROCESS", "instantiate", "rehearse", "quietly", "perturb_last_bit_", "unseen",
    "refused_in_short",
]  # fmt: skip
