"""How one way to store a model is held and sent: on one GPU, under DDP, and sharded by FSDP2.

A :class:`Storage` says what a tensor takes; what follows for a GPU is the same for every storage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lowprec_plugin.arithmetic.reference.wire import BLOCK, RESIDUAL, blocks_of, chunk_bytes
from lowprec_plugin.comm.exchange import message_bytes
from lowprec_plugin.comm.overlapped import floats_under_way
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
        gradient: of a number of its gradient, as a float.
        kept_gradient: of the gradient of a parameter of this shape, as it is kept until the step.
        update: what an update allocates, of these parameters.
        sent: of a number of a gradient that travels as a float.
        word_length: bits of a gradient that travels in fixed-point; ``None``: it travels as a float.
        feedback: whether what the wire's rounding lost is kept.
        gathered: of a parameter of this shape that has been gathered.
        copies: that operations make of these weights while they use them; whether they have been gathered for it.
        casts: whether all copies are there for as long as the step is.
    """

    name: str
    source: str
    weights: Callable[[Parameter, Shape], float]
    state: Callable[[Parameter, Shape], float]
    gradient: Callable[[Parameter], int]
    kept_gradient: Callable[[Parameter, Shape], float]
    update: Callable[[Sequence[Parameter]], int]
    sent: int
    word_length: int | None
    feedback: bool
    gathered: Callable[[Parameter, Shape], float]
    copies: Callable[[Sequence[Parameter], bool], int]
    casts: bool = False

    def keeps_codes(self, param: Parameter) -> bool:
        """Whether the gradient of ``param`` is kept otherwise than as a float."""
        return self.kept_gradient(param, param.shape) != self.gradient(param) * param.elements


@dataclass(frozen=True)
class Amounts:
    """Bytes on the GPU that holds most, at the moment when most is held, by kind; and bytes that it sends.

    Attributes:
        name: how the model is stored.
        source: where the figures are from.
        weights: parameters, or this GPU's shards of them.
        state: the optimizer's.
        gradients: of the parameters, or this GPU's shards of them.
        working: copies of weights while operations use them, and what is gathered of them.
        wire: buffers of what travels, and gradients that are not in shards yet.
        buffers: the module's.
        activations: as they were given.
        sent_gradients, sent_weights: in one step.
        peak: bytes at the moment when most is held, with what operations make meanwhile. Of sharded models no moment is
            looked for: it is all kinds together.
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
    peak: int

    @property
    def held(self) -> int:
        """All kinds together."""
        return self.weights + self.state + self.gradients + self.working + self.wire + self.buffers + self.activations

    @property
    def sent(self) -> int:
        """Gradients and weights together."""
        return self.sent_gradients + self.sent_weights


def on_one(storage: Storage, inventory: Inventory, activations: int) -> Amounts:
    """One GPU, which holds all and sends nothing."""
    params, trainable = inventory.parameters, inventory.trainable
    weights = round(sum(storage.weights(param, param.shape) for param in params))
    state = round(sum(storage.state(param, param.shape) for param in trainable))
    gradients = round(sum(storage.kept_gradient(param, param.shape) for param in trainable))
    working = storage.copies(params, False)
    over = max(_backward(storage, inventory, activations), gradients + storage.update(trainable))
    return Amounts(
        storage.name, storage.source, weights=weights, state=state, gradients=gradients, working=working, wire=0,
        buffers=inventory.buffers, activations=activations, sent_gradients=0, sent_weights=0,
        peak=weights + state + inventory.buffers + over,
    )  # fmt: skip


def _backward(storage: Storage, inventory: Inventory, activations: int) -> int:
    """The most over weights, state and buffers in a backward pass, which goes from the last parameter to the first.

    Beside the gradients that it has left behind there are, of the parameter that it is at, the gradient as a float and
    a copy that operations use. Activations are taken to be freed as parameters are passed.
    """
    most, kept, ahead, total = 0.0, 0.0, inventory.elements, max(1, inventory.elements)
    every = storage.copies(inventory.parameters, False) if storage.casts else 0
    for param in reversed(inventory.parameters):
        gradient = storage.gradient(param) * param.elements if param.trainable else 0
        copy = every or storage.copies([param], False)
        most = max(most, kept + activations * ahead / total + copy + gradient)
        kept += storage.kept_gradient(param, param.shape) if param.trainable else 0
        ahead -= param.elements
    return round(most)


def under_ddp(storage: Storage, inventory: Inventory, activations: int, ranks: int, bucket_view: bool) -> Amounts:
    """``DistributedDataParallel``, whose buckets are a second copy of the gradients unless they are views of it."""
    alone = on_one(storage, inventory, activations)
    buckets = list(_buckets(storage, inventory.trainable))
    in_floats = [param for param in inventory.trainable if not storage.keeps_codes(param)]
    in_codes = [param.elements for param in reversed(inventory.trainable) if storage.keeps_codes(param)]
    floats = sum(storage.gradient(param) * param.elements for param in in_floats)
    # What is kept in codes is in no bucket of the reducer's.
    wire = floats_under_way(in_codes) + (0 if bucket_view else floats)
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
    return with_changes(alone, wire=wire, sent_gradients=sent, peak=alone.peak + wire)


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
    amounts = Amounts(
        storage.name, storage.source,
        weights=round(sum(storage.weights(param, shard(param)) for param in inventory.parameters)),
        state=round(sum(storage.state(param, shard(param)) for param in inventory.trainable)),
        gradients=round(sum(storage.kept_gradient(param, shard(param)) for param in inventory.trainable)),
        working=round(of_root + 2 * max(gathered.values(), default=0)) + storage.copies(inventory.parameters, True),
        wire=wire, buffers=inventory.buffers, activations=activations,
        sent_gradients=sent, sent_weights=round(sent_weights), peak=0,
    )  # fmt: skip
    return with_changes(amounts, peak=amounts.held)


def gathered_bytes(storage: Storage, params: Sequence[Parameter], ranks: int) -> float:
    """What FSDP2 holds of parameters that it has gathered: every rank's rows, as many as the first has."""
    total = 0.0
    for param in params:
        rows, *rest = param.shape
        total += storage.gathered(param, (ranks * share_of(rows, ranks, 0)[1], *rest))
    return total


def with_changes(amounts: Amounts, **changes: int) -> Amounts:
    """A copy with other bytes of some kinds."""
    return Amounts(**(vars(amounts) | changes))
