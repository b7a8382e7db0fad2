"""The plugin's own promises: what it stores, says, refuses, saves and resumes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lowprec_plugin import FixedPointPrecision, FixedPointTensor, optim
from lowprec_plugin.optim import NonFiniteGradientError
from tests.cases import planes
from tests.plugin import users


def trainer(tmp_path: Path, plugin: FixedPointPrecision | None = None, **options: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    plugins = [] if plugin is None else plugin
    return Trainer(accelerator="cpu", default_root_dir=tmp_path, plugins=plugins, **(quiet | options))


class DataByStep(users.Regressor):
    """Draws its batch from the step's number: a resumed Trainer may begin its loader elsewhere, flag or no flag."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x = torch.randn(16, 12, generator=torch.Generator().manual_seed(self.global_step))
        return super().training_step((x, x[:, :1] * x[:, 1:2]), batch_idx)


def fit(
    tmp_path: Path,
    steps: int,
    plugin: FixedPointPrecision,
    checkpoint: str | None = None,
    make_optimizer: Any = lambda params: torch.optim.AdamW(params, 1e-2),
) -> list[torch.Tensor]:
    seed_everything(0, verbose=False)
    module = DataByStep(make_optimizer)
    save = ModelCheckpoint(tmp_path, "{step}", every_n_epochs=1, save_top_k=-1, save_on_train_epoch_end=True)
    run = trainer(tmp_path, plugin, max_steps=steps, max_epochs=-1, callbacks=[save])
    run.fit(module, users.vectors(160), ckpt_path=checkpoint, weights_only=True)  # an epoch is ten steps
    return planes(module, run.optimizers[0])


@pytest.mark.parametrize(
    "options", [{}, {"state_word_length": 8}, {"word_length": 20}, {"rounding": "nearest"}], ids=str
)
def test_resume_is_bit_for_bit(options: dict[str, Any], tmp_path: Path) -> None:
    """20 steps equal 10, a checkpoint, and 10 more: codes and state."""
    expected = fit(tmp_path, 20, FixedPointPrecision(**options))
    fit(tmp_path, 10, FixedPointPrecision(**options))
    resumed = fit(tmp_path, 20, FixedPointPrecision(**options), str(tmp_path / "step=10.ckpt"))
    assert len(resumed) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(resumed, expected, strict=True))


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.NAdam, torch.optim.RMSprop])
@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_resume_with_any_optimizer_and_compute_dtype(tmp_path: Path, optimizer: Any, compute_dtype: Any) -> None:
    def run(steps: int, checkpoint: str | None = None) -> list[torch.Tensor]:
        plugin = FixedPointPrecision(compute_dtype=compute_dtype)
        return fit(tmp_path, steps, plugin, checkpoint, lambda params: optimizer(params, 1e-3))

    expected = run(20)
    run(10)
    resumed = run(20, str(tmp_path / "step=10.ckpt"))
    assert all(torch.equal(a, b) for a, b in zip(resumed, expected, strict=True))


def test_load_from_checkpoint_with_and_without_the_plugin(tmp_path: Path) -> None:
    fit(tmp_path, 10, FixedPointPrecision())
    path = tmp_path / "step=10.ckpt"
    plain = users.Regressor.load_from_checkpoint(path, weights_only=True)
    assert all(type(param) is nn.Parameter for param in plain.parameters())
    stored = torch.load(path, weights_only=True)["state_dict"]
    for name, param in plain.named_parameters():
        assert torch.equal(param, stored[name].dequantize())
    callbacks = [ModelCheckpoint(tmp_path)]
    (metrics,) = trainer(tmp_path, FixedPointPrecision(), callbacks=callbacks).test(
        plain, users.vectors(), verbose=False
    )
    again = users.Regressor()
    (same,) = trainer(tmp_path, FixedPointPrecision(), callbacks=callbacks).test(
        again, users.vectors(), ckpt_path=path, weights_only=True, verbose=False
    )
    assert metrics == same


