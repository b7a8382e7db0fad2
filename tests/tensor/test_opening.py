"""Tensors stay open from one operation in place to the next, and are rounded once."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from lowprec_plugin import FixedPointTensor
from lowprec_plugin.arithmetic import ops
from lowprec_plugin.tensor.coded import Open, Shared
from lowprec_plugin.tensor.opening import Opening, suspended


def fixed(x: torch.Tensor, format: str = "fixed16", label: str = "w") -> FixedPointTensor:
    return FixedPointTensor.quantize(x, format, rounding="nearest", label=label)


class Closing:
    """An opening that rounds to nearest, and notes what it closed."""

    def __init__(self, *owners: FixedPointTensor) -> None:
        self.closed: list[Hashable | None] = []
        self.opening = Opening([(each._shared, each.label) for each in owners], self.close, "Name")

    def close(self, owner: Hashable | None, members: list[tuple[Shared, Open]]) -> None:
        for _, opened in members:
            ops.quantize(opened.floats, opened.format, rounding="nearest", out=opened.blocks)
            self.closed.append(owner)


def test_what_is_written_stays_until_another_is() -> None:
    one, other = fixed(torch.ones(4, 8), label="one"), fixed(torch.ones(4, 8), label="other")
    closing, tiny = Closing(one, other), 2.0**-20
    with closing.opening.entered():
        for _ in range(1000):
            one.add_(tiny)  # a hundredth of a code, which rounding to nearest would drop
        assert closing.closed == []
        torch.testing.assert_close(one + 0, torch.full((4, 8), 1 + 1000 * tiny), rtol=1e-6, atol=0)
        other.mul_(2)
        assert closing.closed == ["one"]
        assert one._open_floats() is None
    assert closing.closed == ["one", "other"]
    assert abs(one.dequantize() - (1 + 1000 * tiny)).max() <= 2.0**-15
    assert torch.equal(other.dequantize(), torch.full((4, 8), 2.0))
    assert (closing.opening.together, closing.opening.most) == (1, 4 * 32)


def test_what_is_written_together_is_open_together() -> None:
    tensors = [fixed(torch.ones(4, 8), label=str(index)) for index in range(3)]
    closing = Closing(*tensors)
    with closing.opening.entered():
        torch._foreach_add_(tensors, 1.0)
        torch._foreach_mul_(tensors, 3.0)
        assert closing.closed == []
    assert sorted(map(str, closing.closed)) == ["0", "1", "2"]
    assert (closing.opening.together, closing.opening.most) == (3, 3 * 4 * 32)
    assert all(torch.equal(each.dequantize(), torch.full((4, 8), 6.0)) for each in tensors)


WRITES: list[Any] = [
    lambda w: w.add_(0.25), lambda w: w.data.mul_(0.5), lambda w: w[1:3].add_(1.0), lambda w: w.t().sub_(0.5),
    lambda w: w.view(-1)[5:9].fill_(0.75), lambda w: w.copy_(w * 2), lambda w: w.data.copy_(w.clone()),
    lambda w: w.clone().zero_(), lambda w: torch._foreach_add_([w], [w]), lambda w: w.clamp_(-1, 1),
    lambda w: w.mul_(w), lambda w: setattr(w, "data", w * 0.5), lambda w: w.codes, lambda w: w.detach().neg_(),
    lambda w: w.unbind()[0].add_(0.125), lambda w: w.addcmul_(w, w.clone(), value=0.5), lambda w: w.lerp_(w + 1, 0.5),
    lambda w: w[0, 3].add_(0.5), lambda w: w.index_fill_(0, torch.tensor([1]), 0.25),
]  # fmt: skip


def saturate_(floats: torch.Tensor, tensor: FixedPointTensor) -> None:
    """Codes of a static format have a largest number, and a tensor has its codes' once it is closed."""
    format = tensor.format
    if format.dynamic:
        assume(float(floats.abs().max()) < 2**15)  # beyond it one code is more than the tolerance
    elif tensor._open_floats() is None:
        step = 2.0**format.static_exponent
        floats.clamp_(format.min_code * step, format.max_code * step)


@given(st.lists(st.integers(0, len(WRITES) - 1), min_size=1, max_size=8), st.sampled_from(["fixed24", "<12,12>"]))
@example([0, 0, 0, 5, 8, 10, 10], "<12,12>")  # beyond the format's range
def test_it_reads_as_floats_would(chosen: list[int], format: str) -> None:
    """Whatever is written, by windows and parts too: as the same operations on a float tensor."""
    start = torch.linspace(-1, 1, 40).reshape(4, 10)
    tensor = fixed(start, format)
    floats, closing = tensor.dequantize().clone(), Closing(tensor)
    with closing.opening.entered():
        for index in chosen:
            WRITES[index](tensor)
            if index != 12:  # codes, which floats do not have
                WRITES[index](floats)
            saturate_(floats, tensor)
            torch.testing.assert_close(tensor + 0, floats, rtol=1e-3, atol=1e-2)
    saturate_(floats, tensor)
    torch.testing.assert_close(tensor.dequantize(), floats, rtol=1e-3, atol=1e-2)


