"""What a module and its optimizers hold, in bytes: now, and over one step, by kind; and every storage that is alive."""

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
from lowprec_plugin.memory.timeline import KINDS, Moment, Timeline
from lowprec_plugin.memory.tracker import MemoryTracker, planes, timeline

__all__ = [
    "KINDS",
    "MemoryReport",
    "MemoryTracker",
    "Moment",
    "Timeline",
    "bytes_of",
    "gradients",
    "held_by",
    "live_storages",
    "optimizers_of",
    "planes",
    "report",
    "timeline",
    "with_held",
]
