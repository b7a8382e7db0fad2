"""What torch and others do with a tensor's memory directly, where no operation of torch's dispatcher tells.

There is no memory behind the floats of a fixed-point tensor, and code that looked there would crash the process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lowprec_plugin.compat.tracing import recorder
from lowprec_plugin.tensor.coded import Coded
from lowprec_plugin.tensor.opening import current

if TYPE_CHECKING:
    from typing import Self


#: Why codes cannot be the data of floats, and what to do.
NO_DATA_OF_FLOATS = (
    "a float tensor cannot take a fixed-point tensor as its .data: copy_() the numbers into it, or assign what "
    "dequantize() gives; of a module's parameters optim.quantize_(module) makes fixed-point ones"
)


class _NoStorage:
    """Stands for the floats in memory that a fixed-point tensor does not have."""

    def size(self) -> int:
        """0. torch 2.10 compares it with the number of elements when it writes a distributed checkpoint."""
        return 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ValueError(
            "a fixed-point tensor has no memory of floats that safetensors could write: write floats, which are exact "
            "in float32 (save_file or save_pretrained with optim.float_state_dict(module)), or codes "
            "(lowprec_plugin.export.to_safetensors(module, path)); with accelerate save_state(safe_serialization=False)"
        )


class Direct(Coded):
    """The methods of a tensor that go past the dispatcher, by way of floats."""

    def __dlpack__(self, **options: Any) -> Any:
        """A copy of the stored numbers, for other frameworks."""
        return self.dequantize().__dlpack__(**options)

    def tolist(self) -> Any:
        """The stored numbers as nested lists of Python floats."""
        return self.dequantize().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """The stored numbers as a NumPy array, a copy. In an optimizer's step, which may write there, its floats."""
        if (opening := current()) is not None:
            opening.write([self])
            with torch.no_grad():
                return self._floats()[1].numpy(force=force)
        return self.dequantize().numpy(force=force)

    def storage(self) -> Any:
        """An empty one, which has no address: safetensors, and who writes by it, would read memory that is not there.

        Whatever else than its size is asked of it is a ``ValueError``, with how to write the numbers.
        """
        return _NoStorage()

    def apply_(self, callable: Callable[[float], float]) -> Tensor:
        """Replace each stored number by a Python function of it, rounded as ``copy_`` rounds."""
        return self.copy_(self.dequantize().apply_(callable))

    def data_ptr(self) -> int:
        """0: there are no floats in memory. In a step of optimizers that tell tensors by their address, their codes'.

        In other steps:

        Raises:
            ValueError: always, for they would read or write there.
        """
        if (opening := current()) is not None:
            if opening.addresses_are_names:
                return self._codes.data_ptr() + int(self.storage_offset()) * self._codes.element_size()
            raise ValueError(
                f"{opening.name} asks for the address of fixed-point tensor {self.label!r}, for a kernel of its own or "
                "to tell tensors apart, and there are no floats in memory: use another optimizer, or keep_float"
            )
        return 0

    def share_memory_(self) -> Self:
        """Move the codes to shared memory, in place."""
        for plane in self.blocks.planes:
            plane.share_memory_()  # type: ignore[no-untyped-call]
        return self

    def is_shared(self) -> bool:
        """Whether the codes are in shared memory."""
        return bool(self.codes.is_shared())  # type: ignore[no-untyped-call]


def refuse_recording() -> None:
    """Refuse an operation that is being recorded with its operands' memory: by ``torch.jit.trace`` or ``torch.onnx``.

    Raises:
        ValueError: if one is.
    """
    if (name := recorder()) is not None:
        raise ValueError(recorded(name))


def recorded(name: str) -> str:
    """Why ``name`` cannot record a module, and what to do."""
    return (
        f"{name} cannot record fixed-point weights, which have no memory of floats: give it a copy in floats, "
        "optim.to_float_(copy.deepcopy(module)), which computes the same; lowprec_plugin.export.to_onnx writes codes"
    )
