"""Shard a byte-level transformer over processes with FSDP2, in float32 or fixed-point, in plain PyTorch.

    torchrun --nproc-per-node 2 recipes/fsdp2_transformer.py --variant 16/8
    torchrun --nnodes 2 --nproc-per-node 8 --max-restarts 3 --rdzv-backend c10d --rdzv-endpoint node0:29500 \\
        recipes/fsdp2_transformer.py --variant 16 --checkpoints /shared/folder

Weights and optimizer state are sharded as codes, weights are gathered as codes, and gradients travel in 16 bits.
With --checkpoints a run that lost a process, or is started again on another number of them, goes on from the last
complete checkpoint. Expect from the first process what it holds and sends, about half of float32's bytes, and a line
of JSON, which goes to --out as well; recipes/compare.py makes a table of several.
"""

import argparse
import json
import os
import time
from pathlib import Path

import bytes_transformer
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

from lowprec_plugin import comm, memory, optim
from lowprec_plugin.experiments.making import perturb_last_bit_

DEVICE = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
# Word lengths of weights, state and gradients on the wire; None: float32.
VARIANTS = {"float32": None, "float32 twin": None, "16": (16, 16, 16), "16/8": (16, 8, 16), "16, wire 8": (16, 16, 8)}


def build(variant, seed, lr):
    torch.manual_seed(seed)
    model = bytes_transformer.Transformer()
    if variant == "float32 twin":
        perturb_last_bit_(model)
    model.to(DEVICE)
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    options = {"lr": lr, "betas": (0.9, 0.95), "weight_decay": 0.1}
    if VARIANTS[variant] is None:
        for part in (model, *model.blocks):
            part.set_force_sum_reduction_for_comms(True)  # gloo's average is not one
        return model, torch.optim.AdamW(model.parameters(), **options), None
    weights, state, wire = VARIANTS[variant]
    optim.quantize_(model, f"fixed{weights}", seed=seed)
    wire_state = comm.FSDPState(model, wire, seed=seed)
    return model, optim.AdamW(model.parameters(), **options, state_word_length=state), wire_state


def newest(folder):
    """The last checkpoint that is complete: its metadata are written when every process has written its shards."""
    steps = [int(path.parent.name) for path in folder.glob("*/.metadata")] if folder else []
    return max(steps, default=0)


def train(given):
    model, optimizer, wire = build(given.variant, given.seed, given.lr)
    start = newest(given.checkpoints)
    if start:
        weights, state = get_state_dict(model, optimizer)
        saved = {"model": weights, "optimizer": state, "wire": wire.state_dict() if wire else {}}
        dcp.load(saved, checkpoint_id=given.checkpoints / str(start))
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
        if wire:
            wire.load_state_dict(saved["wire"])
    device = next(model.parameters()).device
    training, validation = bytes_transformer.text()
    order = torch.Generator().manual_seed(given.seed)
    ranks, rank = dist.get_world_size(), dist.get_rank()
    began = time.perf_counter()
    for step in range(given.steps):
        batch = bytes_transformer.batch_of(training, order, ranks)
        if step < start:
            continue
        progress = step / given.steps
        for group in optimizer.param_groups:  # ten percent of warm-up, then a line to zero
            group["lr"] = given.lr * min(progress / 0.1, (1 - progress) / 0.9)
        optimizer.zero_grad()
        bytes_transformer.loss_of(model, [part[rank::ranks].to(device) for part in batch]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if given.checkpoints and (step + 1) % given.every == 0:
            weights, state = get_state_dict(model, optimizer)
            saved = {"model": weights, "optimizer": state, "wire": wire.state_dict() if wire else {}}
            dcp.save(saved, checkpoint_id=given.checkpoints / str(step + 1))
    seconds, sent = time.perf_counter() - began, wire.report() if wire else None
    fixed, losses = torch.Generator().manual_seed(1), []
    with torch.no_grad():
        for _ in range(100):
            batch = [part.to(device) for part in bytes_transformer.batch_of(validation, fixed)]
            losses.append(bytes_transformer.loss_of(model, batch).item())
    held = memory.report(model, optimizer)
    return {
        "variant": given.variant, "seed": given.seed, "steps": given.steps, "processes": ranks,
        "val_loss": sum(losses) / len(losses), "bytes_per_parameter": held.per_parameter,
        "parameters_of_the_first_process": held.elements, "step_ms": 1e3 * seconds / max(1, given.steps - start),
        "wire": sent, "torch": torch.__version__,
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=VARIANTS, default="16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--checkpoints", type=Path, help="folder of checkpoints that all processes see")
    parser.add_argument("--every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--out", type=Path, default=Path("fsdp2.jsonl"))
    given = parser.parse_args()
    if DEVICE.type != "cpu":
        torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(dist.get_default_backend_for_device(DEVICE))
    result = json.dumps(train(given))
    if dist.get_rank() == 0:
        print(result, flush=True)
        with given.out.open("a") as file:
            file.write(result + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
