"""Small optimizers with the habits of other people's: where they keep their state, and how they step.

Each trains in float32 as it stands. :data:`HABITS` names them all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


class Habit(torch.optim.Optimizer):
    """A user's optimizer: ``step`` goes over all parameters; most habits need :meth:`update` alone."""

    lr = 0.05

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": self.lr})

    def all(self) -> list[Any]:
        return [param for group in self.param_groups for param in group["params"] if param.grad is not None]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.update_all()
        return loss

    def update_all(self) -> None:
        for param in self.all():
            self.update(param, self.state[param])

    def update(self, param: Any, state: dict[str, Any]) -> None:
        raise NotImplementedError


# ---- maps and lists of its own ----


class OwnBuffers(Habit):
    """A map of its own from parameters to momenta."""

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.buffers: Any = {}

    def update(self, param: Any, state: dict[str, Any]) -> None:
        if param not in self.buffers:
            self.buffers[param] = torch.zeros_like(param)
        param.sub_(self.lr * self.buffers[param].mul_(0.7).add_(param.grad))


class RoomOnADevice(Habit):
    """Momenta in room that it makes on the parameter's device, by name."""

    def update(self, param: Any, state: dict[str, Any]) -> None:
        if not state:
            state["momentum"] = param.new_empty(param.shape, device=param.device).zero_()
        param.sub_(self.lr * state["momentum"].mul_(0.7).add_(param.grad))


class WeakBuffers(OwnBuffers):
    """That map does not keep its parameters alive."""

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.buffers = WeakTensorKeyDictionary()


class BuffersTwice(OwnBuffers):
    """Its state is the same memory as a map of its own, by other objects."""

    def update(self, param: Any, state: dict[str, Any]) -> None:
        super().update(param, state)
        if not state:
            state["buffer"] = self.buffers[param].data
        param.sub_(self.lr * state["buffer"])


class BuffersById(Habit):
    """A map from what ``id`` says."""

    key = staticmethod(id)

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.buffers: dict[int, Tensor] = {}

    def update(self, param: Any, state: dict[str, Any]) -> None:
        buffer = self.buffers.setdefault(self.key(param), torch.zeros(param.shape))
        param.sub_(self.lr * buffer.mul_(0.7).add_(param.grad))


class BuffersByAddress(BuffersById):
    """A map from addresses of memory."""

    key = staticmethod(lambda param: param.data_ptr())


class OwnList(Habit):
    """Steps over the list that it was made with, and never looks at its groups."""

    def __init__(self, params: Any) -> None:
        self.params = list(params)
        super().__init__(self.params)

    def all(self) -> list[Any]:
        return self.params

    def update(self, param: Any, state: dict[str, Any]) -> None:
        buffer = state.setdefault("buffer", torch.zeros_like(param))
        param.sub_(self.lr * buffer.mul_(0.7).add_(param.grad))


class ListsInGroups(Habit):
    """Momenta in the group, by place; a count of steps beside them."""

    def update_all(self) -> None:
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1
            buffers = group.setdefault("buffers", [torch.zeros_like(param) for param in group["params"]])
            for param, buffer in zip(group["params"], buffers, strict=True):
                param.sub_(self.lr / math.sqrt(group["k"]) * buffer.mul_(0.7).add_(param.grad))


class OneFlatBuffer(Habit):
    """The momentum of all parameters in one tensor, as torch.optim.LBFGS has it."""

    def update_all(self) -> None:
        params = self.all()
        state = self.state[params[0]]
        grads = torch.cat([param.grad.flatten() for param in params])
        buffer = state.setdefault("flat", torch.zeros_like(grads)).mul_(0.7).add_(grads)
        for param, part in zip(params, buffer.split([param.numel() for param in params]), strict=True):
            param.sub_(self.lr * part.view(param.shape))


# ---- counts ----


class CountsInState(Habit):
    """Forgets its momentum at every fifth step of each parameter."""

    def update(self, param: Any, state: dict[str, Any]) -> None:
        state["k"] = state.get("k", 0) + 1
        if state["k"] % 5 == 1:
            state["buffer"] = torch.zeros_like(param)
        param.sub_(self.lr * state["buffer"].mul_(0.9).add_(param.grad))


