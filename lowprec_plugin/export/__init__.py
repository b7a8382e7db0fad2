"""Out to hardware and other tools: safetensors, a C header, an HLS header, ONNX, a plain float state dict; and what a
network would cost on the paper's array.

Each ``to_`` function writes one file, whole or not at all, and refuses by name what the file cannot hold.
"""

from lowprec_plugin.export.c_header import to_c
from lowprec_plugin.export.command import run_cost, run_export
from lowprec_plugin.export.float_file import to_float
from lowprec_plugin.export.hls import to_hls
from lowprec_plugin.export.onnx_file import to_onnx
from lowprec_plugin.export.safetensors_file import read_safetensors, to_safetensors
from lowprec_plugin.export.systolic_array import Estimate, SystolicArray, estimate

__all__ = [
    "Estimate", "SystolicArray", "estimate", "read_safetensors", "run_cost", "run_export", "to_c", "to_float", "to_hls",
    "to_onnx", "to_safetensors",
]  # fmt: skip
