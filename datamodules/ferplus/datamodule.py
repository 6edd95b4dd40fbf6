"""FER+ faces, enlarged eightfold by an upscaler, as classifier batches."""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader

from datamodules.ferplus.augmentation import FaceAugmentation
from datamodules.ferplus.dataset import Batch, Faces, FacesOnTheFly, FERPlusDataset, keep_batch
from datamodules.ferplus.reading import FACE_SIZE
from datamodules.ferplus.table import CACHE_FOLDER, SPLITS, FERPlusTable, describe, open_table
from datamodules.labels import CLASSES, LabelMode, argmax_labels, majority_labels, process_votes
from datamodules.synthetic import is_synthetic
from datamodules.upscaled_cache import UpscaledCache
from datamodules.upscalers import Interpolation, InterpolationUpscaler, Upscaler
from models.dic import SCALE
from run_state.data_position import ResumableDataModule

UPSCALED_SIZE = FACE_SIZE * SCALE

_FILL_BATCH = 8

Split = Literal["train", "val", "test"]


class FERPlusSplit(NamedTuple):
    """Images of a split that a label mode keeps."""

    names: list[str]
    images: np.ndarray  # uint8 N,48,48
    targets: np.ndarray  # float32 N,8


def load_split(root: str | Path, split: Split, label_mode: LabelMode) -> FERPlusSplit:
    """Loads one split of FER+.

    Args:
        root: Folder with the data; layouts in ``datamodules.ferplus.table``.
        split: Which part.
        label_mode: How votes become targets, see ``datamodules.labels.process_votes``.

    Returns:
        Names, images and targets of the kept images, in the order of the source.

    Raises:
        ValueError: The data or an argument is wrong, or the split is empty; the message says what and where.
    """
    table, _ = open_table(root)
    rows, targets = _kept(table, root, split, label_mode)
    return FERPlusSplit(table.names[rows].tolist(), np.asarray(table.images[rows]), targets)


def _split_rows(table: FERPlusTable, root: str | Path, split: str) -> np.ndarray:
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, allowed are {', '.join(SPLITS)}")
    rows = table.rows(split)
    if not len(rows):
        present = [name for name in SPLITS if len(table.rows(name))]
        raise ValueError(f"{root}: the split {split!r} has no images; there are images of {', '.join(present)}")
    return rows


