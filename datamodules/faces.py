"""Faces with 68 landmarks, for training and validating generators.

A data set is a folder of images (`.jpg`, `.jpeg`, `.png`, `.bmp`), each beside a `.pts` file of the same name in the
iBUG format (68 one-based points). Every face is cut out once, as a square around its landmarks, and kept in memory as
an 8-bit array: 870 faces of 128 pixels are 43 MB. Low-resolution images and heatmaps are made from whole batches, on
the device that trains.

Shapes: B batch, H = W high resolution (`hr_size`), h = w = H / 8 low resolution.
Batches: `hr` uint8 B,3,H,H; `landmarks` float32 B,68,2, (x, y) in HR pixels, whole numbers at pixel centres;
`index` int64 B. On the device, `lr` float32 B,3,h,h in [0, 1] and `heatmaps` float32 B,68,H/4,H/4 are added.
"""

import hashlib
from pathlib import Path

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.face_files import FaceSet, load_faces
from datamodules.files import is_synthetic
from datamodules.samplers import EpochSampler
from models.dic import SCALE
from models.heatmaps import FLIP_INDEX, HEATMAP_STRIDE, landmarks_to_heatmaps
from models.resampling import resize_bicubic


class FaceDataset(Dataset[dict[str, Tensor]]):
    """Faces of a `FaceSet`, addressed by (epoch, index); a flip depends on these two and the seed, and nothing else.

    Args:
        faces: what `load_faces` returned.
        flip: mirror half of the faces, another half in each epoch.
        seed: of the coin.
    """

    def __init__(self, faces: FaceSet, flip: bool, seed: int) -> None:
        self.faces = faces
        self.flip = flip
        self.seed = seed

    def __len__(self) -> int:
        return len(self.faces.names)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        epoch, index = key
        image, landmarks = self.faces.images[index], self.faces.landmarks[index]
        if self.flip and np.random.default_rng((self.seed, epoch, index)).random() < 0.5:
            image, landmarks = flip_face(image, landmarks)
        return {
            "hr": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            "landmarks": torch.from_numpy(landmarks),
            "index": torch.tensor(index),
        }


def flip_face(
    image: NDArray[np.uint8], landmarks: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Mirror a face (H,W,3) with its landmarks (68,2); the numpy twin of `models.heatmaps.flip_landmarks`."""
    mirrored = landmarks[list(FLIP_INDEX)]
    mirrored[:, 0] = image.shape[1] - 1 - mirrored[:, 0]
    return image[:, ::-1], mirrored


def add_lr_and_heatmaps(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the network's input (`lr`) and its heatmap target (`heatmaps`) to a batch; see the file's docstring."""
    side = batch["hr"].shape[-1]
    batch["lr"] = resize_bicubic(batch["hr"], side // SCALE).float() / 255
    batch["heatmaps"] = landmarks_to_heatmaps(batch["landmarks"] / HEATMAP_STRIDE, side // HEATMAP_STRIDE)
    return batch


class FaceLandmarkDataModule(L.LightningDataModule):
    """Serves faces with landmarks from a training and a validation folder.

    Args:
        train_root: folder of the training faces.
        val_root: folder of the validation faces; never mirrored, always in the same order.
        hr_size: side of the high-resolution faces in pixels, a multiple of 64 (LR sides have to be multiples of 8).
        batch_size: faces per optimiser step over all devices; it must divide evenly among them.
        num_workers: loading processes. Faces are in memory already, so none are needed; on few cores they only
            compete with the training.
        crop_margin: side of the square crop over the larger side of the landmarks' bounding box.
        min_face_size: training faces whose crop is smaller than this many original pixels are left out.
        val_min_face_size: the same for validation faces.
        flip: mirror training faces at random.
        seed: of order and mirroring, both functions of (seed, epoch) or (seed, epoch, index).

    Raises:
        ValueError: a size is impossible; or, from `setup`, a folder or file is not what it should be.
    """

    def __init__(
        self,
        train_root: str,
        val_root: str,
        hr_size: int = 128,
        batch_size: int = 8,
        num_workers: int = 0,
        crop_margin: float = 1.3,
        min_face_size: int = 0,
        val_min_face_size: int = 100,
        flip: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if hr_size < 64 or hr_size % 64:
            raise ValueError(f"hr_size must be a positive multiple of 64 pixels, got {hr_size}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not crop_margin >= 1:
            raise ValueError(f"crop_margin must be at least 1 (the landmarks' own box), got {crop_margin}")
        self.train_root, self.val_root = train_root, val_root
        self.hr_size, self.crop_margin = hr_size, crop_margin
        self.min_face_size, self.val_min_face_size = min_face_size, val_min_face_size
        self.batch_size, self.num_workers = batch_size, num_workers
        self.flip, self.seed = flip, seed
        self.synthetic = is_synthetic(train_root)
        self.train_set: FaceDataset | None = None
        self.val_set: FaceDataset | None = None

    def check(self, command: str) -> None:
        """Refuse data that `command` could not use: reads all faces for training."""
        if command != "train":
            raise ValueError(f"{command} needs a FERPlusDataModule, got a {type(self).__name__}")
        self.setup("fit")
        self.train_dataloader()  # refuses a batch larger than the data

    @property
    def fingerprint(self) -> str:
        """Hash of the cropped faces and landmarks, training and validation."""
        self.setup("fit")
        digest = hashlib.sha256()
        for dataset in (self.train_set, self.val_set):
            if dataset is not None:
                digest.update(np.ascontiguousarray(dataset.faces.images).tobytes())
                digest.update(np.ascontiguousarray(dataset.faces.landmarks).tobytes())
        return digest.hexdigest()[:16]

    def setup(self, stage: str) -> None:
        """Read and crop the faces that `stage` needs, once."""
        if stage == "fit" and self.train_set is None:
            self.train_set = FaceDataset(self._load(self.train_root, self.min_face_size), self.flip, self.seed)
        if self.val_set is None:
            self.val_set = FaceDataset(self._load(self.val_root, self.val_min_face_size), False, self.seed)

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self._loader(self.train_set, training=True)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self._loader(self.val_set, training=False)

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """The validation faces: this module has no third set."""
        return self.val_dataloader()

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        return add_lr_and_heatmaps(batch)

    def _load(self, root: str, min_face_size: int) -> FaceSet:
        faces = load_faces(Path(root), self.hr_size, self.crop_margin, min_face_size)
        if self.trainer is None or self.trainer.is_global_zero:
            print(faces.summary, flush=True)
        return faces

    def _loader(self, dataset: FaceDataset | None, training: bool) -> DataLoader[dict[str, Tensor]]:
        if dataset is None:
            raise RuntimeError("FaceLandmarkDataModule.setup() has to run before its dataloaders are asked for")
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if self.batch_size % world_size:
            raise ValueError(f"batch_size {self.batch_size} (over all devices) cannot be divided among {world_size}")
        sampler = EpochSampler(
            len(dataset), seed=self.seed, shuffle=training, rank=rank, world_size=world_size, drop_remainder=training
        )
        per_device = self.batch_size // world_size
        if training and len(sampler) < per_device:
            raise ValueError(
                f"batch_size {self.batch_size} is larger than the {len(dataset)} training faces in {self.train_root}"
            )
        return DataLoader(
            dataset,
            batch_size=per_device,
            sampler=sampler,
            drop_last=training,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            generator=torch.Generator(),  # its own, so that nobody else's draws depend on the loader
        )
