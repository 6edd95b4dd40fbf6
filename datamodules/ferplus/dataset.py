"""FER+ faces as batches: upscaled, reduced to the classifier's input size, augmented."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.ferplus.augmentation import FaceAugmentation
from datamodules.upscaled_cache import UpscaledCache
from datamodules.upscalers import Upscaler, upscale_faces
from models.resampling import round_levels

Batch = dict[str, Tensor]

_AT_ONCE = 8  # faces upscaled and reduced together: 2.5 times as fast as 64 on one core


class UpscaledOnTheFly:
    """Upscale faces, uint8 N,48,48, whenever they are asked for; to be indexed like `UpscaledCache`."""

    def __init__(self, images: np.ndarray, upscaler: Upscaler) -> None:
        self.images, self.upscaler = images, upscaler

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Return uint8 n,C,384,384."""
        return upscale_faces(self.upscaler, torch.from_numpy(self.images[rows])[:, None]).numpy()


@dataclass(eq=False)
class FERPlusDataset(Dataset):
    """Chosen rows of a table as batches.

    Indexed by lists of `(epoch, index)`, as the samplers give them, a batch at a time: interpolation and reduction run
    on the whole batch, augmentation image by image.
    """

    names: list[str]  # N
    rows: np.ndarray  # int64 N, the row of each image in `faces`
    labels: Mapping[str, np.ndarray]  # N each; what batches carry, at least `target`, float32 N,8
    faces: UpscaledCache | UpscaledOnTheFly
    size: int  # side of the images served, pixels
    early_size: int  # the same, in the first `early_epochs` epochs
    early_epochs: int
    augmentation: FaceAugmentation | None
    draw_label: bool  # draw each target from the distribution anew (FER+ "probability" mode)
    seed: int  # of everything random

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, keys: list[tuple[int, int]]) -> Batch:
        """Return a batch; its images are uint8 B,C,size,size."""
        indices = np.array([index for _, index in keys])
        size = self.early_size if keys[0][0] < self.early_epochs else self.size
        parts = np.split(self.rows[indices], range(_AT_ONCE, len(keys), _AT_ONCE))
        images = torch.cat([reduce_size(torch.from_numpy(self.faces[part]), size) for part in parts])
        if self.augmentation is not None:
            augmented = [
                self.augmentation(image.permute(1, 2, 0).numpy(), self.seed, epoch, index)
                for image, (epoch, index) in zip(images, keys, strict=True)
            ]
            images = torch.from_numpy(np.stack(augmented)).permute(0, 3, 1, 2)
        batch = {name: torch.from_numpy(values[indices]) for name, values in self.labels.items()}
        if self.draw_label:
            batch["target"] = torch.from_numpy(np.stack([self._draw_target(*key) for key in keys]))
        return {"image": images, "index": torch.from_numpy(indices), **batch}

    def _draw_target(self, epoch: int, index: int) -> np.ndarray:
        """Return a class drawn from the distribution of an image, one-hot float32 8."""
        distribution = self.labels["target"][index].astype(np.float64)
        rng = np.random.default_rng((self.seed, epoch, index))
        drawn = rng.choice(len(distribution), p=distribution / distribution.sum())
        return np.eye(len(distribution), dtype=np.float32)[drawn]


def reduce_size(images: Tensor, size: int) -> Tensor:
    """Reduce uint8 B,C,H,W to uint8 B,C,size,size with an antialiased bilinear (triangle) filter."""
    if images.shape[-1] == size:
        return images
    reduced = F.interpolate(images.float(), size=(size, size), mode="bilinear", align_corners=False, antialias=True)
    return round_levels(reduced)
