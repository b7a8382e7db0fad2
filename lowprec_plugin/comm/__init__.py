"""Fixed-point between processes: collectives, a hook for ``DistributedDataParallel``, and the wire of FSDP2."""

from lowprec_plugin.comm.collectives import all_gather, all_reduce, reduce_scatter
from lowprec_plugin.comm.ddp import DDPState, ddp_hook
from lowprec_plugin.comm.fsdp import FSDPState
from lowprec_plugin.comm.overlapped import leave_out_of_ddp

__all__ = ["DDPState", "FSDPState", "all_gather", "all_reduce", "ddp_hook", "leave_out_of_ddp", "reduce_scatter"]
