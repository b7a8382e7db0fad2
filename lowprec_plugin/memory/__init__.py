"""What a module and its optimizers hold, in bytes: now, by kind; and every storage that is alive."""

from lowprec_plugin.memory.kinds import Kinds, Part, side_by_side
from lowprec_plugin.memory.report import (
    MemoryReport,
    bytes_of,
    gradients,
    held_by,
    live_storages,
    optimizers_of,
    report,
    with_held,
)

__all__ = [
    "Kinds",
    "MemoryReport",
    "Part",
    "bytes_of",
    "gradients",
    "held_by",
    "live_storages",
    "optimizers_of",
    "report",
    "side_by_side",
    "with_held",
]
