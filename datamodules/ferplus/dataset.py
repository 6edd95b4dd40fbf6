"""FER+ faces as batches: upscaled, reduced to the classifier's input size, augmented."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.ferplus.augmentation import FaceAugmentation
from datamodules.upscaled_cache import UpscaledCache
from datamodules.upscalers import Upscaler
from models.resampling import round_levels

Batch = dict[str, Tensor]

_AT_ONCE = 8  # faces upscaled and reduced together: 2.5 times as fast as 64 on one core


class UpscaledOnTheFly:
    """Upscale faces whenever they are asked for; to be indexed like `UpscaledCache`.

    Args:
        images: uint8 N,48,48.
        upscaler: What upscales them.
    """

    def __init__(self, images: np.ndarray, upscaler: Upscaler) -> None:
        self.images, self.upscaler = images, upscaler

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Return uint8 n,C,384,384."""
        return self.upscaler(torch.from_numpy(self.images[rows])[:, None]).numpy()


class FERPlusDataset(Dataset):
    """Chosen rows of a table as batches.

    Indexed by lists of `(epoch, index)`, as the samplers give them, a batch at a time: interpolation and reduction run
    on the whole batch, augmentation image by image.

    Args:
        names: N names of images.
        rows: int64 N, the row of each image in `faces`.
        labels: Arrays of N that batches carry beside `image` and `index`: at least `target`, float32 N,8.
        faces: The upscaled images.
        input_size: Side of the images served, pixels.
        augmentation: Random changes, or None.
        draw_label: Draw each target from the distribution anew (FER+ "probability" mode).
        seed: Seed of everything random.
        early_size: Side of the images in the first epochs.
        early_epochs: Number of these epochs.
    """

    def __init__(
        self,
        names: list[str],
        rows: np.ndarray,
        labels: Mapping[str, np.ndarray],
        faces: UpscaledCache | UpscaledOnTheFly,
        input_size: int,
        augmentation: FaceAugmentation | None = None,
        draw_label: bool = False,
        seed: int = 0,
        early_size: int = 64,
        early_epochs: int = 0,
    ) -> None:
        self.names, self.rows, self.labels, self.faces, self.input_size = names, rows, labels, faces, input_size
        self.augmentation, self.draw_label, self.seed = augmentation, draw_label, seed
        self.early_size, self.early_epochs = early_size, early_epochs

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, keys: list[tuple[int, int]]) -> Batch:
        """Return a batch; its images are uint8 B,C,size,size."""
        indices = np.array([index for _, index in keys])
        size = self.early_size if keys[0][0] < self.early_epochs else self.input_size
        images = self._images(self.rows[indices], size)
        if self.augmentation is not None:
            augmented = [
                self.augmentation(image.permute(1, 2, 0).numpy(), self.seed, epoch, index)
                for image, (epoch, index) in zip(images, keys, strict=True)
            ]
            images = torch.from_numpy(np.stack(augmented)).permute(0, 3, 1, 2)
        batch = {name: torch.from_numpy(values[indices]) for name, values in self.labels.items()}
        if self.draw_label:
            batch["target"] = torch.from_numpy(np.stack([self._drawn(*key) for key in keys]))
        return {"image": images, "index": torch.from_numpy(indices), **batch}

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        return {name: value[0] for name, value in self.__getitems__([key]).items()}

    def _images(self, rows: np.ndarray, size: int) -> Tensor:
        """Return upscaled and reduced faces, uint8 n,C,size,size; a few at a time fit into the processor's cache."""
        parts = [rows[start : start + _AT_ONCE] for start in range(0, len(rows), _AT_ONCE)]
        return torch.cat([reduce_size(torch.from_numpy(self.faces[part]), size) for part in parts])

    def _drawn(self, epoch: int, index: int) -> np.ndarray:
        """Return a class drawn from the distribution of an image, one-hot float32 8."""
        distribution = self.labels["target"][index].astype(np.float64)
        drawn = np.random.default_rng((self.seed, epoch, index)).choice(
            len(distribution), p=distribution / distribution.sum()
        )
        return np.eye(len(distribution), dtype=np.float32)[drawn]


def keep_batch(batch: Any) -> Batch:
    """Collate nothing: the data set gives whole batches."""
    return batch


def reduce_size(images: Tensor, size: int) -> Tensor:
    """Reduce uint8 B,C,H,W to uint8 B,C,size,size with an antialiased bilinear (triangle) filter."""
    if images.shape[-1] == size:
        return images
    return round_levels(
        F.interpolate(images.float(), size=(size, size), mode="bilinear", align_corners=False, antialias=True)
    )
