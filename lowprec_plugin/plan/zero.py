"""How DeepSpeed's ZeRO holds and sends a model: the engine's own parameters, and flat partitions of master weights.

Sizes are those of DeepSpeed 0.19: stages 1 and 2 pad the parameters, laid end to end, to a multiple of twice the ranks
and cut them into equal partitions; stage 3 cuts every parameter. A reduction bucket is allocated whole.
"""

from __future__ import annotations

from collections.abc import Sequence

from lowprec_plugin.arithmetic.reference.wire import blocks_of, chunk_bytes
from lowprec_plugin.comm.exchange import message_bytes
from lowprec_plugin.plan.amounts import Amounts, Storage, with_changes
from lowprec_plugin.plan.inventory import Inventory, Parameter

#: DeepSpeed's defaults for stage 3, in elements: smaller parameters stay gathered, and at most so much of the others.
PERSISTENT, LIVE = 100_000, 1_000_000_000


def under_zero(
    storage: Storage,
    inventory: Inventory,
    activations: int,
    ranks: int,
    stage: int,
    itemsize: int,
    bucket: int,
    persistent: int = PERSISTENT,
) -> Amounts:
    """ZeRO of stage 1, 2 or 3.

    Args:
        storage: of master weights and state.
        itemsize: bytes of a number of the engine's own parameters and gradients.
        bucket: ``reduce_bucket_size``, in elements.
        persistent: ``stage3_param_persistence_threshold``, in elements.
    """
    sizes = [param.elements for param in inventory.trainable]
    frozen = [param.elements for param in inventory.parameters if not param.trainable]
    total = sum(sizes)
    if stage == 3:
        part = sum(-(-size // ranks) for size in sizes)
        own = sum(-(-size // ranks) for size in [*sizes, *frozen])
        small = sum(size for size in [*sizes, *frozen] if size <= persistent)
        working = itemsize * (small + min(total + sum(frozen) - small, LIVE))
        sent_weights = itemsize * (ranks - 1) * (2 * (total + sum(frozen) - small) + small) / ranks
    else:
        part = -(-total // (2 * ranks)) * 2
        own, working = ranks * part + sum(frozen), 0
        sent_weights = itemsize * (ranks - 1) * part
    flat = Parameter("partition", (1, part))
    wire, sent = _wire(storage, list(_buckets(sizes, bucket)), ranks, stage, itemsize)
    copied = (itemsize + 4) * part  # this GPU's share, and during the step its float32 copy
    amounts = Amounts(
        storage.name, storage.source,
        weights=round(itemsize * own + storage.weights(flat, flat.shape)),
        state=round(storage.state(flat, flat.shape)),
        gradients=max(itemsize * total, copied) if stage == 1 else copied,
        working=working, wire=itemsize * bucket + wire, buffers=inventory.buffers, activations=activations,
        sent_gradients=sent, sent_weights=round(sent_weights), peak=0,
    )  # fmt: skip
    return with_changes(amounts, peak=amounts.held)


def _buckets(sizes: Sequence[int], limit: int) -> Sequence[list[int]]:
    """The gradients that are reduced together: they come about from the last parameter to the first."""
    found: list[list[int]] = [[]]
    for size in reversed(sizes):
        if found[-1] and sum(found[-1]) + size > limit:
            found.append([])
        found[-1].append(size)
    return found


def _wire(storage: Storage, buckets: Sequence[list[int]], ranks: int, stage: int, itemsize: int) -> tuple[int, int]:
    """Bytes held while the largest bucket is reduced, beside DeepSpeed's own; and bytes sent for all."""
    held, sent = 0, 0
    for sizes in buckets:
        share = sum(-(-size // ranks) for size in sizes)
        copy = itemsize * (ranks * share if stage == 3 else sum(sizes))
        if stage == 3:
            message = (
                itemsize * share if storage.word_length is None else chunk_bytes(blocks_of(share), storage.word_length)
            )
            sent += (ranks - 1) * message
            buffers = 0 if storage.word_length is None else 2 * ranks * message + 8 * share
        elif storage.word_length is None:
            sent += round(2 * (ranks - 1) / ranks * itemsize * sum(sizes))
            buffers = 0
        else:
            messages = message_bytes([sum(sizes)], ranks, storage.word_length)
            sent += 2 * (ranks - 1) * sum(messages)
            buffers = (5 * ranks + 2) * max(messages, default=0)
        held = max(held, copy + buffers)
    return held, sent
