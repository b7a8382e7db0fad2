"""What a module and its optimizers hold, in bytes: now, and over one step, by kind; and every storage that is alive."""

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
from lowprec_plugin.memory.timeline import Moment, Timeline
from lowprec_plugin.memory.tracker import MemoryTracker, planes, timeline

__all__ = [
    "Kinds",
    "MemoryReport",
    "MemoryTracker",
    "Moment",
    "Part",
    "Timeline",
    "bytes_of",
    "gradients",
    "held_by",
    "live_storages",
    "optimizers_of",
    "planes",
    "report",
    "side_by_side",
    "timeline",
    "with_held",
]
