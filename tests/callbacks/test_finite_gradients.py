"""NaN and infinity stop a training, or the step is skipped, before they reach the weights."""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.precision import Precision

from commands.train import train
from lightning_modules.classifier import EmotionClassifier
from lightning_modules.dicgan import DICGANModule
from storage.checkpoints import read_checkpoint
from tests.tiny_runs import classifier_args, config, generator_options

SETTINGS = ["--trainer.limit_train_batches=4", "--latest.minutes=0"]


def spoil(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    """Make the loss of one batch infinite."""
    step = EmotionClassifier.training_step

    def spoiled(self: EmotionClassifier, data: dict[str, Any], batch_idx: int) -> torch.Tensor:
        loss = step(self, data, batch_idx)
        return loss * float("inf") if batch_idx == batch else loss

    monkeypatch.setattr(EmotionClassifier, "training_step", spoiled)


@contextlib.contextmanager
def stopping(words: str) -> Iterator[None]:
    """Expect the command to fail, in a line with these words."""
    with pytest.raises(SystemExit) as end:
        yield
    assert end.value.code == 1 and isinstance(end.value.__cause__, FloatingPointError)
    assert re.search(words, str(end.value.__cause__))


def test_the_run_stops_and_says_where(tiny_ferplus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, 2)
    with stopping(r"the gradient's norm is nan in batch 2 \(epoch 0\): loss inf.* is .*/checkpoints/latest\.ckpt"):
        train(classifier_args(tiny_ferplus, tmp_path, *SETTINGS))
    (run,) = tmp_path.glob("*/*")
    assert read_checkpoint(run / "checkpoints" / "latest.ckpt")["global_step"] == 2


@pytest.mark.parametrize(
    ("options", "saved", "batches"),
    [
        (["--latest.minutes=0"], 1, 2),
        (["--trainer.log_every_n_steps=3"], 0, 3),
        ([], 0, 4),  # at the validation
    ],
    ids=["before a checkpoint", "when the norm is logged", "before a validation"],
)
def test_a_gpu_finds_it_later_and_saves_nothing_of_it(
    options: list[str],
    saved: int,
    batches: int,
    tiny_ferplus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[int] = []
    forward = EmotionClassifier.forward

    def counted(self: EmotionClassifier, image: torch.Tensor) -> torch.Tensor:
        begun.append(1)
        return forward(self, image)

    spoil(monkeypatch, 1)
    monkeypatch.setattr(EmotionClassifier, "forward", counted)
    monkeypatch.setattr("callbacks.finite_gradients._reading_is_free", lambda _: False)
    with stopping(r"the gradient's norm is nan in batch 1 \(epoch 0\): loss inf; the last good checkpoint is"):
        train(classifier_args(tiny_ferplus, tmp_path, "--trainer.limit_train_batches=4", *options))
    (run,) = tmp_path.glob("*/*")
    assert len(begun) == batches
    assert [path.name for path in (run / "checkpoints").iterdir() if path.name == "best.ckpt"] == []
    checkpoint = read_checkpoint(run / "checkpoints" / "latest.ckpt")
    assert checkpoint["global_step"] == saved
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())  # type: ignore[attr-defined]


def test_the_step_is_skipped_and_counted(tiny_ferplus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, 2)
    with pytest.warns(UserWarning, match=r"in batch 2 .*skipped this step \(1 skipped so far\)"):
        run = train(classifier_args(tiny_ferplus, tmp_path, *SETTINGS, "--finite.skip=true"))
    saved = read_checkpoint(run / "checkpoints" / "latest.ckpt")
    weights = saved["state_dict"]
    assert all(value.isfinite().all() for name, value in weights.items() if "running" not in name)  # type: ignore[attr-defined]
    assert saved["callbacks"]["FiniteGradients"] == {"skipped": 1}  # type: ignore[index]


def test_broken_statistics_cannot_be_skipped(
    tiny_ferplus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = EmotionClassifier.training_step

    def spoiled(self: EmotionClassifier, data: dict[str, Any], batch_idx: int) -> torch.Tensor:
        if batch_idx == 2:
            self.net.get_submodule("network.bn1").running_mean.fill_(torch.nan)  # type: ignore[union-attr,operator]
        return step(self, data, batch_idx) * (float("nan") if batch_idx == 2 else 1)

    monkeypatch.setattr(EmotionClassifier, "training_step", spoiled)
    with stopping(r"running statistics are not finite either: .*bn1\.running_mean.*last good"):
        train(classifier_args(tiny_ferplus, tmp_path, *SETTINGS, "--finite.skip=true"))


@pytest.mark.parametrize(("scale", "stops"), [(65536.0, False), (1.0, True)])
def test_a_loss_scale_may_still_be_falling(
    scale: float, stops: bool, tiny_ferplus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, 2)
    scaler = SimpleNamespace(get_scale=lambda: scale)
    monkeypatch.setattr(Precision, "scaler", scaler, raising=False)  # skips no step, unlike the real one
    with stopping("norm is nan") if stops else contextlib.nullcontext():
        train(classifier_args(tiny_ferplus, tmp_path, *SETTINGS, "--trainer.limit_train_batches=3"))
    (run,) = tmp_path.glob("*/*")
    status = json.loads((run / "run.json").read_text())["status"]
    assert status == ("failed: FloatingPointError" if stops else "finished")


def test_the_discriminator_is_checked_too(tiny_faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = DICGANModule._discriminator_step

    def spoiled(self: DICGANModule, image: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        return step(self, image * float("nan"), target)

    monkeypatch.setattr(DICGANModule, "_discriminator_step", spoiled)
    arguments = [*config("generator/dicgan_small"), f"--runs={tmp_path}", *generator_options(tiny_faces, "dicgan")]
    with stopping(r"norm is nan in batch 0 .*the last good checkpoint is .*latest"):
        train(arguments)
