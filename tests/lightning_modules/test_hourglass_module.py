"""HourglassModule: the loss over calls with a hidden state, metrics, and a checkpoint for the next stage."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch.nn.functional import mse_loss

from datamodules.faces.datamodule import FaceLandmarkDataModule
from lightning_modules.base import Optimization
from lightning_modules.dic import DICModule
from lightning_modules.hourglass import HourglassModule
from metrics.landmarks import nme_interocular
from models.dic import DIC, normalise
from models.heatmaps import heatmaps_to_landmarks
from models.hourglass import FeedbackHourglass


def _data(faces: Path) -> FaceLandmarkDataModule:
    return FaceLandmarkDataModule(str(faces), str(faces), hr_size=64, batch_size=4, val_min_face_size=0)


def _trainer(folder: Path, **settings: object) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(accelerator="cpu", devices=1, default_root_dir=folder, **quiet, **settings)  # type: ignore[arg-type]


def test_loss_is_summed_over_calls_that_share_a_hidden_state(tiny_faces: Path) -> None:
    torch.manual_seed(0)
    module, data = HourglassModule(FeedbackHourglass(8), num_steps=3), _data(tiny_faces)
    data.setup("fit")
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    image = normalise(batch["hr"].float() / 255)
    first, hidden = module.net(image)
    second, hidden = module.net(image, hidden)
    third, _ = module.net(image, hidden)
    expected = sum(mse_loss(maps, batch["heatmaps"]).item() for maps in (first, second, third))
    assert not torch.allclose(first, second)
    module.log_dict = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    module.start_sigma = 1.0
    module._trainer = SimpleNamespace(datamodule=data, global_step=0, estimated_stepping_batches=1)  # type: ignore[assignment]
    assert module.training_step(batch, 0).item() == pytest.approx(expected, rel=1e-5)


def test_trains_validates_and_starts_the_next_stage(tiny_faces: Path, tmp_path: Path) -> None:
    L.seed_everything(0, verbose=False)
    onecycle = Optimization(lr=3e-3, schedule="onecycle", warmup=0.1)
    module, data = HourglassModule(FeedbackHourglass(8), 2, optimizer=onecycle), _data(tiny_faces)
    data.batch_size = 5  # the last batch of validation has two faces: a mean of batch means would be another number
    trainer = _trainer(tmp_path, max_epochs=30, check_val_every_n_epoch=30, enable_checkpointing=False)
    trainer.fit(module, data)
    untrained = FeedbackHourglass(8)
    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}

    losses, errors = [], []
    for loaded in data.val_dataloader():
        batch = data.on_after_batch_transfer(loaded, 0)
        with torch.no_grad():
            maps = module(batch["hr"])[-1]
            start = untrained(normalise(batch["hr"].float() / 255))[0]
        losses += [(mse_loss(m, t), mse_loss(s, t)) for m, s, t in zip(maps, start, batch["heatmaps"], strict=True)]
        errors.append(nme_interocular(4 * heatmaps_to_landmarks(maps, subpixel=False), batch["landmarks"]))
    assert logged["val/heatmap"] == pytest.approx(torch.stack([loss for loss, _ in losses]).mean().item(), rel=1e-4)
    assert logged["val/nme_interocular_argmax"] == pytest.approx(torch.cat(errors).mean().item(), rel=1e-4)
    assert logged["val/heatmap"] < 0.7 * torch.stack([loss for _, loss in losses]).mean().item()

    trainer.save_checkpoint(tmp_path / "hourglass.ckpt")
    loaded, trained = (
        FeedbackHourglass.from_checkpoint(tmp_path / "hourglass.ckpt").state_dict(),
        module.net.state_dict(),
    )
    assert list(loaded) == list(trained) and all(torch.equal(loaded[key], trained[key]) for key in loaded)
    started = DICModule(DIC(4, 2, 1, 1, 8), hourglass_weights=str(tmp_path / "hourglass.ckpt")).net.HG.state_dict()
    assert all(torch.equal(started[key], trained[key]) for key in trained)


@pytest.mark.parametrize(("start", "final"), [(4.0, 1.0), (8.0, 2.0)], ids=["published", "wider"])
def test_gaussians_narrow_to_the_width_of_the_data_in_half_of_the_training(
    start: float, final: float, tiny_faces: Path, tmp_path: Path
) -> None:
    module, data = HourglassModule(FeedbackHourglass(8), 1, start_sigma=start), _data(tiny_faces)
    data.heatmap_sigma = final
    widths: list[float] = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *_: object) -> None:
            widths.append(module.sigma())  # type: ignore[operator]

    trainer = _trainer(tmp_path, max_epochs=4, limit_val_batches=0, enable_checkpointing=False, callbacks=[Watch()])
    trainer.fit(module, data)
    assert widths == pytest.approx([start / 4 ** (step / 6) for step in range(6)] + [final] * 6)


def test_unsuitable_data_and_trainers_are_refused(tiny_faces: Path) -> None:
    data, endless = _data(tiny_faces), SimpleNamespace(max_epochs=-1, max_steps=-1)
    module: Any = HourglassModule(FeedbackHourglass(8), start_sigma=8.0)
    with pytest.raises(ValueError, match=r"trainer\.max_epochs and trainer\.max_steps are -1"):
        module.check(data, endless)
    data.heatmap_sigma = 8.0
    module.check(data, endless)
    data.heatmap_sigma = 9.0
    with pytest.raises(ValueError, match=r"start_sigma is 8\.0, expected at least data\.heatmap_sigma, 9\.0"):
        module.check(data, endless)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"start_sigma is 0\.5, expected 1 to 100"):
        HourglassModule(FeedbackHourglass(8), start_sigma=0.5)
    with pytest.raises(ValueError, match="num_steps is 0, expected 1 to 100"):
        HourglassModule(FeedbackHourglass(8), num_steps=0)