class CountsUnderAName(Habit):
    """One count for all under a name, where ``state`` has parameters."""

    def update_all(self) -> None:
        self.state["k"] = self.state.get("k", 0) + 1  # type: ignore[index,call-overload]
        for param in self.all():
            if self.state["k"] % 5 == 1:  # type: ignore[index]
                self.state[param] = {"buffer": torch.zeros_like(param)}
            param.sub_(self.lr * self.state[param]["buffer"].mul_(0.9).add_(param.grad))


class CountsInATensor(Habit):
    """A learning rate that falls with a count in a tensor of its own."""

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.k = torch.zeros(())

    def update_all(self) -> None:
        self.k += 1
        for param in self.all():
            param.addcmul_(param.grad, self.k.rsqrt(), value=-2 * self.lr)


# ---- what hangs on parameters ----


class RatesOnParameters(Habit):
    """Reads ``lr_mul`` from the parameters, as put there by whoever made the network."""

    def __init__(self, params: Any) -> None:
        params = list(params)
        for place, param in enumerate(params):
            param.lr_mul = 1 / (1 + place)
        super().__init__(params)

    def update(self, param: Any, state: dict[str, Any]) -> None:
        param.sub_(self.lr * param.lr_mul * param.grad)


class BuffersOnParameters(Habit):
    """Hangs its momenta on the parameters."""

    def update(self, param: Any, state: dict[str, Any]) -> None:
        if not hasattr(param, "momentum"):
            param.momentum = torch.zeros_like(param)
        param.sub_(self.lr * param.momentum.mul_(0.7).add_(param.grad))


# ---- across parameters ----


class OneNorm(Habit):
    """Divides by the norm of all gradients."""

    def update_all(self) -> None:
        norm = torch.stack([param.grad.norm() for param in self.all()]).norm()
        for param in self.all():
            param.sub_(self.lr * param.grad / norm)


class OneNormOfWeights(Habit):
    """Holds the norm of all weights as it was: writes each parameter twice, in two rounds."""

    def norm(self) -> Tensor:
        return torch.stack([param.norm() for param in self.all()]).norm()

    def update_all(self) -> None:
        before = self.norm()
        for param in self.all():
            param.sub_(self.lr * param.grad)
        scale = before / self.norm()
        for param in self.all():
            param.mul_(scale)


class LooksBack(Habit):
    """Each parameter's step depends on what the one before it has become."""

    def update_all(self) -> None:
        before = torch.zeros(())
        for param in self.all():
            param.sub_(self.lr * (param.grad + before))
            before = param.mean()


# ---- other ways to write ----


class WritesData(Habit):
    """``.data`` in several operations."""

    def update(self, param: Any, state: dict[str, Any]) -> None:
        param.data.mul_(1 - 0.1 * self.lr)
        param.data.add_(param.grad.data, alpha=-self.lr)


class SetsData(Habit):
    """Assigns to ``.data``."""

    def update(self, param: Any, state: dict[str, Any]) -> None:
        param.data = param.data - self.lr * param.grad


class KeepsData(Habit):
    """Writes to each parameter's ``.data``, as it was when the optimizer was made."""

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.data = [param.data for param in self.param_groups[0]["params"]]

    def update_all(self) -> None:
        for param, data in zip(self.param_groups[0]["params"], self.data, strict=True):
            data.sub_(self.lr * param.grad)


class WritesArrays(Habit):
    """Writes to parameters as NumPy arrays."""

    def update(self, param: Any, state: dict[str, Any]) -> None:
        array = param.detach().cpu().numpy()
        array -= self.lr * param.grad.numpy()


class SwapsData(Habit):
    """Steps on another tensor, and has it change places with the parameter's own."""

    def update(self, param: Any, state: dict[str, Any]) -> None:
        other = state.get("other")
        state["other"] = param.data
        param.data = (param if other is None else other) - self.lr * param.grad


