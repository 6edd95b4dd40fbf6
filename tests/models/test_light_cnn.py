"""LightCNN against the published implementation, and its files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from benchmarks.hash_weights import hash_uniform
from models.dic import DIC
from models.light_cnn import LightCNN, LightCNNFeatures
from storage.checkpoints import CheckpointError

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="module")
def net() -> LightCNN:
    """The weights for which the golden values were recorded."""
    net = LightCNN()
    for index, (key, tensor) in enumerate(net.state_dict().items()):
        fan_in = tensor.numel() / tensor.shape[0]
        scale = 0.05 if key.endswith("bias") else 1.4 * (3 / fan_in) ** 0.5
        tensor.copy_(torch.from_numpy(hash_uniform(tensor.numel(), index) * scale).view_as(tensor))
    return net


def test_equals_published(net: LightCNN) -> None:
    golden = np.load(FIXTURES / "lightcnn.npz")
    image = torch.from_numpy(golden["input_base"]).repeat_interleave(4, 2).repeat_interleave(4, 3).requires_grad_()
    logit = net(image)
    np.testing.assert_allclose(logit.detach(), golden["logit"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(net.features(image).detach(), golden["feat"], atol=1e-4, rtol=0)
    (gradient,) = torch.autograd.grad(binary_cross_entropy_with_logits(logit, torch.ones_like(logit)), image)
    np.testing.assert_allclose(gradient[:, :, 1::8, 2::8], golden["grad_x_sub"], atol=1e-4, rtol=0)
    assert gradient.norm().item() == pytest.approx(float(golden["grad_x_norm"]), rel=1e-5)


@pytest.mark.parametrize(("name", "network"), [("LightCNN_D", LightCNN), ("LightCNN_F", LightCNNFeatures)])
def test_keys_and_shapes_are_the_published_ones(name: str, network: type[LightCNNFeatures]) -> None:
    shapes = json.loads((FIXTURES / "dic_shapes.json").read_text())[name]["state"]
    assert {key: list(value.shape) for key, value in network().state_dict().items()} == shapes


def test_other_sizes() -> None:
    assert LightCNN(384)(torch.zeros(1, 3, 384, 384)).shape == (1, 1)
    with pytest.raises(ValueError, match="size is 100, expected a positive multiple of 16"):
        LightCNN(100)


def test_pooling_rounds_sides_up() -> None:
    assert LightCNNFeatures()(torch.zeros(1, 3, 100, 100)).shape == (1, 128, 7, 7)


def test_features_from_files(net: LightCNN, tmp_path: Path) -> None:
    features = {key: value for key, value in net.state_dict().items() if key.startswith("features.")}
    torch.save({"state_dict": {f"module.{key}": value for key, value in features.items()}}, tmp_path / "feature.pth")
    torch.save(net.state_dict(), tmp_path / "discriminator.pth")
    image = torch.rand(1, 3, 32, 32)
    for name in ("feature.pth", "discriminator.pth"):
        loaded = LightCNNFeatures.from_checkpoint(tmp_path / name)
        assert torch.equal(loaded(image), net.features(image)) and not loaded.training
    torch.save(DIC(4, 1, 1, 0, 8).state_dict(), tmp_path / "dic.pth")
    with pytest.raises(CheckpointError, match="seems to hold a DIC generator, expected the features of LightCNN or"):
        LightCNNFeatures.from_checkpoint(tmp_path / "dic.pth")
