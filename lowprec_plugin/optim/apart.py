"""Tensors that are windows on the same memory: each would get codes of its own, and no longer be tied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from lowprec_plugin.arithmetic.ops import in_memory


def check_apart(module: nn.Module, kept: Mapping[str, str]) -> None:
    """Refuse parameters of ``module`` that overlap in memory with one another, or with a buffer.

    Args:
        kept: those that are left as they are, by name: they may overlap with one another.

    Raises:
        ValueError: with the names of two that overlap.
    """
    params = dict(module.named_parameters())
    buffers = {name: buffer for name, buffer in module.named_buffers() if name not in params}
    spans = [*_spans(params), *_spans(buffers)]
    left = kept.keys() | buffers.keys()
    furthest = ("", 0, 0, "")
    for span in sorted(spans):
        (before, _, end, one), (device, start, _, other) = furthest, span
        if device == before and start < end and not {one, other} <= left:
            raise ValueError(_refusal(one, other, buffers))
        furthest = max(furthest, span, key=lambda each: (each[0], each[2]))


def _refusal(one: str, other: str, buffers: Mapping[str, Tensor]) -> str:
    buffer = next((name for name in (one, other) if name in buffers), None)
    if buffer is None:
        return (
            f"parameters {one!r} and {other!r} overlap in memory but are two objects, which fixed-point would untie: "
            "make them one Parameter, clone() one if they are not meant to be tied, or leave both with "
            f"keep_float={[one, other]}"
        )
    param = other if buffer == one else one
    return (
        f"parameter {param!r} and buffer {buffer!r} overlap in memory, and fixed-point would untie them: clone() the "
        f"buffer if it is not meant to follow the parameter, or leave the parameter with keep_float={[param]}"
    )


def _spans(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, int, int, str]]:
    """Device, first and last address, and name of each that lies in memory."""
    for name, tensor in tensors.items():
        plain = type(tensor) in (Tensor, nn.Parameter) and not tensor.is_nested
        if plain and not tensor.is_meta and tensor.numel() and in_memory(tensor):
            steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
            start = tensor.data_ptr()
            yield str(tensor.device), start, start + (steps + 1) * tensor.element_size(), name
