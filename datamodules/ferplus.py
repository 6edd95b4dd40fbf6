"""FER+ faces, enlarged eightfold by an upscaler, as classifier batches."""

from pathlib import Path
from typing import Literal, NamedTuple

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import BatchSampler, DataLoader, Dataset

from datamodules.augmentation import FaceAugmentation
from datamodules.ferplus_labels import CLASSES, LabelMode, argmax_labels, majority_labels, process_votes
from datamodules.ferplus_report import describe
from datamodules.ferplus_source import CACHE_FOLDER, FACE_SIZE, SPLITS, FERPlusTable, open_table
from datamodules.files import is_synthetic
from datamodules.samplers import EpochSampler
from datamodules.upscaled_cache import UpscaledCache
from datamodules.upscalers import Interpolation, InterpolationUpscaler, Upscaler
from models.dic import SCALE

UPSCALED_SIZE = FACE_SIZE * SCALE
_FILL_BATCH = 8
Split = Literal["train", "val", "test"]
Batch = dict[str, torch.Tensor]


class FERPlusSplit(NamedTuple):
    """Images of a split that a label mode keeps."""

    names: list[str]
    images: np.ndarray  # uint8 N,48,48
    targets: np.ndarray  # float32 N,8


def load_split(root: str | Path, split: Split, label_mode: LabelMode) -> FERPlusSplit:
    """Loads one split of FER+.

    Args:
        root: Folder with the data; layouts in ``datamodules.ferplus_source``.
        split: Which part.
        label_mode: How votes become targets, see ``datamodules.ferplus_labels.process_votes``.

    Returns:
        Names, images and targets of the kept images, in the order of the source.

    Raises:
        ValueError: The data or an argument is wrong, or the split is empty; the message says what and where.
    """
    table, _ = open_table(root)
    rows = _split_rows(table, root, split)
    kept, targets = process_votes(table.votes[rows], label_mode)
    if not kept.any():
        raise ValueError(f"{root}: no image of the split {split!r} is kept by label_mode {label_mode!r}")
    return FERPlusSplit(table.names[rows[kept]].tolist(), np.asarray(table.images[rows[kept]]), targets[kept])


def _split_rows(table: FERPlusTable, root: str | Path, split: str) -> np.ndarray:
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, allowed are {', '.join(SPLITS)}")
    rows = table.rows(split)
    if not len(rows):
        present = [name for name in SPLITS if len(table.rows(name))]
        raise ValueError(f"{root}: the split {split!r} has no images; there are images of {', '.join(present)}")
    return rows


class FERPlusDataset(Dataset):
    """Rows of a table as batches of enlarged, augmented faces.

    Indexed by lists of ``(epoch, index)``, as the samplers give them, a batch at a time: interpolation and reduction
    run on the whole batch, augmentation image by image.

    Args:
        table: The data.
        rows: Rows to serve.
        labels: int64, one per row; -1 where the label rule leaves the image out.
        targets: float32 len(rows),8.
        upscaler: Enlarges what is not cached.
        cache: Enlarged images by ``unique`` position, or None to enlarge on the fly.
        unique: For each row of the table its position in the cache.
        input_size: Side of the images served.
        augmentation: Random changes, or None.
        draw_label: Draw each target from the distribution anew (FER+ "probability" mode).
        seed: Seed of all that is random.
    """

    def __init__(
        self,
        table: FERPlusTable,
        rows: np.ndarray,
        labels: np.ndarray,
        targets: np.ndarray,
        upscaler: Upscaler,
        cache: UpscaledCache | None,
        unique: np.ndarray,
        input_size: int,
        augmentation: FaceAugmentation | None,
        draw_label: bool,
        seed: int,
    ) -> None:
        self.table, self.rows, self.labels, self.targets = table, rows, labels, targets
        self.upscaler, self.cache, self.unique = upscaler, cache, unique
        self.input_size, self.augmentation, self.draw_label, self.seed = input_size, augmentation, draw_label, seed

    def __len__(self) -> int:
        return len(self.rows)

    def upscaled(self, indices: list[int]) -> torch.Tensor:
        """Enlarged faces, uint8 B,C,384,384."""
        rows = self.rows[indices]
        if self.cache is not None:
            return torch.from_numpy(self.cache[self.unique[rows]])
        return self.upscaler(torch.from_numpy(np.array(self.table.images[rows]))[:, None])

    def __getitems__(self, keys: list[tuple[int, int]]) -> Batch:
        indices = [index for _, index in keys]
        images = reduce_size(self.upscaled(indices), self.input_size)
        if self.augmentation is not None:
            augmented = [
                self.augmentation(image.permute(1, 2, 0).numpy(), self.seed, epoch, index)
                for image, (epoch, index) in zip(images, keys, strict=True)
            ]
            images = torch.from_numpy(np.stack(augmented)).permute(0, 3, 1, 2)
        targets = torch.from_numpy(self.targets[indices])
        if self.draw_label:
            drawn = [
                np.random.default_rng((self.seed, epoch, index)).choice(len(CLASSES), p=_normalised(self.targets[index]))
                for epoch, index in keys
            ]
            targets = F.one_hot(torch.tensor(drawn), len(CLASSES)).float()
        return {
            "image": (images.float() / 255).expand(-1, 3, -1, -1),  # a view: gray is stored and sent once
            "target": targets,
            "label": torch.from_numpy(self.labels[indices]),
            "index": torch.tensor(indices),
        }

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        return {name: value[0] for name, value in self.__getitems__([key]).items()}


