"""FER+ faces, upscaled eightfold, as classifier batches."""

from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader

from datamodules.ferplus.augmentation import FaceAugmentation
from datamodules.ferplus.dataset import Batch, FERPlusDataset, UpscaledOnTheFly, keep_batch
from datamodules.ferplus.reading import FACE_SIZE
from datamodules.ferplus.table import CACHE_FOLDER, FERPlusTable, describe, open_table
from datamodules.labels import CLASSES, LabelMode, Split, argmax_labels
from datamodules.synthetic import is_synthetic
from datamodules.upscaled_cache import UpscaledCache
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
    """Load one split of FER+.

    Args:
        root: Folder with the data; layouts in `datamodules.ferplus.table`.
        split: Which part.
        label_mode: How votes become targets, see `datamodules.labels.process_votes`.

    Returns:
        Names, images and targets of the kept images, in the order of the source.

    Raises:
        ValueError: The data or an argument is invalid, or no image is kept; the message says what and where.
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
    the most votes; `index` int64 B, the position in the split's data set. Images leave the loaders as uint8 B,C,S,S
    and become what is said above on the device.

    Validation uses the majority rule whatever `label_mode` is. Testing serves the images that the majority or the
    argmax rule keeps: `label` is -1 and `target` zero for those that the majority rule drops, `label_argmax` int64 B is
    -1 for those that the argmax rule drops, and `in_train` bool B marks pixel-identical copies of training images.

    Args:
        root: Folder with the data; layouts in `datamodules.ferplus.table`.
        upscaler: `nearest`, `bilinear`, `bicubic` or `lanczos`, or an `Upscaler` such as `DICUpscaler`.
        label_mode: How votes become training targets.
        batch_size: Images in a batch over all devices.
        input_size: Side S of the images served, 8 to 384 pixels; below 384 they are reduced with antialiasing.
        early_size: Side of the images in the first epochs, which cost less then (progressive resizing); validation and
            testing always see `input_size`.
        early_epochs: Number of these epochs.
        num_workers: Processes that prepare batches, per device.
        augment: Change training images at random.
        augmentation: How.
        seed: Seed of order, augmentation and drawn labels.
        cache_dir: Where upscaled images are kept; by default beside the data.
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
        augmentation: FaceAugmentation | None = None,
        seed: int = 0,
        cache_dir: str | None = None,
        test_split: Split = "test",
    ) -> None:
        super().__init__()
        for name, value in (("input_size", input_size), ("early_size", early_size)):
            if not 8 <= value <= UPSCALED_SIZE:
                raise ValueError(f"{name} is {value}, expected 8 to {UPSCALED_SIZE}")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1")
        if num_workers < 0:
            raise ValueError(f"num_workers is {num_workers}, expected at least 0")
        self.root, self.label_mode, self.batch_size, self.input_size = root, label_mode, batch_size, input_size
        self.early_size, self.early_epochs = early_size, early_epochs
        self.upscaler = InterpolationUpscaler(upscaler) if isinstance(upscaler, str) else upscaler
        self.num_workers, self.seed, self.test_split = num_workers, seed, test_split
        self.augmentation = (augmentation or FaceAugmentation()) if augment else None
        self.cache_dir = Path(cache_dir) if cache_dir else Path(root) / CACHE_FOLDER / "upscaled"
        self.synthetic = is_synthetic(root)
        self.datasets: dict[str, FERPlusDataset] = {}

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
        """Where the upscaled images are kept, or None if this upscaler's results are not."""
        return self.cache_dir / f"{self.upscaler.fingerprint()}_{self.fingerprint}" if self.upscaler.cached else None

    @cached_property
    def upscaled(self) -> UpscaledCache | UpscaledOnTheFly:
        """The upscaled image of each row of `table`."""
        if self.cache_folder is None:
            return UpscaledOnTheFly(self.table.images, self.upscaler)
        return UpscaledCache(self.cache_folder, self.table.images, self.upscaler)

    def check(self, command: str) -> None:
        """Refuse data or an upscaler that `command` (train, test or upscale) could not use."""
        self._check_upscaler()
        if command == "train":
            rows, _ = _kept(self.table, "train", self.label_mode)
            self.validation_images = len(_kept(self.table, "val", "majority")[0])
            if len(rows) < self.batch_size:
                raise ValueError(f"batch_size is {self.batch_size}, expected at most the {len(rows)} training images")
        elif command == "test":
            self.table.labelled(self.test_split, "majority")

    def _check_upscaler(self) -> None:
        kind = type(self.upscaler).__name__
        if not getattr(self.upscaler, "name", None):
            raise ValueError(f"{kind} has no name, expected the name of the arm in tables and dashboards")
        self.upscaler.fingerprint()  # reads a generator's checkpoint
        if not self.upscaler.cached:  # the cache checks what it is given
            upscaled = self.upscaler(torch.zeros(1, 1, FACE_SIZE, FACE_SIZE, dtype=torch.uint8))
            expected = (1, self.upscaler.channels, UPSCALED_SIZE, UPSCALED_SIZE)
            if upscaled.dtype != torch.uint8 or upscaled.shape != expected:
                found = f"{upscaled.dtype} {tuple(upscaled.shape)}"
                raise ValueError(f"{kind} returns {found}, expected torch.uint8 {expected}")

    def check_device(self, device: torch.device) -> None:
        """Refuse a device on which the faces would be upscaled wrongly; what is in a cache already was checked."""
        folder = self.cache_folder
        if folder is None or not folder.is_dir():
            self.upscaler.check_device(device)

    def prepare_data(self) -> None:
        print(describe(self.table, self.label_mode), flush=True)

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.datasets["train"] = self._dataset(*_kept(self.table, "train", self.label_mode), training=True)
        if stage in ("fit", "validate"):
            self.datasets["val"] = self._dataset(*_kept(self.table, "val", "majority"))
        if stage == "test":
            rows, kept, targets = self.table.labelled(self.test_split, "majority")
            used = kept | (argmax_labels(self.table.votes[rows]) >= 0)
            self.datasets["test"] = self._dataset(rows[used], targets[used], testing=True)

    def _dataset(
        self, rows: np.ndarray, targets: np.ndarray, training: bool = False, testing: bool = False
    ) -> FERPlusDataset:
        votes = self.table.votes[rows]
        label = np.where(targets.any(axis=1), votes[:, : len(CLASSES)].argmax(axis=1), -1)
        reported = {"label_argmax": argmax_labels(votes), "in_train": self.table.in_train()[rows]} if testing else {}
        return FERPlusDataset(
            self.table.names[rows].tolist(),
            rows,
            {"target": targets, "label": label, **reported},
            self.upscaled,
            self.input_size,
            augmentation=self.augmentation if training else None,
            draw_label=training and self.label_mode == "probability",
            seed=self.seed,
            early_size=self.early_size,
            early_epochs=self.early_epochs if training else 0,
        )

    # The loaders fill the cache, not `setup`: by then the run is on record, and upscaling can take hours.

    def train_dataloader(self) -> DataLoader:
        self.fill_cache(self.datasets["train"].rows)
        return self.make_loader(self.datasets["train"], training=True, collate_fn=keep_batch)

    def val_dataloader(self) -> DataLoader:
        self.fill_cache(self.datasets["val"].rows)
        return self.make_loader(self.datasets["val"], training=False, collate_fn=keep_batch)

    def test_dataloader(self) -> DataLoader:
        self.fill_cache(self.datasets["test"].rows)
        return self.make_loader(self.datasets["test"], training=False, collate_fn=keep_batch)

    def predict_dataloader(self) -> list:
        """Fill the cache with every image; there is nothing to predict."""
        self.fill_cache(np.arange(len(self.table.names)))
        return []

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Turn images uint8 B,C,S,S into float32 B,3,S,S in [0, 1], on the device; gray is stored once."""
        levels = batch["image"]
        white = levels.new_full((), 255, dtype=torch.float32)  # by a plain number a GPU would divide inexactly
        return batch | {"image": (levels / white).expand(-1, 3, -1, -1)}

    def fill_cache(self, rows: np.ndarray) -> None:
        """Upscale the faces of these rows on this process's device, if the upscaler's results are kept."""
        if isinstance(self.upscaled, UpscaledCache):
            device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
            rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
            self.upscaled.fill(rows, device, rank, world_size)

    def faces(self, split: Split, names: list[str]) -> np.ndarray:
        """Return the faces of these names as this arm upscales them, before any reduction: uint8 N,C,384,384.

        Raises:
            ValueError: The split has no image of a name.
        """
        rows = {self.table.names[row]: row for row in self.table.rows(split)}
        missing = [name for name in names if name not in rows]
        if missing:
            raise ValueError(f"{self.root}: the split {split!r} has no image named {missing[0]!r}")
        chosen = np.array([rows[name] for name in names])
        self.fill_cache(chosen)
        return self.upscaled[chosen]

    def class_counts(self) -> np.ndarray:
        """Return the training mass of each class: the sum of the targets, float64 8."""
        return self.datasets["train"].labels["target"].sum(axis=0, dtype=np.float64)
