"""Enlarges a folder of face crops eightfold with a trained generator: upscale.py with --images.

    superfer upscale --ckpt_path RUN_OR_FILE --images FOLDER --out FOLDER [--heatmaps] [--devices N]

Every image that is written names the generator and the file it was made from (hashes, in text chunks of the PNG). An
interrupted job is carried on by starting it again: what is there, made by this generator from this file, is kept.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy

from callbacks.image_writer import ImageWriter, Report, read_origin
from datamodules.image_folder import (
    MAX_PIXELS,
    OTHER_SUFFIXES,
    SUFFIXES,
    ImageFolder,
    ImageRefusedError,
    Task,
    digest_of,
    image_size,
    list_images,
    padded_pixels,
    plan_batches,
)
from datamodules.upscalers import DICUpscaler
from lightning_modules.enlarger import Enlarger
from models.pretrained import load_generator
from run_state.folder import find_checkpoint
from storage.atomic import remove_leftovers, write_atomically

OPTIONS = ("--images", "--out", "--ckpt_path")  # any of them says that a folder is meant, not a data set

LINE_EVERY = 100  # images


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parse_options(args: Sequence[str]) -> argparse.Namespace:
    """The command line of the folder mode.

    Raises:
        ValueError: it is wrong.
    """
    parser = _Parser(
        prog="superfer upscale",
        allow_abbrev=False,
        description=f"Enlarges every image of a folder eightfold, as PNG; finds no faces, takes crops. "
        f"Formats: {' '.join(suffix[1:] for suffix in SUFFIXES)}; any size up to {MAX_PIXELS:,} pixels, "
        "large ones in overlapping tiles (with --heatmaps they are skipped); gray stays gray, alpha is enlarged "
        "bicubically. Files that cannot be enlarged are named and skipped; the exit code is then 1. What an earlier "
        "call with the same generator wrote is kept, unless its image has changed since.",
    )
    parser.add_argument("--ckpt_path", required=True, metavar="RUN_OR_FILE", help="the generator")
    parser.add_argument("--images", required=True, type=Path, metavar="FOLDER", help="sub-folders are kept")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="where NAME.png is written")
    parser.add_argument(
        "--heatmaps", action="store_true", help="write NAME_landmarks.png, too: heatmaps and landmarks over the face"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what other generators or programs wrote")
    parser.add_argument("--batch_size", type=int, default=8, metavar="N", help="images at once and device; default: 8")
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="GPUs or processes; default: 1")
    parser.add_argument("--accelerator", choices=("auto", "cpu", "gpu"), default="auto", help="default: auto")
    options = parser.parse_args(args)
    for name in ("batch_size", "devices"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} is {getattr(options, name)}, needed is at least 1")
    return options


@dataclass
class Job:
    """Everything that `run` needs, checked.

    Attributes:
        options: the command line.
        checkpoint: file of the generator.
        batches: what is to be enlarged.
        kept: number of images that were enlarged before.
        skipped: reasons by name for images that cannot be enlarged.
        module: the generator.
        writer: the callback of `trainer` that writes.
        trainer: the devices.
    """

    options: argparse.Namespace
    checkpoint: Path
    batches: list[list[Task]]
    kept: int
    skipped: dict[str, str]
    module: Enlarger
    writer: ImageWriter
    trainer: L.Trainer


def prepare(args: Sequence[str]) -> Job:
    """Checks all that can be checked before the first image is enlarged; writes nothing, but makes the output folder.

    Raises:
        ValueError: the command line, the generator or the contents of a folder are not what is needed.
        OSError: a folder or the checkpoint is missing, or may not be read or written.
        lightning.pytorch.utilities.exceptions.MisconfigurationException: there are no such devices.
    """
    options = parse_options(args)
    _check_apart(options.images, options.out)
    names, others = list_images(options.images)
    targets = _find_targets(names, options.out, options.heatmaps)
    checkpoint = find_checkpoint(options.ckpt_path)
    module = Enlarger(load_generator(checkpoint), options.heatmaps)
    generator = DICUpscaler(str(checkpoint), color="rgb").fingerprint()
    writer = ImageWriter(generator, every=0 if sys.stdout.isatty() else LINE_EVERY)
    trainer = _make_trainer(options, writer)
    _make_writable(options.out)
    tasks, kept, skipped = _find_work(options, targets, generator, module.whole_pixels)
    pictures = {name for name in others if name.name.lower().endswith(OTHER_SUFFIXES)}
    others = [name for name in others if name not in pictures]
    reason = f"of a format that is not read; convert it to one of {', '.join(SUFFIXES)}"
    skipped |= {str(name): reason for name in sorted(pictures)}
    if trainer.is_global_zero:
        print(f"generator: {checkpoint}, {module.net.num_steps} steps")  # which the authors' layout does not say
        print(f"{options.images}: {len(tasks)} images to enlarge, {kept} are there already", flush=True)
        if others:
            print(f"not images, left alone: {len(others)} files, the first is {others[0]}", flush=True)
        _print_skipped(skipped)
    batches = plan_batches(tasks, options.batch_size, module.pixels)
    return Job(options, checkpoint, batches, kept, skipped, module, writer, trainer)


def _make_trainer(options: argparse.Namespace, writer: ImageWriter) -> L.Trainer:
    return L.Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        # A process that is ready waits for the others, however long their last batches take.
        strategy=DDPStrategy(timeout=timedelta(days=1)) if options.devices > 1 else "auto",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=sys.stdout.isatty(),
        use_distributed_sampler=False,
        callbacks=[writer],
    )


def _check_apart(images: Path, out: Path) -> None:
    """Refuses a missing input folder, and folders one of which lies in the other: outputs would mix with inputs."""
    if not images.is_dir():
        raise FileNotFoundError(f"--images {images}: {'not a folder' if images.exists() else 'no such folder'}")
    read, written = images.resolve(), out.resolve()
    if read == written or read in written.parents or written in read.parents:
        raise ValueError(f"--images {images} and --out {out}: neither may lie in the other, nor may they be the same")


def _make_writable(out: Path) -> None:
    """Makes the folder and asks for permissions, quotas and read-only disks in one go: by writing a file."""
    probe = out / ".superfer"
    try:
        write_atomically(probe, "")
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(f"--out {out} cannot be written ({error.strerror})") from error


def _find_targets(names: Sequence[Path], out: Path, heatmaps: bool) -> dict[Path, tuple[Path, ...]]:
    """The files that each image becomes.

    Raises:
        ValueError: two images would become the same file.
    """
    made_from: dict[Path, Path] = {}
    targets: dict[Path, tuple[Path, ...]] = {}
    for name in names:
        plain = out / name.with_suffix(".png")
        targets[name] = (plain, plain.with_name(f"{plain.stem}_landmarks.png")) if heatmaps else (plain,)
        for target in targets[name]:
            if target in made_from:
                raise ValueError(f"{made_from[target]} and {name} would both become {target}; rename one of them")
            made_from[target] = name
    return targets


def _find_work(
    options: argparse.Namespace, targets: dict[Path, tuple[Path, ...]], generator: str, whole_pixels: int
) -> tuple[list[Task], int, dict[str, str]]:
    """Images to enlarge, the number of those that were enlarged before, and reasons by name for those that cannot be.

    Raises:
        ValueError: something else is in the place of a file that would be written, and --overwrite is not given.
    """
    tasks: list[Task] = []
    kept, skipped = 0, {}
    for folder in {file.parent for files in targets.values() for file in files}:
        remove_leftovers(folder)
    for name, files in targets.items():
        source = options.images / name
        marks = [read_origin(file) for file in files]
        for file, mark in zip(files, marks, strict=True):
            if mark and mark[0] != generator and not options.overwrite:
                raise ValueError(
                    f"{file} was not made by this generator ({generator}) but by {mark[0] or 'something else'}; name "
                    "another --out, or replace such files with --overwrite"
                )
        try:
            width, height = image_size(source)
            if options.heatmaps and padded_pixels(width, height) > whole_pixels:
                raise ImageRefusedError(f"{width} x {height} are too many pixels for landmarks; cut the face out first")
            if all(mark and mark == (generator, digest_of(source.read_bytes())) for mark in marks):
                kept += 1
            else:
                tasks.append(Task(str(name), source, files, width, height))
        except (ImageRefusedError, OSError) as error:
            skipped[str(name)] = str(error)
    return tasks, kept, skipped


def run(job: Job) -> Report:
    """Enlarges the images of a job.

    Returns:
        What all processes did, on the first one; an empty report on the others.
    """
    if job.batches:
        job.trainer.predict(job.module, datamodule=ImageFolder(job.batches), return_predictions=False)
    job.writer.report.finite = job.module.finite
    reports: list[Any] = [job.writer.report]
    if job.batches and job.trainer.world_size > 1:
        reports = [None] * job.trainer.world_size
        torch.distributed.all_gather_object(reports, job.writer.report)
    if not job.trainer.is_global_zero:
        return Report()
    found = {name: reason for report in reports for name, reason in sorted(report.skipped.items())}
    _print_skipped(found)
    total = Report(
        written=sum(report.written for report in reports),
        skipped=job.skipped | found,
        finite=all(report.finite for report in reports),
    )
    there = f", {job.kept} were there already" if job.kept else ""
    print(f"{total.written} images enlarged into {job.options.out}{there}, {len(total.skipped)} skipped", flush=True)
    return total


def main(args: Sequence[str]) -> Path:
    """The folder mode of upscale.py.

    Returns:
        The folder with the enlarged images.

    Raises:
        ValueError: as `prepare`; or the generator returned numbers that are not finite.
        SystemExit: with code 1, if images had to be skipped.
    """
    job = prepare(args)
    report = run(job)
    if not report.finite:
        raise ValueError(
            f"{job.checkpoint}: the generator returned numbers that are not finite; was it trained to its end?"
        )
    if report.skipped:
        raise SystemExit(1)
    out: Path = job.options.out
    return out


def _print_skipped(skipped: dict[str, str]) -> None:
    for name, reason in skipped.items():
        print(f"skipped: {name}: {' '.join(reason.split())}", file=sys.stderr, flush=True)
