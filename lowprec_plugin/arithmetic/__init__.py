"""The law of rounding, updates and the wire, and three ways to compute it: the reference, native code, and Triton.

Callers come through :mod:`.ops` and :mod:`.wire_ops` only.
"""
