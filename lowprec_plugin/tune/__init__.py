"""Finds formats for a user's own network: the narrowest that keep a metric within a tolerance of float32."""

from lowprec_plugin.tune.command import tune
from lowprec_plugin.tune.report import Found
from lowprec_plugin.tune.search import Trial

__all__ = ["tune", "Found", "Trial"]
