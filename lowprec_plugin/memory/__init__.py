"""What a module and its optimizers hold, in bytes: now, by kind; and every storage that is alive."""

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
    "MemoryReport",
    "bytes_of",
    "gradients",
    "held_by",
    "live_storages",
    "optimizers_of",
    "report",
    "with_held",
]
