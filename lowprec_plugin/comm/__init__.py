"""Gradients in fixed-point between processes: collectives, and a hook for ``DistributedDataParallel``."""

from lowprec_plugin.comm.collectives import all_gather, all_reduce, reduce_scatter
from lowprec_plugin.comm.ddp import DDPState, ddp_hook

__all__ = ["DDPState", "all_gather", "all_reduce", "ddp_hook", "reduce_scatter"]