def _normalised(distribution: np.ndarray) -> np.ndarray:
    wide = distribution.astype(np.float64)
    return wide / wide.sum()


def reduce_size(images: torch.Tensor, size: int) -> torch.Tensor:
    """Reduces uint8 B,C,H,W to uint8 B,C,size,size with an antialiased bilinear (triangle) filter."""
    if images.shape[-1] == size:
        return images
    large = images.float()
    small = F.interpolate(large, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
    return small.round().clamp(0, 255).to(torch.uint8)


def _whole_batch(batch: Batch) -> Batch:
    return batch


class FERPlusDataModule(L.LightningDataModule):
    """Serves FER+ for training, validation and testing.

    Batches are dictionaries: ``image`` float32 B,3,S,S in [0, 1]; ``target`` float32 B,8; ``label`` int64 B; ``index``
    int64 B, the position in the split's data set. Validation uses the majority rule whatever ``label_mode`` is. The
    test data set holds the images that either rule keeps; ``label`` is -1 for those the majority rule leaves out.

    Args:
        root: Folder with the data; layouts in ``datamodules.ferplus_source``.
        upscaler: ``nearest``, ``bilinear``, ``bicubic`` or ``lanczos``, or an ``Upscaler`` such as ``DICUpscaler``.
        label_mode: How votes become training targets.
        batch_size: Images per optimiser step over all devices.
        input_size: Side S of the images served, 8 to 384 pixels; below 384 they are reduced with antialiasing.
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
        self.root, self.label_mode, self.batch_size, self.input_size = root, label_mode, batch_size, input_size
        self.upscaler = InterpolationUpscaler(upscaler) if isinstance(upscaler, str) else upscaler
        self.num_workers, self.seed, self.test_split = num_workers, seed, test_split
        self.augmentation = (augmentation or FaceAugmentation()) if augment else None
        self.cache_dir = Path(cache_dir) if cache_dir else Path(root) / CACHE_FOLDER / "upscaled"
        self.synthetic = is_synthetic(root)
        self._table: FERPlusTable | None = None
        self._cache: UpscaledCache | None = None
        self.datasets: dict[str, FERPlusDataset] = {}

    def open(self) -> FERPlusTable:
        """Opens the data and says what is in it; parsed once, kept in ``root``."""
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
        needed = {"train": ("train", "val"), "test": (self.test_split,)}.get(command, ())
        for split in needed:
            _split_rows(self.open(), self.root, split)

    @property
    def cache_folder(self) -> Path | None:
        """Where the enlarged images are kept, or None where the upscaler's results are not."""
        if not self.upscaler.cached:
            return None
        return self.cache_dir / f"{self.upscaler.fingerprint()}_{self.fingerprint}"

    def prepare_data(self) -> None:
        print(describe(self.open(), self.label_mode), flush=True)

    def setup(self, stage: str) -> None:
        present = [split for split in SPLITS if len(self.open().rows(split))]
        splits: list[str] = {"fit": ["train", "val"], "validate": ["val"], "test": [self.test_split]}.get(stage, present)
        for split in splits:
            _split_rows(self.open(), self.root, split)
        self.fill_cache(splits)
        if stage == "fit":
            rows, targets = self._kept("train", self.label_mode)
            self.datasets["train"] = self._dataset(rows, targets.argmax(axis=1), targets, training=True)
        if stage in ("fit", "validate"):
            rows, targets = self._kept("val", "majority")
            self.datasets["val"] = self._dataset(rows, targets.argmax(axis=1), targets)
        if stage == "test":
            table = self.open()
            rows = table.rows(self.test_split)
            majority = majority_labels(table.votes[rows])
            used = (majority >= 0) | (argmax_labels(table.votes[rows]) >= 0)
            _, targets = process_votes(table.votes[rows], "majority")
            self.datasets["test"] = self._dataset(rows[used], majority[used], targets[used])

    def _kept(self, split: str, mode: LabelMode) -> tuple[np.ndarray, np.ndarray]:
        rows = self.open().rows(split)
        kept, targets = process_votes(self.open().votes[rows], mode)
        if not kept.any():
            raise ValueError(f"{self.root}: no image of the split {split!r} is kept by label_mode {mode!r}")
        return rows[kept], targets[kept]

    def _dataset(self, rows: np.ndarray, labels: np.ndarray, targets: np.ndarray, training: bool = False) -> FERPlusDataset:
        return FERPlusDataset(
            self.open(),
            rows,
            labels,
            targets,
            self.upscaler,
            self._cache,
            self._unique,
            self.input_size,
            self.augmentation if training else None,
            training and self.label_mode == "probability",
            self.seed,
        )

    def fill_cache(self, splits: list[str]) -> None:
        """Enlarges the faces of ``splits`` on this process's device, if the upscaler's results are to be kept."""
        folder, table = self.cache_folder, self.open()
        if folder is None:
            return
        if self._cache is None:
            shape = (self.upscaler.channels, UPSCALED_SIZE, UPSCALED_SIZE)
            self._cache = UpscaledCache(folder, table.images[self._unique_rows], shape)
        rows = np.concatenate([table.rows(split) for split in splits])
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

        def upscale(images: np.ndarray) -> np.ndarray:
            batches = torch.from_numpy(images)[:, None].split(_FILL_BATCH)
            return np.concatenate([self.upscaler(batch.to(device)).cpu().numpy() for batch in batches])

        self._cache.fill(self._unique[rows], upscale, rank, world_size)

    def enlarged(self, split: str, names: list[str]) -> np.ndarray:
        """The faces with these names as the classifier's arm sees them, before reduction: uint8 N,C,384,384."""
        rows = _split_rows(self.open(), self.root, split)
        place = {name: index for index, name in enumerate(self.open().names[rows])}
        missing = [name for name in names if name not in place]
        if missing:
            raise ValueError(f"{self.root}: the split {split!r} has no image named {missing[0]!r}")
        self.fill_cache([split])
        dataset = self._dataset(rows, np.zeros(len(rows), dtype=np.int64), np.zeros((len(rows), len(CLASSES))))
        return dataset.upscaled([place[name] for name in names]).numpy()

    def class_counts(self) -> np.ndarray:
        """Training mass of each class: the sum of the targets, float64 8."""
        return self.datasets["train"].targets.sum(axis=0, dtype=np.float64)

    def _loader(self, split: str, training: bool) -> DataLoader:
        dataset = self.datasets[split]
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if self.batch_size % world_size:
            raise ValueError(f"batch_size is {self.batch_size}, not a multiple of the {world_size} devices")
        if training and len(dataset) < self.batch_size:
            raise ValueError(f"batch_size is {self.batch_size}, more than the {len(dataset)} training images")
        sampler = EpochSampler(len(dataset), self.seed, training, rank, world_size, drop_remainder=training)
        return DataLoader(
            dataset,
            batch_sampler=BatchSampler(sampler, self.batch_size // world_size, drop_last=training),
            collate_fn=_whole_batch,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(self.seed),
        )

    def train_dataloader(self) -> DataLoader:
        return self._loader("train", training=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader("val", training=False)

    def test_dataloader(self) -> DataLoader:
        return self._loader("test", training=False)

    def predict_dataloader(self) -> list:
        """Nothing to predict: setting up for it enlarges every split."""
        return []
