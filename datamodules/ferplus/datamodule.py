"""FER+ faces, upscaled eightfold, as classifier batches."""

from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader

from datamodules.ferplus.augmentation import Augmentation, FaceAugmentation, augment
from datamodules.ferplus.dataset import Batch, FERPlusDataset
from datamodules.ferplus.reading import FACE_SIZE
from datamodules.ferplus.table import CACHE_FOLDER, FERPlusTable, describe, open_table
from datamodules.labels import CLASSES, LabelMode, Split, argmax_labels
from datamodules.synthetic import is_synthetic
from datamodules.upscaled_cache import FaceCache, UpscaledFaces
from datamodules.upscalers import Interpolation, InterpolationUpscaler, Upscaler
from models.dic import SCALE
from run_state.data_position import ResumableDataModule

UPSCALED_SIZE = FACE_SIZE * SCALE


class FERPlusSplit(NamedTuple):
    """Images of a split that a label mode keeps."""

    names: list[str]
    images: np.ndarray  # uint8 N,48,48
    targets: np.ndarray  # float32 N,8


def load_split(root: str | Path, split: Split, label_mode: LabelMode) -> FERPlusSplit:
    """Return the images of a split that a label mode keeps, in the order of the source.

    Layouts of `root` are in `datamodules.ferplus.table`, label modes in `datamodules.labels`.

    Raises:
        ValueError: The data or an argument is invalid, or no image is kept.
    """
    table = open_table(root)
    rows, targets = _kept(table, split, label_mode)
    return FERPlusSplit(table.names[rows].tolist(), table.images[rows], targets)


