"""The law of rounding, updates and the wire, and three ways to compute it: the reference, native code, and Triton.

Callers come through :mod:`.ops` and :mod:`.wire_ops` only. :mod:`.backend` says what a way to compute it is, and
:mod:`.backends` which one serves which device.
"""
