"""DICGANModule: its losses, both updates, schedules and weight averaging counted in batches, and resuming."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, l1_loss, mse_loss

from callbacks.weight_average import WeightAverage
from datamodules.faces.datamodule import FaceLandmarkDataModule
from lightning_modules.dicgan import DICGANModule, find_unused_parameters
from lightning_modules.optimization import Adam
from models.dic import DIC, normalise
from models.heatmaps import landmarks_to_heatmaps
from models.hourglass import FeedbackHourglass
from models.light_cnn import LightCNN
from models.losses import GANLoss, HourglassFeatures, dic_losses, discriminator_loss, generator_loss
from models.pretrained import load_generator
from storage.checkpoints import CheckpointError, read_checkpoint

GOLDEN = Path(__file__).parents[1] / "fixtures" / "dic_tiny.npz"
SMALL = {"num_features": 4, "num_steps": 2, "num_groups": 1, "num_fusion_blocks": 1, "hourglass_features": 8}
ADAM = Adam(learning_rate=1e-3, milestones=(2, 4))


def _module(**settings: Any) -> DICGANModule:
    torch.manual_seed(0)
    return DICGANModule(DIC(**SMALL), LightCNN(64), **{"optimizer": ADAM} | settings)


def _data(faces: Path) -> FaceLandmarkDataModule:
    return FaceLandmarkDataModule(str(faces), str(faces), hr_size=64, batch_size=4, val_min_face_size=0)


def _trainer(folder: Path, *callbacks: L.Callback, **settings: Any) -> L.Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings = {"max_epochs": 2, "limit_val_batches": 0, "enable_checkpointing": False, **quiet, **settings}
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        use_distributed_sampler=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
        **settings,
    )


def _weights(net: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in net.named_parameters()}


class Watch(L.Callback):
    """Notes weights and learning rates after every batch."""

    def __init__(self) -> None:
        self.generator: list[dict[str, Tensor]] = []
        self.discriminator: list[dict[str, Tensor]] = []
        self.rates: list[tuple[float, ...]] = []
        self.steps: list[int] = []

    def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
        self.rates.append(tuple(optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers))

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: object) -> None:
        self.generator.append(_weights(module.net))  # type: ignore[arg-type]
        self.discriminator.append(_weights(module.discriminator))  # type: ignore[arg-type]
        self.steps.append(trainer.global_step)


def test_published_losses_but_for_the_repeated_step() -> None:
    """The authors' GAN stage counts the last step T times: their figures follow if it is done on purpose."""
    golden = np.load(GOLDEN)
    net = DIC(num_features=8, num_steps=3, num_groups=3, num_fusion_blocks=2, hourglass_features=16)
    net.load_state_dict({k.removeprefix("state/"): torch.from_numpy(golden[k]) for k in golden if "state/" in k})
    target = normalise(torch.from_numpy(golden["train_hr_u8"]).float() / 255)
    maps = landmarks_to_heatmaps(torch.from_numpy(golden["train_pts"]), 32)
    images, heatmaps = net(torch.from_numpy(golden["x1"]))
    pixel, heatmap = dic_losses([images[-1]] * 3, heatmaps, target, maps)
    total = pixel + 0.1 * heatmap
    total.backward()
    losses = [value.item() for value in (pixel, heatmap, total)]
    np.testing.assert_allclose(losses, golden["train_gan_pixquirk_loss"], rtol=1e-5)
    norms = [net.get_parameter(name).grad.norm().item() for name in golden["train_grad_names"]]  # type: ignore[union-attr]
    np.testing.assert_allclose(norms, golden["train_gan_pixquirk_gradnorm"], rtol=1e-3)
    assert abs(dic_losses(images, heatmaps, target, maps)[0].item() - losses[0]) > 1e-3


