"""The classifier's losses, schedule, optimizers and refusals."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lightning_modules.classifier import EmotionClassifier
from lightning_modules.optimization import warmup_then
from models.losses import multi_target_loss, soft_cross_entropy


def soft_targets(rows: int) -> torch.Tensor:
    return torch.rand(rows, 8, generator=torch.Generator().manual_seed(1)).softmax(dim=1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_soft_cross_entropy_is_pytorchs(smoothing: float, weighted: bool) -> None:
    logits, targets = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)), soft_targets(5)
    weight = torch.linspace(0.5, 2, 8) if weighted else None
    expected = F.cross_entropy(logits, targets, weight=weight, label_smoothing=smoothing)
    torch.testing.assert_close(soft_cross_entropy(logits, targets, weight, smoothing), expected)
    torch.testing.assert_close(
        soft_cross_entropy(logits, 10 * targets, weight, smoothing), expected
    )  # votes, not shares


def test_multi_target_loss_takes_the_best_accepted_class() -> None:
    # Probabilities 0.6, 0.3 and 0.1 (the other five: none); the second and third class are accepted.
    probabilities = torch.tensor([[0.6, 0.3, 0.1] + [1e-9] * 5])
    targets = torch.tensor([[0.001, 1.0, 1.0] + [0.001] * 5])
    assert multi_target_loss(probabilities.log(), targets).item() == pytest.approx(-math.log(0.3), abs=1e-5)
    # An unaccepted class with nearly all of the probability counts a thousandth.
    probabilities = torch.tensor([[1 - 1e-6, 1e-6] + [1e-9] * 6])
    targets = torch.tensor([[0.001, 1.0] + [0.001] * 6])
    assert multi_target_loss(probabilities.log(), targets).item() == pytest.approx(-math.log(0.001), abs=1e-4)


@pytest.mark.parametrize(
    ("schedule", "done", "factor"),
    [
        ("cosine", 0.0, 0.001 / 0.101),
        ("cosine", 0.05, 0.051 / 0.101),
        ("cosine", 0.1, 1.0),
        ("cosine", 0.55, 0.5),
        ("cosine", 0.775, 0.5 * (1 + math.cos(0.75 * math.pi))),
        ("cosine", 1.0, 0.0),
        ("step", 0.05, 0.051 / 0.101),
        ("step", 0.49, 1.0),
        ("step", 0.5, 0.1),
        ("step", 0.75, 0.01),
        ("step", 1.0, 0.01),
    ],
)
def test_schedule(schedule: Any, done: float, factor: float) -> None:
    assert warmup_then(schedule, 0.1, (0.5, 0.75), done) == pytest.approx(factor, abs=1e-12)


def test_learning_rate_of_every_step() -> None:
    module = EmotionClassifier(learning_rate=0.2, warmup=0.0, weights="none")
    module._trainer = SimpleNamespace(estimated_stepping_batches=4)  # type: ignore[assignment]
    configured: Any = module.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    assert configured["lr_scheduler"]["interval"] == "step"
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.2 * 0.5 * (1 + math.cos(math.pi * step / 4)) for step in range(5)], abs=1e-12)


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_weight_decay_spares_biases_and_normalisation(name: Any, kind: type) -> None:
    module = EmotionClassifier(optimizer=name, learning_rate=0.01, weight_decay=0.3)
    module._trainer = SimpleNamespace(estimated_stepping_batches=4)  # type: ignore[assignment]
    optimizer = module.configure_optimizers()["optimizer"]  # type: ignore[index, call-overload]
    assert type(optimizer) is kind
    decayed, others = optimizer.param_groups
    assert decayed["weight_decay"] == 0.3 and others["weight_decay"] == 0
    assert {p.ndim for p in decayed["params"]} == {2, 4} and {p.ndim for p in others["params"]} == {1}
    assert len(decayed["params"]) + len(others["params"]) == len(list(module.parameters()))
    if kind is torch.optim.SGD:
        assert decayed["nesterov"] and decayed["momentum"] == 0.9


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


def test_class_weights_are_inverse_frequencies_with_mean_one() -> None:
    counts = np.array([10, 20, 5, 5, 40, 10, 5, 5], dtype=np.float64)
    module = EmotionClassifier(class_weighting=True)
    module._trainer = SimpleNamespace(datamodule=SimpleNamespace(class_counts=lambda: counts))  # type: ignore[assignment]
    module.on_fit_start()
    torch.testing.assert_close(module.class_weight, torch.tensor([1.25, 0.625, 2.5, 2.5, 0.3125, 1.25, 2.5, 2.5]))
    assert float((module.class_weight * torch.from_numpy(counts)).sum() / counts.sum()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"warmup": 1.0}, "warmup is 1.0"),
        ({"loss": "multi_target"}, "takes no label_smoothing"),
    ],
)
def test_impossible_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EmotionClassifier(**arguments)


def data(label_mode: str = "crossentropy", channels: int = 1) -> Any:
    return SimpleNamespace(label_mode=label_mode, upscaler=SimpleNamespace(channels=channels))


def test_data_that_do_not_fit_are_refused() -> None:
    module = EmotionClassifier()
    module.check_data(data())
    module.check_data(data("probability"))
    with pytest.raises(ValueError, match=r"label_mode is 'multi_target' and model\.loss is 'crossentropy'"):
        module.check_data(data("multi_target"))
    with pytest.raises(ValueError, match=r"label_mode is 'majority' and model\.loss is 'multi_target'"):
        EmotionClassifier(loss="multi_target", label_smoothing=0).check_data(data("majority"))
    with pytest.raises(ValueError, match=r"model\.in_channels is 1"):
        module.check_data(data(channels=3))
    EmotionClassifier(in_channels=3).check_data(data(channels=3))
    with pytest.raises(ValueError, match="needs a FERPlusDataModule, got a SimpleNamespace"):
        module.check_data(SimpleNamespace())  # type: ignore[arg-type]


def test_a_handful_of_images_is_learnt() -> None:
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


def test_mirror_judges_image_and_mirror_image_alike() -> None:
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