def test_a_float_checkpoint_is_taken_up_and_a_run_given_back(tmp_path: Path) -> None:
    seed_everything(0, verbose=False)
    module = users.Regressor()
    run = trainer(tmp_path, max_steps=10, max_epochs=-1)
    run.fit(module, users.vectors(160))
    run.save_checkpoint(tmp_path / "float.ckpt")
    seed_everything(0, verbose=False)
    fixed = users.Regressor()
    run = trainer(tmp_path, FixedPointPrecision(), max_steps=20, max_epochs=-1)
    run.fit(fixed, users.vectors(160), ckpt_path=tmp_path / "float.ckpt", weights_only=True)
    assert run.global_step == 20
    assert all(isinstance(param, FixedPointTensor) for param in fixed.parameters())
    plain = users.Regressor()
    plain.load_state_dict(optim.float_state_dict(fixed))
    assert torch.equal(plain.net[0].weight, fixed.net[0].weight.dequantize())


def test_a_checkpoint_of_another_format(tmp_path: Path) -> None:
    """Wider holds every value and is converted; narrower does not, and says so."""
    fit(tmp_path, 10, FixedPointPrecision(12))
    fit(tmp_path, 20, FixedPointPrecision(16), str(tmp_path / "step=10.ckpt"))
    with pytest.raises(
        ValueError, match="stored as fixed16, which fixed8 does not hold exactly: resume with word_length"
    ):
        fit(tmp_path, 30, FixedPointPrecision(8), str(tmp_path / "step=20.ckpt"))
    with pytest.raises(ValueError, match=r"state 'exp_avg' of parameter .*Resume with state_word_length=16"):
        fit(tmp_path, 30, FixedPointPrecision(16, state_word_length=8), str(tmp_path / "step=20.ckpt"))


def test_a_state_that_is_refused_changes_nothing() -> None:
    module, plugin = nn.Linear(8, 4), FixedPointPrecision(12, nonfinite="skip")
    plugin.convert_module(module)
    optimizer = torch.optim.NAdam(module.parameters())
    plugin.connect(module, [optimizer], [])
    module(torch.ones(1, 8)).sum().backward()
    optimizer.step()
    before = plugin.state_dict()
    assert before["roundings"]
    with pytest.raises(ValueError, match="stored as fixed16, which fixed12 does not hold exactly"):
        plugin.load_state_dict({"format": "fixed16", "skipped_steps": [7], "roundings": {"weight": 5}})
    assert plugin.state_dict() == before


def test_an_error_of_the_users_own_comes_through(tmp_path: Path) -> None:
    """Though the graph of the forward pass is alive when Lightning moves the module at teardown."""

    class Mistaken(users.Regressor):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            super().training_step(batch, batch_idx)
            raise ZeroDivisionError("my own")

    with pytest.raises(ZeroDivisionError, match="my own"):
        trainer(tmp_path, FixedPointPrecision(), max_epochs=1).fit(Mistaken(), users.vectors())


def test_bfloat16_loses_nothing_of_the_weights() -> None:
    torch.manual_seed(0)
    module = nn.Linear(300, 300)
    weights = module.weight.detach().clone()
    FixedPointPrecision(compute_dtype="bfloat16").convert_module(module)
    assert module.weight.dtype == torch.bfloat16
    assert module(torch.randn(2, 300, dtype=torch.bfloat16)).dtype == torch.bfloat16
    exact = FixedPointTensor.quantize(weights, "fixed16", rounding="nearest").dequantize()
    assert torch.equal(optim.float_state_dict(module)["weight"], exact)
    plain = nn.Linear(300, 300)
    plain.load_state_dict(module.state_dict())
    assert torch.equal(plain.weight, exact)


def test_attention_under_autocast_in_evaluation() -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    plugin = FixedPointPrecision(compute_dtype="bf16-mixed")
    plugin.convert_module(layer)
    with plugin.forward_context(), torch.no_grad():
        assert layer(torch.randn(2, 5, 32)).isfinite().all()


