"""The command `upscale`: fill the cache of a classifier's configuration, or upscale a folder of face crops.

    superfer upscale --config FILE [--KEY VALUE ...]
    superfer upscale --ckpt_path RUN_OR_FILE --images FOLDER --out FOLDER [--heatmaps] [--devices N]

Every PNG names the generator and the source it was made from. An interrupted job is therefore resumed by starting it
again, and several nodes can share a folder: give each of them the command, and each skips what is already there.
"""

import argparse
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.multiprocessing.spawn import ProcessExitedException, spawn
from tqdm import tqdm

from commands.ending import Parser, fail, importing, orderly, refusals
from commands.libraries import keep_freed_memory, quieten
from datamodules.image_folder import MAX_PIXELS, UpscaleTask, find_tasks, largest_first, list_images, read_batches
from datamodules.upscaled_images import check_origins, is_upscaled, upscale_batch, write_upscaled
from datamodules.upscalers import DICUpscaler
from models.tiling import pixels_at_once
from run_state.folder import find_checkpoint
from storage.atomic import check_writable
from storage.shortage import find_shortage


@orderly()
def upscale(args: Sequence[str] | None = None) -> Path | None:
    """Fill the cache of a classifier's configuration, or upscale a folder of images; return their folder.

    It is None where the upscaler needs no cache. The exit code is 1 if images were skipped.
    """
    words = list(sys.argv[1:] if args is None else args)
    quieten()
    if not any(word.split("=")[0] == "--config" for word in words) or "--help" in words:
        return upscale_folder(words)
    # Not at the top: the processes that upscale a folder start in half the time without Lightning.
    with importing():
        from commands.cli import SuperFERCLI
        from run_state.preemption import Preemption

    with refusals():
        cli = SuperFERCLI("upscale", words)
        cli.instantiate()
        cli.datamodule.check("upscale")
        trainer = cli.instantiate_trainer(logger=False, callbacks=[])
        cli.datamodule.check_device(trainer.strategy.root_device)
    with Preemption().listening(trainer):
        trainer.predict(cli.model, datamodule=cli.datamodule)  # the data module fills its cache on every device
    folder: Path | None = cli.datamodule.cache_folder
    if trainer.is_global_zero:
        print(f"upscaled images: {folder}" if folder else f"{cli.datamodule.upscaler.name} at this size needs no cache")
    return folder


