"""Upscaled images: what does not fit the memory of a GPU, and the picture of the landmarks."""

from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.image_folder import SourceImage, UpscaleTask
from datamodules.upscaled_images import HEAT_COLOUR, HEAT_OPACITY, LANDMARK_COLOUR, draw_landmarks, upscale_batch
from datamodules.upscalers import DICUpscaler
from models.dic import DIC
from tests.tiny_runs import NETWORK


class SmallMemory(DIC):
    """A generator on a device that holds `most` pixels."""

    def __init__(self, most: int, error: Exception) -> None:
        super().__init__(**NETWORK)
        self.most, self.error = most, error
        self.passes: list[tuple[int, ...]] = []

    def upscale(self, image: torch.Tensor) -> torch.Tensor:
        self.passes.append((len(image), *image.shape[2:]))
        if image[:, 0].numel() > self.most:
            raise self.error
        return super().upscale(image)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
@pytest.mark.parametrize(
    ("most", "passes", "skipped"),
    [
        (64 * 64, [(2, 64, 72), *[(1, 64, 72), *[(1, 64, 64)] * 2] * 2], 0),
        (64 * 72, [(2, 64, 72), (1, 64, 72), (1, 64, 72)], 0),
        (0, [(2, 64, 72), *[(1, 64, 72), (1, 64, 64)] * 2], 2),
    ],
)
def test_what_does_not_fit_the_memory_goes_alone_or_in_tiles_or_is_skipped(
    most: int, passes: list[tuple[int, ...]], skipped: int, error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    upscaler = DICUpscaler("never read")
    upscaler.network = net = SmallMemory(most, error)
    rgb = np.random.default_rng(0).integers(0, 256, (64, 65, 3), dtype=np.uint8)
    images = [SourceImage(UpscaleTask(Path(name), ()), "", rgb, False, None) for name in "ab"]
    results = upscale_batch(upscaler, images, False, 4 * 64 * 64)
    assert net.passes == passes
    assert [image.task.source.name for image, _ in results] == [*"ab"][skipped:]
    assert all([picture.size for picture in pictures] == [(520, 512)] for _, pictures in results)
    skips = capsys.readouterr().err.splitlines()
    assert skips == [f"skipped: {name}: too large for the memory" for name in "ab"][:skipped]


def test_heatmap_pixels_lie_on_every_fourth_pixel_of_the_face() -> None:
    heat = torch.zeros(4, 4)
    heat[1, 2] = 1
    landmarks = torch.zeros(68, 2)
    shown = np.asarray(draw_landmarks(torch.full((1, 16, 16), 100, dtype=torch.uint8), heat, landmarks)).astype(int)
    strength = (shown[..., 0] - 100) / (HEAT_OPACITY * (HEAT_COLOUR[0] - 100))
    strength[0, 0] = 0  # the landmark
    assert np.unravel_index(strength.argmax(), strength.shape) == (4, 8)
    assert strength[4, 8] == pytest.approx(1, abs=0.02) and strength[4, 6] == pytest.approx(0.5, abs=0.02)
    assert strength[4, 10] == pytest.approx(0.5, abs=0.02) and strength[6, 8] == pytest.approx(0.5, abs=0.02)
    assert tuple(shown[0, 0]) == LANDMARK_COLOUR
