"""The proof of concept: the same training in float32 and in several fixed-point formats, side by side.

:func:`run_poc` is imported when it is asked for, for it takes Lightning, which writing a report again does not.
"""

from typing import TYPE_CHECKING, Any

from lowprec_plugin.poc.variants import VARIANTS, Variant

if TYPE_CHECKING:
    from lowprec_plugin.poc.run import run_poc

__all__ = ["VARIANTS", "Variant", "run_poc"]


def __getattr__(name: str) -> Any:
    if name == "run_poc":
        from lowprec_plugin.poc.run import run_poc

        return run_poc
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
