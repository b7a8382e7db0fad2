"""How the gradients of a Lightning run come to travel in fixed-point, and what is said of it."""

from __future__ import annotations

from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from lowprec_plugin.comm import DDPState, FSDPState, ddp_hook, leave_out_of_ddp
from lowprec_plugin.comm.fsdp import release
from lowprec_plugin.comm.overlapped import end_exchange
from lowprec_plugin.compat.ddp import registered_hook
from lowprec_plugin.compat.lightning import comm_hook_of, is_fitting, overrides
from lowprec_plugin.compat.lightnings import is_a
from lowprec_plugin.optim.options import PluginOptions
from lowprec_plugin.plugin.strategies import trainer_of
from lowprec_plugin.tensor.gradient_hook import leaves_ddp
from lowprec_plugin.text.option_error import Option, OptionError


def prepare_gradients(module: nn.Module, options: PluginOptions) -> None:
    """Before DDP wraps ``module``: have it leave out the parameters whose gradients are kept small, or not at all.

    A fit before may have had them exchanged otherwise.

    Raises:
        ValueError: if these gradients could not be exchanged; or are to be released, and could not be.
    """
    end_exchange(module)
    trainer = trainer_of(module)
    if options.gradient_word_length == "release" and trainer is not None and is_fitting(trainer):
        _check_release(trainer, module)
    strategy = getattr(trainer, "strategy", None)
    if not any(map(leaves_ddp, module.parameters())) or not is_a(strategy, "strategies.DDPStrategy"):
        return
    name = "gradient_word_length" if options.gradient_dtype is None else "gradient_dtype"
    asked = Option.given(name, getattr(options, name))
    remedy = ", or leave gradients in floats, ", Option.given(name, None)
    if options.comm_word_length is None:
        raise OptionError(
            asked, " under DDP travels in fixed-point: drop ", Option.given("comm_word_length", None), *remedy
        )
    if comm_hook_of(strategy) is not None:
        raise OptionError(asked, " travels by itself, and not through the strategy's ddp_comm_hook: drop that", *remedy)
    leave_out_of_ddp(module)


def _check_release(trainer: Any, module: nn.Module) -> None:
    """Refuse what needs the gradients that are not kept, or more than one backward pass to a step.

    Raises:
        ValueError: naming what, and what to use.
    """
    asked = Option.given("gradient_word_length", "release")
    remedy = ": leave it out, or use ", Option.given("gradient_word_length", 8)
    if not any(is_a(trainer.strategy, f"strategies.{name}Strategy") for name in ("SingleDevice", "DDP")):
        raise OptionError(
            asked, f" works on one device and under DDP, and not with {type(trainer.strategy).__name__}: use ",
            Option.given("gradient_word_length", 8),
        )  # fmt: skip
    if not getattr(module, "automatic_optimization", True):
        raise OptionError(
            asked, " updates parameters in any backward pass, and under manual optimization several may belong to a "
            "step, or pass through parameters of another optimizer: use automatic optimization, or ",
            Option.given("gradient_word_length", 8),
        )  # fmt: skip
    schedulers = (each for each in trainer.callbacks if is_a(each, "callbacks.GradientAccumulationScheduler"))
    most = max([trainer.accumulate_grad_batches, *(n for each in schedulers for n in each.scheduling.values())])
    if most > 1:
        raise OptionError(
            Option.given("accumulate_grad_batches", most), " beside ", asked, ", which keeps no gradient to add to",
            *remedy,
        )  # fmt: skip
    if trainer.gradient_clip_val:
        raise OptionError(
            Option.given("gradient_clip_val", trainer.gradient_clip_val), " beside ", asked,
            ", which has updated parameters before there is anything to clip", *remedy,
        )  # fmt: skip
    if overrides(module, "configure_gradient_clipping"):
        raise OptionError(
            f"the configure_gradient_clipping of {type(module).__name__} would find no gradients beside ",
            asked,
            *remedy,
        )


