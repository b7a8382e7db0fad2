"""What files of torch call plain data and tensors by.

These names are in the files, and change only with torch's format of files. A name that is not here is a stand-in when
a file is read (:mod:`lowprec_plugin.checkpoints.unpickle`).
"""

from __future__ import annotations

#: Names by module. Pickles of protocol 2 know Python 2's builtins.
PLAIN = {
    "collections": {"OrderedDict", "Counter"},
    "_codecs": {"encode"},
    "builtins": {"bytearray", "complex", "set"},
    "__builtin__": {"bytearray", "complex", "set"},
    "torch": {"Size", "Tensor", "device"},
    "torch.nn.parameter": {"Parameter"},
    "torch.serialization": {"_get_layout"},
    "torch._tensor": {"_rebuild_from_type_v2"},
    "torch._utils": {
        "_rebuild_parameter", "_rebuild_parameter_with_state", "_rebuild_tensor", "_rebuild_tensor_v2",
        "_rebuild_tensor_v3", "_rebuild_sparse_tensor", "_rebuild_qtensor", "_rebuild_meta_tensor_no_storage",
        "_rebuild_wrapper_subclass", "_rebuild_device_tensor_from_cpu_tensor",
    },
}  # fmt: skip
