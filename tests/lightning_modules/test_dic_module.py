"""DICModule: published losses, initial weights, freezing, schedules, metrics and checkpoints."""

import math
from collections import defaultdict
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from datamodules.faces.datamodule import FaceLandmarkDataModule
from datamodules.synthetic.writing import write_faces
from lightning_modules.base import Optimization
from lightning_modules.dic import DICModule
from metrics.image_quality import psnr_y, ssim_y
from metrics.landmarks import nme_interocular
from models.dic import DIC
from models.heatmaps import heatmaps_to_landmarks, landmarks_to_heatmaps
from models.hourglass import FeedbackHourglass
from models.light_cnn import LightCNN
from storage.checkpoints import CheckpointError, read_checkpoint

GOLDEN = Path(__file__).parents[1] / "fixtures" / "dic_tiny.npz"
SMALL = {"num_features": 4, "num_steps": 2, "num_groups": 1, "num_fusion_blocks": 1, "hourglass_features": 8}
ONE_CYCLE = Optimization(lr=3e-3, schedule="onecycle", warmup=0.1)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces")
    write_faces(folder, count=6, size=80, seed=0)
    return folder


def _golden_module(golden: dict[str, np.ndarray]) -> tuple[DICModule, dict[str, Tensor]]:
    """The published network in miniature, and the batch on which its losses were recorded."""
    net = DIC(num_features=8, num_steps=3, num_groups=3, num_fusion_blocks=2, hourglass_features=16)
    net.load_state_dict({k.removeprefix("state/"): torch.from_numpy(golden[k]) for k in golden if "state/" in k})
    mean = torch.tensor([0.509, 0.424, 0.378]).view(1, 3, 1, 1)
    batch = {
        "lr": torch.from_numpy(golden["x1"]) + mean,
        "hr": torch.from_numpy(golden["train_hr_u8"]),
        "heatmaps": landmarks_to_heatmaps(torch.from_numpy(golden["train_pts"]), 32),
    }
    return DICModule(net), batch


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


def test_losses_and_gradients_equal_published(golden: dict[str, np.ndarray]) -> None:
    module, batch = _golden_module(golden)
    logged: dict[str, Tensor] = {}
    module.log_dict = lambda values, **_: logged.update(values)  # type: ignore[method-assign, assignment]
    total = module.training_step(batch, 0)
    total.backward()
    names = ("train/g/pixel", "train/g/heatmap", "train/g/total")
    np.testing.assert_allclose([logged[name].item() for name in names], golden["train_dic_loss"], rtol=1e-5)
    norms = [module.net.get_parameter(name).grad.norm().item() for name in golden["train_grad_names"]]  # type: ignore[union-attr]
    np.testing.assert_allclose(norms, golden["train_dic_gradnorm"], rtol=1e-3)


def test_rates_change_from_batch_to_batch(faces: Path, tmp_path: Path) -> None:
    class Rates(L.Callback):
        def __init__(self) -> None:
            self.seen: list[float] = []

        def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
            self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    rates = Rates()
    multistep = Optimization(lr=0.01, schedule="multistep", milestones=(2, 4))
    module = DICModule(DIC(**SMALL), optimizer=multistep)
    _trainer(tmp_path, max_epochs=2, limit_val_batches=0, callbacks=[rates]).fit(module, _data(faces))
    assert rates.seen == [0.01, 0.01, 0.005, 0.005, 0.0025, 0.0025]

    rates = Rates()
    module = DICModule(DIC(**SMALL), optimizer=Optimization(lr=0.01, schedule="onecycle", warmup=0.5))
    _trainer(tmp_path, max_epochs=2, limit_val_batches=0, callbacks=[rates]).fit(module, _data(faces))
    assert rates.seen[0] == pytest.approx(0.01 / 25) and max(rates.seen) == pytest.approx(rates.seen[2]) == 0.01
    assert rates.seen[-1] < 1e-6


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
            upscaled = (module.net.upscale(batch["lr"]) * 255).round().to(torch.uint8)
        assert torch.equal(output["marked"], upscaled) and torch.equal(output["panels"]["step 2"], upscaled)
        for name, value in {"psnr_y": psnr_y, "ssim_y": ssim_y}.items():
            expected[f"val/{name}"].append(value(upscaled, batch["hr"]))
        lr = (batch["lr"] * 255).round().byte().permute(0, 2, 3, 1).numpy()
        bicubic = np.stack(
            [np.asarray(Image.fromarray(face).resize((64, 64), Image.Resampling.BICUBIC)) for face in lr]
        )
        expected["val/psnr_y_bicubic"].append(psnr_y(torch.from_numpy(bicubic).permute(0, 3, 1, 2), batch["hr"]))
        for name, subpixel in {"nme_interocular": True, "nme_interocular_argmax": False}.items():
            found = 4 * heatmaps_to_landmarks(output["heatmaps"], subpixel)
            expected[f"val/{name}"].append(nme_interocular(found, batch["landmarks"]))
    assert logged == pytest.approx({name: torch.cat(parts).mean().item() for name, parts in expected.items()}, rel=1e-3)


