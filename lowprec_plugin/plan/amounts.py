"""How one way to store a model is held and sent: on one GPU, under DDP, and sharded by FSDP2.

A :class:`Storage` says what a tensor takes; what follows for a GPU is the same for every storage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from lowprec_plugin.arithmetic.reference.wire import BLOCK, RESIDUAL, blocks_of, chunk_bytes
from lowprec_plugin.comm.exchange import message_bytes
from lowprec_plugin.comm.overlapped import cut, floats_under_way
from lowprec_plugin.memory import Kinds
from lowprec_plugin.plan.inventory import Inventory, Parameter
from lowprec_plugin.tensor.dtensor import share_of

Shape = tuple[int, ...]
#: Bytes of the first of DistributedDataParallel's buckets, and of the others: torch's defaults.
BUCKETS = (2**20, 25 * 2**20)


@dataclass(frozen=True)
class Storage:
    """What tensors take, in bytes.

    Attributes:
        name: what it is called.
        source: where the figures are from.
        weights: of a parameter of which a GPU holds this shape.
        state: of its optimizer state.
        gradient: of a number of its gradient, as the backward pass makes it.
        sent: of a number of a gradient that travels as a float.
        word_length: bits of a gradient that travels in fixed-point; ``None``: it travels as a float.
        feedback: whether what the wire's rounding lost is kept.
        gathered: of a parameter of this shape that has been gathered.
        coded: of a gradient, or a shard of one, of this shape that is kept otherwise than the backward pass makes it,
            which is 0 where it is used up at once; ``None``: kept so.
        copies: that operations make of these weights while they use them; whether they have been gathered for it.
        update: what the optimizer's step makes while it updates these.
        casts: whether all copies are there for as long as the step is.
    """

    name: str
    source: str
    weights: Callable[[Parameter, Shape], float]
    state: Callable[[Parameter, Shape], float]
    gradient: Callable[[Parameter], int]
    sent: int
    word_length: int | None
    feedback: bool
    gathered: Callable[[Parameter, Shape], float]
    copies: Callable[[Sequence[Parameter], bool], int]
    update: Callable[[Sequence[Parameter]], int]
    coded: Callable[[Parameter, Shape], int | None] = lambda param, shape: None
    casts: bool = False

    def kept_gradient(self, param: Parameter, shape: Shape) -> int:
        """Bytes of the gradient of ``param``, or of a shard of this shape, from the backward pass to the step."""
        coded = self.coded(param, shape)
        return self.gradient(param) * torch.Size(shape).numel() if coded is None else coded


@dataclass(frozen=True)
class Amounts:
    """Bytes on the GPU that holds most, by kind, what is there only while operations run; and bytes that it sends.

    Attributes:
        name: how the model is stored.
        source: where the figures are from.
        weights: parameters, or this GPU's shards of them.
        state: the optimizer's.
        gradients: of the parameters, or this GPU's shards of them.
        working: copies of weights while operations use them, what is gathered of them, and a gradient as the backward
            pass makes it where it is kept otherwise; or what the optimizer's step makes, where that is more.
        wire: buffers of what travels, and gradients that are not in shards yet.
        buffers: the module's.
        activations: as they were given.
        sent_gradients, sent_weights: in one step.
        at_once: at the moment of a step when there is most; ``None`` where that is not looked for.
    """

    name: str
    source: str
    weights: int
    state: int
    gradients: int
    working: int
    wire: int
    buffers: int
    activations: int
    sent_gradients: int
    sent_weights: int
    at_once: int | None = None

    @property
    def kinds(self) -> Kinds:
        """What is counted as held."""
        return Kinds(self.weights, self.state, self.gradients, self.activations, self.buffers)

    @property
    def held(self) -> int:
        """The counted kinds together."""
        return self.kinds.total

    @property
    def peak(self) -> int:
        """The most at a time: as it was looked for, or all that can be there, though hardly at the same time."""
        return self.held + self.working + self.wire if self.at_once is None else self.at_once

    @property
    def sent(self) -> int:
        """Gradients and weights together."""
        return self.sent_gradients + self.sent_weights


def on_one(storage: Storage, inventory: Inventory, activations: int) -> Amounts:
    """One GPU, which holds all and sends nothing."""
    params, trainable = inventory.parameters, inventory.trainable
    weights = round(sum(storage.weights(param, param.shape) for param in params))
    state = round(sum(storage.state(param, param.shape) for param in trainable))
    gradients = sum(storage.kept_gradient(param, param.shape) for param in trainable)
    making, updating = storage.copies(params, False) + _passing(storage, trainable), storage.update(trainable)
    most = weights + state + inventory.buffers
    most += max(_backward(storage, inventory, activations), gradients + updating)
    return Amounts(
        storage.name, storage.source, weights=weights, state=state, gradients=gradients, working=max(making, updating),
        wire=0, buffers=inventory.buffers, activations=activations, sent_gradients=0, sent_weights=0, at_once=most,
    )  # fmt: skip


def _passing(storage: Storage, params: Iterable[Parameter]) -> int:
    """Bytes of the largest gradient that is kept otherwise, as the backward pass makes it."""
    coded = (param for param in params if storage.coded(param, param.shape) is not None)
    return max((storage.gradient(param) * param.elements for param in coded), default=0)


def _backward(storage: Storage, inventory: Inventory, activations: int) -> int:
    """The most over weights, state and buffers in a backward pass, which goes from the last parameter to the first.

    Beside the gradients that it has left behind there are, of the parameter that it is at, the gradient as a float and
    a copy that operations use. Activations are taken to be freed as parameters are passed.
    """
    most, kept, ahead, total = 0.0, 0, inventory.elements, max(1, inventory.elements)
    every = storage.copies(inventory.parameters, False) if storage.casts else 0
    for param in reversed(inventory.parameters):
        gradient = storage.gradient(param) * param.elements if param.trainable else 0
        copy = every or storage.copies([param], False)
        most = max(most, kept + activations * ahead / total + copy + gradient)
        kept += storage.kept_gradient(param, param.shape) if param.trainable else 0
        ahead -= param.elements
    return round(most)


def under_ddp(storage: Storage, inventory: Inventory, activations: int, ranks: int, bucket_view: bool) -> Amounts:
    """``DistributedDataParallel``, whose buckets are a second copy of the gradients unless they are views of it.

    It ignores the parameters whose gradients are codes, but for the smallest if it would have none. Their
    floats wait in buckets of the wire's.
    """
    coded = [param for param in inventory.trainable if storage.coded(param, param.shape) is not None]
    if coded and len(coded) == len(inventory.trainable):
        rule, smallest = storage.coded, min(coded, key=lambda param: param.elements)
        coded.remove(smallest)
        storage = replace(storage, coded=lambda param, shape: None if param is smallest else rule(param, shape))
    alone = on_one(storage, inventory, activations)
    left = [param for param in inventory.trainable if param not in coded]
    coming = [param.elements for param in reversed(coded)]
    sizes = [4 * size for size in coming]
    waiting = [[coming[place] for place in bucket] for bucket in cut(sizes) if bucket]
    buckets = [*_buckets(storage, left), *waiting]
    wire = floats_under_way(sizes)
    wire += 0 if bucket_view else sum(storage.gradient(param) * param.elements for param in left)
    if storage.word_length is None:
        elements = sum(param.elements for param in inventory.trainable)
        sent = round(2 * (ranks - 1) / ranks * storage.sent * elements)
    else:
        messages = [message_bytes(sizes, ranks, storage.word_length) for sizes in buckets]
        sent = sum(2 * (ranks - 1) * message for bucket in messages for message in bucket)
        # Three parts are under way at a time: one holds what it sends and receives, one what it received of both
        # collectives and its mean, and one what it received and its mean.
        wire += (5 * ranks + 2) * max((message for bucket in messages for message in bucket), default=0)
        if storage.feedback:
            sizes = [blocks_of(size) for bucket in buckets for size in bucket if size >= BLOCK]
            wire += sum(RESIDUAL.nbytes((blocks, BLOCK)) for blocks in sizes)
    return replace(alone, wire=wire, sent_gradients=sent, at_once=alone.peak + wire)


def _buckets(storage: Storage, params: Sequence[Parameter]) -> Iterator[list[int]]:
    """Elements of the gradients in each of DDP's buckets: they come about from the last parameter to the first."""
    sizes: list[int] = []
    held, limit = 0, BUCKETS[0]
    for param in reversed(params):
        sizes.append(param.elements)
        held += storage.gradient(param) * param.elements
        if held >= limit:
            yield sizes
            sizes, held, limit = [], 0, BUCKETS[1]
    if sizes:
        yield sizes


