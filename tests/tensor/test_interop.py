"""Nothing looks for floats in the memory of a fixed-point tensor."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

from lowprec_plugin import FixedPointTensor


def stored() -> FixedPointTensor:
    return FixedPointTensor.quantize(torch.arange(6.0).view(2, 3), "fixed16")


@pytest.mark.parametrize("kind", [Tensor, nn.Parameter])
def test_floats_refuse_codes_as_their_data(kind: type[Tensor]) -> None:
    tensor = kind(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"copy_\(\) the numbers"):
        tensor.data = stored()
    assert torch.equal(tensor, torch.ones(2, 3))
    tensor.data = stored().dequantize()
    assert torch.equal(tensor, torch.arange(6.0).view(2, 3))


def test_a_module_refuses_codes_for_its_tensors_and_says_what_makes_them() -> None:
    module = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"optim\.quantize_\(module\)"):
        module._apply(lambda param: FixedPointTensor.quantize(param.detach(), "fixed16"))  # type: ignore[no-untyped-call]
    assert all(type(param) is nn.Parameter for param in module.parameters())


def test_other_tensor_classes_are_answered_as_before() -> None:
    one, other = TwoTensor(torch.ones(3), torch.ones(3)), TwoTensor(torch.zeros(3), torch.zeros(3))  # type: ignore[no-untyped-call]
    one.data = other
    with pytest.raises(RuntimeError, match="incompatible tensor type"):
        one.data = torch.ones(3).to_sparse()


def test_a_python_function_is_applied() -> None:
    x = stored()
    assert x[:, 1:].apply_(lambda value: -value).tolist() == [[-1, -2], [-4, -5]]
    assert x.tolist() == [[0, -1, -2], [3, -4, -5]]
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        nn.Parameter(x).apply_(abs)


def test_a_storage_of_floats_is_refused() -> None:
    """By which safetensors, accelerate and save_pretrained find the memory to write: tests/foreign."""
    for tensor in (stored(), nn.Parameter(stored())):
        with pytest.raises(ValueError, match=r"no memory of floats.*float_state_dict.*to_safetensors"):
            tensor.storage().data_ptr()
        assert tensor.storage().size() == 0


def test_memory_that_is_not_there_is_not_looked_for() -> None:
    """What takes its address gets an error, and the process goes on; a storage by itself is empty."""
    tensor = stored()
    with pytest.raises(RuntimeError, match="Cannot access data pointer"):
        torch.utils.dlpack.to_dlpack(tensor)
    storage = tensor.untyped_storage()
    assert storage.nbytes() == storage.share_memory_().nbytes() == storage.clone().nbytes() == 0
    with pytest.raises(RuntimeError, match="Cannot access data pointer"):
        storage.byteswap(torch.float32)  # type: ignore[no-untyped-call]
    assert tensor.data_ptr() == 0
    assert tensor.share_memory_().is_shared()
    assert torch.equal(tensor.dequantize(), torch.arange(6.0).view(2, 3))
