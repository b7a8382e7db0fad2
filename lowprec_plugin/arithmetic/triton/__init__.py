"""The Triton kernels, for NVIDIA and AMD GPUs: the arithmetic of :mod:`..reference.rounding`, bit for bit.

Triton is imported nowhere else in the package, and here only when a kernel is wanted. Under ``TRITON_INTERPRET=1``
the same kernels run on CPU tensors, slowly, which is how they are tested where there is no GPU.
"""