def test_an_exception_leaves_the_codes() -> None:
    tensor = fixed(torch.ones(4, 8))
    with pytest.raises(RuntimeError), Closing(tensor).opening.entered():  # noqa: PT012
        tensor.mul_(2)
        tensor.add_(torch.ones(3))
    assert torch.equal(tensor.dequantize(), torch.ones(4, 8))


def test_codes_that_are_asked_for_are_rounded_first() -> None:
    tensor = fixed(torch.ones(4, 8))
    closing = Closing(tensor)
    with closing.opening.entered():
        tensor.mul_(2)
        assert torch.equal(ops.dequantize(tensor.blocks, tensor.format), torch.full((4, 8), 2.0))
        assert closing.closed == ["w"]


def test_a_copy_that_nobody_holds_is_not_rounded() -> None:
    tensor = fixed(torch.ones(4, 8))
    closing = Closing(tensor)
    with closing.opening.entered():
        tensor.add_(1)
        held = tensor.clone()
        tensor.clone().add_(1)
        held.add_(1)
    assert closing.closed == ["w", "w"]
    assert torch.equal(held.dequantize(), torch.full((4, 8), 3.0))


def test_a_tensor_whose_data_are_exchanged_parts_from_its_windows() -> None:
    tensor = fixed(torch.ones(4, 8))
    with Closing(tensor).opening.entered():
        before = tensor.data
        tensor.data = fixed(torch.full((4, 8), 5.0))
        tensor.add_(1)
        assert torch.equal(before + 0, torch.ones(4, 8))
        assert torch.equal(tensor + 0, torch.full((4, 8), 6.0))


def test_outside_for_a_while() -> None:
    """What is open is seen as it is, and what is closed is rounded at once."""
    one, other = fixed(torch.ones(4, 8), label="one"), fixed(torch.ones(4, 8), label="other")
    closing = Closing(one, other)
    with closing.opening.entered():
        one.add_(2.0**-20)
        with suspended():
            assert bool((one > 1).all())
            other.add_(2.0**-20)
            assert torch.equal(ops.dequantize(other._planes, other.format), other + 0)
        assert closing.closed == []


def test_what_is_compiled_sees_what_is_open() -> None:
    """A closure that is called again may run a compiled module, which takes its parameters apart."""
    tensor = fixed(torch.ones(4, 8))
    with Closing(tensor).opening.entered():
        tensor.mul_(2)
        with suspended():
            planes, context = tensor.__tensor_flatten__()
            inner = {name: getattr(tensor, name).clone() for name in planes}
    rebuilt = FixedPointTensor.__tensor_unflatten__(inner, context, tensor.shape, tensor.stride())
    assert torch.equal(rebuilt.dequantize(), torch.full((4, 8), 2.0))


def test_it_computes_in_float32_at_least() -> None:
    tensor = FixedPointTensor.quantize(torch.ones(4, 8), "fixed24", dtype=torch.bfloat16)
    with Closing(tensor).opening.entered():
        assert (tensor + 2.0**-12).dtype == torch.float32
        assert (tensor * torch.ones(4, 8, dtype=torch.bfloat16)).dtype == torch.float32
    assert (tensor + 1).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_floats_are_written_to_themselves(dtype: torch.dtype) -> None:
    """Such as a gradient that weight decay is added to; not a widened copy of them."""
    tensor, closing = FixedPointTensor.quantize(torch.ones(4, 8), "fixed24", dtype=dtype), Closing()
    decayed, averages, noted = (torch.zeros(4, 8, dtype=dtype) for _ in range(3))
    with closing.opening.entered():
        decayed.add_(tensor, alpha=0.5)
        torch._foreach_lerp_([averages], [tensor], 0.5)
        torch.mul(tensor, 0.5, out=noted)
    assert all(torch.equal(each, torch.full((4, 8), 0.5, dtype=dtype)) for each in (decayed, averages, noted))


def test_what_goes_past_it_is_refused() -> None:
    tensor = fixed(torch.ones(4, 8))
    assert tensor.data_ptr() == 0
    with Closing(tensor).opening.entered():
        with pytest.raises(ValueError, match="Name asks for the address of fixed-point tensor 'w'"):
            tensor.data_ptr()
        with pytest.raises(ValueError, match="Name gave a fixed-point tensor to a function that it had not compiled"):
            tensor.__tensor_flatten__()