def test_a_module_of_another_format_is_converted() -> None:
    module = nn.Linear(300, 10)
    FixedPointPrecision(16).convert_module(module)
    FixedPointPrecision(8, rounding="nearest", seed=3).convert_module(module)
    assert str(module.weight.format) == "fixed8"
    FixedPointPrecision(8, rounding="stochastic", seed=4).convert_module(module)
    assert module.weight.rounding == "stochastic"


class Poisoned(users.Regressor):
    """Its gradient is NaN in the third step."""

    def on_after_backward(self) -> None:
        if self.global_step == 2 and not hasattr(self, "poisoned"):
            self.poisoned = True
            self.net[2].weight.grad[0, 0] = torch.nan


def test_nonfinite_gradient(tmp_path: Path) -> None:
    module = Poisoned()
    with pytest.raises(NonFiniteGradientError, match=r"parameter 'net\.2\.weight'"):
        trainer(tmp_path, FixedPointPrecision(), max_epochs=1, enable_checkpointing=False).fit(module, users.vectors())


def test_nonfinite_gradient_skipped_and_counted_across_resume(tmp_path: Path) -> None:
    plugin = FixedPointPrecision(nonfinite="skip")
    module = Poisoned()
    run = trainer(tmp_path, plugin, max_epochs=1)
    with pytest.warns(UserWarning, match="step 2 was skipped"):
        run.fit(module, users.vectors())
    assert plugin.skipped_steps == 1
    assert all(torch.isfinite(param.dequantize()).all() for param in module.parameters())
    run.save_checkpoint(tmp_path / "skipped.ckpt")
    resumed = FixedPointPrecision(nonfinite="skip")
    trainer(tmp_path, resumed, max_epochs=2).fit(
        users.Regressor(), users.vectors(), ckpt_path=tmp_path / "skipped.ckpt", weights_only=True
    )
    assert resumed.skipped_steps == 1


def test_what_a_run_has_counted_stays_when_it_is_validated(tmp_path: Path) -> None:
    plugin = FixedPointPrecision(nonfinite="skip")
    module = Poisoned()
    run = trainer(tmp_path, plugin, max_epochs=1, enable_checkpointing=False)
    with pytest.warns(UserWarning, match="step 2 was skipped"):
        run.fit(module, users.vectors())
    saturated = plugin.saturated
    run.validate(module, users.vectors(), verbose=False)
    assert (plugin.skipped_steps, plugin.saturated) == (1, saturated)


class WithoutOptimizer(users.Regressor):
    def configure_optimizers(self) -> None:
        return None


def test_a_module_without_an_optimizer_runs_and_resumes(tmp_path: Path) -> None:
    run = trainer(tmp_path, FixedPointPrecision(), max_epochs=1)
    with pytest.warns(UserWarning, match="returned `None`"):
        run.fit(WithoutOptimizer(), users.vectors())
    run.save_checkpoint(tmp_path / "none.ckpt")
    resumed = trainer(tmp_path, FixedPointPrecision(), max_epochs=2)
    with pytest.warns(UserWarning, match="returned `None`"):
        resumed.fit(WithoutOptimizer(), users.vectors(), ckpt_path=tmp_path / "none.ckpt", weights_only=True)
    assert resumed.current_epoch == 2


