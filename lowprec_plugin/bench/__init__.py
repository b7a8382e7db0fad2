"""Speed beside float32's, both sides in one process."""

from lowprec_plugin.bench.run import run_bench

__all__ = ["run_bench"]
