"""Gradients kept small, or not at all, under ``DistributedDataParallel``, which ignores their parameters.

Its reducer would hold a float for each of them for good. Here float gradients wait in a bucket until that is full, the
means take their place, and those become what is kept at once, or are used at once where none is: of two buckets at a
time there are floats, whatever the network is. Buckets are exchanged in one order on every rank, beside the backward
pass: that in which gradients came on the first rank in the first step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from lowprec_plugin.arithmetic.devices import accelerated
from lowprec_plugin.comm.exchange import Exchange, Gradient, is_plain
from lowprec_plugin.comm.worker import Worker
from lowprec_plugin.compat.autograd import at_end_of_backward, backward_pass
from lowprec_plugin.compat.ddp import leave_out
from lowprec_plugin.compat.hooks import add_gradient_hook, gradient_hooks, remove_gradient_hook
from lowprec_plugin.tensor.dtensor import stored_part
from lowprec_plugin.tensor.gradient import FixedPointGradient
from lowprec_plugin.tensor.gradient_hook import (
    ExchangedFirst,
    keep_floats,
    leaves_ddp,
    narrow_gradient,
    narrowed,
    releases_gradient,
    use_gradient,
)

#: Bytes of float gradients in a bucket, at most; less of a small network, so that the exchange overlaps there too.
BUCKET = 16 << 20
#: Buckets that are under way at a time. Who has filled one more waits for the first of them.
UNDER_WAY = 2
_SMALLEST, _BUCKETS = 1 << 20, 8


def cut(sizes: Sequence[int]) -> list[list[int]]:
    """The places in ``sizes``, bytes of float gradients in the order of their exchange, by the bucket they wait in."""
    limit = min(BUCKET, max(_SMALLEST, sum(sizes) // _BUCKETS))
    buckets: list[list[int]] = [[]]
    held = 0
    for place, size in enumerate(sizes):
        if buckets[-1] and held + size > limit:
            buckets.append([])
            held = 0
        buckets[-1].append(place)
        held += size
    return buckets


def floats_under_way(sizes: Sequence[int]) -> int:
    """Bytes of the float gradients that exist at a time, at most, where gradients of such ``sizes`` are exchanged."""
    waiting = sorted((sum(sizes[place] for place in bucket) for bucket in cut(sizes)), reverse=True)
    return sum(waiting[: UNDER_WAY + 1])


def leave_out_of_ddp(module: nn.Module) -> list[str]:
    """Have ``DistributedDataParallel(module)`` leave out the parameters whose gradients are kept small, or not.

    Called before the module is wrapped; a :class:`~lowprec_plugin.comm.DDPState` of the wrapped module exchanges them.
    If it would have none left, the smallest stays with it, and its gradient is kept in floats.

    Returns:
        the names of the parameters that are left out.
    """
    coded = {name: param for name, param in module.named_parameters() if leaves_ddp(param)}
    others = any(param.requires_grad for name, param in module.named_parameters() if name not in coded)
    if coded and not others:
        smallest = min(coded, key=lambda name: coded[name].numel())
        keep_floats(coded.pop(smallest))
    leave_out(module, list(coded))
    return list(coded)


@dataclass
class _Bucket:
    names: list[str]
    missing: set[str]  # what has not come yet
    values: dict[str, Tensor] = field(default_factory=dict)
    future: Future[Tensor] | None = None


def end_exchange(module: nn.Module) -> None:
    """Have no :class:`Overlapped` exchange the gradients of ``module`` any more, as one of a fit before would."""
    for param in module.parameters():
        for hook in gradient_hooks(param):
            if isinstance(hook, ExchangedFirst):
                remove_gradient_hook(param, hook)


class Overlapped:
    """Exchanges the gradients of ``params`` while the backward pass goes on; they become what is kept, or are used.

    Args:
        model: the wrapped module, which says whether gradients are to be exchanged (``no_sync``).
        params: by name, in the module's order.
        exchange: of these gradients alone, in a process group of their own.
        worker: the thread that runs it.
        begin: called with names before these are sent: counts steps.
        gradient: what a parameter sends, given its name and values.
    """

    def __init__(
        self,
        model: DistributedDataParallel,
        params: Mapping[str, nn.Parameter],
        exchange: Exchange,
        worker: Worker,
        begin: Callable[[Sequence[str]], None],
        gradient: Callable[[str, Tensor], Gradient],
    ) -> None:
        self._model, self._params = model, params
        self.exchange, self._worker, self._begin, self._gradient = exchange, worker, begin, gradient
        self._order = list(params)[::-1]  # until the first step has shown another
        self._came: list[str] = []  # in this backward pass
        self._agreed = False
        self._passes: set[int] = set()  # backward passes that have brought gradients of this exchange
        self._codes: dict[str, Tensor] = {}
        self._used = torch.zeros(0)
        self._buckets: list[_Bucket] = []
        self._next = 0
        self._over = True
        self._side: torch.Stream | None = None  # of an accelerator
        end_exchange(model)
        for name, param in params.items():
            remove_gradient_hook(param, narrow_gradient)
            add_gradient_hook(param, ExchangedFirst(partial(self._take, name)))

    @property
    def float_bytes(self) -> int:
        """Bytes of the float gradients that exist at a time, at most."""
        return floats_under_way(self._sizes)

    @property
    def _sizes(self) -> list[int]:
        """Bytes of the float gradients in the order of their exchange."""
        return [4 * self._params[name].numel() for name in self._order]

    @torch.no_grad()
    def _take(self, name: str, param: Any) -> None:
        if param.grad is None:
            return
        if not self._model.require_backward_grad_sync:
            if releases_gradient(param):
                raise RuntimeError(
                    f"the gradient of {name} came within no_sync, to be added to others, and none is kept "
                    "(gradient_word_length='release'): leave no_sync out, or use gradient_word_length=8"
                )
            narrow_gradient(param, f"gradient, rank {dist.get_rank(self.exchange.group)}")
            return
        if self._over:
            self._start()
        bucket = next(each for each in self._buckets if name in each.names)
        if name not in bucket.missing:
            raise RuntimeError(
                f"the gradient of {name} came twice before a backward pass was over. Either a part of the network is "
                "computed again with torch.utils.checkpoint's use_reentrant=True: set it False, or exchange gradients "
                "in floats (gradient_word_length=None). Or an error ended the pass before this one, of which other "
                "processes wait for the rest: start the processes again from a checkpoint"
            )
        self._note_pass()
        grad = param.grad
        coded = isinstance(grad, FixedPointGradient)
        grad = grad.dequantize(torch.float32) if coded else grad.detach().to(param.dtype)
        param.grad = None
        bucket.values[name] = grad.contiguous().view(-1)
        bucket.missing.remove(name)
        self._came.append(name)
        while self._next < len(self._buckets) - 1 and not self._buckets[self._next].missing:
            self._send(self._buckets[self._next])  # the last one says which gradients came, and so waits for the end

    def _start(self) -> None:
        self._over, self._next, self._codes, self._came = False, 0, {}, []
        self._buckets = [_Bucket(names, set(names)) for names in self._cut()]
        self._passes = set()

    def _note_pass(self) -> None:
        number = backward_pass()
        assert number is not None
        if number not in self._passes:
            self._passes.add(number)
            at_end_of_backward(lambda: self._end_of(number))

    def _end_of(self, number: int) -> None:
        """A backward pass is over; one within another is only if all gradients have come, or none are outstanding."""
        self._passes.discard(number)
        if not self._over and (not self._passes or not any(bucket.missing for bucket in self._buckets)):
            self._finish()

    @torch.no_grad()
    def _finish(self) -> None:
        """Send what is left, with zeros for what has not come, and hand over what all ranks have made of it."""
        came, device = set(self._came), next(iter(self._params.values())).device
        self._used = torch.tensor([float(name in came) for name in self._params], device=device)
        for bucket in self._buckets[self._next :]:
            for name in bucket.missing:
                param = self._params[name]
                bucket.values[name] = torch.zeros(param.numel(), dtype=param.dtype, device=param.device)
            self._send(bucket)
        self._over = True
        for bucket in self._buckets:
            if bucket.future is not None:
                bucket.future.wait()
        if self._side is not None:
            torch.accelerator.current_stream(device).wait_stream(self._side)
        # A device is waited for only where it is not known here that all are used.
        flags = [1.0] * len(self._params) if len(came) == len(self._params) else self._used.tolist()
        for (name, param), used in zip(self._params.items(), flags, strict=True):
            kept = self._codes.pop(name, None)
            if not used or kept is None:  # on no rank, and has no gradient; or has been used
                continue
            if self._side is not None:  # where it was made, and its memory would be used again too soon
                for plane in kept._planes.planes if isinstance(kept, FixedPointGradient) else [kept]:
                    plane.record_stream(torch.accelerator.current_stream(device))
            if not (releases_gradient(param) and use_gradient(param, kept)):
                param.grad = kept
        self._buckets, self._codes = [], {}
        if not self._agreed:
            self._agree_on_order()

    def _send(self, bucket: _Bucket) -> None:
        """Start the exchange of a full bucket."""
        self._next += 1
        waiting = self._next - 1 - UNDER_WAY
        if waiting >= 0 and (future := self._buckets[waiting].future) is not None:
            future.wait()
        self._begin(bucket.names)
        gradients = [self._gradient(name, bucket.values[name]) for name in bucket.names]
        parts = {name: stored_part(self._params[name]) for name in bucket.names}
        flags = []
        if bucket is self._buckets[-1]:
            flags = [part for part in torch.split(self._used, 128) if part.numel()]  # too short to be rounded
            assert all(is_plain(part.numel()) for part in flags)
        values, codes, run = bucket.values, self._codes, self.exchange.run
        params, whole = self._params, not bucket.missing  # if one is missing, it may have come on no rank

        def exchange() -> Tensor:
            run([*gradients, *(Gradient(part, 0, 0) for part in flags)])
            gradients.clear()
            for name, part in parts.items():
                mean = values.pop(name).view(part.shape)
                if not releases_gradient(part):
                    codes[name] = narrowed(mean, part)
                elif not (whole and use_gradient(params[name], mean)):
                    codes[name] = mean
            return torch.zeros(0)

        device = self._used.device if flags else next(iter(values.values())).device
        if accelerated(device):
            self._on_stream(exchange, values, device)
        else:
            bucket.future = self._worker.submit(exchange)

    def _on_stream(self, exchange: Callable[[], Tensor], values: Mapping[str, Tensor], device: torch.device) -> None:
        """Queue it beside the backward pass. Nothing here waits."""
        if self._side is None:
            self._side = torch.Stream(device)
        self._side.wait_stream(torch.accelerator.current_stream(device))
        for each in values.values():
            each.record_stream(self._side)
        with self._side:
            exchange()

    def _cut(self) -> list[list[str]]:
        """The parameters in the order of their exchange, in buckets."""
        buckets = cut(self._sizes)
        return [[self._order[place] for place in bucket] for bucket in buckets]

    def _agree_on_order(self) -> None:
        """From the next step on, exchange in the order in which gradients came here on the first rank."""
        rest = [name for name in self._order if name not in self._came]
        places = {name: place for place, name in enumerate(self._params)}
        device = next(iter(self._params.values())).device
        order = torch.tensor([places[name] for name in (*self._came, *rest)], device=device)
        group = self.exchange.group
        dist.broadcast(order, dist.get_global_rank(group, 0) if group is not None else 0, group=group)
        names = list(self._params)
        self._order = [names[place] for place in order.tolist()]
        self._agreed = True
