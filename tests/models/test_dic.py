"""DIC and its hourglass: equality with the authors' implementation (tests/fixtures/dic_*.npz), and its promises.

The golden arrays are outputs of the published code; float32 noise between machines is below 1e-5. `*_sub` arrays are
exact samples on a coarse grid, `*_q` arrays are whole outputs as int16 with a scale and an offset.
"""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.dic import DIC, RGB_MEAN, attention_maps, denormalise, normalise
from models.hourglass import FeedbackHourglass

FIXTURES = Path(__file__).parents[1] / "fixtures"
TINY = {"num_features": 8, "num_steps": 3, "num_groups": 3, "num_fusion_blocks": 2, "hourglass_features": 16}
EXACT, DENSE = 2e-5, 1e-4  # absolute; the dense arrays are rounded to int16 steps of up to 8e-5


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(FIXTURES / "dic_tiny.npz") as arrays:
        return dict(arrays)


@pytest.fixture
def tiny(golden: dict[str, np.ndarray]) -> DIC:
    net = DIC(**TINY)
    net.load_state_dict({k.removeprefix("state/"): torch.from_numpy(golden[k]) for k in golden if "state/" in k})
    return net


def _error(actual: Tensor, expected: np.ndarray) -> float:
    return float(np.abs(actual.detach().numpy() - expected).max())


def _dense(golden: dict[str, np.ndarray], name: str) -> np.ndarray:
    scale, offset = golden[f"{name}_qscale"]
    return golden[f"{name}_q"] * scale + offset


def _image(seed: int, batch: int = 1, side: int = 16) -> Tensor:
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


# --- equality with the published network -------------------------------------------------------------------------


@torch.no_grad()
def test_every_step_equals_published_at_16(tiny: DIC, golden: dict[str, np.ndarray]) -> None:
    images, heatmaps = tiny(torch.from_numpy(golden["x1"]))
    assert len(images) == len(heatmaps) == 3
    for step in range(3):
        for name, output in (("sr", images[step]), ("hm", heatmaps[step])):
            assert _error(output[:, :, 3::8, 5::8], golden[f"{name}{step}_sub"]) < EXACT
            assert _error(output, _dense(golden, f"{name}{step}")) < DENSE


@torch.no_grad()
def test_last_step_equals_published_at_48(tiny: DIC, golden: dict[str, np.ndarray]) -> None:
    images, heatmaps = tiny(torch.from_numpy(golden["x2"]))
    assert images[-1].shape == (1, 3, 384, 384) and heatmaps[-1].shape == (1, 68, 96, 96)
    assert _error(images[-1][:, :, 3::8, 5::8], golden["x2_sr_sub"]) < EXACT
    assert _error(images[-1][:, :, ::2, ::2], _dense(golden, "x2_sr")) < DENSE
    assert _error(heatmaps[-1].amax(dim=(2, 3)), golden["x2_hm_max"]) < EXACT


def test_losses_and_gradients_equal_published(tiny: DIC, golden: dict[str, np.ndarray]) -> None:
    """Float64 leaves no room for noise. Detached heatmaps, for one, change a norm here seventyfold."""
    net = tiny.double()
    hr = normalise(torch.from_numpy(golden["train_hr_u8"]).double() / 255)
    points = torch.from_numpy(golden["train_pts"]).double()[..., None]  # B,68,2,1 in heatmap pixels
    across, down = torch.exp(-((torch.arange(32) - points) ** 2) / 2).unbind(dim=2)  # B,68,32 each
    targets = down[..., :, None] * across[..., None, :]

    images, heatmaps = net(torch.from_numpy(golden["x1"]).double())
    pixel = sum(F.l1_loss(image, hr) for image in images)
    heatmap = sum(F.mse_loss(step, targets) for step in heatmaps)
    total = pixel + 0.1 * heatmap
    total.backward()

    losses = [pixel.item(), heatmap.item(), total.item()]
    np.testing.assert_allclose(losses, golden["train_dic_loss"], rtol=1e-7)
    norms = [net.get_parameter(name).grad.norm().item() for name in golden["train_grad_names"]]
    np.testing.assert_allclose(norms, golden["train_dic_gradnorm"], rtol=1e-9)


def test_keys_shapes_and_counts_are_the_published_ones() -> None:
    published = json.loads((FIXTURES / "dic_shapes.json").read_text())
    with torch.device("meta"):
        networks = {"DIC": DIC(), "FeedbackHourGlass": FeedbackHourglass()}
    for name, net in networks.items():
        shapes = {key: list(value.shape) for key, value in net.state_dict().items()}
        assert list(shapes.items()) == list(published[name]["state"].items())  # in the same order too
        assert sum(parameter.numel() for parameter in net.parameters()) == published[name]["parameters"]
    assert published["DIC"]["parameters"] == 21_803_849


# --- parts -------------------------------------------------------------------------------------------------------


def test_attention_maps_scale_strong_peaks_and_leave_weak_ones_weak() -> None:
    heatmaps = torch.zeros(1, 68, 4, 4)
    heatmaps[0, 36, 1, 1] = 0.4  # left eye, strong: becomes 1
    heatmaps[0, 41, 1, 1] = 0.2  # left eye again, becomes 1 and is added
    heatmaps[0, 47, 2, 2] = 0.01  # right eye, below the least peak of 0.05: becomes 0.2
    heatmaps[0, 27, 0, 3] = heatmaps[0, 48, 3, 0] = heatmaps[0, 26, 3, 3] = 2.0  # nose, mouth, outline
    expected = torch.zeros(1, 5, 4, 4)
    expected[0, 0, 1, 1], expected[0, 1, 2, 2] = 2.0, 0.2
    expected[0, 2, 0, 3] = expected[0, 3, 3, 0] = expected[0, 4, 3, 3] = 1.0
    torch.testing.assert_close(attention_maps(heatmaps), expected)


