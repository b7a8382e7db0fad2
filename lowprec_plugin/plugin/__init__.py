"""The precision plugin for Lightning."""

from lowprec_plugin.plugin.precision import FixedPointPrecision

__all__ = ["FixedPointPrecision"]
