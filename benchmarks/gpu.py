"""Measure all trainings on one GPU, beside what was expected; one JSON object per line.

    python -m benchmarks.gpu [waits|steps|feed|resume|ranks ...]     (`make bench-gpu` runs all five, about 25 minutes)

| stage | what | at most |
|---|---|---|
| `waits` | how often a host waits for its GPU in a step, and where | 3 min |
| `steps` | batches a second and memory of each training, and what single settings are worth | 9 min |
| `feed` | the classifier on one batch that stays on the GPU, and fed by loader processes | 5 min |
| `resume` | whether two equal runs, and a run that was stopped and resumed, end with the same weights | 5 min |
| `ranks` | what DDP and its settings cost, NCCL with one process | 3 min |

Faces are random numbers. PyTorch's image (Python 3.12, torch 2.11, torchvision 0.26) needs these wheels besides:
lightning, lightning-utilities, torchmetrics, numpy, pillow, pyyaml, rich, safetensors, scipy, tqdm. `--tiny` tries
everything in a minute, without a GPU, too.
"""

import argparse
import collections
import json
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from callbacks.finite_gradients import FiniteGradients
from callbacks.weight_average import WeightAverage
from datamodules.faces.datamodule import FaceDataset, FaceLandmarkDataModule
from datamodules.faces.packed import FaceSet, digest_of
from lightning_modules.base import Task
from lightning_modules.classifier import EmotionClassifier
from lightning_modules.dic import DICModule
from lightning_modules.dicgan import DICGANModule
from lightning_modules.hourglass import HourglassModule
from models.dic import DIC
from models.hourglass import FeedbackHourglass
from models.light_cnn import LightCNN
from run_state.data_position import ResumableDataModule
from run_state.process_state import ProcessState

GPU = torch.cuda.is_available()
Kind = Literal["hourglass", "dic", "dicgan", "classifier"]
KINDS: tuple[Kind, ...] = ("hourglass", "dic", "dicgan", "classifier")
ROOT = Path(__file__).parents[1]
WARM_UP = 10  # batches

# Of one training step at the sizes below: 10^9 floating-point operations, from `torch.utils.flop_counter`, and calls of
# operators, of which each is about one launch (forward and backward pass, published networks, docs/scaling.md).
GFLOP = {"hourglass": 550, "dic": 2462, "dicgan": 2511, "classifier": 3886}
CALLS = {"hourglass": 1493, "dic": 3460, "dicgan": 3665, "classifier": 288}
LAUNCH_US, TFLOPS = 5.0, 200.0  # assumed: of a launch; of convolutions in bfloat16 on an H100


@dataclass
class Sizes:
    """How large everything is: as published, or as small as it works."""

    tiny: bool
    steps: int = 60
    batch: int = 8  # faces of a generator
    images: int = 128  # of a classifier
    hr_size: int = 128
    input_size: int = 384
    workers: int = 8

    def __post_init__(self) -> None:
        if self.tiny:
            self.steps, self.batch, self.images, self.hr_size, self.input_size, self.workers = 12, 2, 4, 64, 32, 0

    def module(self, kind: Kind, **options: Any) -> Task:
        """Build a training."""
        width = {"num_features": 4, "num_steps": 2, "num_groups": 1, "num_fusion_blocks": 1, "hourglass_features": 8}
        net: dict[str, Any] = width if self.tiny else {}
        if kind == "hourglass":
            return HourglassModule(FeedbackHourglass(8) if self.tiny else FeedbackHourglass(), **options)
        if kind == "dic":
            return DICModule(DIC(**net), **options)
        if kind == "dicgan":
            return DICGANModule(DIC(**net), LightCNN(self.hr_size), **options)
        return EmotionClassifier(**options)

    def data(self, kind: Kind, batch: int | None = None, workers: int = 0) -> ResumableDataModule:
        """Build what it trains on."""
        if kind == "classifier":
            return Emotions(batch or self.images, self.input_size, workers)
        return Faces(batch or self.batch, self.hr_size)


