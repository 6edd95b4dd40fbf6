"""Tiles of a large image: they fit together without seams, and are of the size that was asked for."""

import pytest
import torch

from models.dic import DIC
from models.tiling import pixels_at_once, tile_side, upscale_in_tiles


class NearestNeighbour(torch.nn.Module):
    """A network that looks no further than a pixel, or returns how many tiles it has seen."""

    def __init__(self, numbers: bool = False) -> None:
        super().__init__()
        self.numbers = numbers
        self.tiles: list[torch.Size] = []

    def upscale(self, image: torch.Tensor) -> torch.Tensor:
        self.tiles.append(image.shape[-2:])
        large = image.repeat_interleave(8, -1).repeat_interleave(8, -2)
        return torch.full_like(large, len(self.tiles) - 1) if self.numbers else large


@pytest.mark.parametrize("size", [(40, 24), (24, 64), (32, 16), (64, 64)])
def test_tiles_fit_together(size: tuple[int, int]) -> None:
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    net = NearestNeighbour()
    large = upscale_in_tiles(net, images, tile=24, overlap=8)  # type: ignore[arg-type]
    assert len(net.tiles) > 1 and all(max(tile) <= 24 for tile in net.tiles)
    torch.testing.assert_close(large, net.upscale(images), atol=1e-6, rtol=0)


def test_one_tile_passes_evenly_into_the_next() -> None:
    large = upscale_in_tiles(NearestNeighbour(numbers=True), torch.zeros(1, 3, 16, 40), tile=24, overlap=8)  # type: ignore[arg-type]
    row = large[0, 0, 64]  # tiles from 0 to 191 and from 128 to 319
    assert torch.equal(row[:128], torch.zeros(128)) and torch.equal(row[192:], torch.ones(128))
    torch.testing.assert_close(row[128:192], (torch.arange(64) + 0.5) / 64)


def test_the_size_of_the_network_decides_what_is_upscaled_at_once() -> None:
    with torch.device("meta"):
        small, published = DIC(16, num_groups=1, hourglass_features=8), DIC(hourglass_features=8)
    assert (pixels_at_once(small), pixels_at_once(published)) == (65_536, 8_192)
    assert [tile_side(pixels) for pixels in (65_536, 8_192, 1)] == [256, 88, 64]
