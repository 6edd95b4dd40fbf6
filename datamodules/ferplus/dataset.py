"""FER+ faces as batches: upscaled, at the classifier's input size, augmented."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.ferplus.augmentation import Augmentation, augment
from datamodules.upscaled_cache import FaceCache, UpscaledFaces

Batch = dict[str, Tensor]


@dataclass(eq=False)
class FERPlusDataset(Dataset):
    """Chosen rows of a table as batches.

    Indexed by lists of `(epoch, index)`, as the samplers give them, a batch at a time.
    """

    names: list[str]  # N
    rows: np.ndarray  # int64 N, the row of each image in `faces`
    labels: Mapping[str, np.ndarray]  # N each; what batches carry, at least `target`, float32 N,8
    faces: FaceCache | UpscaledFaces  # uint8 C,S,S each
    early_faces: FaceCache | UpscaledFaces  # smaller ones, in the first `early_epochs` epochs
    early_epochs: int
    augmentation: Augmentation | None
    draw_label: bool  # draw each target from the distribution anew (FER+ "probability" mode)
    seed: int  # of everything random

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, keys: list[tuple[int, int]]) -> Batch:
        """Return a batch; its images are uint8 B,C,S,S."""
        indices = np.array([index for _, index in keys])
        faces = self.early_faces if keys[0][0] < self.early_epochs else self.faces
        images = faces[self.rows[indices]]
        if self.augmentation is not None:
            for image, (epoch, index) in zip(images, keys, strict=True):
                changed = augment(self.augmentation, image.transpose(1, 2, 0), self.seed, epoch, index)
                image[:] = changed.transpose(2, 0, 1)
        batch = {name: torch.from_numpy(values[indices]) for name, values in self.labels.items()}
        if self.draw_label:
            batch["target"] = torch.from_numpy(np.stack([self._draw_target(*key) for key in keys]))
        return {"image": torch.from_numpy(images), "index": torch.from_numpy(indices), **batch}

    def _draw_target(self, epoch: int, index: int) -> np.ndarray:
        """Return a class drawn from the distribution of an image, one-hot float32 8."""
        distribution = self.labels["target"][index].astype(np.float64)
        rng = np.random.default_rng((self.seed, epoch, index))
        drawn = rng.choice(len(distribution), p=distribution / distribution.sum())
        return np.eye(len(distribution), dtype=np.float32)[drawn]
