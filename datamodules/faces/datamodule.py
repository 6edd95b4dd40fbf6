"""Faces with 68 landmarks, for training and validating generators.

A data set is a folder of either kind:

- images (`.jpg`, `.jpeg`, `.png`, `.bmp`), each beside a `.pts` file of the same name in the iBUG format (68 one-based
  points). Every face is cut out once, as a square around its landmarks, and kept in memory as an 8-bit array: 870
  faces of 128 pixels are 43 MB. A damaged file is an error.
- faces that `prepare.py` has cut out: they stay on disk, memory-mapped, however many there are.

Low-resolution images and heatmaps are made from whole batches, on the device that trains, and so are the random changes
of `datamodules.faces.augmentation`.

Shapes: B batch, H = W high resolution (`hr_size`), h = w = H / 8 low resolution.
Batches: `hr` uint8 B,3,H,H; `landmarks` float32 B,68,2, (x, y) in HR pixels, whole numbers at pixel centres;
`index` int64 B. On the device, `lr` float32 B,3,h,h in [0, 1] and `heatmaps` float32 B,68,H/4,H/4 are added.
"""

import hashlib
from pathlib import Path

from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.faces.augmentation import LandmarkAugmentation
from datamodules.faces.batches import FaceDataset, complete_batch
from datamodules.faces.packed import check_crop, is_prepared, open_faces
from datamodules.faces.sets import FaceSet, hold_out, load_faces, refuse_shared
from datamodules.synthetic import is_synthetic
from models.heatmaps import HEATMAP_STRIDE
from run_state.data_position import ResumableDataModule


