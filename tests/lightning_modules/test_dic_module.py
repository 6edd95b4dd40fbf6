"""DICModule: published losses, start and freezing, schedules in batches, metrics, checkpoints that load."""

import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from datamodules.faces.datamodule import FaceLandmarkDataModule
from datamodules.synthetic.writing import write_faces
from lightning_modules.dic import DICModule
from lightning_modules.optimization import Adam
from metrics.image_quality import psnr_rgb, psnr_y, ssim_rgb, ssim_y
from metrics.landmarks import nme_interocular
from models.dic import DIC
from models.heatmaps import heatmaps_to_landmarks, landmarks_to_heatmaps
from models.hourglass import FeedbackHourglass
from models.light_cnn import LightCNN
from models.losses import dic_losses
from models.pretrained import load_generator
from storage.checkpoints import CheckpointError, read_checkpoint

GOLDEN = Path(__file__).parents[1] / "fixtures" / "dic_tiny.npz"
SMALL = {"num_features": 4, "num_steps": 2, "num_groups": 1, "num_fusion_blocks": 1, "hourglass_features": 8}


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces")
    write_faces(folder, count=6, size=80, seed=0)
    return folder


def _golden_module(golden: dict[str, np.ndarray], channels_last: bool) -> tuple[DICModule, dict[str, Tensor]]:
    """The published network in miniature, and the batch on which its losses were recorded."""
    net = DIC(num_features=8, num_steps=3, num_groups=3, num_fusion_blocks=2, hourglass_features=16)
    net.load_state_dict({k.removeprefix("state/"): torch.from_numpy(golden[k]) for k in golden if "state/" in k})
    mean = torch.tensor([0.509, 0.424, 0.378]).view(1, 3, 1, 1)
    batch = {
        "lr": torch.from_numpy(golden["x1"]) + mean,
        "hr": torch.from_numpy(golden["train_hr_u8"]),
        "heatmaps": landmarks_to_heatmaps(torch.from_numpy(golden["train_pts"]), 32),
    }
    return DICModule(net, channels_last=channels_last), batch


def _trainer(folder: Path, **settings: object) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        **settings,  # type: ignore[arg-type]
    )


def _data(faces: Path) -> FaceLandmarkDataModule:
    return FaceLandmarkDataModule(str(faces), str(faces), hr_size=64, batch_size=2, val_min_face_size=0)


@pytest.mark.parametrize("channels_last", [True, False])
def test_losses_and_gradients_equal_published(golden: dict[str, np.ndarray], channels_last: bool) -> None:
    module, batch = _golden_module(golden, channels_last)
    logged: dict[str, Tensor] = {}
    module.log_dict = lambda values, **_: logged.update(values)  # type: ignore[method-assign, assignment]
    total = module.training_step(batch, 0)
    total.backward()
    names = ("train/g/pixel", "train/g/heatmap", "train/g/total")
    np.testing.assert_allclose([logged[name].item() for name in names], golden["train_dic_loss"], rtol=1e-5)
    norms = [module.net.get_parameter(name).grad.norm().item() for name in golden["train_grad_names"]]  # type: ignore[union-attr]
    np.testing.assert_allclose(norms, golden["train_dic_gradnorm"], rtol=1e-3)


def test_losses_are_sums_over_steps_of_means() -> None:
    target, maps = torch.zeros(2, 3, 4, 4), torch.zeros(2, 68, 1, 1)
    pixel, heatmap = dic_losses([target + 0.5, target - 0.25], [maps + 2, maps + 1], target, maps)
    assert pixel.item() == 0.75 and heatmap.item() == 5.0


def test_multistep_halves_at_batches_and_onecycle_ends_near_zero(faces: Path, tmp_path: Path) -> None:
    class Rates(L.Callback):
        def __init__(self) -> None:
            self.seen: list[float] = []

        def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
            self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    rates = Rates()
    module = DICModule(DIC(**SMALL), optimizer=Adam(learning_rate=0.01, milestones=(2, 4)))
    _trainer(tmp_path, max_epochs=2, limit_val_batches=0, callbacks=[rates]).fit(module, _data(faces))
    assert rates.seen == pytest.approx([0.01, 0.01, 0.005, 0.005, 0.0025, 0.0025])

    rates = Rates()
    module = DICModule(DIC(**SMALL), optimizer=Adam(learning_rate=0.01, schedule="onecycle", warmup_fraction=0.5))
    _trainer(tmp_path, max_epochs=2, limit_val_batches=0, callbacks=[rates]).fit(module, _data(faces))
    assert rates.seen[0] == pytest.approx(0.01 / 25) and max(rates.seen) == pytest.approx(rates.seen[2]) == 0.01
    assert rates.seen[-1] < 1e-6
    assert module.optimizers().param_groups[0]["betas"] == (0.9, 0.999)  # type: ignore[union-attr]