def under_fsdp2(storage: Storage, inventory: Inventory, activations: int, ranks: int, rank: int = 0) -> Amounts:
    """``fully_shard`` of each unit and of the whole, which stays gathered from the forward pass to the backward pass.

    What is gathered is the root, the unit at work and the one that is fetched ahead.

    Raises:
        ValueError: for a scalar parameter.
    """
    scalar = next((param.name for param in inventory.parameters if not param.shape), None)
    if scalar is not None:
        raise ValueError(f"parameter {scalar!r} is a scalar, which fully_shard refuses: give it the shape (1,)")

    def shard(param: Parameter, of: int = rank) -> Shape:
        rows, *rest = param.shape
        return (share_of(rows, ranks, of)[1], *rest)

    def numel(shape: Shape) -> int:
        return Parameter("", shape).elements

    units = inventory.units()
    root = units.pop("", [])
    gathered = {name: gathered_bytes(storage, params, ranks) for name, params in units.items()}
    of_root = gathered_bytes(storage, root, ranks)
    # Without a part for this GPU itself. Units are gathered again for the backward pass.
    sent_weights = (ranks - 1) / ranks * (of_root + 2 * sum(gathered.values()))
    wire, sent = 0, 0
    for params in [root, *units.values()]:
        trainable = [param for param in params if param.trainable]
        share = sum(numel(shard(param, 0)) for param in trainable)
        unsharded = sum(storage.gradient(param) * param.elements for param in trainable)
        if storage.word_length is None:
            sent += (ranks - 1) * storage.sent * share
            wire = max(wire, unsharded + ranks * storage.sent * share)
        else:
            message = chunk_bytes(blocks_of(share), storage.word_length)
            sent += (ranks - 1) * message
            # The gradients, FSDP2's flat copy of them, what is sent and received, and two shares in float32.
            wire = max(wire, unsharded + ranks * (storage.sent * share + 2 * message) + 8 * share)
    return Amounts(
        storage.name, storage.source,
        weights=round(sum(storage.weights(param, shard(param)) for param in inventory.parameters)),
        state=round(sum(storage.state(param, shard(param)) for param in inventory.trainable)),
        gradients=sum(storage.kept_gradient(param, shard(param)) for param in inventory.trainable),
        working=round(of_root + 2 * max(gathered.values(), default=0)) + storage.copies(inventory.parameters, True),
        wire=wire, buffers=inventory.buffers, activations=activations,
        sent_gradients=sent, sent_weights=round(sent_weights),
    )  # fmt: skip


def gathered_bytes(storage: Storage, params: Sequence[Parameter], ranks: int) -> float:
    """What FSDP2 holds of parameters that it has gathered: every rank's rows, as many as the first has."""
    total = 0.0
    for param in params:
        rows, *rest = param.shape
        total += storage.gathered(param, (ranks * share_of(rows, ranks, 0)[1], *rest))
    return total