def test_terms_of_a_batch_and_their_weights(tiny_faces: Path, tmp_path: Path) -> None:
    module, data = _module(adversarial_weight=0.3, perceptual_weight=0.2), _data(tiny_faces)
    data.setup("fit")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trainer = _trainer(tmp_path, limit_train_batches=1, max_epochs=1)
    trainer.fit(module, data)
    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}

    old = _module()
    old.load_state_dict(before)
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    target = normalise(batch["hr"].float() / 255)
    images, heatmaps = old(batch["lr"])
    ones, zeros = torch.ones(4, 1), torch.zeros(4, 1)
    features = HourglassFeatures(old.net.HG)
    expected = {
        "g/pixel": sum(l1_loss(image, target) for image in images),
        "g/heatmap": sum(mse_loss(maps, batch["heatmaps"]) for maps in heatmaps),
        "g/perceptual": sum(map(l1_loss, features(images[-1]), features(target))),
        "g/adversarial": binary_cross_entropy_with_logits(old.discriminator(images[-1]), ones),
        "d/real": binary_cross_entropy_with_logits(old.discriminator(target), ones),
        "d/fake": binary_cross_entropy_with_logits(old.discriminator(images[-1]), zeros),
        "d/logit_real": old.discriminator(target).mean(),
        "d/logit_fake": old.discriminator(images[-1]).mean(),
    }
    share = {"g/pixel": 1.0, "g/heatmap": 0.1, "g/perceptual": 0.2, "g/adversarial": 0.3}
    expected["g/total"] = sum(expected[name] * weight for name, weight in share.items())
    expected["d/total"] = expected["d/real"] + expected["d/fake"]
    assert logged == pytest.approx(
        {f"train/{name}": float(torch.as_tensor(value).detach()) for name, value in expected.items()}, rel=1e-4
    )


@pytest.mark.parametrize("perceptual", ["hourglass", "none"])
def test_both_learn_the_hourglass_does_not_and_all_is_counted_in_batches(
    perceptual: str, tiny_faces: Path, tmp_path: Path
) -> None:
    """Whether or not the hourglass is also the perceptual network, which is frozen for itself."""
    watch, module = Watch(), _module(perceptual=perceptual)
    start, opponent = _weights(module.net), _weights(module.discriminator)
    _trainer(tmp_path, watch).fit(module, _data(tiny_faces))
    assert watch.steps == [1, 2, 3, 4, 5, 6]
    halved = [1e-3, 1e-3, 5e-4, 5e-4, 2.5e-4, 2.5e-4]
    assert watch.rates == [pytest.approx((rate, rate)) for rate in halved]
    moved = {name for name, value in watch.generator[0].items() if not torch.equal(value, start[name])}
    assert "conv_in.0.weight" in moved and "conv_out.0.weight" in moved
    assert not any(name.startswith("HG.") for name in moved)
    assert all(not torch.equal(value, opponent[name]) for name, value in watch.discriminator[0].items())
    assert all(parameter.requires_grad for parameter in module.discriminator.parameters())


