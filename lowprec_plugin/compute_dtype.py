"""The floating-point side of the plugin: what operations see."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from lowprec_plugin.tensor.casting import casts_share_codes
from lowprec_plugin.text.option_error import Option, OptionError

ComputeDtype = torch.dtype | Literal["float32", "float64", "bfloat16", "bf16-mixed"]
_NAMES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "bf16-mixed": "bf16-mixed"}
_PRECISION: dict[torch.dtype, Literal["32-true", "64-true", "bf16-true"]] = {
    torch.float32: "32-true", torch.float64: "64-true", torch.bfloat16: "bf16-true"
}  # fmt: skip


class Computing:
    """The dtype of parameters, inputs and operations.

    Args:
        compute_dtype: ``torch.float32``, ``torch.float64``, ``torch.bfloat16``, ``"bf16-mixed"`` (autocast), or their
            names as text.

    Attributes:
        dtype: of parameters and inputs.
        autocast: whether operations cast to bfloat16 by themselves.
        precision: the name by which Lightning and its callbacks know this arithmetic.

    Raises:
        ValueError: for anything else.
    """

    def __init__(self, compute_dtype: ComputeDtype) -> None:
        compute: object = compute_dtype
        if isinstance(compute_dtype, str):  # LightningCLI saves torch's own names, such as torch.float32
            compute = _NAMES.get(compute_dtype.removeprefix("torch."), compute_dtype)
        if not isinstance(compute, str | torch.dtype) or compute not in _NAMES.values():
            raise OptionError(Option.given("compute_dtype", compute_dtype), f" is not one of {', '.join(_NAMES)}")
        self.autocast = compute == "bf16-mixed"
        self.dtype: torch.dtype = torch.float32 if self.autocast else compute  # type: ignore[assignment]
        self.precision: Literal["bf16-mixed", "32-true", "64-true", "bf16-true"] = (
            "bf16-mixed" if self.autocast else _PRECISION[self.dtype]
        )

    def __str__(self) -> str:
        return "bf16-mixed" if self.autocast else str(self.dtype).removeprefix("torch.")

    def seen(self, module: nn.Module) -> torch.dtype | None:
        """The dtype in which operations are to see the parameters of ``module``; ``None``: each in its own.

        In float32 what is float64 stays so, as the buffers and inputs beside it do, and as with Lightning's "32-true".
        """
        wide = self.dtype == torch.float32 and any(param.dtype == torch.float64 for param in module.parameters())
        return None if wide else self.dtype

    def creation(self) -> AbstractContextManager[None]:
        """The dtype in which tensors are created."""
        return nullcontext() if self.dtype == torch.float32 else _default_dtype(self.dtype)

    @contextmanager
    def forward(self, device_type: str) -> Iterator[None]:
        """Around every forward: autocast, or the compute dtype as default."""
        if self.autocast:
            with casts_share_codes(), _no_fast_path(), torch.autocast(device_type, dtype=torch.bfloat16):
                yield
        else:
            with self.creation():
                yield

    def inputs(self, data: Any) -> Any:
        """``data`` with its floating-point tensors in the compute dtype."""
        if self.dtype == torch.float32:
            return data

        def cast(tensor: Tensor) -> Tensor:
            return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

        return apply_to_collection(data, dtype=Tensor, function=cast)


@contextmanager
def _no_fast_path() -> Iterator[None]:
    """Keep attention's fused inference out: it reads weights below autocast, in float32, beside bfloat16 inputs."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