def _kept(table: FERPlusTable, root: str | Path, split: str, label_mode: LabelMode) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a split that a label mode keeps, and their targets, float32 N,8."""
    rows = _split_rows(table, root, split)
    kept, targets = process_votes(table.votes[rows], label_mode)
    if not kept.any():
        raise ValueError(f"{root}: no image of the split {split!r} is kept by label_mode {label_mode!r}")
    return rows[kept], targets[kept]


class FERPlusDataModule(ResumableDataModule):
    """Serves FER+ for training, validation and testing.

    Batches are dictionaries: ``image`` float32 B,3,S,S in [0, 1]; ``target`` float32 B,8; ``label`` int64 B, the
    emotion with the most votes; ``index`` int64 B, the position in the split's data set. Validation uses the majority
    rule whatever ``label_mode`` is. The test data set holds the images that either rule keeps; ``label`` is -1 and
    ``target`` zero for those the majority rule leaves out.

    Args:
        root: Folder with the data; layouts in ``datamodules.ferplus.table``.
        upscaler: ``nearest``, ``bilinear``, ``bicubic`` or ``lanczos``, or an ``Upscaler`` such as ``DICUpscaler``.
        label_mode: How votes become training targets.
        batch_size: Images in a batch over all devices.
        input_size: Side S of the images served, 8 to 384 pixels; below 384 they are reduced with antialiasing.
        early_size: Side of the images in the first epochs, which cost less then (progressive resizing); validation and
            testing always see ``input_size``.
        early_epochs: Number of these epochs.
        num_workers: Processes that prepare batches, per device.
        augment: Random changes of training images.
        augmentation: What they are.
        seed: Seed of order, augmentation and drawn labels.
        cache_dir: Where enlarged images are kept; by default beside the data.
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
        if not 8 <= input_size <= UPSCALED_SIZE:
            raise ValueError(f"input_size is {input_size}, allowed are 8 to {UPSCALED_SIZE}")
        if batch_size < 1 or num_workers < 0:
            raise ValueError(f"batch_size is {batch_size} (allowed: 1 or more), num_workers {num_workers} (0 or more)")
        process_votes(np.zeros((1, 10), dtype=np.int64), label_mode)  # refuses an unknown mode
        if not 8 <= early_size <= UPSCALED_SIZE:
            raise ValueError(f"early_size is {early_size}, allowed are 8 to {UPSCALED_SIZE}")
        self.root, self.label_mode, self.batch_size, self.input_size = root, label_mode, batch_size, input_size
        self.early_size, self.early_epochs = early_size, early_epochs
        self.upscaler = InterpolationUpscaler(upscaler) if isinstance(upscaler, str) else upscaler
        self.num_workers, self.seed, self.test_split = num_workers, seed, test_split
        self.augmentation = (augmentation or FaceAugmentation()) if augment else None
        self.cache_dir = Path(cache_dir) if cache_dir else Path(root) / CACHE_FOLDER / "upscaled"
        self.synthetic = is_synthetic(root)
        self._table: FERPlusTable | None = None
        self._cache: UpscaledCache | None = None
        self.datasets: dict[str, FERPlusDataset] = {}

    def open(self) -> FERPlusTable:
        """Opens the data; they are parsed once and kept in ``root``."""
        if self._table is None:
            self._table, self._fingerprint = open_table(self.root)
            self._unique_rows, self._unique = np.unique(self._table.identity, return_inverse=True)
        return self._table

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the data: every image, name and vote."""
        self.open()
        return self._fingerprint

    def check(self, command: str) -> None:
        """Refuses data that ``command`` (train, test or upscale) could not use; parses it if that was not done yet."""
        table = self.open()
        self._check_upscaler()
        if command == "train":
            kept, _ = _kept(table, self.root, "train", self.label_mode)
            self.validation_images = len(_kept(table, self.root, "val", "majority")[0])
            if len(kept) < self.batch_size:
                raise ValueError(f"batch_size is {self.batch_size}, more than the {len(kept)} training images")
        elif command == "test":
            _split_rows(table, self.root, self.test_split)

    def _check_upscaler(self) -> None:
        kind = type(self.upscaler).__name__
        if not getattr(self.upscaler, "name", None):
            raise ValueError(f"{kind} has no name; give it one, which names the arm in tables and dashboards")
        self.upscaler.fingerprint()  # reads a generator's checkpoint
        if not self.upscaler.cached:  # what is cached is checked when it is made
            large = self.upscaler(torch.zeros(1, 1, FACE_SIZE, FACE_SIZE, dtype=torch.uint8))
            needed = (1, self.upscaler.channels, UPSCALED_SIZE, UPSCALED_SIZE)
            if large.dtype != torch.uint8 or large.shape != needed:
                raise ValueError(f"{kind} returns {large.dtype} {tuple(large.shape)}, needed is torch.uint8 {needed}")

    def check_device(self, device: torch.device) -> None:
        """Refuse a device on which the faces would be enlarged wrongly; what is in a cache already was checked."""
        folder = self.cache_folder
        if folder is None or not folder.is_dir():
            self.upscaler.check_device(device)

    @property
    def cache_folder(self) -> Path | None:
        """Where the enlarged images are kept, or None where the upscaler's results are not."""
        if not self.upscaler.cached:
            return None
        return self.cache_dir / f"{self.upscaler.fingerprint()}_{self.fingerprint}"

    def prepare_data(self) -> None:
        print(describe(self.open(), self.label_mode), flush=True)

    def setup(self, stage: str) -> None:
        table = self.open()
        present = [split for split in SPLITS if len(table.rows(split))]
        needed = {"fit": ["train", "val"], "validate": ["val"], "test": [str(self.test_split)]}
        splits = needed.get(stage, present)
        rows = {split: _split_rows(table, self.root, split) for split in splits}
        self._open_cache()  # filled when a loader asks for it: by then the run is on record
        if stage == "fit":
            self.datasets["train"] = self._dataset(*_kept(table, self.root, "train", self.label_mode), training=True)
        if stage in ("fit", "validate"):
            self.datasets["val"] = self._dataset(*_kept(table, self.root, "val", "majority"))
        if stage == "test":
            votes = table.votes[rows[self.test_split]]
            used = (majority_labels(votes) >= 0) | (argmax_labels(votes) >= 0)
            _, targets = process_votes(votes, "majority")
            self.datasets["test"] = self._dataset(rows[self.test_split][used], targets[used])

    def _dataset(self, rows: np.ndarray, targets: np.ndarray, training: bool = False) -> FERPlusDataset:
        """Data set of rows; images with a target of zero have the label -1."""
        table = self.open()
        most_voted = table.votes[rows, : len(CLASSES)].argmax(axis=1)
        faces: Faces = self._cache if self._cache else FacesOnTheFly(table.images, self.upscaler)
        return FERPlusDataset(
            table,
            rows,
            labels=np.where(targets.any(axis=1), most_voted, -1),
            targets=targets,
            faces=faces,
            places=self._unique[rows] if self._cache else rows,
            input_size=self.input_size,
            early_size=self.early_size,
            early_epochs=self.early_epochs if training else 0,
            augmentation=self.augmentation if training else None,
            draw_label=training and self.label_mode == "probability",
            seed=self.seed,
        )

    def _open_cache(self) -> None:
        folder = self.cache_folder
        if folder is not None and self._cache is None:
            shape = (self.upscaler.channels, UPSCALED_SIZE, UPSCALED_SIZE)
            keys = {"data": self.fingerprint, "upscaler": self.upscaler.fingerprint()}
            self._cache = UpscaledCache(folder, self.open().images[self._unique_rows], shape, keys)

    def fill_cache(self, rows: np.ndarray) -> None:
        """Enlarges the faces of these rows on this process's device, if the upscaler's results are to be kept."""
        self._open_cache()
        if self._cache is None:
            return
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

        def upscale(images: np.ndarray) -> np.ndarray:
            batches = torch.from_numpy(images)[:, None].split(_FILL_BATCH)
            return np.concatenate([self.upscaler(batch.to(device)).cpu().numpy() for batch in batches])

        self._cache.fill(self._unique[rows], upscale, rank, world_size)

    def enlarged(self, split: str, names: list[str]) -> np.ndarray:
        """The faces with these names as the classifier's arm sees them, before reduction: uint8 N,C,384,384."""
        table = self.open()
        rows = {table.names[row]: row for row in _split_rows(table, self.root, split)}
        missing = [name for name in names if name not in rows]
        if missing:
            raise ValueError(f"{self.root}: the split {split!r} has no image named {missing[0]!r}")
        chosen = np.array([rows[name] for name in names])
        self.fill_cache(chosen)
        dataset = self._dataset(chosen, np.zeros((len(names), len(CLASSES))))
        return dataset.faces[dataset.places]

    def class_counts(self) -> np.ndarray:
        """Training mass of each class: the sum of the targets, float64 8."""
        return self.datasets["train"].targets.sum(axis=0, dtype=np.float64)

    def _loader(self, split: str, training: bool) -> DataLoader:
        self.fill_cache(self.open().rows(self.test_split if split == "test" else split))
        return self.make_loader(self.datasets[split], training=training, collate_fn=keep_batch)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Sends one channel of gray images and expands it over there; a plain transfer would send three copies."""
        gray = batch["image"].stride(1) == 0
        sent = batch | {"image": batch["image"][:, :1]} if gray else batch
        moved: Batch = super().transfer_batch_to_device(sent, device, dataloader_idx)
        return moved | {"image": moved["image"].expand(-1, 3, -1, -1)} if gray else moved

    def train_dataloader(self) -> DataLoader:
        return self._loader("train", training=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader("val", training=False)

    def test_dataloader(self) -> DataLoader:
        return self._loader("test", training=False)

    def predict_dataloader(self) -> list:
        """Enlarges every split; there is nothing to predict."""
        self.fill_cache(np.arange(len(self.open().names)))
        return []