class OwnRate(torch.optim.SGD):
    """Finds its learning rate itself, as Adafactor with relative steps does."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["lr"] = 0.01
        loss = super().step(closure)
        for group in self.param_groups:
            group["lr"] = None
        return loss


@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.filterwarnings("ignore:OwnRate steps fixed-point parameters one at a time")
def test_an_optimizer_without_a_learning_rate(absent: bool, tmp_path: Path) -> None:
    def make(params: Any) -> torch.optim.Optimizer:
        optimizer = OwnRate(params)
        optimizer.param_groups[0]["lr"] = None
        if absent:
            del optimizer.param_groups[0]["lr"]
        return optimizer

    module = users.Regressor(make)
    before = module.net[0].weight.detach().clone()
    run = trainer(tmp_path, FixedPointPrecision(), max_epochs=1, enable_checkpointing=False)
    run.fit(module, users.vectors())
    assert (module.net[0].weight != before).any()


class WithNaN(users.Regressor):
    def __init__(self) -> None:
        super().__init__()
        self.net[0].weight.data[1, 1] = torch.nan


class WithLBFGS(users.Regressor):
    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters())


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (WithNaN, r"parameter 'net\.0\.weight': a NaN or an infinity"),
        (WithLBFGS, "LBFGS cannot update fixed-point parameters"),
    ],
)
def test_modules_that_cannot_be_stored(module: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, FixedPointPrecision(), max_epochs=1).fit(module(), users.vectors())


class Mixed(users.Regressor):
    """Its head is LBFGS's, the rest AdamW's."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return [torch.optim.AdamW(self.net[0].parameters(), 1e-2), torch.optim.LBFGS(self.net[2].parameters())]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        adamw, lbfgs = self.optimizers()

        def closure() -> torch.Tensor:
            self.zero_grad()
            loss = nn.functional.mse_loss(self(batch[0]), batch[1])
            self.manual_backward(loss)
            return loss

        lbfgs.step(closure)
        adamw.step()