class SharesData(Habit):
    """Assigns state to ``.data``: what is written to either from there on is written to both."""

    def update(self, param: Any, state: dict[str, Any]) -> None:
        if not state:
            state["sum"] = param.detach() * 1
        state["sum"].sub_(self.lr * param.grad)
        param.data = state["sum"]
        param.mul_(0.99)
        state["sum"].sub_(0.1 * self.lr * param.grad)


class LaysOut(Habit):
    """Its parameters become parts of one tensor when it is made, and it steps on that."""

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.lay_out()

    def lay_out(self) -> None:
        params = self.param_groups[0]["params"]
        self.flat = torch.cat([(param.detach() + 0).flatten() for param in params])
        for param, part in zip(params, self.flat.split([param.numel() for param in params]), strict=True):
            param.data = part.view(param.shape)

    def update_all(self) -> None:
        self.flat.sub_(self.lr * torch.cat([param.grad.flatten() for param in self.all()]))


class LaysOutLate(LaysOut):
    """The same in its first step."""

    def __init__(self, params: Any) -> None:
        Habit.__init__(self, params)

    def update_all(self) -> None:
        if not hasattr(self, "flat"):
            self.lay_out()
        super().update_all()


class CopiesBack(Habit):
    """Computes on a copy, and copies it back."""

    def update(self, param: Any, state: dict[str, Any]) -> None:
        new = param.clone()
        new -= self.lr * param.grad
        param.copy_(new)


class WritesThroughViews(Habit):
    """Through a flat view, and row by row."""

    def update(self, param: Any, state: dict[str, Any]) -> None:
        param.view(-1).add_(param.grad.view(-1), alpha=-self.lr)
        for row, grad in zip(param, param.grad, strict=True):
            row.sub_(0.1 * self.lr * grad)


class WritesAllAtOnce(Habit):
    """torch's operations on lists."""

    def update_all(self) -> None:
        params = self.all()
        buffers = [self.state[param].setdefault("buffer", torch.zeros_like(param)) for param in params]
        torch._foreach_mul_(buffers, 0.7)
        torch._foreach_add_(buffers, [param.grad for param in params])
        torch._foreach_add_(params, buffers, alpha=-self.lr)


class DecaysInTheGradient(Habit):
    """Weight decay and centring, in place, in the gradient."""

    def update(self, param: Any, state: dict[str, Any]) -> None:
        param.grad.add_(param, alpha=0.3)
        param.grad.sub_(param.grad.mean(-1, keepdim=True))
        param.sub_(self.lr * param.grad)


class AddsNoise(Habit):
    """Langevin dynamics: noise of torch's own generator."""

    def update(self, param: Any, state: dict[str, Any]) -> None:
        if not state:
            state["drawn"] = torch.Generator().manual_seed(param.numel())
        noise = torch.randn(param.shape, generator=state["drawn"])
        param.sub_(self.lr * (param.grad + 0.1 * noise))


# ---- other forms of state ----


class StateOfAnotherType(Habit):
    """A momentum in another dtype than the parameter's."""

    dtype = torch.float64

    def update(self, param: Any, state: dict[str, Any]) -> None:
        if "m" not in state:
            state["m"] = torch.zeros_like(param, dtype=self.dtype)
        state["m"].mul_(0.7).add_(param.grad.to(self.dtype))
        param.sub_(self.lr * state["m"].to(param.dtype))


class StateInBfloat16(StateOfAnotherType):
    dtype = torch.bfloat16


class StateInFloat16(StateOfAnotherType):
    dtype = torch.float16


class NestedState(Habit):
    """Adam, its state in a dictionary within a dictionary."""

    def update(self, param: Any, state: dict[str, Any]) -> None:
        if not state:
            state["adam"] = {"k": 0, "moments": {"m": torch.zeros_like(param), "v": torch.zeros_like(param)}}
        inner = state["adam"]
        inner["k"] += 1
        adam_(param, inner["moments"]["m"], inner["moments"]["v"], inner["k"], 0.02)


