"""The command `upscale`: fill the cache of a classifier's configuration, or upscale a folder of face crops.

    superfer upscale --config FILE [--KEY VALUE ...]
    superfer upscale --ckpt_path RUN_OR_FILE --images FOLDER --out FOLDER [--heatmaps] [--devices N]

A folder is shared out to independent processes. Every image that is written names the generator and the file it was
made from, so an interrupted job is resumed by starting it again, and several nodes share a folder by each being given
the command: what another process has written in the meantime is skipped.
"""

import argparse
import os
import random
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path

import torch
from tqdm import tqdm

from commands.console import Parser, keep_freed_memory, quieten, refusals, refuse
from datamodules.image_folder import (
    MAX_PIXELS,
    ImageRefusedError,
    UpscaleTask,
    list_images,
    padded_size,
    read_batches,
)
from datamodules.upscaled_images import check_origins, find_targets, is_upscaled, upscale_batch, write_upscaled
from datamodules.upscalers import DICUpscaler
from models.tiling import pixels_at_once
from run_state.folder import find_checkpoint
from storage.atomic import write_atomically

FOLDER_OPTIONS = ("--images", "--out", "--ckpt_path")  # any of them asks for a folder, not for a data set


def upscale(args: Sequence[str] | None = None) -> Path | None:
    """Upscale the data set of a classifier's configuration into its cache, or a folder of images.

    Args:
        args: the command line; None takes `sys.argv`.

    Returns:
        The folder of the cache or of the upscaled images; None where the upscaler needs no cache.

    Raises:
        SystemExit: with code 2 if the input is wrong; 1 if the work failed or images had to be skipped.
    """
    words = list(sys.argv[1:] if args is None else args)
    quieten()
    if any(word.split("=")[0] in FOLDER_OPTIONS for word in words):
        return upscale_folder(words)
    return _upscale_data_set(words)


def _upscale_data_set(words: list[str]) -> Path | None:
    # Lightning: the processes that upscale a folder start in half the time without it.
    from commands.cli import SuperFERCLI

    with refusals():
        cli = SuperFERCLI("upscale", words)
        cli.instantiate()
        cli.datamodule.check("upscale")
        trainer = cli.instantiate_trainer(logger=False, callbacks=[])
        cli.datamodule.check_device(trainer.strategy.root_device)
        trainer.predict(cli.model, datamodule=cli.datamodule)  # the data module fills its cache on every device
    folder: Path | None = cli.datamodule.cache_folder
    if trainer.is_global_zero:
        print(f"upscaled images: {folder}" if folder else f"{cli.datamodule.upscaler.name} needs no cache")
    return folder