class Faces(FaceLandmarkDataModule):
    """512 random faces in memory, as `FaceLandmarkDataModule` serves them."""

    def __init__(self, batch: int, hr_size: int) -> None:
        super().__init__("none", val_fraction=0.5, hr_size=hr_size, batch_size=batch)

    def setup(self, stage: str) -> None:
        rng, count, side = np.random.default_rng(0), 512, self.hr_size
        images = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
        faces = FaceSet(
            names=[f"face{number}" for number in range(count)],
            images=images,
            rows=np.arange(count),
            landmarks=(rng.random((count, 68, 2)) * side).astype(np.float32),
            crop_sides=np.full(count, 200.0),
            digests=[digest_of(image.tobytes())[:32] for image in images],
        )
        self.train_set = FaceDataset(faces, self.augmentation)


class RandomEmotions(Dataset[dict[str, Tensor]]):
    """Random gray faces: uint8 1,S,S."""

    def __init__(self, count: int, side: int) -> None:
        self.count, self.side = count, side

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        image = torch.full((1, self.side, self.side), key[1] % 256, dtype=torch.uint8)
        target = torch.eye(8)[key[1] % 8]
        return {"image": image, "target": target, "label": target.argmax(), "index": torch.tensor(key[1])}


class Emotions(ResumableDataModule):
    """Batches like those of `FERPlusDataModule`, which needs more packages: made in memory, without augmentation."""

    def __init__(self, batch: int, side: int, workers: int) -> None:
        super().__init__()
        self.batch_size, self.side, self.num_workers, self.seed = batch, side, workers, 0

    def train_dataloader(self) -> DataLoader[Any]:
        return self.make_loader(RandomEmotions(64 * self.batch_size, self.side), training=True)

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        return batch | {"image": (batch["image"].float() / 255).expand(-1, 3, -1, -1)}


class Resident(Emotions):
    """One batch that stays on the device."""

    def train_dataloader(self) -> Any:
        (batch,) = [batch for batch, _ in zip(super().train_dataloader(), range(1), strict=False)]
        device = "cuda" if GPU else "cpu"
        there = {name: value.to(device) for name, value in batch.items()}
        return DataLoader([there] * 64, batch_size=None)  # type: ignore[arg-type]


class Rate(L.Callback):
    """Measure batches a second once the first are done."""

    batches_per_s = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        done = trainer.fit_loop.total_batch_idx + 1
        if GPU and done in (WARM_UP, trainer.max_steps):
            torch.cuda.synchronize()
        if done == WARM_UP:
            self._start = time.perf_counter()
        elif done == trainer.max_steps:
            self.batches_per_s = (done - WARM_UP) / (time.perf_counter() - self._start)


class Waits(L.Callback):
    """Note where the host waits for the GPU, in steps whose results are not logged."""

    def __init__(self) -> None:
        self.places, self.batches = collections.Counter[str](), 0

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        if GPU and trainer.fit_loop.total_batch_idx == WARM_UP:
            torch.cuda.set_sync_debug_mode("warn")
        self.batches += trainer.fit_loop.total_batch_idx >= WARM_UP

    def note(self, message: Any, *_: Any, **__: Any) -> None:
        """Take the place of `warnings.showwarning`."""
        if "synchroniz" in str(message):
            frames = [frame for frame in traceback.extract_stack()[:-1] if str(ROOT) in frame.filename]
            own = [frame for frame in frames if "site-packages" not in frame.filename and frame.filename != __file__]
            self.places[" <- ".join(f"{Path(f.filename).name}:{f.lineno}" for f in own[:-3:-1])] += 1


