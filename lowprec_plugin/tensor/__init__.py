"""A tensor that is stored in fixed-point and looks like an ordinary one."""

from lowprec_plugin.tensor.tensor import FixedPointTensor, rebuild

__all__ = ["FixedPointTensor", "rebuild"]