def test_onecycle_without_a_length_is_an_error(faces: Path, tmp_path: Path) -> None:
    module = DICModule(DIC(**SMALL), optimizer=Adam(schedule="onecycle"))
    with pytest.raises(ValueError, match=r"set trainer\.max_epochs"):
        _trainer(tmp_path, max_epochs=-1, limit_val_batches=0).fit(module, _data(faces))


def test_validation_metrics_are_means_over_faces(faces: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, data = DICModule(DIC(**SMALL)), _data(faces)
    data.batch_size = 4  # the second batch has two faces: a mean of batch means would be another number
    logged = _trainer(tmp_path, max_epochs=1).validate(module, data, verbose=False)[0]

    expected: dict[str, list[Tensor]] = defaultdict(list)
    for loaded in data.val_dataloader():
        batch = data.on_after_batch_transfer(loaded, 0)
        with torch.no_grad():
            output = module.restore(batch)
            enlarged = (module.net.upscale(batch["lr"]) * 255).round().to(torch.uint8)
        assert torch.equal(output["marked"], enlarged) and torch.equal(output["panels"]["step 2"], enlarged)
        for name, value in {"psnr_y": psnr_y, "ssim_y": ssim_y, "psnr_rgb": psnr_rgb, "ssim_rgb": ssim_rgb}.items():
            expected[f"val/{name}"].append(value(enlarged, batch["hr"]))
        low = (batch["lr"] * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        pillow = np.stack([Image.fromarray(face).resize((64, 64), Image.Resampling.BICUBIC) for face in low])
        expected["val/psnr_y_bicubic"].append(psnr_y(torch.from_numpy(pillow).permute(0, 3, 1, 2), batch["hr"]))
        for name, subpixel in {"nme_interocular": True, "nme_interocular_argmax": False}.items():
            found = 4 * heatmaps_to_landmarks(output["heatmaps"], subpixel)
            expected[f"val/{name}"].append(nme_interocular(found, batch["landmarks"]))
    means = {name: torch.cat(parts).mean().item() for name, parts in expected.items()}
    assert logged.pop("val/psnr_y_bicubic") == pytest.approx(means.pop("val/psnr_y_bicubic"), abs=0.02)  # one level off
    assert logged == pytest.approx(means, rel=1e-4)


def test_training_lowers_the_loss_and_the_checkpoint_loads(faces: Path, tmp_path: Path) -> None:
    L.seed_everything(0, verbose=False)
    module, data = DICModule(DIC(**SMALL), optimizer=Adam(learning_rate=3e-3, schedule="onecycle")), _data(faces)
    trainer = _trainer(tmp_path, max_epochs=12, limit_val_batches=0, gradient_clip_val=1.0, enable_checkpointing=False)
    losses: list[float] = []

    class Collect(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, *_: object) -> None:
            losses.append(trainer.callback_metrics["train/g/total"].item())

    trainer.callbacks.append(Collect())  # type: ignore[attr-defined]
    trainer.fit(module, data)
    assert losses[-1] < 0.8 * losses[0] and not math.isnan(losses[-1])

    trainer.save_checkpoint(tmp_path / "dic.ckpt")
    loaded = load_generator(tmp_path / "dic.ckpt")
    assert loaded.config == module.net.config
    image = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(loaded.upscale(image), module.net.eval().upscale(image), atol=1e-6, rtol=0)


def test_hourglass_stays_frozen_for_so_many_batches(faces: Path, tmp_path: Path) -> None:
    seen: list[tuple[bool, bool]] = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *_: object) -> None:
            self.before = {name: value.clone() for name, value in module.net.named_parameters()}

        def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: object) -> None:
            moved = {name for name, value in module.net.named_parameters() if not torch.equal(value, self.before[name])}
            seen.append((any(name.startswith("HG.") for name in moved), "conv_in.0.weight" in moved))

    module = DICModule(DIC(**SMALL), freeze_hourglass=2)
    trainer = _trainer(tmp_path, max_epochs=2, limit_val_batches=0, callbacks=[Watch()], gradient_clip_val=1.0)
    trainer.fit(module, _data(faces))
    assert seen == [(False, True)] * 2 + [(True, True)] * 4


