"""Faces as batches: what workers load, and what the device makes of it."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.faces.augmentation import LandmarkAugmentation
from datamodules.faces.packed import FaceSet
from models.dic import SCALE
from models.heatmaps import HEATMAP_STRIDE, landmarks_to_heatmaps
from models.resampling import resize_bicubic


class FaceDataset(Dataset[dict[str, Tensor]]):
    """Faces of a `FaceSet`, addressed by (epoch, index), with what is drawn for them from these two and the seed.

    Without `augmentation` faces are served as they are. With `still`, for validation, the draws are the same in every
    epoch, and faces stay where they are.
    """

    def __init__(
        self, faces: FaceSet, augmentation: LandmarkAugmentation | None = None, seed: int = 0, still: bool = False
    ) -> None:
        self.faces, self.augmentation, self.seed, self.still = faces, augmentation, seed, still

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        epoch, index = key
        image = self.faces.image(index)
        sample = {
            "hr": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            "landmarks": torch.from_numpy(self.faces.landmarks[index]),
            "index": torch.tensor(index),
        }
        if self.augmentation is not None:
            epoch = 0 if self.still else epoch
            sample |= self.augmentation.draw(self.seed, epoch, index, len(image) // SCALE, self.still)
        return sample


def complete_batch(
    batch: dict[str, Tensor], augmentation: LandmarkAugmentation | None = None, heatmap_sigma: float = 1.0
) -> dict[str, Tensor]:
    """Apply the augmentation drawn for a batch, then add the network's input `lr` and its heatmap target `heatmaps`.

    Shapes are those of `datamodules.faces.datamodule`; `heatmap_sigma` is in heatmap pixels.
    """
    hr, landmarks = batch["hr"], batch["landmarks"]
    drawn = augmentation if "draws" in batch else None
    if drawn:
        hr, landmarks = drawn.change_faces(hr, landmarks, batch["draws"])
    lr = resize_bicubic(hr, hr.shape[-1] // SCALE)
    if drawn:
        lr = drawn.degrade(lr, batch["draws"], batch.get("noise"))
    return {
        "hr": hr,
        "landmarks": landmarks,
        "index": batch["index"],
        "lr": lr.float() / 255,
        "heatmaps": landmarks_to_heatmaps(landmarks / HEATMAP_STRIDE, hr.shape[-1] // HEATMAP_STRIDE, heatmap_sigma),
    }
