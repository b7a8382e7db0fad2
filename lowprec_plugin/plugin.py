"""The Lightning precision plugin: the one flag."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.utilities import rank_zero_info
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lowprec_plugin.describe import as_text, describe
from lowprec_plugin.formats import FixedPointFormat
from lowprec_plugin.optim.adopt import adopt
from lowprec_plugin.optim.quantize import quantize_
from lowprec_plugin.optim.step import FixedPointStep, StepSettings
from lowprec_plugin.tensor import casts_share_codes

ComputeDtype = torch.dtype | Literal["float32", "bfloat16", "bf16-mixed"]
_COMPUTE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "bf16-mixed": "bf16-mixed"}


class FixedPointPrecision(Precision):
    """Store weights and optimizer state in fixed-point, with stochastic rounding on every update.

    ::

        Trainer(plugins=FixedPointPrecision())

    Nothing else changes: modules, optimizers, schedulers, callbacks and checkpoints stay the user's own. No float
    tensor of a parameter's size outlives the operation that needs it.

    Args:
        word_length: bits of a weight, 2 to 24.
        fraction_length: bits behind the radix point, the same for every weight (``<IL,FL>`` of Gupta et al. 2015);
            ``None``: every block of weights has a radix point of its own. State always has: a point that suits the
            weights says nothing of the gradients' scale.
        state_word_length: bits of optimizer state; ``None``: as the weights.
        rounding: ``"stochastic"`` or ``"nearest"``.
        block_size: consecutive weights that share a radix point: a power of two, 16 to 1024.
        compute_dtype: what operations see: ``torch.float32``; ``torch.bfloat16`` (parameters, buffers and inputs appear
            as bfloat16); or ``"bf16-mixed"`` (autocast). Their names as text do as well.
        keep_float: parameters to leave alone: names or shell patterns such as ``"head.*"``.
        nonfinite: on a NaN or infinite gradient ``"raise"``, or ``"skip"`` the step and count it.
        seed: keys the random bits of the rounding.

    Raises:
        ValueError: for a value outside its limits.
    """

    def __init__(
        self,
        word_length: int = 16,
        fraction_length: int | None = None,
        *,
        state_word_length: int | None = None,
        rounding: Literal["stochastic", "nearest"] = "stochastic",
        block_size: int = 256,
        compute_dtype: ComputeDtype = torch.float32,
        keep_float: Iterable[str] = (),
        nonfinite: Literal["raise", "skip"] = "raise",
        seed: int = 0,
    ) -> None:
        self.format = FixedPointFormat(word_length, fraction_length, block_size)
        self._settings = {"state_word_length": state_word_length, "rounding": rounding, "nonfinite": nonfinite}
        StepSettings(**self._settings)  # type: ignore[arg-type]  # refuses bad values now rather than at fit
        self.rounding = rounding
        self.keep_float = [keep_float] if isinstance(keep_float, str) else list(keep_float)
        self.seed = seed
        compute = _COMPUTE.get(compute_dtype, compute_dtype) if isinstance(compute_dtype, str) else compute_dtype
        if compute not in _COMPUTE.values():
            raise ValueError(f"compute_dtype={compute_dtype!r} is not one of {', '.join(_COMPUTE)}")
        self._autocast = compute == "bf16-mixed"
        self._dtype: torch.dtype = torch.float32 if self._autocast else compute  # type: ignore[assignment]
        # What Lightning and its callbacks read: the arithmetic, which is float, not the storage.
        self.precision = "bf16-mixed" if self._autocast else "32-true" if compute == torch.float32 else "bf16-true"
        self._device_type = "cpu"
        self._kept: dict[str, str] = {}
        self._optimizers: list[FixedPointStep] = []

    @property
    def skipped_steps(self) -> int:
        """Optimizer steps skipped for a NaN or infinite gradient (``nonfinite="skip"``)."""
        return sum(optimizer.fixed_point.skipped_steps for optimizer in self._optimizers)

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Swap the parameters of ``module`` for fixed-point ones, in place."""
        if self._dtype != torch.float32:
            module.to(self._dtype)
        self._kept = quantize_(
            module,
            self.format,
            rounding=self.rounding,
            keep_float=self.keep_float,
            dtype=self._dtype,
            seed=self.seed,
        )
        return module

    def connect(
        self, model: nn.Module, optimizers: list[Optimizer], lr_schedulers: list[Any]
    ) -> tuple[nn.Module, list[Optimizer], list[Any]]:
        """Adopt the user's optimizers, and log what is stored how."""
        self._device_type = next((param.device.type for param in model.parameters()), "cpu")
        for optimizer in optimizers:
            adopt(optimizer, StepSettings(**self._settings))  # type: ignore[arg-type]
        self._optimizers = list(optimizers)  # type: ignore[arg-type]
        wire = "float32, as DistributedDataParallel sends them" if isinstance(model, DistributedDataParallel) else ""
        rank_zero_info(f"{self}\n{as_text(describe(model, optimizers), self._kept, wire)}")
        return model, optimizers, lr_schedulers

    def __repr__(self) -> str:
        state = self._settings["state_word_length"] or self.format.word_length
        computing = "bf16-mixed" if self._autocast else str(self._dtype).removeprefix("torch.")
        return (
            f"{type(self).__name__}(weights {self.format}, state {state} bits, {self.rounding} rounding, "
            f"computing in {computing}, seed {self.seed})"
        )

    def tensor_init_context(self) -> AbstractContextManager[None]:
        """The dtype in which user code creates tensors."""
        return nullcontext() if self._dtype == torch.float32 else _default_dtype(self._dtype)

    @contextmanager
    def forward_context(self) -> Generator[None, None, None]:
        """Around every forward: autocast, or the compute dtype as default."""
        if self._autocast:
            with casts_share_codes(), torch.autocast(self._device_type, dtype=torch.bfloat16):
                yield
        else:
            with self.tensor_init_context():
                yield

    def convert_input(self, data: Any) -> Any:
        """Cast floating-point inputs to the compute dtype."""
        if self._dtype == torch.float32:
            return data

        def cast(tensor: Tensor) -> Tensor:
            return tensor.to(self._dtype) if tensor.is_floating_point() else tensor

        return apply_to_collection(data, dtype=Tensor, function=cast)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint says of the plugin, for people: the tensors carry their own formats."""
        return {
            "format": str(self.format),
            "seed": self.seed,
            "skipped_steps": [optimizer.fixed_point.skipped_steps for optimizer in self._optimizers],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting where the checkpoint stopped."""
        for optimizer, skipped in zip(self._optimizers, state_dict["skipped_steps"], strict=False):
            optimizer.fixed_point.skipped_steps = skipped


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Generator[None, None, None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