def parse_options(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line of the folder mode."""
    parser = Parser(
        prog="superfer upscale",
        description="Upscale every image of a folder eightfold, as PNG. Faces are not searched for: give crops. "
        f"8-bit PNG, JPEG, BMP, WebP and TIFF files with one image of at most {MAX_PIXELS:,} pixels, large ones in "
        "overlapping tiles (with --heatmaps they are skipped); gray stays gray, alpha is upscaled bicubically. Files "
        "that cannot be upscaled are named and skipped, and the exit code is then 1. What the same generator wrote "
        "before is kept, unless its source has changed.",
    )
    parser.add_argument("--ckpt_path", required=True, metavar="RUN_OR_FILE", help="the generator")
    parser.add_argument("--images", required=True, type=_folder, metavar="FOLDER", help="sub-folders are kept")
    parser.add_argument("--out", required=True, type=_folder, metavar="FOLDER", help="where NAME.png is written")
    parser.add_argument(
        "--heatmaps", action="store_true", help="also write NAME_landmarks.png: heatmaps and landmarks over the face"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what other generators or programs wrote")
    parser.add_argument("--batch_size", type=int, default=8, metavar="N", help="images at once per device; default: 8")
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="GPUs or processes; default: 1")
    parser.add_argument("--accelerator", choices=("auto", "cpu", "gpu"), default="auto", help="default: auto")
    options = parser.parse_args(words)
    for name in ("batch_size", "devices"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)}, expected at least 1")
    return options


def _folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("is empty, expected a folder")
    return Path(text)


@dataclass(frozen=True)
class Job:
    """What the processes have to know.

    Attributes:
        options: the command line.
        checkpoint: file of the generator.
        tasks: what is to be upscaled, images of one size after each other.
        pixels: most LR pixels in a batch; an image of more than twice as many is upscaled in tiles.
        device: `cpu`, or the kind of the GPUs.
        processes: how many share the tasks.
        threads: of each process.
    """

    options: argparse.Namespace
    checkpoint: Path
    tasks: Sequence[UpscaleTask]
    pixels: int
    device: str
    processes: int
    threads: int


def upscale_folder(words: Sequence[str], pixels: int | None = None) -> Path:
    """Upscale a folder of images.

    Args:
        words: the command line.
        pixels: LR pixels in a batch; None: what suits the size of the generator.

    Returns:
        The folder with the upscaled images.

    Raises:
        SystemExit: as `upscale`.
    """
    options = parse_options(words)
    try:
        _check_apart(options.images, options.out)
        names, others = list_images(options.images)
        targets = find_targets(names, options.out, options.heatmaps)
        checkpoint = find_checkpoint(options.ckpt_path)
        upscaler = DICUpscaler(str(checkpoint), color="rgb")
        generator, net = upscaler.fingerprint(), upscaler.network
        pixels = pixels or pixels_at_once(net)
        device = _find_device(options.accelerator, options.devices)
        _check_writable(options.out)
        check_origins(targets, generator, options.overwrite)
        tasks = _make_tasks(options, targets, 2 * pixels)
    except (ValueError, OSError) as error:
        refuse(error)
    missing = [task for task in tasks if not is_upscaled(task, generator)]
    print(f"generator: {checkpoint}, {net.num_steps} steps")  # which the authors' layout does not record
    if others:
        print(f"not read: {len(others)} other files, the first is {others[0]}")
    print(f"upscaling {len(missing)} images of {options.images} into {options.out}", flush=True)
    processes = max(1, min(options.devices, len(missing)))
    threads = max(1, torch.get_num_threads() // processes)
    try:
        run(Job(options, checkpoint, missing, pixels, device, processes, threads))
    except (ValueError, OSError, BrokenExecutor) as error:
        raise SystemExit(f"error: {error}") from error  # with code 1
    done = sum(is_upscaled(task, generator) for task in missing)
    kept = len(tasks) - len(missing)
    skipped = len(names) - kept - done
    print(f"{done} images upscaled into {options.out}, {kept} were there already, {skipped} skipped", flush=True)
    if skipped:
        raise SystemExit(1)
    out: Path = options.out
    return out


def _check_apart(images: Path, out: Path) -> None:
    """Refuse a missing input folder, and folders one of which lies in the other: outputs would mix with inputs."""
    if not images.is_dir():
        raise FileNotFoundError(f"--images {images}: {'not a folder' if images.exists() else 'no such folder'}")
    source, target = Path(os.path.realpath(images)), Path(os.path.realpath(out))
    if source == target or source in target.parents or target in source.parents:
        raise ValueError(f"--images {images} and --out {out}: neither may lie in the other, nor may they be the same")


def _find_device(accelerator: str, count: int) -> str:
    """Return `cpu`, or the kind of GPU if there are as many as asked for."""
    available = torch.accelerator.device_count() if accelerator != "cpu" else 0
    if accelerator != "gpu" and not available:
        return "cpu"
    if count > available:
        raise ValueError(f"--devices is {count}, expected at most {available}, the number of GPUs here")
    return str(torch.accelerator.current_accelerator())


def _check_writable(out: Path) -> None:
    """Ask for permissions, quotas and read-only disks in one go: by writing a file."""
    probe = out / ".superfer"
    try:
        write_atomically(probe, "")
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(f"--out {out} cannot be written ({error.strerror})") from error


def _make_tasks(
    options: argparse.Namespace, targets: dict[Path, tuple[Path, ...]], most_pixels: int
) -> list[UpscaleTask]:
    """Return the images that can be upscaled, the largest first, and name the others."""
    tasks: list[UpscaleTask] = []
    for name, files in random.sample(list(targets.items()), len(targets)):  # so that two jobs begin elsewhere
        task = UpscaleTask(str(name), options.images / name, files, (0, 0))
        try:
            height, width = padded_size(task.source)
            if options.heatmaps and height * width > most_pixels:
                size = f"{width} x {height} padded pixels, expected at most {most_pixels:,}"
                raise ImageRefusedError(f"{size} for landmarks; cut the face out first")
            tasks.append(task._replace(size=(height, width)))
        except (ImageRefusedError, OSError) as error:
            _print_skipped(task, error)
    return sorted(tasks, key=lambda task: (task.size[0] * task.size[1], task.size), reverse=True)


def _print_skipped(task: UpscaleTask, reason: object) -> None:
    tqdm.write(f"skipped: {task.name}: {' '.join(str(reason).split())}", file=sys.stderr)


def run(job: Job) -> None:
    """Upscale the images of a job, in processes of their own if there are several devices.

    Raises:
        ValueError: the generator returns numbers that are not finite.
        OSError: a file cannot be written.
        BrokenProcessPool: a process was killed.
    """
    if job.processes == 1:
        return upscale_share(job, 0)
    with ProcessPoolExecutor(job.processes, get_context("spawn"), _start_process, (job.threads,)) as pool:
        shares = [pool.submit(upscale_share, job, rank) for rank in range(job.processes)]
        try:
            for share in as_completed(shares):
                share.result()
        except BaseException:
            for child in active_children():
                child.terminate()
            raise


def _start_process(threads: int) -> None:
    """Share the processor, and end when the parent does, however it ends."""

    def follow_parent() -> None:
        parent_process().join()  # type: ignore[union-attr]
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()
    torch.set_num_threads(threads)


def upscale_share(job: Job, rank: int) -> None:
    """Upscale every `job.processes`-th image of a job, from `rank` on; write one batch while the next is upscaled."""
    keep_freed_memory()
    upscaler = DICUpscaler(str(job.checkpoint), color="rgb")
    generator = upscaler.fingerprint()  # of what is loaded: the file may have changed
    device = torch.device(job.device if job.device == "cpu" else f"{job.device}:{rank}")
    upscaler.network.to(device)
    shown = "upscaling" if job.processes == 1 else f"upscaling, process 1 of {job.processes}"
    interval = 0.1 if sys.stderr.isatty() else 60  # seconds; a line in a log
    tasks = tqdm(job.tasks[rank :: job.processes], shown, unit="image", disable=rank != 0, mininterval=interval)
    missing = (task for task in tasks if not is_upscaled(task, generator))  # another job may share the folder
    written: list[Future[None]] = []
    # Threads: Pillow compresses without holding the interpreter lock. Leaving the block waits for them.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for images in read_batches(missing, job.options.batch_size, job.pixels, _print_skipped):
            upscaled = upscale_batch(upscaler, images, job.options.heatmaps, job.pixels, _print_skipped)
            for future in written:
                future.result()  # at most two batches are in memory
            written = [pool.submit(write_upscaled, one, generator) for one in upscaled]
        for future in written:
            future.result()
