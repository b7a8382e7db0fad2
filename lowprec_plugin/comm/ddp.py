"""The communication hook of :class:`torch.nn.parallel.DistributedDataParallel`.

::

    model = DistributedDataParallel(module)
    state = comm.DDPState(model, word_length=8, error_feedback=True)
    model.register_comm_hook(state, comm.ddp_hook)

Exchanges run beside the backward pass: on the CPU on a thread of their own, on a GPU on a stream of their own; and in
a process group of their own (:mod:`lowprec_plugin.comm.group`).
"""

# No `from __future__ import annotations`: register_comm_hook looks at the hook's annotations themselves.
import warnings
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.futures import Future

from lowprec_plugin.arithmetic import ops, wire_ops
from lowprec_plugin.arithmetic.blocks import Blocks, empty_blocks
from lowprec_plugin.arithmetic.devices import accelerated
from lowprec_plugin.arithmetic.random_bits import stream_of
from lowprec_plugin.arithmetic.reference.wire import BLOCK, RESIDUAL, blocks_of
from lowprec_plugin.comm.exchange import Exchange, Gradient, Traffic, gather, is_plain, keys, total
from lowprec_plugin.comm.group import own_group
from lowprec_plugin.comm.handshake import parameter_terms, shake_hands
from lowprec_plugin.comm.overlapped import Overlapped
from lowprec_plugin.formats import check_integer, check_kind
from lowprec_plugin.tensor.dtensor import stored_part
from lowprec_plugin.tensor.gradient_hook import leaves_ddp
from lowprec_plugin.tensor.integrity import check_numbers
from lowprec_plugin.text.option_error import Option, OptionError
from lowprec_plugin.version import __version__


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
        ValueError: for a word length or rounding that there is not; error feedback beside 12 or 16 bits; parameters
            whose gradients are not float32, bfloat16 or float16, or sparse; on all ranks alike, if they disagree.
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
        wire_ops.check_word_length(word_length)
        ops.check_rounding(rounding)
        check_feedback(word_length, error_feedback)
        check_integer(seed, "seed")
        check_kind({} if terms is None else terms, dict, "terms")
        check_kind(model, nn.parallel.DistributedDataParallel, "model")
        self.error_feedback = error_feedback
        self.step = self._first_step = 0
        self._reduced: set[str] = set()  # in this step
        self._group = model.process_group
        self._rank, self._ranks = dist.get_rank(self._group), dist.get_world_size(self._group)
        self._module = weakref.ref(model.module)
        # Frozen ones as well: one that was frozen after DDP has wrapped the module stays in its bucket, as zeros.
        named = dict(model.module.named_parameters())
        coded = {name: param for name, param in named.items() if leaves_ddp(param)}
        held = [name for name in coded if name not in model.parameters_to_ignore]
        if held:
            raise ValueError(
                f"the gradient of {held[0]} is to be codes, of another dtype or released, and DistributedDataParallel "
                "would hold floats of its own for it: call comm.leave_out_of_ddp(module) before wrapping the module"
            )
        self._params = {
            name: param for name, param in named.items() if name in coded or name not in model.parameters_to_ignore
        }
        self._names: dict[int, str] = {id(param): name for name, param in self._params.items()}
        self._streams = {name: stream_of(seed, name) for name in self._params}
        shake_hands(
            {
                "package version": __version__, "comm word length": word_length, "rounding": rounding,
                "error feedback": error_feedback, "seed": seed, "block size of the wire": BLOCK, **(terms or {}),
                **parameter_terms(self._params.items()),
            },
            self._group,
        )  # fmt: skip
        travelling = {name: param for name, param in self._params.items() if param.requires_grad}
        _check_gradients(model.module, travelling)
        group, self._worker = own_group(self._group, model.device)
        self._exchange = Exchange(word_length, rounding, group)
        self._coded = self._exchange_codes(model, coded) if coded else None
        self._residuals: dict[str, Blocks] = {}
        self._side: dict[torch.device, torch.Stream] = {}
        #: Parameters whose gradients travel as float32, being smaller than a block.
        self.plain = [name for name, param in travelling.items() if is_plain(param.numel())]

    @property
    def word_length(self) -> int:
        """Bits on the wire. May be set between steps, on every rank alike."""
        return self._exchange.word_length

    @word_length.setter
    def word_length(self, word_length: int) -> None:
        wire_ops.check_word_length(word_length)
        for exchange in self._exchanges:
            exchange.word_length = word_length

    @property
    def traffic(self) -> Traffic:
        """What this rank has sent so far, and what float32 would have."""
        return total(exchange.traffic for exchange in self._exchanges)

    @property
    def _exchanges(self) -> list[Exchange]:
        return [self._exchange] if self._coded is None else [self._exchange, self._coded.exchange]

    def _exchange_codes(self, model: nn.parallel.DistributedDataParallel, coded: dict[str, nn.Parameter]) -> Overlapped:
        """Exchange the gradients that DDP leaves out. On other threads and in another group than its hook's."""
        for param in coded.values():  # DDP sends round those that it has
            for plane in stored_part(param).blocks.planes:
                dist.broadcast(plane.view(torch.uint8), dist.get_global_rank(self._group, 0), group=self._group)
        group, worker = own_group(self._group, model.device, "codes")
        exchange = Exchange(self._exchange.word_length, self._exchange.rounding, group)
        return Overlapped(model, coded, exchange, worker, self._begin, self._gradient)

    def __str__(self) -> str:
        feedback = ", error feedback in 8 bits" if self.error_feedback else ""
        said = f"{self.word_length} bits, {self._exchange.rounding} rounding{feedback}"
        if self.plain:
            said += f"; as float32, being smaller than a block of {BLOCK}: {', '.join(self.plain)}"
        if self._coded is not None:
            said += f"; of gradients in codes at most {self._coded.float_bytes:,} bytes of floats wait at a time"
        return said

    def report(self) -> dict[str, float]:
        """What this rank sends per step, in bytes, what float32 would, and in how many steps."""
        steps = self.step - self._first_step
        return self.traffic.per_step(steps) | {"steps": steps}

    def reduce(self, bucket: GradBucket) -> Future[Tensor]:
        """The hook's work: a future of the bucket's buffer, which then holds the means."""
        names = [self._name(param) for param in bucket.parameters()]
        self._begin(names)
        buffer = bucket.buffer()
        gradients, at = [], 0
        for name in names:
            elements = self._params[name].numel()
            gradients.append(self._gradient(name, buffer[at : at + elements]))
            at += elements
        assert at == buffer.numel(), "a bucket is its gradients, one behind the other"

        run = self._exchange.run  # a task that holds no state lets it go with its last user

        def exchange() -> Tensor:
            run(gradients)
            return buffer

        if accelerated(buffer.device):
            return self._on_stream(exchange, buffer)
        return self._worker.submit(exchange)

    def _begin(self, names: Iterable[str]) -> None:
        """A gradient that comes again begins a step. Indices do not tell: all are 0 in a static graph's first step."""
        if not self._reduced or not self._reduced.isdisjoint(names):
            self.step, self._reduced = self.step + 1, set()
        self._reduced.update(names)

    def _name(self, param: Tensor) -> str:
        if id(param) not in self._names:
            raise ValueError(
                f"a gradient of shape {tuple(param.shape)} is of no parameter that the module had when this DDPState "
                "was made: make one for each DistributedDataParallel, and register it there"
            )
        return self._names[id(param)]

    def _gradient(self, name: str, values: Tensor) -> Gradient:
        residual = None
        if self.error_feedback and not is_plain(values.numel()):
            if name not in self._residuals:
                shape = (blocks_of(values.numel()), BLOCK)
                self._residuals[name] = empty_blocks(shape, RESIDUAL, values.device)
            residual = self._residuals[name]
        return Gradient(values, *keys(self._streams[name], self.step, self._rank), residual)

    def _on_stream(self, exchange: Callable[[], Tensor], buffer: Tensor) -> Future[Tensor]:
        # Nothing here waits: an accelerator's collectives are queued, and the future is one of its streams' events.
        device = buffer.device
        if device not in self._side:
            self._side[device] = torch.Stream(device)
        stream = self._side[device]
        stream.wait_stream(torch.accelerator.current_stream(device))
        future: Future[Tensor] = torch.futures.Future(devices=[device])
        with stream, torch.no_grad():
            buffer.record_stream(stream)
            future.set_result(exchange())
        return future

    def state_dict(self) -> dict[str, Any]:
        """The step, and every rank's residuals. Called by every rank; meaningful on all."""
        residuals = {}
        for name, blocks in sorted(self._residuals.items()):
            planes = []
            for plane in blocks.planes:
                every, work = gather(plane, self._group)
                work.wait()
                planes.append(every.cpu())
            residuals[name] = planes
        return {"step": self.step, "residuals": residuals}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` stopped; on another number of ranks, with the mean of the residuals.

        Residuals of parameters that are frozen now are left out; without error feedback all are, with a warning.

        Raises:
            ValueError: for residuals that are not of these parameters; nothing is changed.
        """
        step, saved = state_dict["step"], state_dict.get("residuals", {})
        for name, planes in saved.items():
            self._check_residual(name, planes)
        if saved and not self.error_feedback and self._rank == 0:
            warnings.warn(
                f"what earlier rounding of {len(saved)} gradients lost is dropped: error feedback is off", stacklevel=2
            )
        self.go_on_from(step)
        self._residuals = {}
        for name, planes in saved.items():
            param = self._params[name]
            if self.error_feedback and param.requires_grad:
                self._residuals[name] = self._own(*(plane.to(param.device).contiguous() for plane in planes))

    def keep_residuals_of(self, other: "DDPState") -> None:
        """Go on with the residuals that another state of the same module had; of another module there are none."""
        if self.error_feedback and self._module() is other._module():
            shapes = {name: param.shape for name, param in other._params.items()}
            kept = (name for name, param in self._params.items() if shapes.get(name) == param.shape)
            self._residuals = {name: other._residuals[name] for name in kept if name in other._residuals}

    def go_on_from(self, step: int) -> None:
        """Count steps, which key the random bits, from ``step`` on."""
        self.step, self._first_step, self._reduced = step, step - (self.step - self._first_step), set()

    def _own(self, codes: Tensor, exponents: Tensor) -> Blocks:
        """Of every rank's residual this rank's, or the mean if there were more or fewer ranks. A copy."""
        if len(codes) == self._ranks:
            return Blocks(codes[self._rank].clone(), None, exponents[self._rank].clone())
        each = [ops.dequantize(Blocks(c, None, e), RESIDUAL) for c, e in zip(codes, exponents, strict=True)]
        return ops.quantize(torch.stack(each).mean(dim=0), RESIDUAL)[0]

    def _check_residual(self, name: str, planes: Any) -> None:
        remedy = "load a checkpoint of this model, or leave out its 'residuals', which begins them anew"
        if name not in self._params:
            raise ValueError(f"the saved residuals name {name!r}, which is no parameter here: {remedy}")
        blocks = blocks_of(self._params[name].numel())
        if not (isinstance(planes, (list, tuple)) and all(isinstance(plane, Tensor) for plane in planes)):
            raise ValueError(f"the saved residual of {name!r} is no list of tensors: {remedy}")
        found = [(tuple(plane.shape), plane.dtype) for plane in planes]
        ranks = len(planes[0]) if planes and planes[0].dim() else 0
        wanted = [((max(1, ranks), blocks, last), torch.int8) for last in (BLOCK, 1)]
        if found != wanted:
            raise ValueError(f"the saved residual of {name!r} is {found}, and {wanted} is needed: {remedy}")
        try:
            check_numbers(Blocks(planes[0], None, planes[1]), RESIDUAL)
        except ValueError as error:
            raise ValueError(f"the saved residual of {name!r} is damaged: {error}: {remedy}") from error


def check_feedback(word_length: int | None, error_feedback: bool, prefix: str = "") -> None:
    """Raise ``ValueError`` if error feedback is asked for where it is of no use: beside 12 or 16 bits, or floats."""
    check_kind(error_feedback, bool, f"{prefix}error_feedback")
    if not error_feedback:
        return
    asked, narrow = Option.given(f"{prefix}error_feedback", True), Option(f"{prefix}word_length", "8")
    if word_length is None:
        raise OptionError(asked, " needs gradients in fixed-point: use ", narrow, " or 4")
    if word_length > 8:
        raise OptionError(
            asked, f" costs a byte per parameter, and at {word_length} bits mends nothing: use ", narrow,
            " or 4, or leave it out",
        )  # fmt: skip


def _check_gradients(module: nn.Module, params: dict[str, nn.Parameter]) -> None:
    for name, param in params.items():
        if param.dtype not in ops.GRADIENT_DTYPES:
            raise ValueError(
                f"the gradient of {name} is {param.dtype}, and only float32, bfloat16 and float16 can travel in "
                "fixed-point: convert the parameter, freeze it, or send gradients as floats (no hook, or "
                "comm_word_length=None)"
            )
    sparse = {
        id(part.weight) for part in module.modules() if getattr(part, "sparse", False) and hasattr(part, "weight")
    }
    for name, param in params.items():
        if id(param) in sparse:
            raise ValueError(
                f"the gradient of {name} is sparse, and only dense ones can travel in fixed-point: use sparse=False, "
                "or send gradients as floats (no hook, or comm_word_length=None)"
            )


def ddp_hook(state: DDPState, bucket: GradBucket) -> Future[Tensor]:
    """Average a bucket's gradients over the ranks in fixed-point, in place: for ``model.register_comm_hook``."""
    return state.reduce(bucket)
