"""The paper's networks, module and configurations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.cli import LightningCLI

from lowprec_plugin import FixedPointPrecision, optim
from lowprec_plugin.tasks import CNN, MLP, CifarCNN, PaperClassifier
from lowprec_plugin.tasks.images import ImageDataModule, Images
from lowprec_plugin.tasks.paper import VelocitySGD

CONFIGS = Path(__file__).parents[2] / "configs" / "paper"


class Squares(ImageDataModule):
    """Images whose class is where the bright square is."""

    def __init__(self, batch_size: int = 20, root: str = "") -> None:
        super().__init__(batch_size, test_batch_size=100)
        labels = torch.arange(100) % 4
        images = 0.2 * torch.rand(100, 1, 4, 4)
        for image, label in zip(images, labels, strict=True):
            row, column = 2 * (int(label) // 2), 2 * (int(label) % 2)
            image[0, row : row + 2, column : column + 2] += 0.8
        self.train = self.test = Images(images, labels)


def fitted(**options: object) -> PaperClassifier:
    seed_everything(0, verbose=False)
    model = PaperClassifier(MLP(16, (8,), 4), init_std=0.1, **options)  # type: ignore[arg-type]
    trainer = Trainer(
        max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu",
    )  # fmt: skip
    trainer.fit(model, Squares())
    return model


@pytest.mark.filterwarnings(
    "ignore:The '.*_dataloader' does not have many workers", "ignore:The number of training batches"
)
def test_sums_and_means_of_errors_are_the_same_updates() -> None:
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "lr_factor": 0.5}
    mean, total = fitted(loss="mean", **options), fitted(loss="sum", **options)
    for a, b in zip(mean.parameters(), total.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert not torch.equal(next(mean.parameters()), torch.zeros(8, 16))


def test_velocity_is_torchs_momentum() -> None:
    """Float64, a constant rate: the same weights."""
    torch.manual_seed(0)
    start, gradients = torch.randn(50, dtype=torch.float64), torch.randn(20, 50, dtype=torch.float64)
    ends = []
    for make in (VelocitySGD, torch.optim.SGD):
        param = torch.nn.Parameter(start.clone())
        optimizer = make([param], lr=0.1, momentum=0.9, weight_decay=0.01)
        for gradient in gradients:
            param.grad = gradient.clone()
            optimizer.step()
        ends.append(param.detach())
    torch.testing.assert_close(*ends)


@pytest.mark.filterwarnings("ignore:VelocitySGD steps fixed-point parameters one at a time")
def test_a_small_velocity_never_ends_if_it_is_rounded_to_nearest() -> None:
    """0.9 times 4 codes is nearest to 4 codes: the paper's failure of nearest rounding in one line."""
    ends = {}
    for rounding in ("nearest", "stochastic"):
        module = torch.nn.Linear(300, 1, bias=False)
        torch.nn.init.zeros_(module.weight)
        optim.quantize_(module, "<2,14>")
        settings = optim.StepSettings(16, rounding, state_fraction_length=14)
        optimizer = optim.adopt(VelocitySGD(module.parameters(), lr=1.0, momentum=0.9), settings)
        for step in range(100):
            module.weight.grad = torch.full((1, 300), -4 * 2.0**-14 if step == 0 else 0.0)
            optimizer.step()
        ends[rounding] = module.weight.dequantize() * 2**14
    assert (ends["nearest"] == 400).all()
    # 4 / (1 - 0.9) = 40 codes in the mean; of 300 walks the mean is off by about one.
    assert ends["stochastic"].mean().item() == pytest.approx(40, abs=6)


def test_initial_weights_and_twins() -> None:
    torch.manual_seed(0)
    drawn = PaperClassifier(MLP(784, (1000, 1000)), init_std=0.1)
    torch.manual_seed(0)
    twin = PaperClassifier(MLP(784, (1000, 1000)), init_std=0.1, twin=True)
    weight, bias = drawn.network[1].weight, drawn.network[1].bias
    assert weight.std().item() == pytest.approx(0.1, rel=0.01)
    assert not bias.any()
    assert torch.equal(twin.network[1].weight, torch.nextafter(weight, torch.tensor(torch.inf)))


@pytest.mark.parametrize(
    ("network", "shape", "parameters"),
    [
        # 5 * 5 * 8 + 8, 5 * 5 * 8 * 16 + 16, 256 * 128 + 128, 128 * 10 + 10
        (CNN(), (1, 28, 28), 208 + 3216 + 32896 + 1290),
        (MLP(784, (1000, 1000)), (1, 28, 28), 785_000 + 1_001_000 + 10_010),
        # 75 * 64 + 64, twice 1600 * 64 + 64, 1024 * 10 + 10
        (CifarCNN(), (3, 32, 32), 4864 + 2 * 102_464 + 10_250),
    ],
)
def test_networks(network: torch.nn.Module, shape: tuple[int, ...], parameters: int) -> None:
    assert network(torch.zeros(2, *shape)).shape == (2, 10)
    assert sum(p.numel() for p in network.parameters()) == parameters


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_configurations_are_read_and_are_what_they_are_named(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["lowprec"])
    cli = LightningCLI(args=["--config", str(config)], run=False, save_config_callback=None, seed_everything_default=0)
    how, _, fraction = config.stem.partition("_")
    plugin = cli.trainer.precision_plugin
    if how == "float32":
        assert not isinstance(plugin, FixedPointPrecision)
        return
    assert isinstance(plugin, FixedPointPrecision)
    assert plugin.rounding == how
    assert str(plugin.format) == f"<{16 - int(fraction)},{fraction}>"
    assert plugin.inside is not None
    assert plugin.inside.emulator is not None
    emulation = plugin.inside.emulator.emulation
    assert emulation.rounding == how
    outputs = {"mnist_fc": str(plugin.format), "mnist_cnn": "<6,10>", "cifar_cnn": "<4,12>"}[config.parent.name]
    assert str(emulation.activation_format("network.1")) == outputs
    assert str(emulation.error_format("network.1")) == str(plugin.format)
    if cli.model.momentum:
        step = plugin.options
        assert f"<{step.state_word_length - step.state_fraction_length},{step.state_fraction_length}>" == str(
            plugin.format
        )