def test_lbfgs_beside_another_optimizer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It updates what is kept in float, as the table says."""
    plugin = FixedPointPrecision(keep_float="net.2.*", nonfinite="skip")
    module = Mixed()
    before = module.net[2].weight.detach().clone()
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        run = trainer(tmp_path, plugin, max_epochs=1)
        run.fit(module, users.vectors())
    assert "LBFGS's own, in float" in caplog.text
    assert not torch.equal(module.net[2].weight, before)
    assert isinstance(module.net[0].weight, FixedPointTensor)
    assert plugin.skipped_steps == 0
    run.save_checkpoint(tmp_path / "mixed.ckpt")
    trainer(tmp_path, FixedPointPrecision(keep_float="net.2.*"), max_epochs=2).fit(
        Mixed(), users.vectors(), ckpt_path=tmp_path / "mixed.ckpt", weights_only=True
    )


def test_lbfgs_by_itself_on_floats(tmp_path: Path) -> None:
    losses = []
    for plugin in (FixedPointPrecision(keep_float="*"), None):
        seed_everything(0, verbose=False)
        run = trainer(tmp_path, plugin, max_epochs=2, enable_checkpointing=False)
        run.fit(WithLBFGS(), users.vectors())
        losses.append(run.callback_metrics["train_loss"])
    assert torch.equal(*losses)


def test_conversion_is_all_or_nothing(tmp_path: Path) -> None:
    module = WithNaN()
    with pytest.raises(ValueError, match=r"net\.0\.weight"):
        FixedPointPrecision().convert_module(module)
    assert not any(isinstance(param, FixedPointTensor) for param in module.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"word_length": 32}, "word_length=32 is not supported: choose 2 to 24"),
        ({"word_length": 1}, "word_length=1 is not supported"),
        ({"state_word_length": 40}, "state_word_length=40"),
        ({"rounding": "down"}, "rounding='down' is not one of"),
        ({"block_size": 100}, "block_size=100"),
        ({"nonfinite": "hope"}, "nonfinite='hope'"),
        ({"compute_dtype": torch.float16}, "compute_dtype=torch.float16"),
        ({"compute_dtype": "half"}, "compute_dtype='half'"),
        ({"fraction_length": 300}, "fraction_length=300"),
        ({"fraction_length": "12"}, "fraction_length='12' is not an integer"),
        ({"seed": "0"}, "seed='0' is not an integer"),
        ({"keep_float": None}, "keep_float=None is not a name or several"),
    ],
    ids=str,
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FixedPointPrecision(**options)


def test_keep_float_must_match(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"keep_float='head\.\*' matches no parameter"):
        FixedPointPrecision(keep_float=["head.*"]).convert_module(users.Regressor())


def test_a_precision_flag_beside_the_plugin_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="precision=bf16-mixed"):
        trainer(tmp_path, FixedPointPrecision(), precision="bf16-mixed")


def test_fabric_is_refused_and_told_what_to_do() -> None:
    """At the first forward pass; and what it is told works."""
    module = nn.Linear(3, 2)
    fabric = Fabric(accelerator="cpu", plugins=FixedPointPrecision())
    wrapped, _ = fabric.setup(module, torch.optim.AdamW(module.parameters()))
    with pytest.raises(ValueError, match=r"Under Fabric leave it out, call lowprec_plugin\.optim\.quantize_"):
        wrapped(torch.ones(1, 3))

    module = nn.Linear(3, 2)
    optim.quantize_(module)
    fabric = Fabric(accelerator="cpu")
    wrapped, optimizer = fabric.setup(module, optim.AdamW(module.parameters(), 0.1))
    codes = module.weight.codes.clone()
    fabric.backward(wrapped(torch.ones(1, 3)).sum())
    optimizer.step()
    assert not torch.equal(module.weight.codes, codes)
    assert all(isinstance(optimizer.state[module.weight][name], FixedPointTensor) for name in ("exp_avg", "exp_avg_sq"))


def test_table_says_what_is_stored_how(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = users.Regressor(lambda params: torch.optim.NAdam(params, 1e-2))
    plugin = FixedPointPrecision(12, state_word_length=8, keep_float=["net.2.*"])
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        trainer(tmp_path, plugin, max_epochs=1, enable_checkpointing=False).fit(module, users.vectors())
    text = caplog.text
    assert "weights fixed12, state 8 bits, stochastic rounding, computing in float32, seed 0" in text
    assert "NAdam 0" in text
    assert "one parameter at a time (NAdam has no fused update)" in text
    assert "kept in float: net.2.weight (keep_float='net.2.*')" in text


@pytest.mark.parametrize("compute", ["bf16-mixed", "bfloat16", torch.bfloat16], ids=str)
def test_compute_dtypes(compute: Any, tmp_path: Path) -> None:
    seen = []

    class Spy(users.Regressor):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = self.net(x)
            seen.append((x.dtype, self.net[0].weight.dtype, out.dtype))
            return out

    module = Spy()
    trainer(tmp_path, FixedPointPrecision(compute_dtype=compute), max_epochs=1, enable_checkpointing=False).fit(
        module, users.vectors()
    )
    inside = torch.float32 if compute == "bf16-mixed" else torch.bfloat16
    assert set(seen) == {(inside, inside, torch.bfloat16)}
    assert str(module.net[0].weight.format) == "fixed16"


def test_autocast_keeps_no_float_weights(tmp_path: Path) -> None:
    """What autograd saves of the weights under bf16-mixed is codes too."""
    saved: list[torch.Tensor] = []
    module = nn.Linear(64, 64)
    plugin = FixedPointPrecision(compute_dtype="bf16-mixed")
    plugin.convert_module(module)

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    x = torch.randn(2, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), plugin.forward_context():
        loss = module(x).float().sum()
    loss.backward()
    assert module.weight.grad is not None
    assert module.weight.grad.dtype == torch.float32
    of_weights_size = [tensor for tensor in saved if tensor.numel() == 64 * 64]
    assert of_weights_size
    assert all(isinstance(tensor, FixedPointTensor) for tensor in of_weights_size)


def test_two_processes(tmp_path: Path) -> None:
    """Under DDP the ranks hold the same codes, and those are not the codes of one rank alone."""
    import subprocess
    import sys

    script = Path(__file__).with_name("two_processes.py")
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    for name, tensor in ranks[0]["weights"].items():
        assert isinstance(tensor, FixedPointTensor)
        assert torch.equal(tensor.codes, ranks[1]["weights"][name].codes), name
        assert torch.equal(tensor.exponents, ranks[1]["weights"][name].exponents), name
    said = done.stderr + done.stdout
    assert "gradients between processes: 16 bits, stochastic rounding" in said
    assert f"{ranks[0]['traffic']['bytes_sent_per_step']:,.0f} bytes sent per step and rank" in said
