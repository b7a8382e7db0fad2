"""The communication hook of :class:`torch.nn.parallel.DistributedDataParallel`.

::

    model = DistributedDataParallel(module)
    state = comm.DDPState(model, word_length=8, error_feedback=True)
    model.register_comm_hook(state, comm.ddp_hook)

Exchanges run beside the backward pass: on the CPU on a thread of their own, on a GPU on a stream of their own; and in
a process group of their own, so that their order does not mix with other collectives'.
"""

# No `from __future__ import annotations`: register_comm_hook looks at the hook's annotations themselves.
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.futures import Future

from lowprec_plugin import ops, wire
from lowprec_plugin.blocks import Blocks, empty_blocks
from lowprec_plugin.comm.exchange import Exchange, Gradient, Traffic, gather, is_plain, keys
from lowprec_plugin.comm.handshake import shake_hands
from lowprec_plugin.comm.worker import Worker
from lowprec_plugin.random_bits import stream_of
from lowprec_plugin.version import __version__
from lowprec_plugin.wire_reference import BLOCK, RESIDUAL, blocks_of


class DDPState:
    """How the gradients of one wrapped module travel, and what has travelled. Made by every rank alike.

    Args:
        model: the wrapped module.
        word_length: bits on the wire: 4, 8, 12 or 16.
        rounding: ``"stochastic"`` or ``"nearest"``.
        error_feedback: keep what a rank's rounding lost, in 8 bits per element, and add it to its next gradient. For 8
            and 4 bits.
        seed: keys the random bits.
        terms: more that all ranks must have alike, by name.

    Raises:
        ValueError: for a word length or rounding that there is not; on all ranks alike, if they disagree.
    """

    def __init__(
        self,
        model: nn.parallel.DistributedDataParallel,
        word_length: int = 16,
        *,
        rounding: str = "stochastic",
        error_feedback: bool = False,
        seed: int = 0,
        terms: dict[str, Any] | None = None,
    ) -> None:
        wire.check_word_length(word_length)
        ops.check_rounding(rounding)
        self.error_feedback = error_feedback
        self.step = self._first_step = 0
        self._rank = dist.get_rank(model.process_group)
        self._params = {name: param for name, param in model.module.named_parameters() if param.requires_grad}
        self._names = {id(param): name for name, param in self._params.items()}
        self._streams = {name: stream_of(seed, name) for name in self._params}
        shake_hands(
            {
                "package version": __version__, "comm word length": word_length, "rounding": rounding,
                "error feedback": error_feedback, "seed": seed, "block size of the wire": BLOCK, **(terms or {}),
                **{f"the shape of parameter {name}": list(param.shape) for name, param in self._params.items()},
            },
            model.process_group,
        )  # fmt: skip
        group = dist.new_group(
            dist.get_process_group_ranks(model.process_group), backend=dist.get_backend(model.process_group)
        )
        assert isinstance(group, dist.ProcessGroup)
        self._exchange = Exchange(word_length, rounding, group)
        self._residuals: dict[str, Blocks] = {}
        self._worker = Worker("lowprec wire")
        self._cuda: dict[torch.device, torch.cuda.Stream] = {}
        #: Parameters whose gradients travel as float32, being smaller than a block.
        self.plain = [name for name, param in self._params.items() if is_plain(param.numel())]

    @property
    def word_length(self) -> int:
        """Bits on the wire. May be set between steps, on every rank alike."""
        return self._exchange.word_length

    @word_length.setter
    def word_length(self, word_length: int) -> None:
        wire.check_word_length(word_length)
        self._exchange.word_length = word_length

    @property
    def traffic(self) -> Traffic:
        """What this rank has sent so far, and what float32 would have."""
        return self._exchange.traffic

    def __str__(self) -> str:
        feedback = ", error feedback in 8 bits" if self.error_feedback else ""
        said = f"{self.word_length} bits, {self._exchange.rounding} rounding{feedback}"
        if self.plain:
            said += f"; as float32, being smaller than a block of {BLOCK}: {', '.join(self.plain)}"
        return said

    def report(self) -> dict[str, float]:
        """What this rank sends per step, in bytes, what float32 would, and in how many steps."""
        steps = self.step - self._first_step
        return {
            "bytes_sent_per_step": self.traffic.bytes_sent / max(1, steps),
            "float32_bytes_per_step": self.traffic.float32_bytes / max(1, steps),
            "steps": steps,
        }

    def reduce(self, bucket: GradBucket) -> Future[Tensor]:
        """The hook's work: a future of the bucket's buffer, which then holds the means."""
        if bucket.index() == 0:
            self.step += 1
        buffer = bucket.buffer()
        gradients, at = [], 0
        for param in bucket.parameters():
            gradients.append(self._gradient(param, buffer[at : at + param.numel()]))
            at += param.numel()
        assert at == buffer.numel(), "a bucket is its gradients, one behind the other"

        def exchange() -> Tensor:
            self._exchange.run(gradients)
            return buffer

        if buffer.is_cuda:
            return self._on_stream(exchange, buffer)
        return self._worker.submit(exchange)

    def _gradient(self, param: Tensor, values: Tensor) -> Gradient:
        name = self._names[id(param)]
        residual = None
        if self.error_feedback and not is_plain(param.numel()):
            if name not in self._residuals:
                shape = (blocks_of(param.numel()), BLOCK)
                self._residuals[name] = empty_blocks(shape, RESIDUAL, values.device)
            residual = self._residuals[name]
        return Gradient(values, *keys(self._streams[name], self.step, self._rank), residual)

    def _on_stream(self, exchange: Callable[[], Tensor], buffer: Tensor) -> Future[Tensor]:
        # Nothing here waits: a GPU's collectives are queued, and the future is one of its streams' events.
        device = buffer.device
        stream = self._cuda.setdefault(device, torch.cuda.Stream(device))  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        future: Future[Tensor] = torch.futures.Future(devices=[device])
        with torch.cuda.stream(stream), torch.no_grad():
            buffer.record_stream(stream)
            future.set_result(exchange())
        return future

    def state_dict(self) -> dict[str, Any]:
        """The step, and every rank's residuals. Called by every rank; meaningful on all."""
        residuals = {}
        for name, blocks in sorted(self._residuals.items()):
            planes = []
            for plane in blocks.planes:
                every, work = gather(plane, self._exchange.group)
                work.wait()
                planes.append(every.cpu())
            residuals[name] = planes
        return {"step": self.step, "residuals": residuals}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` stopped; on another number of ranks, with the mean of the residuals."""
        self.go_on_from(state_dict["step"])
        self._residuals = {}
        for name, (codes, exponents) in state_dict["residuals"].items():
            device = self._params[name].device
            if len(codes) == self._ranks:
                self._residuals[name] = Blocks(codes[self._rank].to(device), None, exponents[self._rank].to(device))
                continue
            each = [ops.dequantize(Blocks(c, None, e), RESIDUAL) for c, e in zip(codes, exponents, strict=True)]
            mean = torch.stack(each).mean(dim=0).to(device)
            self._residuals[name], _ = ops.quantize(mean, RESIDUAL)

    def go_on_from(self, step: int) -> None:
        """Count steps, which key the random bits, from ``step`` on."""
        self.step = self._first_step = step

    @property
    def _ranks(self) -> int:
        return dist.get_world_size(self._exchange.group)


def ddp_hook(state: DDPState, bucket: GradBucket) -> Future[Tensor]:
    """Average a bucket's gradients over the ranks in fixed-point, in place: for ``model.register_comm_hook``."""
    return state.reduce(bucket)
