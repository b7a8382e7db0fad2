"""The wire of FSDP2 (``torch.distributed.fsdp.fully_shard``): weights gathered as codes, gradients in fixed-point.

::

    fully_shard(model)
    optim.quantize_(model)
    state = comm.FSDPState(model, word_length=16)

Each group of parameters that FSDP2 gathers together reduces its gradients together, in one collective of bytes:
blocks of 256 run through the flat buffer that FSDP2 makes of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from lowprec_plugin.arithmetic import ops, wire_ops
from lowprec_plugin.arithmetic.random_bits import stream_of
from lowprec_plugin.arithmetic.reference.wire import BLOCK
from lowprec_plugin.comm.exchange import Exchange, Traffic, reduce_scatter
from lowprec_plugin.comm.handshake import parameter_terms, shake_hands
from lowprec_plugin.compat.fsdp import mixed_precision_of, reducers_of, state_of
from lowprec_plugin.compat.renamed import all_gather_single, reduce_scatter_single
from lowprec_plugin.formats import check_integer, check_kind
from lowprec_plugin.tensor.dtensor import fixed_part, local_part
from lowprec_plugin.version import __version__


class FSDPState:
    """How the weights and gradients of one sharded module travel, and what has travelled. Made by every rank alike.

    Making one registers it: gradients then travel in fixed-point. It takes the place of a custom all-gather or
    reduce-scatter registered before. Between the replicas of a two-dimensional mesh (HSDP) gradients travel as FSDP2
    sends them, in its ``reduce_dtype``.

    Args:
        model: a module of which at least one part is sharded by ``fully_shard``.
        word_length: bits of a gradient on the wire: 4, 8, 12 or 16.
        rounding: ``"stochastic"`` or ``"nearest"``.
        seed: keys the random bits.
        terms: more that all ranks must have alike, by name.

    Raises:
        ValueError: for a word length or rounding that there is not, a module of which nothing is sharded, or gradients
            that are not float32, bfloat16 or float16; on all ranks alike, if they disagree.
    """

    def __init__(
        self,
        model: nn.Module,
        word_length: int = 16,
        *,
        rounding: str = "stochastic",
        seed: int = 0,
        terms: dict[str, Any] | None = None,
    ) -> None:
        wire_ops.check_word_length(word_length)
        ops.check_rounding(rounding)
        check_integer(seed, "seed")
        check_kind({} if terms is None else terms, dict, "terms")
        check_kind(model, nn.Module, "model")
        groups = _groups(model)
        if not groups:
            raise ValueError(f"no part of this {type(model).__name__} is sharded: call fully_shard on it first")
        #: Bits of a gradient on the wire; ``None``: gradients travel as floats from now on.
        self.word_length: int | None = word_length
        self.rounding = rounding
        #: What this rank has sent so far of its gradients, and of its weights.
        self.traffic, self.gather_traffic = Traffic(), Traffic()
        agreed = {
            "package version": __version__, "comm word length": word_length, "rounding": rounding, "seed": seed,
            "block size of the wire": BLOCK, **(terms or {}),
            **parameter_terms(model.named_parameters()),
        }  # fmt: skip
        for mesh in {param.device_mesh: None for _, params in groups.values() for param in params}:
            for dim in range(mesh.ndim):
                shake_hands(agreed, mesh.get_group(dim))
        _check_gradients(groups)
        self._params = [param for _, params in groups.values() for param in params]
        placements = [each for param in self._params for each in param.placements]
        self._replicated = any(placement.is_replicate() for placement in placements)
        self._reducers: dict[str, _ReduceScatter] = {}
        for name, (modules, params) in groups.items():
            reducer = self._reducers[name] = _ReduceScatter(self, stream_of(seed, f"wire of {name}"))
            for module in modules:
                module.set_custom_all_gather(_AllGather(self, modules[0], params))  # type: ignore[arg-type]
                module.set_custom_reduce_scatter(reducer)  # type: ignore[arg-type]
                module.set_force_sum_reduction_for_comms(True)  # gloo's average is not one
        self._first_step = 0

    @property
    def step(self) -> int:
        """How often gradients have been reduced."""
        return max(reducer.step for reducer in self._reducers.values())

    def __str__(self) -> str:
        said = f"{self.word_length} bits, {self.rounding} rounding" if self.word_length else "as floats"
        fixed = sum(fixed_part(param) is not None for param in self._params)
        some = "codes" if fixed == len(self._params) else f"codes ({fixed} of {len(self._params)} parameters)"
        said += f", reduced to shards; weights gathered as {some if fixed else 'floats'}"
        return said + ("; between replicas as FSDP2 sends them" if self._replicated else "")

    def report(self) -> dict[str, float]:
        """What this rank sends per step, in bytes, what float32 would, and in how many steps.

        Weights gathered by modules in evaluation mode are not counted.
        """
        steps = self.step - self._first_step
        return self.traffic.per_step(steps) | self.gather_traffic.per_step(steps, "weight_") | {"steps": steps}

    def state_dict(self) -> dict[str, Any]:
        """How often each group's gradients have been reduced, which keys their random bits."""
        return {"step": self.step, "steps": {name: reducer.step for name, reducer in self._reducers.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` stopped, on any number of ranks."""
        self.go_on_from(state_dict["step"])
        for name, step in state_dict.get("steps", {}).items():
            if name in self._reducers:
                self._reducers[name].step = step

    def go_on_from(self, step: int) -> None:
        """Count steps, which key the random bits, from ``step`` on."""
        self._first_step = step - (self.step - self._first_step)
        for reducer in self._reducers.values():
            reducer.step = step


def release(model: nn.Module) -> None:
    """Let the gradients of ``model`` travel as floats again, if a :class:`FSDPState` has had them."""
    for reducer in reducers_of(model):
        if isinstance(reducer, _ReduceScatter):
            reducer._state.word_length = None


class _Comm:
    """What both collectives share: where FSDP2's buffers come from."""

    def __init__(self, state: FSDPState) -> None:
        self._state = state

    def allocate(self, size: Iterable[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)


class _AllGather(_Comm):
    """FSDP2's own all-gather, counted."""

    def __init__(self, state: FSDPState, module: FSDPModule, params: list[DTensor]) -> None:
        super().__init__(state)
        self._module: Any = module
        self._elements = sum(_padded_rows(param) * math.prod(param.shape[1:]) for param in params)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> dist.Work | None:
        traffic, others = self._state.gather_traffic, group.size() - 1
        if self._module.training:
            traffic.bytes_sent += others * input_tensor.nbytes
            traffic.float32_bytes += others * 4 * self._elements
            traffic.exchanges += 1
        return all_gather_single(output_tensor, input_tensor, group=group, async_op=async_op)  # type: ignore[no-any-return]


class _ReduceScatter(_Comm):
    """Reduces one group's gradients in fixed-point."""

    def __init__(self, state: FSDPState, stream: int) -> None:
        super().__init__(state)
        self._stream, self.step = stream, 0

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
    ) -> None:
        assert op == dist.ReduceOp.SUM, op
        self.step += 1
        state = self._state
        if state.word_length is None:
            reduce_scatter_single(output_tensor, input_tensor, group=group)
            return
        exchange = Exchange(state.word_length, state.rounding, group, mean=False, traffic=state.traffic)
        reduce_scatter(output_tensor, input_tensor, exchange, self._stream, self.step)


def _groups(model: nn.Module) -> dict[str, tuple[list[FSDPModule], list[DTensor]]]:
    """The parts of ``model`` that FSDP2 gathers together, by the name of the first, and the parameters of each."""
    owner: dict[str, tuple[list[FSDPModule], list[DTensor]]] = {}
    names: dict[int, str] = {}
    for path, module in model.named_modules():
        if isinstance(module, FSDPModule):
            module.reshard()
            name = names.setdefault(id(state_of(module)), path or "the root")
            owner.setdefault(name, ([], []))[0].append(module)
    # A parameter belongs to the innermost sharded module around it.
    found: dict[DTensor, str] = {}
    for module, name in [(module, name) for name, (modules, _) in owner.items() for module in modules]:
        for param in module.parameters():  # type: ignore[attr-defined]
            if isinstance(param, DTensor):
                found[param] = name  # outer modules come first
    for param, name in found.items():
        owner[name][1].append(param)
    return {name: group for name, group in owner.items() if group[1]}


def _check_gradients(groups: dict[str, tuple[list[FSDPModule], list[DTensor]]]) -> None:
    """Refuse gradients that would be reduced in a dtype that cannot be rounded."""
    for name, (modules, params) in groups.items():
        policy = mixed_precision_of(modules[0])
        for param in params:
            dtype = policy.reduce_dtype or policy.param_dtype or param.dtype
            if param.requires_grad and dtype not in ops.GRADIENT_DTYPES:
                raise ValueError(
                    f"gradients of {name} are reduced in {dtype}, and only float32, bfloat16 and float16 can travel in "
                    "fixed-point: convert the module, say MixedPrecisionPolicy(reduce_dtype=torch.float32), or send "
                    "gradients as floats (no FSDPState, or comm_word_length=None)"
                )


def _padded_rows(param: DTensor) -> int:
    """Rows of the largest shard, to which FSDP2 pads the others."""
    rows = local_part(param).shape[0]
    for dim, placement in enumerate(param.placements):
        if placement.is_shard(0):
            rows = -(-param.shape[0] // param.device_mesh.size(dim))
    return rows
