"""EmotionClassifier: what it logs in training and validation, mixup, mirror, and refusals."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from datamodules.labels import CLASSES
from lightning_modules.base import Optimization
from lightning_modules.classifier import EmotionClassifier
from metrics.classification import classification_report
from models.losses import multi_target_loss

TRAINER: Any = SimpleNamespace(max_epochs=1, max_steps=-1)


class Pixels(nn.Module):
    """Return the first pixels as logits, so that predictions are known and spread out."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, 1))

    def forward(self, image: Tensor) -> Tensor:
        return 6 * self.scale * image[:, 0, 0, :8]


def _module(**settings: Any) -> EmotionClassifier:
    module = EmotionClassifier(optimizer=Optimization(lr=1e-12), **settings)
    module.net = Pixels()
    return module


def _faces(count: int = 50, multi_target: bool = False) -> dict[str, Tensor]:
    """A batch of images of 1 x 9 pixels, soft or multi-target labels, and majority labels."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(count, 1, 1, 9, generator=generator).expand(-1, 3, -1, -1)
    target = (3 * torch.rand(count, 8, generator=generator)).softmax(dim=1)
    if multi_target:
        target = (target > target.mean(dim=1, keepdim=True)).float().clamp(min=0.001)
    label = torch.where(torch.rand(count, generator=generator) < 0.5, target.argmax(1), image[:, 0, 0, :8].argmax(1))
    return {"image": image, "target": target, "label": label, "index": torch.arange(count)}


def _loader(faces: dict[str, Tensor]) -> DataLoader[Any]:
    """Batches of unequal size: a mean of batch means would be another number."""
    rows = [{name: values[row] for name, values in faces.items()} for row in range(len(faces["label"]))]
    return DataLoader(rows, batch_size=32)  # type: ignore[arg-type]


def _trainer(folder: Path) -> L.Trainer:
    quiet: Any = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(
        accelerator="cpu", max_epochs=1, enable_checkpointing=False, default_root_dir=folder, barebones=False, **quiet
    )


@pytest.mark.parametrize("loss", ["crossentropy", "multi_target"])
def test_training_logs_its_loss_and_accuracy(loss: Any, tmp_path: Path) -> None:
    faces = _faces(multi_target=loss == "multi_target")
    module = _module(loss=loss, label_smoothing=0.2 if loss == "crossentropy" else 0.0)
    trainer = _trainer(tmp_path)
    trainer.fit(module, _loader(faces))
    logits, target = 6 * faces["image"][:, 0, 0, :8], faces["target"]
    expected = multi_target_loss(logits, target)
    if loss == "crossentropy":
        expected = F.cross_entropy(logits, target, label_smoothing=0.2)
    right = (logits.argmax(dim=1) == target.argmax(dim=1)).float().mean().item()
    assert 0 < right < 1
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert trainer.callback_metrics["train/acc"].item() == pytest.approx(right)


@pytest.mark.parametrize("mirror", [False, True])
def test_validation_logs_what_a_test_of_the_same_images_reports(mirror: bool, tmp_path: Path) -> None:
    faces, module = _faces(200), _module(mirror=mirror)
    logged = _trainer(tmp_path).validate(module, _loader(faces), verbose=False)[0]
    with torch.no_grad():
        report = classification_report(module.test_step(faces, 0)["probability"], faces["label"], CLASSES)
    expected = {f"val/{name}": report[name] for name in ("acc", "macro_f1", "ece", "loss")}
    expected |= {f"val/recall_{name}": report["recall"][name] for name in CLASSES}
    assert len(set(report["recall"].values())) > 4 and expected["val/ece"] > 0.01
    assert logged == pytest.approx(expected, rel=1e-4)


def test_mixup_mixes_images_and_targets_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    module = EmotionClassifier(mixup=1.0)
    seen: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(module, "forward", lambda image: seen.setdefault("image", image)[:, 0, 0, :8])
    monkeypatch.setattr(module, "_loss", lambda logits, target: seen.setdefault("target", target).sum())
    values = torch.linspace(0, 1, 16)
    target = torch.zeros(16, 8)
    target[:, 0], target[:, 1] = values, 1 - values
    torch.manual_seed(3)
    module.training_step({"image": values.view(-1, 1, 1, 1).expand(-1, 3, 8, 8).clone(), "target": target}, 0)
    mixed = seen["image"][:, 0, 0, 0]
    assert not torch.allclose(mixed, values), "nothing was mixed"
    torch.testing.assert_close(seen["target"][:, 0], mixed)
    torch.testing.assert_close(seen["target"].sum(dim=1), torch.ones(16))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label_smoothing": 1.0}, r"label_smoothing is 1\.0, expected 0 to 0\.9"),
        ({"mixup": -1.0}, r"mixup is -1\.0, expected 0 to 100"),
        ({"loss": "multi_target"}, "loss is multi_target, expected label_smoothing 0 and mixup 0"),
    ],
)
def test_impossible_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EmotionClassifier(**arguments)


def data(label_mode: str = "crossentropy", channels: int = 1) -> Any:
    return SimpleNamespace(label_mode=label_mode, upscaler=SimpleNamespace(channels=channels))


def test_data_that_does_not_fit_is_refused() -> None:
    module = EmotionClassifier()
    module.check(data(), TRAINER)
    module.check(data("probability"), TRAINER)
    with pytest.raises(ValueError, match=r"label_mode is 'multi_target' and model\.loss is 'crossentropy'"):
        module.check(data("multi_target"), TRAINER)
    with pytest.raises(ValueError, match=r"label_mode is 'majority' and model\.loss is 'multi_target'"):
        EmotionClassifier(loss="multi_target", label_smoothing=0).check(data("majority"), TRAINER)
    with pytest.raises(ValueError, match=r"model\.in_channels is 1, expected 3"):
        module.check(data(channels=3), TRAINER)
    EmotionClassifier(in_channels=3).check(data(channels=3), TRAINER)
    with pytest.raises(ValueError, match="data is a SimpleNamespace, expected a FERPlusDataModule"):
        module.check(SimpleNamespace(), TRAINER)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"trainer\.max_epochs and trainer\.max_steps are -1"):
        module.check(data(), SimpleNamespace(max_epochs=-1, max_steps=-1))  # type: ignore[arg-type]


def test_a_few_images_are_learnt() -> None:
    torch.manual_seed(0)
    module = EmotionClassifier(label_smoothing=0.0)
    batch = {"image": torch.rand(8, 3, 32, 32), "target": torch.eye(8)}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for step in range(12):
        loss = module.training_step(batch, step)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] == pytest.approx(math.log(8), abs=0.8), "an untrained network guesses"
    assert losses[-1] < 0.2 * losses[0]


def test_gray_input_takes_one_channel() -> None:
    image = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)).expand(-1, 3, -1, -1)
    module = EmotionClassifier(in_channels=1).eval()
    other = image.clone()
    other[:, 1:] = 0
    with torch.no_grad():
        assert torch.equal(module(image), module(other)) and module(image).shape == (2, 8)


def test_mirror_averages_image_and_mirror_image() -> None:
    torch.manual_seed(0)
    plain, mirrored = EmotionClassifier(mirror=False).eval(), EmotionClassifier(mirror=True).eval()
    mirrored.load_state_dict(plain.state_dict())
    image = torch.rand(3, 3, 32, 32)
    batch = {"image": image, "index": torch.arange(3)}
    with torch.no_grad():
        sides = [plain(view).softmax(dim=1) for view in (image, image.flip(-1))]
        assert torch.equal(plain.test_step(batch, 0)["probability"], sides[0])
        torch.testing.assert_close(mirrored.test_step(batch, 0)["probability"], (sides[0] + sides[1]) / 2)
        assert not torch.allclose(sides[0], sides[1], atol=1e-4)