class StateInATuple(Habit):
    """Adam, its moments in a tuple."""

    def update(self, param: Any, state: dict[str, Any]) -> None:
        if not state:
            state["k"], state["moments"] = 0, (torch.zeros_like(param), torch.zeros_like(param))
        state["k"] += 1
        adam_(param, *state["moments"], state["k"], 0.02)


class History(Habit):
    """The mean of the last three gradients, in a list that grows and is cut."""

    def update(self, param: Any, state: dict[str, Any]) -> None:
        past = state.setdefault("past", [])
        past.append(param.grad.clone())
        del past[:-3]
        param.sub_(self.lr * sum(past) / len(past))


class FactoredState(Habit):
    """Squares of rows and columns, as Adafactor has them."""

    def update(self, param: Any, state: dict[str, Any]) -> None:
        square = param.grad.square() + 1e-12
        if not state:
            state["rows"], state["columns"] = torch.zeros(square.shape[0]), torch.zeros(square[0].shape)
        state["rows"].lerp_(square.flatten(1).mean(1) if square.ndim > 1 else square, 0.1)
        state["columns"].lerp_(square.mean(0), 0.1)
        rows = state["rows"].view(-1, *[1] * (square.ndim - 1))
        param.sub_(0.02 * param.grad / (rows * state["columns"] / rows.mean()).sqrt())


class SlowWeights(Habit):
    """Keeps a copy of the parameters and goes half of the way from it at every fifth step."""

    def update(self, param: Any, state: dict[str, Any]) -> None:
        if not state:
            state["k"], state["slow"] = 0, param.clone()
        state["k"] += 1
        param.sub_(self.lr * param.grad)
        if state["k"] % 5 == 0:
            state["slow"].add_(param - state["slow"], alpha=0.5)
            param.copy_(state["slow"])


class SlowWeightsInAList(Habit):
    """The same, its copies in a list that it makes when it is made."""

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.k, self.slow = 0, [param.detach().clone() for param in self.param_groups[0]["params"]]

    def update_all(self) -> None:
        self.k += 1
        for param, slow in zip(self.param_groups[0]["params"], self.slow, strict=True):
            param.sub_(self.lr * param.grad)
            if self.k % 5 == 0:
                param.copy_(slow.add_(param - slow, alpha=0.5))


class TurningMomentum(Habit):
    """A momentum of one sign at first and of the other later: no state of squares, though it looks like one."""

    def update(self, param: Any, state: dict[str, Any]) -> None:
        if not state:
            state["k"], state["m"] = 0, torch.zeros_like(param)
        state["k"] += 1
        state["m"].lerp_(param.grad.abs() if state["k"] <= 5 else -param.grad.abs(), 0.4)
        param.sub_(self.lr * (param.grad + 0.5 * state["m"]))


def adam_(param: Any, m: Tensor, v: Tensor, k: int, lr: float) -> None:
    m.lerp_(param.grad, 0.1)
    v.mul_(0.99).addcmul_(param.grad, param.grad, value=0.01)
    param.sub_(lr * m / (1 - 0.9**k) / ((v / (1 - 0.99**k)).sqrt() + 1e-8))


# ---- closures ----


class CallsTwice(Habit):
    """Sharpness-aware: climbs along the norm of all gradients, and steps from where it was by what it found there."""

    def step(self, closure: Any = None) -> Any:
        assert closure is not None, "needs a closure"
        with torch.enable_grad():
            loss = closure()
        with torch.no_grad():
            norm = torch.stack([param.grad.norm() for param in self.all()]).norm()
            for param in self.all():
                self.state[param]["before"] = param.data.clone()
                param.add_(param.grad * (0.1 / norm))
        with torch.enable_grad():
            closure()
        with torch.no_grad():
            for param in self.all():
                param.data = self.state[param]["before"]
                param.sub_(self.lr * param.grad)
        return loss


class CallsThrice(Habit):
    """Averages three gradients, each half a step after the last."""

    def step(self, closure: Any = None) -> Any:
        starts = {param: param.detach().clone() for group in self.param_groups for param in group["params"]}
        sums = {param: torch.zeros(param.shape) for param in starts}
        for _ in range(3):
            with torch.enable_grad():
                loss = closure()
            with torch.no_grad():
                for param, total in sums.items():
                    total += param.grad / 3
                    param.sub_(0.5 * self.lr * param.grad)
        with torch.no_grad():
            for param, total in sums.items():
                param.copy_(starts[param] - self.lr * total)
        return loss