def connect_wire(
    model: nn.Module, options: PluginOptions, auto: int, before: DDPState | FSDPState | None
) -> tuple[DDPState | FSDPState | None, str]:
    """Have the gradients of ``model`` travel as ``options`` say; what they travel as, in words.

    Args:
        model: as the strategy has wrapped it.
        options: the plugin's.
        auto: what a ``comm_word_length`` of ``"auto"`` comes to.
        before: what a fit before this one had, whose steps and residuals go on.

    Raises:
        ValueError: if they cannot travel so, with what to use in its place.
    """
    word_length = auto if options.comm_word_length == "auto" else options.comm_word_length
    step = before.step if before else 0
    sharded = any(isinstance(part, FSDPModule) for part in model.modules())
    if word_length is None:
        release(model)
        return None, "as the strategy sends them (comm_word_length=None)"
    if sharded:
        if options.comm_error_feedback:
            raise OptionError(
                Option.given("comm_error_feedback", True),
                " needs a byte per parameter on every rank, which FSDP2 shards to avoid: leave it out, or use ",
                Option.given("comm_word_length", 16),
            )
        state = FSDPState(model, word_length, rounding=options.rounding, seed=options.seed)
        state.go_on_from(step)
        return state, str(state)
    if isinstance(model, DistributedDataParallel):
        return _connect_ddp(model, word_length, options, before)
    raise OptionError(
        f"gradients of a {type(model).__name__} would travel as floats: ",
        Option.given("comm_word_length", options.comm_word_length),
        ' needs strategy="ddp", or fully_shard in configure_model under a ModelParallelStrategy. Use one, or say ',
        Option.given("comm_word_length", None),
    )


def _connect_ddp(
    model: DistributedDataParallel, word_length: int, options: PluginOptions, before: DDPState | FSDPState | None
) -> tuple[DDPState | None, str]:
    registered = registered_hook(model)
    strategy = getattr(trainer_of(model.module), "strategy", None)
    users = registered or (comm_hook_of(strategy) if is_a(strategy, "strategies.DDPStrategy") else None)
    if users is not None:
        hook = getattr(users, "__name__", "a hook")
        if options.comm_word_length == "auto":
            how = f"through {hook}" if registered else f"as floats, and not through {hook}"
            why = "" if registered else ", which Lightning registers on CUDA only"
            return None, f"{how}, the strategy's own ddp_comm_hook{why}"
        raise OptionError(
            f"the strategy has a ddp_comm_hook of its own ({hook}) beside ",
            Option.given("comm_word_length", word_length),
            ": drop one",
        )
    state = DDPState(
        model, word_length, rounding=options.rounding, error_feedback=options.comm_error_feedback, seed=options.seed
    )
    state.go_on_from(before.step if before else 0)
    if isinstance(before, DDPState):
        state.keep_residuals_of(before)
    model.register_comm_hook(state, ddp_hook)
    return state, str(state)


def load_wire(wire: DDPState | FSDPState | None, saved: dict[str, Any] | None, *, fitting: bool) -> None:
    """Have ``wire`` go on from what a checkpoint holds of one, if it does; warn of residuals that a fit drops.

    Raises:
        ValueError: if they are not of its parameters. Nothing is changed then.
    """
    if saved is None:
        return
    if wire is not None:
        wire.load_state_dict(saved)
    residuals = saved.get("residuals", {})
    if residuals and fitting and not isinstance(wire, DDPState):  # which has a warning of its own
        rank_zero_warn(
            f"what earlier rounding of {len(residuals)} gradients lost is dropped: in this run none travel in "
            "fixed-point between processes of DDP"
        )


def say_traffic(state: DDPState | FSDPState) -> None:
    """Log what has crossed the network per step so far."""
    traffic = state.report()
    for what, prefix in (("gradients", ""), ("weights", "weight_")):
        if f"{prefix}bytes_sent_per_step" in traffic:
            rank_zero_info(
                f"{what} between processes: {traffic[f'{prefix}bytes_sent_per_step']:,.0f} bytes sent per step "
                f"and rank, {traffic[f'float32_{prefix}bytes_per_step']:,.0f} in float32"
            )