def _kept(table: FERPlusTable, split: Split, label_mode: LabelMode) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of a split that a label mode keeps, and their targets, float32 N,8."""
    rows, kept, targets = table.labelled(split, label_mode)
    if not kept.any():
        raise ValueError(f"{table.root}: label_mode {label_mode!r} keeps no image of the split {split!r}")
    return rows[kept], targets[kept]


class FERPlusDataModule(ResumableDataModule):
    """Serve FER+ for training, validation and testing.

    Batches are dictionaries: `image` float32 B,3,S,S in [0, 1]; `target` float32 B,8; `label` int64 B, the emotion with
    the most votes; `index` int64 B, the position in the split's data set. Images leave the loaders as uint8 B,C,S,S and
    are converted on the device.

    Validation uses the majority rule whatever `label_mode` is. Testing serves the images that the majority or the
    argmax rule keeps: `label` is -1 and `target` zero for those that the majority rule drops, `label_argmax` int64 B is
    -1 for those that the argmax rule drops, and `in_train` bool B marks pixel-identical copies of training images.

    Args:
        root: Folder with the data; layouts in `datamodules.ferplus.table`.
        upscaler: `nearest`, `bilinear` or `bicubic`, or an `Upscaler` such as `DICUpscaler`.
        label_mode: How votes become training targets.
        batch_size: Images in a batch over all devices.
        input_size: Side S of the images served, 8 to 384 pixels; below 384 they are reduced with antialiasing.
        early_size: Side of the training images in the first epochs, which are cheaper then (progressive resizing).
        early_epochs: Number of epochs at `early_size`.
        num_workers: Processes that prepare batches, per device.
        augment: Change training images at random.
        augmentation: The random changes: a transform of albumentations, by default `FaceAugmentation`.
        seed: Seed of order, augmentation and drawn labels.
        cache_dir: Where images that are reduced, or upscaled by a generator, are kept; by default beside the data.
        test_split: The split that testing runs on.
    """

    def __init__(
        self,
        root: str,
        upscaler: Interpolation | Upscaler = "bilinear",
        label_mode: LabelMode = "crossentropy",
        batch_size: int = 64,
        input_size: int = UPSCALED_SIZE,
        early_size: int = 64,
        early_epochs: int = 0,
        num_workers: int = 2,
        augment: bool = True,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        cache_dir: str | None = None,
        test_split: Split = "test",
    ) -> None:
        super().__init__()
        for name, value in {"input_size": input_size, "early_size": early_size}.items():
            if not 8 <= value <= UPSCALED_SIZE:
                raise ValueError(f"{name} is {value}, expected 8 to {UPSCALED_SIZE}")
        for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
            if value < least:
                raise ValueError(f"{name} is {value}, expected at least {least}")
        self.root, self.label_mode, self.test_split, self.seed = root, label_mode, test_split, seed
        self.batch_size, self.num_workers = batch_size, num_workers
        self.input_size, self.early_size, self.early_epochs = input_size, early_size, early_epochs
        self.upscaler = InterpolationUpscaler(upscaler) if isinstance(upscaler, str) else upscaler
        self.augmentation = (augmentation or FaceAugmentation()) if augment else None
        self.cache_dir = Path(cache_dir) if cache_dir else Path(root) / CACHE_FOLDER / "upscaled"
        self.synthetic = is_synthetic(root)
        self.datasets: dict[str, FERPlusDataset] = {}
        self._faces: dict[int, FaceCache | UpscaledFaces] = {}

    @cached_property
    def table(self) -> FERPlusTable:
        """The data, parsed once and kept in `root`."""
        return open_table(self.root)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the data: every image, name and vote."""
        return self.table.fingerprint

    @property
    def cache_folder(self) -> Path | None:
        """Where the images are kept that training reads, or None if they are made on the fly."""
        faces = self.faces_of(self.input_size)
        return faces.folder if isinstance(faces, FaceCache) else None

    @cached_property
    def upscaled(self) -> FaceCache | UpscaledFaces:
        """The upscaled image of each row of `table`."""
        faces = UpscaledFaces(self.table.images, self.upscaler)
        return FaceCache(self._cache_folder(), faces, UPSCALED_SIZE) if self.upscaler.cached else faces

    @property
    def _sizes(self) -> set[int]:
        return {self.input_size, self.early_size} if self.early_epochs else {self.input_size}

    def faces_of(self, size: int) -> FaceCache | UpscaledFaces:
        """Return the images of a size that training may read, of each row of `table`."""
        if size not in self._faces:
            folder = self._cache_folder(f"_{size}px")
            self._faces[size] = self.upscaled if size == UPSCALED_SIZE else FaceCache(folder, self.upscaled, size)
        return self._faces[size]

    def _cache_folder(self, suffix: str = "") -> Path:
        return self.cache_dir / f"{self.upscaler.fingerprint()}_{self.fingerprint}{suffix}"

    def check(self, command: str) -> None:
        """Refuse data or an upscaler that `command` (train, test or upscale) could not use."""
        if not getattr(self.upscaler, "name", None):
            kind = type(self.upscaler).__name__
            raise ValueError(f"{kind} has no name, expected the name of the arm in tables and dashboards")
        self.upscaler.fingerprint()  # reads a generator's checkpoint
        if not self.upscaler.cached:  # the cache checks what it is given
            self.upscaled[np.arange(1)]
        if command == "train":
            if self.augmentation is not None:
                for size in self._sizes:
                    augment(self.augmentation, np.zeros((size, size, self.upscaler.channels), np.uint8), 0, 0, 0)
            self.setup("fit")
            self.make_loader(self.datasets["train"], training=True)  # refuses a batch larger than the data
            self.validation_images = len(self.datasets["val"])
        elif command == "test":
            self.setup("test")

    def check_device(self, device: torch.device) -> None:
        """Refuse a device on which the faces would be upscaled wrongly; what is in a cache already was checked."""
        if self.cache_folder is None or not self.cache_folder.is_dir():
            self.upscaler.check_device(device)

    def prepare_data(self) -> None:
        print(describe(self.table, self.label_mode), flush=True)

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.datasets["train"] = self._make_dataset("train", *_kept(self.table, "train", self.label_mode))
        if stage in ("fit", "validate"):
            self.datasets["val"] = self._make_dataset("val", *_kept(self.table, "val", "majority"))
        if stage == "test":
            rows, kept, targets = self.table.labelled(self.test_split, "majority")
            used = kept | (argmax_labels(self.table.votes[rows]) >= 0)
            self.datasets["test"] = self._make_dataset("test", rows[used], targets[used])

    def _make_dataset(self, use: Split, rows: np.ndarray, targets: np.ndarray) -> FERPlusDataset:
        votes, training = self.table.votes[rows], use == "train"
        label = np.where(targets.any(axis=1), votes[:, : len(CLASSES)].argmax(axis=1), -1)
        labels = {"target": targets, "label": label}
        if use == "test":
            labels |= {"label_argmax": argmax_labels(votes), "in_train": self.table.in_train()[rows]}
        return FERPlusDataset(
            self.table.names[rows].tolist(),
            rows,
            labels,
            self.faces_of(self.input_size),
            self.faces_of(self.early_size) if self.early_epochs else self.faces_of(self.input_size),
            early_epochs=self.early_epochs if training else 0,
            augmentation=self.augmentation if training else None,
            draw_label=training and self.label_mode == "probability",
            seed=self.seed,
        )

    def train_dataloader(self) -> DataLoader:
        return self._make_loader("train")

    def val_dataloader(self) -> DataLoader:
        return self._make_loader("val")

    def test_dataloader(self) -> DataLoader:
        return self._make_loader("test")

    def _make_loader(self, use: Split) -> DataLoader:
        # The cache is filled here, not in `setup`: by now the run is on record, and upscaling can take hours.
        dataset = self.datasets[use]
        self._fill(dataset.faces, dataset.rows)
        if dataset.early_epochs:
            self._fill(dataset.early_faces, dataset.rows)
        return self.make_loader(dataset, training=use == "train", collate_fn=dict)  # batches come whole

    def predict_dataloader(self) -> list:
        """Fill the caches of a training with every image; there is nothing to predict."""
        for size in self._sizes:
            self._fill(self.faces_of(size), np.arange(len(self.table.names)))
        return []

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Turn images uint8 B,C,S,S into float32 B,3,S,S in [0, 1], on the device; gray is stored once."""
        levels = batch["image"]
        white = levels.new_full((), 255, dtype=torch.float32)  # by a plain number a GPU would divide inexactly
        return batch | {"image": (levels / white).expand(-1, 3, -1, -1)}

    def _fill(self, faces: FaceCache | UpscaledFaces, rows: np.ndarray) -> None:
        """Make what is kept of these rows, on this process's device."""
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        faces.fill(rows, device, rank, world_size)

    def faces(self, split: Split, names: list[str]) -> np.ndarray:
        """Return the faces of these names as this arm upscales them, before any reduction: uint8 N,C,384,384."""
        rows = {self.table.names[row]: row for row in self.table.rows(split)}
        for name in names:
            if name not in rows:
                raise ValueError(f"{self.root}: the split {split!r} has no image named {name!r}")
        chosen = np.array([rows[name] for name in names])
        self._fill(self.upscaled, chosen)
        return self.upscaled[chosen]