def test_normalise_subtracts_the_mean_per_channel_and_back() -> None:
    assert RGB_MEAN == (0.509, 0.424, 0.378)
    normalised = normalise(torch.ones(1, 3, 2, 2))
    torch.testing.assert_close(normalised[0, :, 0, 0], torch.tensor([0.491, 0.576, 0.622]))
    torch.testing.assert_close(denormalise(normalised), torch.ones(1, 3, 2, 2))
    with pytest.raises(TypeError, match="uint8"):
        normalise(torch.ones(1, 3, 2, 2, dtype=torch.uint8))


# --- promises of the interface -----------------------------------------------------------------------------------


@torch.no_grad()
def test_upscale_is_the_last_step_without_the_last_hourglass(tiny: DIC) -> None:
    image = _image(0, batch=2)
    expected = denormalise(tiny(normalise(image))[0][-1])
    assert expected.min() < 0 or expected.max() > 1  # so that clamping is seen
    passes = []
    tiny.HG.register_forward_hook(lambda *_: passes.append(1))
    upscaled = tiny.upscale(image)
    assert torch.equal(upscaled, expected.clamp(0, 1))
    assert len(passes) == TINY["num_steps"] - 1


@torch.no_grad()
def test_calls_leave_no_trace(tiny: DIC) -> None:
    first, other = _image(1), _image(2, batch=2, side=24)
    before = tiny.upscale(first)
    attributes = {name: set(vars(module)) for name, module in tiny.named_modules()}
    tiny(other)
    tiny.upscale(other)
    assert torch.equal(tiny.upscale(first), before)
    assert torch.equal(copy.deepcopy(tiny).upscale(first), before)
    assert {name: set(vars(module)) for name, module in tiny.named_modules()} == attributes
    assert not list(tiny.buffers())


@torch.no_grad()
def test_images_of_a_batch_do_not_see_each_other(tiny: DIC) -> None:
    batch = _image(3, batch=3)
    alone = torch.cat([tiny.upscale(image[None]) for image in batch])
    torch.testing.assert_close(tiny.upscale(batch), alone, atol=EXACT, rtol=0)


@torch.no_grad()
def test_sides_may_differ(tiny: DIC) -> None:
    images, heatmaps = tiny(torch.zeros(1, 3, 8, 24))
    assert images[0].shape == (1, 3, 64, 192) and heatmaps[0].shape == (1, 68, 16, 48)


@torch.no_grad()
def test_memory_format_and_bfloat16_change_little(tiny: DIC) -> None:
    image = _image(4)
    expected = tiny.upscale(image)
    fast = tiny.to(memory_format=torch.channels_last)
    torch.testing.assert_close(fast.upscale(image), expected, atol=EXACT, rtol=0)
    # Without oneDNN, which computes this network wrongly on some processors (test_bfloat16.py).
    with torch.backends.mkldnn.flags(enabled=False), torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = fast.upscale(image)
    assert rounded.dtype == torch.float32  # the sum with the enlarged input stays in full precision
    assert 0 < (rounded - expected).abs().mean() < 0.02


@torch.no_grad()
def test_compiles_as_one_graph(tiny: DIC) -> None:
    image = _image(5)
    compiled = torch.compile(tiny.upscale, fullgraph=True, backend="eager")  # traces only: no C++ compiler needed
    torch.testing.assert_close(compiled(image), tiny.upscale(image), atol=EXACT, rtol=0)


@torch.no_grad()
def test_default_initialisation_is_calm() -> None:
    """The authors' Kaiming initialisation lets heatmaps grow some 300-fold from step to step."""
    torch.manual_seed(0)
    images, heatmaps = DIC(**TINY)(normalise(_image(6)))
    peaks = [step.abs().max() for step in heatmaps]
    assert peaks[0] < 5 and peaks[1] < 10 * peaks[0] and peaks[2] < 10 * peaks[1]
    assert images[-1].abs().max() < 2


@pytest.mark.parametrize("shape", [(1, 3, 12, 16), (1, 3, 16, 20), (1, 3, 0, 16), (1, 1, 16, 16), (3, 16, 16)])
def test_unusable_inputs_are_named(tiny: DIC, shape: tuple[int, ...]) -> None:
    numbers = f"{shape[2]}x{shape[3]}" if shape[1] == 3 else str(shape)
    for method in (tiny, tiny.upscale):
        with pytest.raises(ValueError, match=numbers.replace("(", r"\(").replace(")", r"\)")):
            method(torch.zeros(shape))


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("num_features", 0),
        ("num_steps", 0),
        ("num_groups", -1),
        ("num_fusion_blocks", -1),
        ("num_landmarks", 194),
        ("hourglass_features", 18),
    ],
)
def test_impossible_sizes_are_named(argument: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"{argument.removeprefix('hourglass_')}.* is {value}, expected"):
        DIC(**(TINY | {argument: value}))


def test_config_rebuilds_the_network(tiny: DIC) -> None:
    assert tiny.config == TINY | {"num_landmarks": 68}
    DIC(**tiny.config).load_state_dict(tiny.state_dict())