def test_validation_is_in_full_precision(faces: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = DICModule(DIC(**SMALL))
    plain, mixed = (
        _trainer(tmp_path, precision=precision).validate(module, _data(faces), verbose=False)[0]
        for precision in ("32-true", "bf16-mixed")
    )
    assert mixed == plain


def test_training_lowers_the_loss_and_the_checkpoint_loads(faces: Path, tmp_path: Path) -> None:
    L.seed_everything(0, verbose=False)
    module, data = DICModule(DIC(**SMALL), optimizer=ONE_CYCLE), _data(faces)
    trainer = _trainer(tmp_path, max_epochs=12, limit_val_batches=0, gradient_clip_val=1.0, enable_checkpointing=False)
    losses: list[float] = []

    class Collect(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, *_: object) -> None:
            losses.append(trainer.callback_metrics["train/g/total"].item())

    trainer.callbacks.append(Collect())  # type: ignore[attr-defined]
    trainer.fit(module, data)
    assert losses[-1] < 0.8 * losses[0] and not math.isnan(losses[-1])

    trainer.save_checkpoint(tmp_path / "dic.ckpt")
    loaded = DIC.from_checkpoint(tmp_path / "dic.ckpt")
    assert loaded.config == module.net.config
    image = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(loaded.upscale(image), module.net.eval().upscale(image), atol=1e-6, rtol=0)


def test_hourglass_is_frozen_for_the_given_batches(faces: Path, tmp_path: Path) -> None:
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


def test_starts_from_a_generator_and_from_an_hourglass(tmp_path: Path) -> None:
    torch.manual_seed(3)
    hourglass, generator = FeedbackHourglass(8), DIC(**SMALL)
    own = {"hourglass_config": {}, "state_dict": {f"net.{k}": v for k, v in hourglass.state_dict().items()}}
    torch.save(own, tmp_path / "hourglass.ckpt")
    torch.save({"state_dict": generator.state_dict()}, tmp_path / "official.pth")
    files = {"initial_weights": str(tmp_path / "official.pth"), "hourglass_weights": str(tmp_path / "hourglass.ckpt")}
    inner = {f"HG.{key}": value for key, value in hourglass.state_dict().items()}
    for names, expected in (
        (["hourglass_weights"], inner),
        (["initial_weights"], generator.state_dict()),
        (["initial_weights", "hourglass_weights"], generator.state_dict() | inner),
    ):
        started = DICModule(DIC(**SMALL), **{name: files[name] for name in names}).net.state_dict()
        assert all(torch.equal(value, started[key]) for key, value in expected.items())


def test_other_networks_are_refused_by_the_option_that_takes_them(tmp_path: Path) -> None:
    names = {name: str(tmp_path / f"{name}.pth") for name in ("hourglass", "generator", "discriminator")}
    for path, net in zip(names.values(), (FeedbackHourglass(8), DIC(**SMALL), LightCNN(16)), strict=True):
        torch.save(net.state_dict(), path)
    with pytest.raises(
        CheckpointError, match=r"initial_weights is .*expected a DIC gen.*model\.hourglass_weights takes"
    ):
        DICModule(DIC(**SMALL), initial_weights=names["hourglass"])
    with pytest.raises(CheckpointError, match=r"hourglass_weights is .*expected a feedb.*model\.initial_weights takes"):
        DICModule(DIC(**SMALL), hourglass_weights=names["generator"])
    with pytest.raises(CheckpointError, match=r"seems to hold a LightCNN discriminator, expected a DIC generator or"):
        DICModule(DIC(**SMALL), initial_weights=names["discriminator"])
    with pytest.raises(CheckpointError, match=r"hourglass\.pth does not fit FeedbackHourglass: pre_conv.* \(\[2,"):
        DICModule(DIC(**SMALL | {"hourglass_features": 16}), hourglass_weights=names["hourglass"])
    with pytest.raises(FileNotFoundError, match="no checkpoint: looked for"):
        DICModule(DIC(**SMALL), initial_weights=str(tmp_path / "none.ckpt"))


def test_warns_of_an_untrained_hourglass_that_is_frozen(faces: Path, tmp_path: Path) -> None:
    module = DICModule(DIC(**SMALL), freeze_hourglass=2)
    with pytest.warns(
        UserWarning, match=r"an untrained hourglass is frozen for 2 batches: pass model\.hourglass_weights"
    ):
        _trainer(tmp_path, max_epochs=1, limit_train_batches=1, limit_val_batches=0).fit(module, _data(faces))


def test_checkpoint_records_crops_and_compiling_keeps_its_keys(faces: Path, tmp_path: Path) -> None:
    plain, compiled = DICModule(DIC(**SMALL)), DICModule(DIC(**SMALL), compile=True)
    assert list(plain.state_dict()) == list(compiled.state_dict())
    trainer = _trainer(tmp_path, max_epochs=1, limit_train_batches=1, limit_val_batches=0, enable_checkpointing=False)
    trainer.fit(plain, _data(faces))
    trainer.save_checkpoint(tmp_path / "dic.ckpt")
    saved = read_checkpoint(tmp_path / "dic.ckpt")
    assert saved["faces"] == {"hr_size": 64, "crop_margin": 1.3} and saved["dic_config"] == plain.net.config


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="freeze_hourglass is -1, expected 0 or more"):
        DICModule(DIC(**SMALL), freeze_hourglass=-1)