def test_starts_from_a_hourglass_or_a_generator_and_nothing_else(faces: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    hourglass, generator = FeedbackHourglass(8), DIC(**SMALL)
    torch.save(
        {"hourglass_config": {}, "state_dict": {f"net.{k}": v for k, v in hourglass.state_dict().items()}},
        tmp_path / "hourglass.ckpt",
    )
    torch.save({"state_dict": generator.state_dict()}, tmp_path / "official.pth")
    torch.save(LightCNN(16).state_dict(), tmp_path / "discriminator.pth")

    started = DICModule(DIC(**SMALL), initial_weights=str(tmp_path / "hourglass.ckpt")).net
    assert all(torch.equal(value, started.HG.state_dict()[key]) for key, value in hourglass.state_dict().items())
    started = DICModule(DIC(**SMALL), initial_weights=str(tmp_path / "official.pth")).net
    assert all(torch.equal(value, started.state_dict()[key]) for key, value in generator.state_dict().items())
    with pytest.raises(CheckpointError, match=r"seems to hold a LightCNN discriminator; needed is a DIC generator or"):
        DICModule(DIC(**SMALL), initial_weights=str(tmp_path / "discriminator.pth"))
    with pytest.raises(CheckpointError, match=r"hourglass\.ckpt does not fit FeedbackHourglass; \d+ of another shape"):
        DICModule(DIC(**SMALL | {"hourglass_features": 16}), initial_weights=str(tmp_path / "hourglass.ckpt"))
    with pytest.raises(FileNotFoundError, match="no checkpoint: looked for"):
        DICModule(DIC(**SMALL), initial_weights=str(tmp_path / "none.ckpt"))


def test_a_hourglass_replaces_that_of_a_generator(tmp_path: Path) -> None:
    torch.manual_seed(3)
    hourglass, generator = FeedbackHourglass(8), DIC(**SMALL)
    torch.save(hourglass.state_dict(), tmp_path / "hourglass.pth")
    torch.save(generator.state_dict(), tmp_path / "generator.pth")
    files = {"initial_weights": str(tmp_path / "generator.pth"), "hourglass_weights": str(tmp_path / "hourglass.pth")}
    started = DICModule(DIC(**SMALL), **files).net.state_dict()
    expected = generator.state_dict() | {f"HG.{key}": value for key, value in hourglass.state_dict().items()}
    assert started.keys() == expected.keys() and all(torch.equal(started[key], expected[key]) for key in expected)
    with pytest.raises(ValueError, match="hourglass_weights needs a generator in initial_weights"):
        DICModule(DIC(**SMALL), hourglass_weights=files["hourglass_weights"])
    with pytest.raises(CheckpointError, match="seems to hold a feedback hourglass; needed is a DIC generator"):
        DICModule(DIC(**SMALL), **files | {"initial_weights": files["hourglass_weights"]})
    with pytest.raises(CheckpointError, match="seems to hold a DIC generator; needed is a feedback hourglass"):
        DICModule(DIC(**SMALL), **files | {"hourglass_weights": files["initial_weights"]})


def test_checkpoint_says_how_faces_were_cropped_and_compiling_leaves_its_keys(faces: Path, tmp_path: Path) -> None:
    plain, compiled = DICModule(DIC(**SMALL)), DICModule(DIC(**SMALL), compile=True)
    assert list(plain.state_dict()) == list(compiled.state_dict())
    trainer = _trainer(tmp_path, max_epochs=1, limit_train_batches=1, limit_val_batches=0, enable_checkpointing=False)
    trainer.fit(plain, _data(faces))
    trainer.save_checkpoint(tmp_path / "dic.ckpt")
    saved = read_checkpoint(tmp_path / "dic.ckpt")
    assert saved["faces"] == {"hr_size": 64, "crop_margin": 1.3} and saved["dic_config"] == plain.net.config


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Adam(learning_rate=0.0), "learning_rate must be positive, got 0.0"),
        (lambda: Adam(warmup_fraction=1.0), "warmup_fraction must lie between 0 and 1, got 1.0"),
        (lambda: DICModule(DIC(**SMALL), heatmap_weight=-1.0), "heatmap_weight must not be negative, got -1.0"),
        (lambda: DICModule(DIC(**SMALL), freeze_hourglass=-1), "freeze_hourglass must not be negative, got -1"),
    ],
)
def test_impossible_settings_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