def fit(
    kind: Kind, sizes: Sizes, callbacks: list[Any], data: Any = None, resumed: Any = None, **options: Any
) -> L.LightningModule:
    """Train a little as shipped for a GPU, or as `options` of the trainer say; `model` holds those of the module."""
    L.seed_everything(0, verbose=False)
    torch.backends.cuda.matmul.allow_tf32 = True  # as commands/cli.py
    module = sizes.module(kind, **options.pop("model", {}))
    settings: dict[str, Any] = {
        "accelerator": "gpu" if GPU else "cpu",
        "devices": 1,
        "precision": "bf16-mixed",
        "benchmark": True,
        "max_steps": sizes.steps,
        "max_epochs": -1,
        "limit_val_batches": 0,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "callbacks": [FiniteGradients(), *callbacks],
    }
    trainer = L.Trainer(**settings | options)
    trainer.fit(module, datamodule=data or sizes.data(kind), ckpt_path=resumed, weights_only=True if resumed else None)
    return module


def report(stage: str, name: str, expected: Any, run: Callable[[], Any]) -> None:
    """Print what a measurement gave beside what was expected; a failure is a result, too."""
    began = time.perf_counter()
    try:
        got = run()
    except Exception as error:
        got = f"{type(error).__name__}: {str(error)[:300]}"
    line = {"stage": stage, "name": name, "expected": expected, "got": got}
    print(json.dumps(line | {"seconds": round(time.perf_counter() - began, 1)}), flush=True)


def speed(kind: Kind, sizes: Sizes, average: bool = True, **options: Any) -> dict[str, float]:
    """Return batches a second, milliseconds a batch and GiB."""
    rate = Rate()
    if GPU:
        torch.cuda.reset_peak_memory_stats()
    fit(kind, sizes, [rate, *([WeightAverage()] if average and kind != "classifier" else [])], **options)
    memory = torch.cuda.max_memory_allocated() / 2**30 if GPU else 0.0
    speed = rate.batches_per_s
    return {"batches_per_s": round(speed, 2), "ms": round(1000 / speed, 2), "peak_gib": round(memory, 2)}


def expected_ms(kind: Kind, sizes: Sizes) -> str | None:
    """Say how long a step takes at least, if launches do not overlap with anything."""
    if sizes.tiny:
        return None
    launches, work = CALLS[kind] * LAUNCH_US / 1000, GFLOP[kind] / TFLOPS
    return f"{max(launches, work):.0f} ms or more: launches {launches:.1f} ms, arithmetic {work:.1f} ms"


def waits(sizes: Sizes) -> None:
    """No step may wait."""

    def count(kind: Kind, **options: Any) -> dict[str, Any]:
        noted = Waits()
        with watching(noted):
            fit(kind, sizes, [noted, WeightAverage()], log_every_n_steps=10**6, **options)
        return {
            "per_batch": round(noted.places.total() / noted.batches, 2),
            "places": dict(noted.places.most_common(8)),
        }

    for kind in KINDS:
        report("waits", kind, 0, partial(count, kind))
    report("waits", "classifier with mixup", 0, partial(count, "classifier", model={"mixup": 0.4}))


