"""Measure how much faster the generator trains, upscales and gets its data than plain code; print JSON.

    python -m tests.benchmark_generator [--size small|published] [--hr_size 128] [--compile] [--bf16] ...

Plain code is the same network with the hourglass run at every step, float32, PyTorch's default memory format,
and LR images and heatmaps made face by face in the loader's workers. Both sides run in turn in one process under the
same settings, which are part of the output; a ratio above 1 says how many times as fast this project is. Ratios are
medians over the pairs of runs, with the lowest and the highest.
"""

import argparse
import json
import os
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from commands.libraries import keep_freed_memory
from datamodules.faces.datamodule import complete_batch
from models.dic import DIC, SCALE, denormalise, normalise
from models.heatmaps import HEATMAP_STRIDE
from models.losses import dic_losses

SIZES = {
    "small": dict(num_features=16, num_steps=2, num_groups=1, num_fusion_blocks=2, hourglass_features=32),
    "published": {},
}


def compare(ours: Callable[[], object], plain: Callable[[], object], repeats: int) -> dict[str, float]:
    """Time both in turn; one run of each beforehand does not count."""
    ratios, seconds = [], []
    for repeat in range(repeats + 1):
        times = []
        for run in (plain, ours) if repeat % 2 else (ours, plain):
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        first, second = times if repeat % 2 else reversed(times)  # plain, ours
        if repeat:
            ratios.append(first / second)
            seconds.append(second)
    return {
        "ratio": round(float(np.median(ratios)), 2),
        "lowest": round(min(ratios), 2),
        "highest": round(max(ratios), 2),
        "ours_s": round(float(np.median(seconds)), 4),
    }


def training_step(
    net: DIC, batch: dict[str, Tensor], optimizer: torch.optim.Optimizer, device: str, bf16: bool
) -> None:
    """Forward, losses, backward and update."""
    target = normalise(batch["hr"].float() / 255)
    with torch.autocast(device, torch.bfloat16, enabled=bf16):
        images, heatmaps = net(normalise(batch["lr"]))
        pixel, heatmap = dic_losses(images, heatmaps, target, batch["heatmaps"])
    optimizer.zero_grad()
    (pixel + 0.1 * heatmap).backward()
    optimizer.step()


class Served(Dataset[dict[str, Tensor]]):
    """Serve the faces of a batch again and again.

    Args:
        faces: the batch.
        count: length of the set.
        prepared: with LR image and heatmaps, as `__getitem__` usually makes them.
    """

    def __init__(self, faces: dict[str, Tensor], count: int, prepared: bool) -> None:
        self.faces, self.count, self.prepared = faces, count, prepared

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        face = {name: values[index % len(values)].clone() for name, values in self.faces.items()}
        if not self.prepared:
            return face
        side = face["hr"].shape[-1]
        image = Image.fromarray(face["hr"].permute(1, 2, 0).numpy())
        lr = np.asarray(image.resize((side // SCALE,) * 2, Image.Resampling.BICUBIC))
        y, x = np.mgrid[: side // HEATMAP_STRIDE, : side // HEATMAP_STRIDE]
        points = face["landmarks"].numpy() / HEATMAP_STRIDE
        maps = [np.exp(-((x - px) ** 2 + (y - py) ** 2) / 2).astype(np.float32) for px, py in points]
        return face | {
            "lr": torch.from_numpy(lr.transpose(2, 0, 1).astype(np.float32) / 255),
            "heatmaps": torch.from_numpy(np.stack(maps)),
        }


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Make all three comparisons; return them with the settings they depend on."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    plain = DIC(**SIZES[options.size]).to(device)
    ours = DIC(**SIZES[options.size]).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    ours.load_state_dict(plain.state_dict())
    if options.compile:  # what training and upscaling have in common
        ours._iterate = torch.compile(ours._iterate)  # type: ignore[method-assign]
    side = options.hr_size
    faces = {
        "hr": torch.randint(0, 256, (options.batch_size, 3, side, side), dtype=torch.uint8),
        "landmarks": torch.rand(options.batch_size, 68, 2) * side,
        "index": torch.arange(options.batch_size),
    }
    batch = {name: value.to(device) for name, value in complete_batch(dict(faces)).items()}
    settings = {
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "malloc": os.environ.get("MALLOC_MMAP_THRESHOLD_", "freed memory kept, both sides"),
    }
    return {
        "training": compare_training(ours, plain, batch, options),
        "inference": compare_inference(ours, plain, batch["lr"][:1], options),
        "preparation": compare_preparation(faces, device, options),
        "settings": settings | vars(options),
    }


def compare_training(ours: DIC, plain: DIC, batch: dict[str, Tensor], options: argparse.Namespace) -> dict[str, float]:
    """Compare training steps."""
    device = batch["lr"].device.type
    adam = {net: torch.optim.Adam(net.parameters(), 1e-4) for net in (plain, ours)}
    return compare(
        lambda: training_step(ours, batch, adam[ours], device, options.bf16),
        lambda: training_step(plain, batch, adam[plain], device, False),
        options.repeats,
    )


@torch.inference_mode()
def compare_inference(ours: DIC, plain: DIC, lr: Tensor, options: argparse.Namespace) -> dict[str, float]:
    """Compare the upscaling of one face."""

    def upscale() -> Tensor:
        with torch.autocast(lr.device.type, torch.bfloat16, enabled=options.bf16):
            return ours.upscale(lr.contiguous(memory_format=torch.channels_last))

    return compare(upscale, lambda: denormalise(plain(normalise(lr))[0][-1]), options.repeats)


def compare_preparation(faces: dict[str, Tensor], device: str, options: argparse.Namespace) -> dict[str, float]:
    """Compare LR images and heatmaps made by the batch on the device with those made one by one in the workers."""
    count = 32 * options.batch_size
    plain = DataLoader(
        Served(faces, count, prepared=True),
        options.batch_size,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
    )
    ours = DataLoader(Served(faces, count, prepared=False), options.batch_size)

    def serve(loader: DataLoader[dict[str, Tensor]]) -> None:
        for batch in loader:
            there = {name: value.to(device) for name, value in batch.items()}
            if loader is ours:
                complete_batch(there)

    result = compare(lambda: serve(ours), lambda: serve(plain), options.repeats)
    return result | {"faces_per_s": round(count / result["ours_s"])}


def main(args: list[str] | None = None) -> dict[str, object]:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(
        prog="tests.benchmark_generator", description=(__doc__ or "").split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--size", choices=sorted(SIZES), default="small", help="of the network (default: small)")
    parser.add_argument("--hr_size", type=int, default=128, help="side of the HR faces, px (default: 128)")
    parser.add_argument("--batch_size", type=int, default=8, help="faces in a training batch (default: 8)")
    parser.add_argument("--workers", type=int, default=2, help="of the plain loader (default: 2)")
    parser.add_argument("--repeats", type=int, default=7, help="pairs of runs (default: 7)")
    parser.add_argument("--compile", action="store_true", help="our side under torch.compile")
    parser.add_argument("--bf16", action="store_true", help="our side in bfloat16 mixed precision")
    options = parser.parse_args(args)
    keep_freed_memory()
    results = measure(options)
    print(json.dumps(results, indent=2))
    return results
