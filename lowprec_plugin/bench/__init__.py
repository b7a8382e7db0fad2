"""Speed beside float32's: of updates, training steps and emulation on one machine, and of gradients on a network."""

from lowprec_plugin.bench.allreduce import run_allreduce
from lowprec_plugin.bench.emulation import run_emulation
from lowprec_plugin.bench.run import run_bench

__all__ = ["run_allreduce", "run_bench", "run_emulation"]