def parse_options(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line of the folder mode."""
    parser = Parser(
        prog="superfer upscale",
        usage="%(prog)s --ckpt_path RUN_OR_FILE --images FOLDER --out FOLDER [--OPTION ...]\n"
        "       %(prog)s --config FILE [--config FILE ...] [--KEY VALUE ...]",
        description="Upscale every image of a folder eightfold, to PNG. There is no face detection: supply crops. "
        f"Reads 8-bit PNG, JPEG, BMP, WebP and TIFF files with one image of at most {MAX_PIXELS:,} pixels. Large ones "
        "are upscaled in overlapping tiles (skipped with --heatmaps), gray stays gray, alpha is upscaled bicubically. "
        "Files that cannot be upscaled are named and skipped; the exit code is then 1. Intact results are kept.",
    )
    parser.add_argument("--config", help="fill the cache of the classifier that it configures, instead of a folder")
    parser.add_argument("--ckpt_path", required=True, metavar="RUN_OR_FILE", help="the generator")
    parser.add_argument("--images", required=True, type=_folder, metavar="FOLDER", help="read with its sub-folders")
    parser.add_argument("--out", required=True, type=_folder, metavar="FOLDER", help="where NAME.png is written")
    parser.add_argument(
        "--heatmaps", action="store_true", help="also write NAME_landmarks.png: heatmaps and landmarks over the face"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files of other generators or programs")
    parser.add_argument("--batch_size", type=int, default=8, metavar="N", help="images at once per device; default: 8")
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="GPUs or processes; default: 1")
    parser.add_argument("--accelerator", choices=("auto", "cpu", "gpu"), default="auto", help="default: auto")
    options = parser.parse_args(words)
    for name in ("batch_size", "devices"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)}, expected at least 1")
    return options


def _folder(text: str) -> Path:
    if not text:  # an unset shell variable; Path("") would be the current folder
        raise argparse.ArgumentTypeError("is empty, expected a folder")
    return Path(text)


def upscale_folder(words: Sequence[str]) -> Path:
    """Upscale a folder of images; exit as `upscale`."""
    options = parse_options(words)
    out: Path = options.out
    with refusals():
        images, others = list_images(options.images)
        _check_apart(options.images, out)
        upscaler = DICUpscaler(options.ckpt_path, color="rgb")
        generator = upscaler.fingerprint()
        device = _find_device(options.accelerator, options.devices)
        tasks = find_tasks(images, options.images, out, options.heatmaps)
        out.mkdir(parents=True, exist_ok=True)
        check_writable(out)  # now, not after the first batch
        check_origins(tasks, generator, options.overwrite)
    missing = [task for task in tasks if not is_upscaled(task, generator)]
    # The authors' layout does not record the number of steps.
    print(f"generator: {find_checkpoint(options.ckpt_path)}, {upscaler.network.num_steps} steps")
    if others:
        print(f"not read: {len(others)} other files, the first is {others[0]}")
    print(f"upscaling {len(missing)} images of {options.images} into {out}", flush=True)
    readable = largest_first(missing)
    processes = max(1, min(options.devices, len(readable)))
    if processes == 1:
        upscale_share(0, options, readable, device, processes)
    else:
        try:
            spawn(upscale_share, (options, readable, device, processes), processes, daemon=True)
        except ProcessExitedException as error:
            fail(error)
    done = sum(is_upscaled(task, generator) for task in missing)
    kept, skipped = len(tasks) - len(missing), len(missing) - done
    print(f"{done} images upscaled into {out}, {kept} were there already, {skipped} skipped", flush=True)
    if skipped:
        raise SystemExit(1)
    return out


def _check_apart(images: Path, out: Path) -> None:
    """Refuse folders one of which contains the other: outputs would mix with inputs."""
    source, target = Path(os.path.realpath(images)), Path(os.path.realpath(out))
    if source.is_relative_to(target) or target.is_relative_to(source):
        raise ValueError(f"--out is {out}, expected a folder that neither contains --images {images} nor is inside it")


def _find_device(accelerator: str, count: int) -> str:
    """Return `cpu`, or the kind of GPU if there are enough of them."""
    available = torch.accelerator.device_count() if accelerator != "cpu" else 0
    if accelerator != "gpu" and not available:
        return "cpu"
    if count > available:
        raise ValueError(f"--devices is {count}, expected at most {available}, the number of GPUs here")
    return str(torch.accelerator.current_accelerator())


def upscale_share(
    rank: int, options: argparse.Namespace, tasks: Sequence[UpscaleTask], device: str, processes: int
) -> None:
    """Upscale every `processes`-th task from `rank` on, writing one batch while the next is upscaled."""
    if processes > 1:  # its parent's end sends it SIGINT, which jobs in the background of a shell inherit as ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    keep_freed_memory()
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    name = "upscaling" if processes == 1 else f"upscaling, process 1 of {processes}"
    interval = 0.1 if sys.stderr.isatty() else 60  # seconds; in a log every update is a line
    share = tqdm(tasks[rank::processes], name, unit="image", disable=rank != 0, mininterval=interval)
    try:
        upscaler = DICUpscaler(options.ckpt_path, color="rgb")
        generator, pixels = upscaler.fingerprint(), pixels_at_once(upscaler.network)
        upscaler.network.to(device if device == "cpu" else f"{device}:{rank}")
        missing = (task for task in share if not is_upscaled(task, generator))  # another job may share the folder
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow compresses without holding the GIL
            written: Iterable[None] = ()
            for images in read_batches(missing, options.batch_size, pixels):
                upscaled = upscale_batch(upscaler, images, options.heatmaps, pixels)
                list(written)  # raises what a thread has raised; at most two batches are in memory
                written = pool.map(lambda one: write_upscaled(one[0], one[1], generator), upscaled)
            list(written)
    except Exception as error:
        if not isinstance(error, ValueError | OSError) and not find_shortage(error):
            raise
        fail(error)
