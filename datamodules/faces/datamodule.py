"""Faces with 68 landmarks, for training and validating generators.

A data set is a folder of images (`.jpg`, `.jpeg`, `.png`, `.bmp`), each beside a `.pts` file of the same name
(`datamodules.faces.annotations`), which is packed when it is first used, or a folder that `superfer prepare` has
written. Faces are memory-mapped. Damaged ones are left out, and counted by reason.

Whole batches are augmented on the device that trains, which then makes low-resolution images and heatmaps of them.

Shapes: B batch, H = W high resolution (`hr_size`), h = w = H / 8 low resolution.
Batches: `hr` uint8 B,3,H,H; `landmarks` float32 B,68,2, (x, y) in HR pixels, whole numbers at pixel centres;
`index` int64 B. On the device, `lr` float32 B,3,h,h in [0, 1] and `heatmaps` float32 B,68,H/4,H/4 are added.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.faces.augmentation import LandmarkAugmentation
from datamodules.faces.packed import FaceSet, check_crop, open_faces
from datamodules.faces.splits import hold_out, refuse_shared
from datamodules.synthetic import is_synthetic
from models.dic import SCALE
from models.heatmaps import HEATMAP_STRIDE, landmarks_to_heatmaps
from models.resampling import resize_bicubic
from run_state.data_position import ResumableDataModule


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

    Shapes are those above; `heatmap_sigma` is in heatmap pixels.
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


class FaceLandmarkDataModule(ResumableDataModule):
    """Serve faces with landmarks from a training and a validation folder, or from two parts of one.

    Training and validation never share a photograph (`datamodules.faces.splits.photograph`) or a face's exact pixels:
    that is an error, except with generated faces, whose names are mere numbers.

    Args:
        train_root: folder of the training faces.
        val_root: folder of the validation faces. None: they are held out of `train_root`.
        val_fraction: share of the photographs of `train_root` that is held out, between 0 and 1. Which ones depends on
            their names alone. To be given if and only if `val_root` is None.
        hr_size: side of the high-resolution faces in pixels, a multiple of 64. Prepared faces must have it.
        batch_size: faces per optimiser step over all devices; it must divide evenly among them.
        num_workers: loading processes. Reading a face is a copy from memory, so none are needed; on few cores they
            only compete with the training.
        heatmap_sigma: standard deviation of the target heatmaps' Gaussians, in heatmap pixels (4 HR pixels). 1 as
            published for faces of 128 px; on a face three times as large 3 is as wide, and can be learnt.
        crop_margin: crop side over the larger side of the landmarks' bounding box. Prepared faces must have it.
        min_face_size: training faces whose crop is smaller than this many original pixels are left out.
        val_min_face_size: the same for validation faces.
        augment: change training faces at random.
        augmentation: how; by default half of the faces are mirrored. Gray and degraded inputs are validated as such,
            the same in every epoch: that is what the generator is for.
        seed: of order and changes, functions of (seed, epoch) and (seed, epoch, index).
    """

    train_set: FaceDataset  # from `setup` on, as is `val_set`
    val_set: FaceDataset

    def __init__(
        self,
        train_root: str,
        val_root: str | None = None,
        val_fraction: float | None = None,
        hr_size: int = 128,
        batch_size: int = 8,
        num_workers: int = 0,
        heatmap_sigma: float = 1.0,
        crop_margin: float = 1.3,
        min_face_size: int = 0,
        val_min_face_size: int = 100,
        augment: bool = True,
        augmentation: LandmarkAugmentation | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_crop(hr_size, crop_margin)
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected 1 or more")
        widest = hr_size // HEATMAP_STRIDE
        if not 0 < heatmap_sigma <= widest:
            raise ValueError(f"heatmap_sigma is {heatmap_sigma}, expected more than 0 and at most {widest}")
        if (val_root is None) == (val_fraction is None):
            raise ValueError(f"val_root is {val_root!r} and val_fraction {val_fraction!r}, expected one of them")
        if val_fraction is not None and not 0 < val_fraction < 1:
            raise ValueError(f"val_fraction is {val_fraction}, expected more than 0 and less than 1")
        self.roots = [Path(root) for root in (train_root, val_root) if root is not None]
        self.hr_size, self.crop_margin, self.heatmap_sigma = hr_size, crop_margin, heatmap_sigma
        self.val_fraction, self.min_face_size, self.val_min_face_size = val_fraction, min_face_size, val_min_face_size
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.augmentation = (augmentation or LandmarkAugmentation()) if augment else None
        self.synthetic = any(is_synthetic(root) for root in self.roots)

    def check(self, command: str) -> None:
        """Refuse data that `command` could not use; folders of images are packed for that."""
        if command != "train":
            raise ValueError(f"{command} needs a FERPlusDataModule, got a {type(self).__name__}")
        self.setup("fit")
        self.train_dataloader()  # refuses a batch larger than the data
        self.validation_images = len(self.val_set)

    @property
    def fingerprint(self) -> str:
        """Hash of the cropped faces and landmarks, training and validation; the same for both kinds of folders."""
        self.setup("fit")
        both = self.train_set.faces.fingerprint + self.val_set.faces.fingerprint
        return hashlib.sha256(both.encode()).hexdigest()[:16]

    def prepare_data(self) -> None:
        """Pack folders of images before the other processes of this machine open them."""
        self.setup("fit")

    def setup(self, stage: str) -> None:
        """Open the faces for training and validation, once."""
        if hasattr(self, "train_set"):
            return
        faces = [open_faces(root, self.hr_size, self.crop_margin) for root in self.roots]
        if self.val_fraction is not None:
            held_out = hold_out(faces[0].names, self.val_fraction)
            faces = [faces[0].select(~held_out), faces[0].select(held_out)]
        training = _at_least(self.min_face_size, faces[0], "training")
        validation = _at_least(self.val_min_face_size, faces[1], "validation")
        if not all(is_synthetic(root) for root in self.roots):  # tests and demonstrations do share
            refuse_shared(training, validation)
        degraded = self.augmentation if self.augmentation and self.augmentation.changes_input else None
        self.train_set = FaceDataset(training, self.augmentation, self.seed)
        self.val_set = FaceDataset(validation, degraded, self.seed, still=True)

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self.make_loader(self.train_set, training=True)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self.make_loader(self.val_set, training=False)

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        return complete_batch(batch, self.augmentation, self.heatmap_sigma)


def _at_least(min_face_size: float, faces: FaceSet, purpose: str) -> FaceSet:
    """Return the faces whose crop square has at least this side in original pixels; say how many."""
    used = faces.select(faces.crop_sides >= min_face_size)
    counted = f"{len(used)} faces of at least {min_face_size} px for {purpose}, of {faces.summary}"
    if not len(used):
        raise ValueError(f"{counted}; change the smallest size or val_fraction, or add faces")
    rank_zero_only(print)(counted, flush=True)
    return used
