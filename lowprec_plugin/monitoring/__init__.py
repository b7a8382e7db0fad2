"""What a run holds, sends and loses, in Lightning's loggers while it trains."""

from lowprec_plugin.monitoring.monitor import FixedPointMonitor

__all__ = ["FixedPointMonitor"]