@contextmanager
def watching(noted: Waits) -> Iterator[None]:
    """Have warnings about waiting noted."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = noted.note
        try:
            yield
        finally:
            if GPU:
                torch.cuda.set_sync_debug_mode("default")


def steps(sizes: Sizes) -> None:
    """Measure each training as shipped, then DIC with one thing changed at a time."""
    for kind in KINDS:
        report("steps", kind, expected_ms(kind, sizes), partial(speed, kind, sizes))
    changed: dict[str, tuple[str, dict[str, Any]]] = {
        "without averaging": ("1 % faster", {"average": False}),
        "without cuDNN's search": ("slower", {"benchmark": False}),
        "float32 (TF32)": ("at most twice the time", {"precision": "32-true"}),
        "four times the batch": ("less than four times the time", {"data": sizes.data("dic", 4 * sizes.batch)}),
        "compiled": ("half the time, after a minute", {"model": {"compile": True}}),
    }
    for name, (expected, options) in changed.items():
        if not (sizes.tiny and name == "compiled"):
            report("steps", f"dic, {name}", expected, partial(speed, "dic", sizes, **options))


def feed(sizes: Sizes) -> None:
    """Measure the classifier on a resident batch and fed by a loader."""
    for images in (sizes.images // 2, sizes.images):
        resident = Resident(images, sizes.input_size, 0)
        report("feed", f"resident, {images}", "the limit", partial(speed, "classifier", sizes, data=resident))
        loaded = sizes.data("classifier", images, sizes.workers)
        served = f"{sizes.workers} loader processes, {images}"
        report("feed", served, "0.95 of resident", partial(speed, "classifier", sizes, data=loaded))


def resume(sizes: Sizes) -> None:
    """Compare the weights of equal runs, and of a run that was resumed half way."""

    def weights(module: L.LightningModule) -> Tensor:
        return torch.cat([parameter.detach().flatten().cpu() for parameter in module.parameters()])

    def differences(kind: Kind, deterministic: bool) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            saving = SaveHalfWay(sizes.steps // 2, f"{folder}/half.ckpt")
            more: dict[str, Any] = {"benchmark": False, "deterministic": "warn" if deterministic else False}
            first = weights(fit(kind, sizes, [ProcessState(), saving], **more))
            second = weights(fit(kind, sizes, [ProcessState()], **more))
            resumed = weights(fit(kind, sizes, [ProcessState()], resumed=saving.path, **more))
        return {"equal_runs": (first - second).abs().max().item(), "resumed": (first - resumed).abs().max().item()}

    for kind in KINDS:
        for deterministic, expected in ((False, "rounding, both alike"), (True, "0 and 0")):
            name = f"{kind}{', deterministic' * deterministic}"
            report("resume", name, expected, partial(differences, kind, deterministic))


class SaveHalfWay(L.Callback):
    """Save a checkpoint after a number of batches."""

    def __init__(self, batch: int, path: str) -> None:
        self.batch, self.path = batch, path

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx + 1 == self.batch:
            trainer.save_checkpoint(self.path)


def ranks(sizes: Sizes) -> None:
    """Measure DDP with one process: what it costs before anything is sent."""
    shipped: dict[str, Any] = {"gradient_as_bucket_view": True}  # configs/hardware/ddp.yaml
    for kind in ("classifier", "dic", "dicgan"):
        name: Kind = kind  # type: ignore[assignment]
        unused: dict[str, Any] = {"find_unused_parameters": True} if kind == "dicgan" else {}
        report("ranks", f"{kind}, no DDP", "the limit", partial(speed, name, sizes, average=False))
        for label, given in (("DDP as shipped", shipped), ("DDP as it comes", {})):
            options: dict[str, Any] = {"strategy": DDPStrategy(**given, **unused), "average": False}
            report("ranks", f"{kind}, {label}", "0.97 of it", partial(speed, name, sizes, **options))
    if GPU:
        options = {"strategy": DDPStrategy(**shipped), "average": False, "sync_batchnorm": True}
        report("ranks", "classifier, SyncBatchNorm", "0.9 of it", partial(speed, "classifier", sizes, **options))


STAGES: dict[str, Callable[[Sizes], None]] = {
    "waits": waits, "steps": steps, "feed": feed, "resume": resume, "ranks": ranks,
}  # fmt: skip


def main(args: list[str] | None = None) -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("stages", nargs="*", help=f"some of {', '.join(STAGES)} (default: all)")
    parser.add_argument("--tiny", action="store_true", help="as small as it works, for trying it out")
    options = parser.parse_args(args)
    if unknown := set(options.stages) - set(STAGES):
        parser.error(f"stages are {', '.join(STAGES)}, not {', '.join(sorted(unknown))}")
    device = torch.cuda.get_device_name() if GPU else "CPU"
    print(json.dumps({"device": device, "torch": torch.__version__, "lightning": L.__version__}), flush=True)
    for stage in options.stages or STAGES:
        STAGES[stage](Sizes(options.tiny))


if __name__ == "__main__":
    main()
