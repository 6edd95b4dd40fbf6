"""DICGANModule: losses, both updates, schedules and weight averaging in batches, resuming."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, l1_loss, mse_loss

from callbacks.weight_average import WeightAverage
from commands.train import train
from datamodules.faces.datamodule import FaceLandmarkDataModule
from lightning_modules.base import Optimization
from lightning_modules.dicgan import DICGANModule
from models.dic import DIC, normalise
from models.heatmaps import landmarks_to_heatmaps
from models.hourglass import FeedbackHourglass
from models.light_cnn import LightCNN, LightCNNFeatures
from models.losses import HourglassFeatures, dic_losses
from storage.checkpoints import CheckpointError, read_checkpoint
from tests.tiny_runs import config, generator_options, read_csv

GOLDEN = Path(__file__).parents[1] / "fixtures" / "dic_tiny.npz"
SMALL = {"num_features": 4, "num_steps": 2, "num_groups": 1, "num_fusion_blocks": 1, "hourglass_features": 8}
ADAM = Optimization(lr=1e-3, schedule="multistep", milestones=(2, 4))


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
    """Record weights and learning rates of every batch."""

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
    """The authors' GAN stage counts the last step T times: doing so on purpose gives their figures."""
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
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trainer = _trainer(tmp_path, limit_train_batches=1, max_epochs=1)
    trainer.fit(module, data)
    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}

    old = _module()
    old.load_state_dict(before)
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


@pytest.mark.parametrize("perceptual_weight", [0.1, 0.0])
def test_both_learn_the_hourglass_does_not_and_all_is_counted_in_batches(
    perceptual_weight: float, tiny_faces: Path, tmp_path: Path
) -> None:
    """Whether or not the hourglass is also the perceptual network, which is frozen anyway."""
    watch, module = Watch(), _module(perceptual_weight=perceptual_weight)
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
    loaded = DIC.from_checkpoint(tmp_path / "end.ckpt")
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


def test_warns_of_an_untrained_generator(tiny_faces: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"starts untrained, and this stage never trains its hourglass: pass model\."):
        _trainer(tmp_path, max_epochs=1, limit_train_batches=1).fit(_module(), _data(tiny_faces))


class Edges(nn.Module):
    """Features that share no weights with the generator."""

    def forward(self, image: Tensor) -> Tensor:
        return image.diff(dim=-1)


def test_three_batches_equal_a_loop_written_by_hand(tiny_faces: Path, tmp_path: Path) -> None:
    module = _module(perceptual=Edges(), perceptual_weight=0.2, adversarial_weight=0.3)
    net, opponent = copy.deepcopy(module.net), copy.deepcopy(module.discriminator)
    hourglass = _weights(net.HG)
    batches: list[dict[str, Tensor]] = []

    class Collect(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, *_: object) -> None:
            batches.append(batch)

    _trainer(tmp_path, Collect(), max_epochs=1).fit(module, _data(tiny_faces))

    trained = [value for name, value in net.named_parameters() if not name.startswith("HG.")]
    generator, discriminator = torch.optim.Adam(trained, 1e-3), torch.optim.Adam(opponent.parameters(), 1e-3)
    ones, zeros = torch.ones(4, 1), torch.zeros(4, 1)
    for number, batch in enumerate(batches):
        if number == 2:
            generator.param_groups[0]["lr"] = discriminator.param_groups[0]["lr"] = 5e-4
        target = normalise(batch["hr"].float() / 255).contiguous(memory_format=torch.channels_last)
        images, heatmaps = net(normalise(batch["lr"]))
        pixel, heatmap = dic_losses(images, heatmaps, target, batch["heatmaps"])
        edges = l1_loss(images[-1].diff(dim=-1), target.diff(dim=-1))
        fooled = binary_cross_entropy_with_logits(opponent(images[-1]), ones)
        generator.zero_grad()
        (pixel + 0.1 * heatmap + 0.2 * edges + 0.3 * fooled).backward()
        generator.step()
        discriminator.zero_grad()
        real, fake = opponent(target), opponent(images[-1].detach())
        (binary_cross_entropy_with_logits(real, ones) + binary_cross_entropy_with_logits(fake, zeros)).backward()
        discriminator.step()
    assert len(batches) == 3
    for ours, by_hand in ((module.net, net), (module.discriminator, opponent)):
        expected = _weights(by_hand)
        for name, value in _weights(ours).items():
            torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=0)
    assert all(torch.equal(value, hourglass[name]) for name, value in _weights(module.net.HG).items())


def test_perceptual_network_may_be_chosen_or_left_out(tiny_faces: Path, tmp_path: Path) -> None:
    light_cnn = LightCNN(64)
    torch.save(light_cnn.state_dict(), tmp_path / "lightcnn.pth")
    module = _module(perceptual=LightCNNFeatures.from_checkpoint(tmp_path / "lightcnn.pth"))
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(module._features[0](image), light_cnn.features(image))
    assert not any("features" in key for key in module.state_dict() if not key.startswith("discriminator."))
    trainer = _trainer(tmp_path, max_epochs=1, limit_train_batches=1)
    trainer.fit(_module(perceptual_weight=0.0), _data(tiny_faces))
    assert "train/g/perceptual" not in trainer.callback_metrics and "train/g/total" in trainer.callback_metrics


def test_perceptual_network_of_the_command_line_trains_and_resumes(tiny_faces: Path, tmp_path: Path) -> None:
    torch.save(LightCNN(64).state_dict(), tmp_path / "LightCNN_feature.pth")
    features = ["--model.perceptual=models.light_cnn.LightCNNFeatures.from_checkpoint"]
    features += [f"--model.perceptual.path={tmp_path / 'LightCNN_feature.pth'}"]
    options = [*generator_options(tiny_faces, "dicgan"), f"--runs={tmp_path / 'runs'}"]
    run = train([*config("generator/dicgan_small"), *options, *features])
    assert train(["--resume", str(run), "--trainer.max_epochs=2"]) == run
    assert {row["epoch"] for row in read_csv(run / "metrics.csv") if row["val/psnr_y"]} == {"0", "1"}


def test_impossible_settings_are_refused(tiny_faces: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"adversarial_weight is -1\.0, expected 0 or more"):
        _module(adversarial_weight=-1.0)
    torch.save(FeedbackHourglass(8).state_dict(), tmp_path / "hourglass.pth")
    with pytest.raises(CheckpointError, match=r"initial_weights is .*hourglass\.pth.*expected a DIC generator"):
        _module(initial_weights=str(tmp_path / "hourglass.pth"))
    with pytest.raises(ValueError, match=r"decay is 1\.5"):
        WeightAverage(1.5)
    other = FaceLandmarkDataModule(str(tiny_faces), str(tiny_faces), hr_size=128)
    with pytest.raises(ValueError, match=r"discriminator\.size is 64, expected data\.hr_size, 128"):
        _module().check(other, _trainer(tmp_path))


@pytest.mark.parametrize(
    ("setting", "value"), [("precision", "16-mixed"), ("gradient_clip_val", 1.0), ("accumulate_grad_batches", 2)]
)
def test_trainers_that_do_not_fit_are_refused(setting: str, value: Any, tiny_faces: Path) -> None:
    settings = {"precision": "32-true", "gradient_clip_val": None, "accumulate_grad_batches": 1}
    trainer: Any = SimpleNamespace(**settings, max_epochs=1, max_steps=-1, strategy=None)
    module, data = _module(), _data(tiny_faces)
    module.check(data, trainer)
    setattr(trainer, setting, value)
    with pytest.raises(ValueError, match=rf"trainer\.{setting} is {value}, expected"):
        module.check(data, trainer)
