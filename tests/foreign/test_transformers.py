"""A small transformer of transformers, made of a configuration: its Adafactor and schedules, and peft's adapters."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

from lowprec_plugin import FixedPointTensor, optim

STEPS = 12


def network() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).train()


def trained(net: nn.Module, optimizer: Any, scheduler: Any = None) -> tuple[list[float], list[float]]:
    """Losses, and learning rates, on the same sequences."""
    generator = torch.Generator().manual_seed(1)
    tokens = (torch.randint(0, 8, (8, 1), generator=generator) + 3 * torch.arange(16)) % 64
    losses, rates = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = net(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        losses.append(float(loss))
        rates.append(optimizer.param_groups[0]["lr"])
    optimizer.zero_grad()
    return losses, rates


def trainable(net: nn.Module) -> Tensor:
    return torch.cat([(param.detach() + 0).flatten() for param in net.parameters() if param.requires_grad])


SCHEDULES = ["linear", "cosine", "constant_with_warmup", "polynomial", "inverse_sqrt"]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", ["AdamW", "Adafactor"])
def test_schedules_go_as_in_float32(kind: str, schedule: str) -> None:
    found = []
    for format in (None, "fixed16"):
        net = network()
        if format is not None:
            optim.quantize_(net, format)
        options: dict[str, Any] = {"lr": 1e-2}
        if kind == "Adafactor":
            options |= {"scale_parameter": False, "relative_step": False}
        make: Any = torch.optim.AdamW if kind == "AdamW" else transformers.optimization.Adafactor
        optimizer = make(net.parameters(), **options)
        scheduler = transformers.get_scheduler(schedule, optimizer, num_warmup_steps=3, num_training_steps=STEPS)
        if format is not None:
            optim.adopt(optimizer)
        found.append(trained(net, optimizer, scheduler))
    (losses, rates), (fixed_losses, fixed_rates) = found
    assert fixed_rates == rates
    assert losses[-1] < losses[0] - 0.3
    assert abs(fixed_losses[-1] - losses[-1]) < 0.02 * (losses[0] - losses[-1])


def test_adafactor_with_a_schedule_of_its_own() -> None:
    ends = []
    for format in (None, "fixed16"):
        net = network()
        if format is not None:
            optim.quantize_(net, format)
        optimizer = transformers.optimization.Adafactor(net.parameters(), warmup_init=True, lr=None)
        if format is not None:
            optim.adopt(optimizer)
        scheduler = transformers.optimization.AdafactorSchedule(optimizer)
        losses, _ = trained(net, optimizer, scheduler)
        ends.append(losses)
    torch.testing.assert_close(torch.tensor(ends[1]), torch.tensor(ends[0]), rtol=1e-3, atol=1e-3)


def adapted(**options: Any) -> Any:
    net = network()
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], task_type="CAUSAL_LM", **options)
    torch.manual_seed(2)
    return peft.get_peft_model(net, config)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}], ids=["LoRA", "DoRA", "rsLoRA"])
@pytest.mark.parametrize("keep", [(), ("*base_layer*",)], ids=["all in codes", "the base in float"])
def test_adapters_train_as_in_float32(options: dict[str, Any], keep: tuple[str, ...]) -> None:
    """On a frozen base in codes, and on one that is kept in float; the base stays what it is, bit for bit."""
    ends, losses = [], []
    for format in (None, "fixed24"):
        net = adapted(**options)
        start = trainable(net)
        if format is not None:
            optim.quantize_(net, format, keep_float=keep)
        frozen = {name: param.detach() + 0 for name, param in net.named_parameters() if not param.requires_grad}
        optimizer = torch.optim.AdamW((param for param in net.parameters() if param.requires_grad), 1e-2)
        if format is not None:
            optim.adopt(optimizer)
        losses.append(trained(net, optimizer)[0])
        ends.append(trainable(net))
        for name, param in net.named_parameters():
            assert param.requires_grad or torch.equal(param.detach() + 0, frozen[name]), name
            if format is not None and param.requires_grad:
                assert isinstance(param, FixedPointTensor), name
    assert losses[0][-1] < losses[0][0] - 0.05
    assert (ends[1] - ends[0]).norm() < 1e-2 * (ends[0] - start).norm()


def test_adapters_merge_and_save(tmp_path: Any) -> None:
    """Merged weights are the sum; a saved adapter is plain floats that peft loads without this package."""
    net = adapted()
    optim.quantize_(net, "fixed24")
    optimizer = optim.adopt(torch.optim.AdamW((param for param in net.parameters() if param.requires_grad), 1e-2))
    trained(net, optimizer)
    tokens = torch.arange(16)[None]
    with torch.no_grad():
        before = net(input_ids=tokens).logits
        try:
            net.save_pretrained(tmp_path)
        except ValueError as refused:  # with what to use instead
            assert "float_state_dict" in str(refused)  # noqa: PT017
            net.save_pretrained(tmp_path, state_dict=optim.float_state_dict(net))
        other = peft.PeftModel.from_pretrained(network(), tmp_path)
        assert not any(isinstance(param, FixedPointTensor) for param in other.parameters())
        torch.testing.assert_close(other(input_ids=tokens).logits, before, rtol=1e-3, atol=1e-3)
        merged = net.merge_and_unload()
        torch.testing.assert_close(merged(input_ids=tokens).logits, before, rtol=1e-3, atol=1e-3)
