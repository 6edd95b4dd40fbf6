"""`superfer upscale` on a folder: interrupted, shared or repeated, nothing is lost, mixed or done twice."""

import multiprocessing
import os
import resource
import shlex
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from models.dic import DIC, RGB_MEAN
from tests.commands.upscaling import arguments, exit_code, expected, levels, read, refused, save, snapshot, upscaled
from tests.tiny_runs import NETWORK, REPOSITORY, write_generator


def test_an_interrupted_job_is_resumed(generator: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        save(images / f"{number}.png", levels(8, 8, seed=number))
    undisturbed = snapshot(upscaled(generator, images, "--batch_size=1"))
    shutil.rmtree(images.parent / "out")
    calls, whole = [], DIC.upscale

    def killed(net: DIC, lr: torch.Tensor) -> torch.Tensor:
        calls.append(len(lr))
        if len(calls) == 3:
            raise RuntimeError("power cut")
        return whole(net, lr)

    monkeypatch.setattr(DIC, "upscale", killed)
    with pytest.raises(RuntimeError, match="power cut"):
        upscaled(generator, images, "--batch_size=1")
    out = images.parent / "out"
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert len(before) == 2
    leftovers = [out / ".9.png.writing-old", out / ".9.png.writing-new"]
    for path in leftovers:
        path.write_bytes(b"half an image")
    os.utime(leftovers[0], (0, 0))
    upscaled(generator, images, "--batch_size=1")
    assert len(calls) == 3 + 2, "only what was missing is made"
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert [path.exists() for path in leftovers] == [False, True], "a living process may be writing the new one"
    leftovers[1].unlink()
    assert snapshot(out) == undisturbed
    upscaled(generator, images)
    assert len(calls) == 5, "nothing is left to do"
    (out / "0.png").write_bytes((out / "0.png").read_bytes()[:-40])  # the disk has lost the end of it
    upscaled(generator, images)
    assert len(calls) == 6 and snapshot(out) == undisturbed


def test_two_terminals_share_a_folder(generator: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        save(images / f"{number}.png", levels(8, 8, seed=number))
    calls, whole = [], DIC.upscale

    def overtaken(net: DIC, lr: torch.Tensor) -> torch.Tensor:
        calls.append(len(lr))
        if len(calls) == 1:
            upscaled(generator, images)
        return whole(net, lr)

    monkeypatch.setattr(DIC, "upscale", overtaken)
    upscaled(generator, images, "--batch_size=1")
    assert calls == [1, 4], "the first job has only to finish the image that it was at"


def test_changed_images_are_made_anew(generator: Path, images: Path) -> None:
    save(images / "a.png", levels(8, 8))
    out = upscaled(generator, images)
    save(images / "a.png", levels(8, 8, seed=1))
    upscaled(generator, images)
    assert np.array_equal(read(out / "a.png"), expected(generator, levels(8, 8, seed=1)))
    upscaled(generator, images, "--heatmaps")  # the landmarks are missing, so both are made
    assert set(snapshot(out)) == {"a.png", "a_landmarks.png"}


def test_two_generators_are_not_mixed(
    generator: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        save(images / f"{name}.png", levels(8, 8))
    out = upscaled(generator, images)
    before = snapshot(out)
    other = write_generator(tmp_path / "other.ckpt", seed=1)
    message = refused(arguments(other, images), capsys)
    assert f"{out / 'a.png'} is not an image of this generator (dic-" in message and "--overwrite" in message
    (out / "a.png").unlink()
    assert "b.png is not an image of this generator" in refused(arguments(other, images), capsys)
    (out / "b.png").write_text("somebody's")
    assert "b.png is not an image of this generator" in refused(arguments(generator, images), capsys)
    (out / "b.png").unlink()
    os.mkfifo(out / "b.png")  # is not waited for
    assert "b.png is not an image of this generator" in refused(arguments(generator, images), capsys)
    upscaled(generator, images, "--overwrite")
    assert snapshot(out) == before
    upscaled(other, images, "--overwrite")
    assert np.array_equal(read(out / "a.png"), expected(other, levels(8, 8)))
    assert not np.array_equal(expected(other, levels(8, 8)), expected(generator, levels(8, 8)))


def test_a_full_disk_ends_in_one_line(generator: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(images / "a.png", levels(8, 8))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        assert exit_code(arguments(generator, images)) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    message = f"error: {images.parent / 'out' / 'a.png'} cannot be written (File too large)"
    assert capsys.readouterr().err.splitlines()[-1] == message


def test_two_processes_write_what_one_writes(generator: Path, images: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for number in range(5):
        save(images / f"{number}.png", levels(8, 8 * (1 + number % 2), seed=number))
    save(images / "damaged.bmp", levels(16, 16))
    (images / "damaged.bmp").write_bytes((images / "damaged.bmp").read_bytes()[:150])
    args = arguments(generator, images, "--batch_size=1")
    assert exit_code(args) == 1
    out = images.parent / "out"
    alone = snapshot(out)
    shutil.rmtree(out)
    capfd.readouterr()
    assert exit_code([*args, "--devices=2"]) == 1
    printed = capfd.readouterr()
    assert printed.out.count(f"5 images upscaled into {out}, 0 were there already, 1 skipped") == 1
    assert printed.err.count("damaged.bmp: image file is truncated") == 1
    assert "upscaling, process 1 of 2: 100%" in printed.err and "| 3/3 [" in printed.err  # and the other one two
    assert snapshot(out) == alone and len(alone) == 5


def test_a_generator_that_fails_in_the_second_process_only(
    images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    net = DIC(**NETWORK | {"num_steps": 1})
    with torch.no_grad():  # the mean colour becomes small numbers, any other one infinite ones
        net.conv_in[0].bias.zero_()
        net.conv_in[0].weight.mul_(1e20)
        net.first_block.compress_in[0].weight.mul_(1e20)
    broken = tmp_path / "broken.ckpt"
    torch.save({"dic_config": net.config, "state_dict": {f"net.{k}": v for k, v in net.state_dict().items()}}, broken)
    mean = np.round(255 * np.array(RGB_MEAN)).astype(np.uint8)
    save(images / "first.png", np.broadcast_to(mean, (16, 16, 3)))  # the largest comes first
    save(images / "second.png", levels(8, 8))
    assert exit_code(arguments(broken, images, "--devices=2")) == 1
    printed = capfd.readouterr().err
    assert "error: process 1 terminated with exit code 1" in printed
    assert f"error: {broken}: the generator returned numbers that are not finite" in printed
    assert "Traceback" not in printed
    assert set(snapshot(tmp_path / "out")) <= {"first.png"}


def test_a_killed_process_ends_the_others(generator: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(2):
        save(images / f"{number}.png", levels(8, 8))

    def kill_one() -> None:
        while len(multiprocessing.active_children()) < 2:
            time.sleep(0.02)
        multiprocessing.active_children()[1].kill()

    threading.Thread(target=kill_one, daemon=True).start()
    assert exit_code(arguments(generator, images, "--devices=2")) == 1
    assert "terminated with signal SIGKILL" in capsys.readouterr().err
    assert not multiprocessing.active_children()


def test_processes_end_with_their_parent(generator: Path, images: Path) -> None:
    for number in range(300):
        save(images / f"{number}.png", levels(48, 48, seed=number))
    words = [sys.executable, "superfer.py", "upscale", *arguments(generator, images, "--devices=2", "--batch_size=1")]
    ignored = f"trap '' INT; exec {shlex.join(words)}"  # as a shell starts jobs in the background
    parent = subprocess.Popen(["sh", "-c", ignored], cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    while not list(images.parent.glob("out/*.png")):
        assert parent.poll() is None
        time.sleep(0.05)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    parent.kill()
    parent.wait()
    assert len(children) >= 2

    def left() -> list[str]:
        stats = [Path(f"/proc/{child}/stat") for child in children]
        return [str(stat) for stat in stats if stat.exists() and ") Z " not in stat.read_text()]

    give_up = time.monotonic() + 120
    while left() and time.monotonic() < give_up:
        time.sleep(0.05)
    assert not left() and len(list(images.parent.glob("out/*.png"))) < 300
