"""The proof of concept: the same training in float32 and in several fixed-point formats, side by side."""

from typing import TYPE_CHECKING, Any

from lowprec_plugin.poc.run.variants import VARIANTS, Variant

if TYPE_CHECKING:
    from lowprec_plugin.poc.command import run_poc

__all__ = ["VARIANTS", "Variant", "run_poc"]


def __getattr__(name: str) -> Any:
    if name == "run_poc":  # imported when needed: writing a report again does not take Lightning
        from lowprec_plugin.poc.command import run_poc

        return run_poc
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
