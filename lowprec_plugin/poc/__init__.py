"""The proof of concept: the same training in float32 and in several fixed-point formats, side by side."""

from lowprec_plugin.poc.run import run_poc
from lowprec_plugin.poc.variants import VARIANTS, Variant

__all__ = ["VARIANTS", "Variant", "run_poc"]