class FaceLandmarkDataModule(ResumableDataModule):
    """Serves faces with landmarks from a training and a validation folder, or from two parts of one.

    Training and validation never share a photograph (`datamodules.faces.sets.photograph`) or a face's exact pixels:
    that is an error, except with generated faces, whose names are mere numbers.

    Args:
        train_root: folder of the training faces: images with `.pts`, or prepared by `prepare.py`.
        val_root: folder of the validation faces, of either kind; never moved, always in the same order. None: they
            are held out of `train_root`.
        val_fraction: share of the photographs of `train_root` that is held out, between 0 and 1. Which ones depends on
            their names alone. To be given if and only if `val_root` is None.
        hr_size: side of the high-resolution faces in pixels, a multiple of 64 (LR sides have to be multiples of 8).
            Prepared faces must have it.
        batch_size: faces per optimiser step over all devices; it must divide evenly among them.
        num_workers: loading processes. Reading a face is a copy from memory, so none are needed; on few cores they
            only compete with the training.
        heatmap_sigma: standard deviation of the Gaussians in the heatmaps that are to be found, in heatmap pixels (4 HR
            pixels). 1 as published for faces of 128 px; on a face three times as large 3 is as wide, and can be learnt.
        crop_margin: side of the square crop over the larger side of the landmarks' bounding box. Prepared faces must
            have been cut out with it.
        min_face_size: training faces whose crop is smaller than this many original pixels are left out.
        val_min_face_size: the same for validation faces.
        augment: random changes of training faces.
        augmentation: what they are; by default the mirror image of half of the faces. Gray and degraded inputs are
            validated as such, the same in every epoch: that is what the generator is for.
        seed: of order and changes, functions of (seed, epoch) and (seed, epoch, index).

    Raises:
        ValueError: a size is impossible; or, from `setup`, a folder or file is not what it should be.
    """

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
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 < heatmap_sigma <= hr_size / HEATMAP_STRIDE:
            raise ValueError(
                f"heatmap_sigma is {heatmap_sigma}, needed is more than 0 and at most {hr_size // HEATMAP_STRIDE}"
            )
        if (val_root is None) == (val_fraction is None):
            raise ValueError(f"give either val_root or val_fraction, got {val_root!r} and {val_fraction!r}")
        if val_fraction is not None and not 0 < val_fraction < 1:
            raise ValueError(f"val_fraction must lie between 0 and 1, got {val_fraction}")
        self.train_root, self.val_root, self.val_fraction = train_root, val_root, val_fraction
        self.hr_size, self.crop_margin, self.heatmap_sigma = hr_size, crop_margin, heatmap_sigma
        self.min_face_size, self.val_min_face_size = min_face_size, val_min_face_size
        self.batch_size, self.num_workers = batch_size, num_workers
        self.augmentation = (augmentation or LandmarkAugmentation()) if augment else None
        self.seed = seed
        roots = (train_root,) if val_root is None else (train_root, val_root)
        self.synthetic = any(is_synthetic(root) for root in roots)
        self._may_share = all(is_synthetic(root) for root in roots)  # tests and demonstrations do
        self.train_set: FaceDataset | None = None
        self.val_set: FaceDataset | None = None

    def check(self, command: str) -> None:
        """Refuse data that `command` could not use: reads all faces for training."""
        if command != "train":
            raise ValueError(f"{command} needs a FERPlusDataModule, got a {type(self).__name__}")
        self.setup("fit")
        self.train_dataloader()  # refuses a batch larger than the data
        self.validation_images = len(self.val_set) if self.val_set else 0

    @property
    def fingerprint(self) -> str:
        """Hash of the cropped faces and landmarks, training and validation; the same for raw and prepared folders."""
        self.setup("fit")
        parts = [dataset.faces.fingerprint for dataset in (self.train_set, self.val_set) if dataset is not None]
        return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]

    def setup(self, stage: str) -> None:
        """Read or open the faces that `stage` needs, once."""
        if self.val_set is not None and (self.train_set is not None or stage != "fit"):
            return
        if self.val_fraction is not None:
            training, validation = self._split(self.val_fraction)
            self._serve(validation, training)
        elif self.val_root is not None:
            validation = self.val_set.faces if self.val_set else self._load(self.val_root, self.val_min_face_size)
            self._serve(validation, self._load(self.train_root, self.min_face_size) if stage == "fit" else None)

    def _serve(self, validation: FaceSet, training: FaceSet | None) -> None:
        if training is not None:
            if not self._may_share:
                refuse_shared(training, validation)
            self.train_set = FaceDataset(training, self.augmentation, self.seed)
        degraded = self.augmentation if self.augmentation and self.augmentation.changes_input else None
        self.val_set = FaceDataset(validation, degraded, self.seed, still=True)

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self._loader(self.train_set, training=True)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self._loader(self.val_set, training=False)

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """The validation faces: this module has no third set."""
        return self.val_dataloader()

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        return complete_batch(batch, self.augmentation, self.heatmap_sigma)

    def _load(self, root: str, min_face_size: int) -> FaceSet:
        """The faces of a folder of either kind."""
        if is_prepared(Path(root)):
            faces = open_faces(Path(root), self.hr_size, self.crop_margin).at_least(min_face_size)
        else:
            faces = load_faces(Path(root), self.hr_size, self.crop_margin, min_face_size)
        self._say(faces.summary)
        return faces

    def _split(self, fraction: float) -> tuple[FaceSet, FaceSet]:
        """Training and validation faces out of one folder."""
        faces = self._load(self.train_root, min(self.min_face_size, self.val_min_face_size))
        held_out = hold_out(faces.names, fraction)
        trained = ~held_out & (faces.crop_sides >= self.min_face_size)
        validated = held_out & (faces.crop_sides >= self.val_min_face_size)
        if not trained.any() or not validated.any():
            raise ValueError(
                f"val_fraction {fraction} of {self.train_root} leaves {trained.sum()} faces for training and"
                f" {validated.sum()} for validation; change it, or give val_root"
            )
        self._say(f"{self.train_root}: {trained.sum()} faces for training, {validated.sum()} for validation")
        return faces.select(trained, ""), faces.select(validated, "")

    def _say(self, summary: str) -> None:
        if self.trainer is None or self.trainer.is_global_zero:
            print(summary, flush=True)

    def _loader(self, dataset: FaceDataset | None, training: bool) -> DataLoader[dict[str, Tensor]]:
        if dataset is None:
            raise RuntimeError("FaceLandmarkDataModule.setup() has to run before its dataloaders are asked for")
        return self.make_loader(dataset, training=training)
