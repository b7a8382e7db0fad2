"""Train a byte-level transformer under DeepSpeed's ZeRO, in float32 or fixed-point, on any number of processes.

    deepspeed --num_gpus 2 recipes/zero_transformer.py --stage 2 --variant 16/8
    torchrun --nnodes 2 --nproc-per-node 8 --max-restarts 3 --rdzv-backend c10d --rdzv-endpoint node0:29500 \\
        recipes/zero_transformer.py --variant 16 --checkpoints /shared/folder
    DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 recipes/zero_transformer.py --all --steps 400 \\
        --out docs/results/zero_transformer.jsonl

The sharded master weights and optimizer state are codes, and gradients travel in 16 bits. With --checkpoints a run
that lost a process goes on from the last complete checkpoint, on as many processes as before. Expect from the first
process the table of what it holds, and a line of JSON, which goes to --out as well; with --all, runs that are in it are
skipped.
"""

import argparse
import json
import os
import time
from pathlib import Path

import bytes_transformer
import deepspeed
import torch
import torch.distributed as dist

from lowprec_plugin.deepspeed import adopt_engine
from lowprec_plugin.experiments.making import perturb_last_bit_

VARIANTS = {
    "float32": None,
    "float32 twin": None,
    "16": {"format": "fixed16"},
    "16/8": {"format": "fixed16", "state_word_length": 8},
    "16, wire 8": {"format": "fixed16", "comm_word_length": 8},
    "8 nearest": {"format": "fixed8", "rounding": "nearest"},
}


def build(variant, seed, given):
    torch.manual_seed(seed)
    model = bytes_transformer.Transformer()
    if variant == "float32 twin":
        perturb_last_bit_(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=given.lr, betas=(0.9, 0.95), weight_decay=0.1)
    config = {
        "train_micro_batch_size_per_gpu": -(-bytes_transformer.BATCH // dist.get_world_size()),
        "gradient_clipping": 1.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": given.stage},
        "bf16": {"enabled": given.dtype == "bfloat16"},
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    adopted = adopt_engine(engine, **VARIANTS[variant], seed=seed) if VARIANTS[variant] else None
    return engine, adopted


def save(engine, folder):
    """A checkpoint that is named the latest when every process has written its part, which DeepSpeed does not await."""
    tag = f"step{engine.global_steps}"
    engine.save_checkpoint(folder, tag=tag, save_latest=False)  # ends with a barrier
    if dist.get_rank() == 0:
        (folder / "latest.new").write_text(tag)
        os.replace(folder / "latest.new", folder / "latest")


def train(variant, seed, given):
    engine, adopted = build(variant, seed, given)
    if given.checkpoints and (given.checkpoints / "latest").exists():
        engine.load_checkpoint(given.checkpoints)
    start = engine.global_steps
    ranks, rank = dist.get_world_size(), dist.get_rank()
    training, validation = bytes_transformer.text()

    def batch(data, generator):
        whole = bytes_transformer.batch_of(data, generator, ranks)
        return [part[rank::ranks].to(engine.device) for part in whole]

    order = torch.Generator().manual_seed(seed)
    began = time.perf_counter()
    for step in range(given.steps):
        own = batch(training, order)
        if step < start:
            continue
        progress = step / given.steps
        for group in engine.optimizer.param_groups:  # ten percent of warm-up, then a line to zero
            group["lr"] = given.lr * min(progress / 0.1, (1 - progress) / 0.9)
        engine.backward(bytes_transformer.loss_of(engine, own))
        engine.step()
        if given.checkpoints and (step + 1) % given.every == 0:
            save(engine, given.checkpoints)
    seconds = time.perf_counter() - began
    fixed, loss = torch.Generator().manual_seed(1), torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for _ in range(100):
            loss += bytes_transformer.loss_of(engine, batch(validation, fixed)).item() / 100 / ranks
    loss = loss.to(engine.device)
    dist.all_reduce(loss)
    stepped = engine.basic_optimizer.state  # of the partitions of the master weights
    held = sum(tensor.nbytes for master, state in stepped.items() for tensor in (master, *state.values()))
    elements, steps = sum(master.numel() for master in stepped), max(1, given.steps - start)
    sent = adopted.wire.traffic if adopted and adopted.wire else None
    result = {
        "variant": variant, "seed": seed, "stage": given.stage, "dtype": given.dtype, "steps": given.steps,
        "lr": given.lr, "processes": ranks, "val_loss": loss.item(), "bytes_per_parameter": held / max(1, elements),
        "parameters_of_the_first_process": elements, "step_ms": 1e3 * seconds / steps,
        "gradient_bytes_sent_per_step": sent and sent.bytes_sent / steps,
        "float32_gradient_bytes_per_step": sent and sent.float32_bytes / steps,
        "torch": torch.__version__, "deepspeed": deepspeed.__version__,
    }  # fmt: skip
    engine.destroy()
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", type=int, choices=(1, 2, 3), default=2)
    parser.add_argument("--variant", choices=VARIANTS, default="16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--all", nargs="*", metavar="VARIANT", help="these variants (all), seeds 0 .. --seeds - 1")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the engine")
    parser.add_argument("--checkpoints", type=Path, help="folder of one run's checkpoints, which all processes see")
    parser.add_argument("--every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--out", type=Path, default=Path("zero.jsonl"))
    parser.add_argument("--local_rank", type=int, help="given by deepspeed's launcher; the environment has it as well")
    given = parser.parse_args()
    runs = [(given.variant, given.seed)]
    if given.all is not None:
        runs = [(variant, seed) for seed in range(given.seeds) for variant in given.all or VARIANTS]
    done = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    done = {tuple(run[key] for key in ("variant", "seed", "stage", "dtype", "steps", "lr")) for run in done}
    deepspeed.init_distributed()
    for variant, seed in runs:
        if given.all is not None and (variant, seed, given.stage, given.dtype, given.steps, given.lr) in done:
            continue
        result = json.dumps(train(variant, seed, given))
        if dist.get_rank() == 0:
            print(result, flush=True)
            with given.out.open("a") as file:
                file.write(result + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