def test_averaged_weights_validate_are_saved_and_survive_resuming(tiny_faces: Path, tmp_path: Path) -> None:
    watch, data = Watch(), _data(tiny_faces)

    class Validated(L.Callback):
        def on_validation_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *_: object) -> None:
            self.weights = _weights(module.net)  # type: ignore[arg-type]

    validated, averaging = Validated(), WeightAverage(decay=0.3)
    trainer = _trainer(tmp_path, watch, averaging, validated, limit_val_batches=1, num_sanity_val_steps=0)
    trainer.fit(_module(), data)
    average = dict(watch.generator[0])
    for updates, weights in enumerate(watch.generator[1:], start=1):
        share = min(0.3, (1 + updates) / (10 + updates))  # 2/11, 3/12, then 0.3
        average = {name: share * value + (1 - share) * weights[name] for name, value in average.items()}
    for name, value in average.items():
        torch.testing.assert_close(validated.weights[name], value, atol=1e-7, rtol=1e-5)
    for name, value in watch.discriminator[-1].items():  # the discriminator is not averaged
        assert torch.equal(value, trainer.lightning_module.discriminator.get_parameter(name))  # type: ignore[union-attr]
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    loaded = load_generator(tmp_path / "end.ckpt")
    for name, value in loaded.named_parameters():
        torch.testing.assert_close(value, average[name], atol=1e-7, rtol=1e-5)

    saving = ModelCheckpoint(tmp_path, filename="half", save_on_train_epoch_end=True)
    half = _trainer(tmp_path, WeightAverage(decay=0.3), saving, max_epochs=1, enable_checkpointing=True)
    half.fit(_module(), _data(tiny_faces))
    saved = read_checkpoint(tmp_path / "half.ckpt")
    same = {key for key, value in saved["current_model_state"].items() if torch.equal(value, saved["state_dict"][key])}
    assert {"discriminator.features.0.filter.weight"} < same and "net.conv_in.0.weight" not in same
    module, again = _module(), Watch()
    rest = _trainer(tmp_path, again, WeightAverage(decay=0.3))
    rest.fit(module, _data(tiny_faces), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert again.steps == [4, 5, 6]
    for ours, uninterrupted in zip(again.generator, watch.generator[3:], strict=True):
        assert all(torch.equal(value, uninterrupted[name]) for name, value in ours.items())
    assert all(torch.equal(value, loaded.get_parameter(name)) for name, value in module.net.named_parameters())


def test_a_generator_that_nobody_has_trained_is_warned_of(tiny_faces: Path, tmp_path: Path) -> None:
    with pytest.warns(
        UserWarning, match="nobody has trained this generator, and its hourglass will not be trained here"
    ):
        _trainer(tmp_path, max_epochs=1).fit(_module(), _data(tiny_faces))


@pytest.mark.parametrize("gan_loss", ["least_squares", "hinge"])
def test_other_games(gan_loss: GANLoss, tiny_faces: Path, tmp_path: Path) -> None:
    module, data = _module(gan_loss=gan_loss, perceptual="none"), _data(tiny_faces)
    trainer = _trainer(tmp_path, max_epochs=1, limit_train_batches=1)
    trainer.fit(module, data)
    old = _module()
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    logits = old.discriminator(old(batch["lr"])[0][-1])
    logged = trainer.callback_metrics
    assert "train/g/perceptual" not in logged
    assert logged["train/g/adversarial"].item() == pytest.approx(generator_loss(gan_loss, logits).item(), rel=1e-4)
    expected = discriminator_loss(gan_loss, logits, real=False).item()
    assert logged["train/d/fake"].item() == pytest.approx(expected, rel=1e-4)


def test_perceptual_network_may_come_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(1)
    hourglass, light_cnn = FeedbackHourglass(16), LightCNN(64)
    torch.save(hourglass.state_dict(), tmp_path / "hourglass.pth")
    torch.save(light_cnn.state_dict(), tmp_path / "lightcnn.pth")
    image = torch.rand(1, 3, 64, 64)
    found = _module(perceptual="hourglass", perceptual_weights=str(tmp_path / "hourglass.pth"))._features[0]
    assert torch.equal(found(image)[1], HourglassFeatures(hourglass)(image)[1])  # type: ignore[misc]
    module = _module(perceptual="lightcnn", perceptual_weights=str(tmp_path / "lightcnn.pth"))
    assert torch.equal(module._features[0](image), light_cnn.features(image))  # type: ignore[misc]
    assert not any("features" in key for key in module.state_dict() if not key.startswith("discriminator."))


def test_impossible_settings_are_refused(tiny_faces: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="adversarial_weight must not be negative, got -1"):
        _module(adversarial_weight=-1.0)
    with pytest.raises(ValueError, match="lightcnn needs perceptual_weights"):
        _module(perceptual="lightcnn")
    with pytest.raises(ValueError, match="perceptual none takes no perceptual_weights, got x"):
        _module(perceptual="none", perceptual_weights="x")
    torch.save(FeedbackHourglass(8).state_dict(), tmp_path / "hourglass.pth")
    with pytest.raises(CheckpointError, match="seems to hold a feedback hourglass; needed is a DIC generator"):
        _module(initial_weights=str(tmp_path / "hourglass.pth"))
    with pytest.raises(ValueError, match=r"trainer\.precision is 16-mixed.*use bf16-mixed"):
        _module().check_trainer(SimpleNamespace(precision="16-mixed"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"decay is 1\.5"):
        WeightAverage(1.5)
    other = FaceLandmarkDataModule(str(tiny_faces), str(tiny_faces), hr_size=128)
    with pytest.raises(ValueError, match=r"discriminator is for images of 64 px, data\.hr_size is 128"):
        _module().check_data(other)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (DDPStrategy(), True),
        (DDPStrategy(find_unused_parameters=False), True),
        (DDPStrategy(static_graph=True), None),
        (SingleDeviceStrategy(), None),
    ],
)
def test_ddp_expects_parameters_without_gradients(strategy: Strategy, expected: bool | None) -> None:
    """Its settings are private in Lightning; whether they still do what they say, test_ddp.py tries."""
    find_unused_parameters(strategy)
    assert getattr(strategy, "_ddp_kwargs", {}).get("find_unused_parameters") == expected
