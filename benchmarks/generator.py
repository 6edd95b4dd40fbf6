"""Measure time, memory and precision of the published generator against its plain implementation; print JSON.

    python -m benchmarks.generator [--rounds 5]

Plain is what the authors' code does: float32, PyTorch's default memory format, features concatenated before they are
convolved, the hourglass run at every step, every activation kept for the backward pass. Both have the same weights, and
run in turn in one process, with the same threads and malloc settings; the ratios are ours to plain, below 1 is less.
Memory is what a pass or a step needs on top of the network's weights, in a process of its own.
"""

import argparse
import json
import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import MethodType
from typing import TypeVar

import torch
from torch import Tensor, nn

from benchmarks.hash_weights import published_weights
from benchmarks.timing import PLAIN, in_turn, settings
from commands.libraries import keep_freed_memory
from datamodules.faces.datamodule import complete_batch
from models.dic import DIC, SCALE, FeedbackBlock, Merge, denormalise, normalise
from models.losses import HEATMAP_WEIGHT, dic_losses

Result = TypeVar("Result")
LR_SIDES = (16, 48)  # pixels
TRAINING_SIDE, BATCH = 16, 4


def published() -> DIC:
    """Return the network of the published size with reproducible weights."""
    net = DIC()
    net.load_state_dict(published_weights())
    return net.to("cuda" if torch.cuda.is_available() else "cpu")


def ours() -> DIC:
    """Return the network as trainings and upscalers use it."""
    return published().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def plain() -> DIC:
    """Return the network with the authors' sequence of operations."""
    net = published()
    for module in net.modules():
        if isinstance(module, Merge):
            module.forward = MethodType(_concatenate_and_convolve, module)  # type: ignore[method-assign]
        elif isinstance(module, FeedbackBlock):
            module.project = MethodType(_project, module)  # type: ignore[method-assign]
        elif isinstance(module, nn.PReLU):
            module.forward = MethodType(nn.PReLU.forward, module)  # type: ignore[method-assign]
        elif isinstance(module, nn.ReLU | nn.LeakyReLU):
            module.inplace = False
    return net


def _concatenate_and_convolve(self: Merge, parts: list[Tensor]) -> Tensor:
    return nn.Sequential.forward(self, torch.cat(tuple(parts), dim=1))


def _project(self: FeedbackBlock, x: Tensor) -> Tensor:
    low, high = [x], []
    for group, (up, down) in enumerate(zip(self.upBlocks, self.downBlocks, strict=True)):
        high.append(up(x if group == 0 else self.uptranBlocks[group - 1](low)))
        low.append(down(high[0] if group == 0 else self.downtranBlocks[group - 1](high)))
    return self.compress_out(low[1:])


def upscaling(net: DIC, side: int, bfloat16: bool = False) -> Callable[[], Tensor]:
    """Return a function that upscales one face of side x side."""
    lr = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    lr = lr.to(next(net.parameters()).device)

    @torch.inference_mode()
    def upscale() -> Tensor:
        if _is_plain(net):
            return denormalise(net(normalise(lr))[0][-1]).clamp(0, 1)
        with torch.autocast(lr.device.type, torch.bfloat16, enabled=bfloat16):
            return net.upscale(lr.contiguous(memory_format=torch.channels_last))

    return upscale


def training(net: DIC) -> Callable[[], None]:
    """Return a function that makes one training step: forward, losses, backward, update."""
    generator, side = torch.Generator().manual_seed(0), SCALE * TRAINING_SIDE
    faces = {
        "hr": torch.randint(0, 256, (BATCH, 3, side, side), dtype=torch.uint8, generator=generator),
        "landmarks": torch.rand(BATCH, 68, 2, generator=generator) * side,
        "index": torch.arange(BATCH),
    }
    device = next(net.parameters()).device
    batch = {name: value.to(device) for name, value in complete_batch(faces).items()}
    layout = torch.contiguous_format if _is_plain(net) else torch.channels_last
    lr = normalise(batch["lr"]).contiguous(memory_format=layout)
    target = normalise(batch["hr"].float() / 255).contiguous(memory_format=layout)
    optimizer = torch.optim.Adam(net.parameters(), 1e-4)

    def step() -> None:
        images, heatmaps = net(lr)
        pixel, heatmap = dic_losses(images, heatmaps, target, batch["heatmaps"])
        optimizer.zero_grad()
        (pixel + HEATMAP_WEIGHT * heatmap).backward()
        optimizer.step()

    return step


def _is_plain(net: DIC) -> bool:
    return not net.get_parameter("conv_in.0.weight").is_contiguous(memory_format=torch.channels_last)


def apart(function: Callable[..., Result], *arguments: object) -> Result:
    """Call a function in a new process, whose memory nothing has used before."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(torch.set_num_threads, torch.get_num_threads()).result()
        pool.submit(keep_freed_memory).result()
        return pool.submit(function, *arguments).result()


def gigabytes(make: Callable[[], DIC], work: Callable[..., Callable[[], object]], *arguments: object) -> float:
    """Return by how much the memory of this process rises while it does some work for the first time."""
    run = work(make(), *arguments)
    before = _memory("VmRSS")
    run()
    return round((_memory("VmHWM") - before) / 1e9, 3)


def _memory(field: str) -> int:
    """Return the bytes that this process holds (VmRSS) or has held at most (VmHWM), on a GPU if it uses one."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated() if field == "VmRSS" else torch.cuda.max_memory_allocated()
    kilobytes = re.search(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(kilobytes[1]) if kilobytes else 0


def compare_memory(work: Callable[..., Callable[[], object]], *arguments: object) -> dict[str, float]:
    """Return the memory that some work needs, in GB, and the ratio."""
    needed = {make.__name__: apart(gigabytes, make, work, *arguments) for make in (ours, plain)}
    return {f"{name}_gb": value for name, value in needed.items()} | {
        "ratio": round(needed["ours"] / needed["plain"], 3)
    }


def compare_upscaling(side: int, rounds: int) -> dict[str, object]:
    """Compare the time and the result of upscaling one face of side x side."""
    net, authors = ours(), plain()
    runs = {
        PLAIN: upscaling(authors, side),
        "float32": upscaling(net, side),
        "bfloat16": upscaling(net, side, bfloat16=True),
    }
    exact, float32, bfloat16 = (run() for run in runs.values())
    return in_turn(runs, rounds) | {
        "largest_difference_float32": (float32 - exact).abs().max().item(),
        "psnr_db_bfloat16_to_float32": round(-10 * (bfloat16 - float32).square().mean().log10().item(), 1),
    }


def compare_training(rounds: int) -> dict[str, object]:
    """Compare the time of a training step."""
    return dict(in_turn({PLAIN: training(plain()), "ours": training(ours())}, rounds))


def measure(rounds: int) -> dict[str, object]:
    """Return the whole table."""
    table: dict[str, object] = {}
    for side in LR_SIDES:
        times = apart(compare_upscaling, side, rounds)
        table[f"upscaling {side} -> {SCALE * side}"] = times | {"memory": compare_memory(upscaling, side)}
    steps = apart(compare_training, rounds)
    table[f"training step, batch {BATCH}"] = steps | {"memory": compare_memory(training)}
    return table | {"settings": settings() | {"rounds": rounds}}


def main(args: list[str] | None = None) -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="benchmarks.generator", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="that count (default: 5)")
    rounds = parser.parse_args(args).rounds
    keep_freed_memory()
    print(json.dumps(measure(rounds), indent=2))


if __name__ == "__main__":
    main()
