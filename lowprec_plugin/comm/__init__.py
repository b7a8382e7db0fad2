"""Fixed-point between processes: collectives, a hook for ``DistributedDataParallel``, and the wire of FSDP2."""

from lowprec_plugin.comm.collectives import all_gather, all_reduce, reduce_scatter
from lowprec_plugin.comm.ddp import DDPState, ddp_hook
from lowprec_plugin.comm.fsdp import FSDPState

__all__ = ["DDPState", "FSDPState", "all_gather", "all_reduce", "ddp_hook", "reduce_scatter"]