class SearchesLines(Habit):
    """Halves its step until the loss falls enough (Armijo): how often it calls the closure depends on the loss."""

    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = float(closure())
        params = self.all()
        grads = [param.grad.clone() for param in params]
        starts = [param.detach().clone() for param in params]
        slope = sum(float(grad.square().sum()) for grad in grads)
        rate = 1.0
        while rate > 1e-4:
            with torch.no_grad():
                for param, start, grad in zip(params, starts, grads, strict=True):
                    param.copy_(start - rate * grad)
            with torch.enable_grad():
                found = float(closure())
            if found <= loss - 0.3 * rate * slope:
                break
            rate /= 2
        return loss


class SharpInTwoCalls(Habit):
    """Sharpness-aware, the closure being the user's: ``first_step`` climbs, ``second_step`` steps."""

    @torch.no_grad()
    def first_step(self) -> None:
        norm = torch.stack([param.grad.norm() for param in self.all()]).norm()
        for param in self.all():
            self.state[param]["before"] = param.data.clone()
            param.add_(param.grad * (0.1 / norm))

    @torch.no_grad()
    def second_step(self) -> None:
        for param in self.all():
            param.data = self.state[param]["before"]
            param.sub_(self.lr * param.grad)

    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure()
        self.first_step()
        with torch.enable_grad():
            closure()
        self.second_step()
        return loss


# ---- optimizers within ----


class Inner(Habit):
    """Holds another optimizer over all that it was handed."""

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.inner = torch.optim.SGD(self.param_groups[0]["params"], self.lr, momentum=0.7)

    def update_all(self) -> None:
        self.inner.step()


class InnerPerParameter(Habit):
    """Holds an optimizer for each parameter, made in the first step."""

    def update_all(self) -> None:
        if not hasattr(self, "inner"):
            self.inner = [torch.optim.Adam([param], 0.02) for param in self.all()]
        for each in self.inner:
            each.step()


class Around(torch.optim.Optimizer):
    """Looks ahead around an optimizer that exists, and never calls ``Optimizer.__init__``."""

    def __init__(self, params: Any) -> None:
        self.inner = torch.optim.SGD(params, 0.05, momentum=0.7)
        self.state, self.defaults, self.k = {}, self.inner.defaults, 0  # type: ignore[assignment]
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = {}, {}  # type: ignore[assignment]

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.inner.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        params = self.param_groups[0]["params"]
        for param in params:
            if param not in self.state:
                self.state[param] = {"slow": param.data.clone()}
        with torch.enable_grad():
            loss = self.inner.step(closure)
        self.k += 1
        if self.k % 5 == 0:
            for param in params:
                self.state[param]["slow"].lerp_(param.data, 0.5)
                param.data.copy_(self.state[param]["slow"])
        return loss


HABITS: list[Any] = [
    *(
        OwnBuffers,
        RoomOnADevice,
        WeakBuffers,
        BuffersTwice,
        BuffersById,
        BuffersByAddress,
        OwnList,
        ListsInGroups,
        OneFlatBuffer,
    ),
    *(CountsInState, CountsUnderAName, CountsInATensor, RatesOnParameters, BuffersOnParameters),
    *(OneNorm, OneNormOfWeights, LooksBack),
    *(WritesData, KeepsData, WritesArrays, SetsData, SwapsData, SharesData, LaysOut, LaysOutLate),
    *(CopiesBack, WritesThroughViews, WritesAllAtOnce, DecaysInTheGradient, AddsNoise),
    *(StateOfAnotherType, StateInBfloat16, StateInFloat16, NestedState, StateInATuple, History, FactoredState),
    *(SlowWeights, SlowWeightsInAList, TurningMomentum),
    *(CallsTwice, CallsThrice, SearchesLines, SharpInTwoCalls, Inner, InnerPerParameter, Around),
]
