"""FaceLandmarkDataModule: batches, mirroring, order and the division among devices."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.face_files import FaceSet
from datamodules.faces import FaceDataset, FaceLandmarkDataModule, add_lr_and_heatmaps, flip_face
from datamodules.synthetic import write_faces
from models.heatmaps import FLIP_INDEX, flip_landmarks, heatmaps_to_landmarks


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces")
    write_faces(folder, count=7, size=96, seed=0)
    return folder


def _module(root: Path, **settings: int) -> FaceLandmarkDataModule:
    module = FaceLandmarkDataModule(str(root), str(root), hr_size=64, val_min_face_size=0, **settings)
    module.setup("fit")
    return module


def _blob_faces(count: int) -> FaceSet:
    """Faces of 128 px with a wide blob at point 40, an inner eye corner, and other points anywhere."""
    rng = np.random.default_rng(0)
    landmarks = rng.uniform(10, 117, (count, 68, 2)).astype(np.float32)
    landmarks[:, 40] = rng.uniform(40, 88, (count, 2))
    y, x = np.mgrid[0:128, 0:128]
    centre = landmarks[:, 40, :, None, None]
    blobs = 250 * np.exp(-((x - centre[:, 0]) ** 2 + (y - centre[:, 1]) ** 2) / (2 * 6.0**2))
    images = np.repeat(blobs.round().astype(np.uint8)[..., None], 3, axis=3)
    return FaceSet([str(n) for n in range(count)], images, landmarks, "")


def _centroid(image: torch.Tensor) -> torch.Tensor:
    weights = image[0].double()
    grid = torch.arange(128)
    return torch.stack([(weights.sum(0) * grid).sum(), (weights.sum(1) * grid).sum()]) / weights.sum()


def test_image_landmarks_and_heatmaps_agree_when_mirrored() -> None:
    dataset = FaceDataset(_blob_faces(16), flip=True, seed=0)
    batch = torch.utils.data.default_collate([dataset[(0, index)] for index in range(16)])
    batch = add_lr_and_heatmaps(batch)
    flipped = (batch["landmarks"][:, 40] - torch.from_numpy(dataset.faces.landmarks[:, 40])).abs().amax(1) > 1e-4
    assert 3 <= flipped.sum() <= 13  # about half
    found = heatmaps_to_landmarks(batch["heatmaps"], subpixel=True) * 4
    for row in range(16):
        blob = FLIP_INDEX[40] if flipped[row] else 40  # the corner has changed its name with its side
        assert (_centroid(batch["hr"][row]) - batch["landmarks"][row, blob]).abs().max() < 0.01
    assert (found - batch["landmarks"]).abs().max() < 0.01


def test_both_ways_of_mirroring_agree() -> None:
    faces = _blob_faces(1)
    image, landmarks = flip_face(faces.images[0], faces.landmarks[0])
    np.testing.assert_array_equal(image, faces.images[0][:, ::-1])
    np.testing.assert_allclose(landmarks, flip_landmarks(torch.from_numpy(faces.landmarks[0]), 128), atol=1e-5)


def test_mirroring_depends_on_seed_epoch_and_index_alone() -> None:
    faces = _blob_faces(1)
    repeated = FaceSet(["x"] * 64, faces.images.repeat(64, 0), faces.landmarks.repeat(64, 0), "")

    def flips(seed: int, epoch: int) -> list[bool]:
        dataset = FaceDataset(repeated, flip=True, seed=seed)
        original = torch.from_numpy(faces.images[0].transpose(2, 0, 1).copy())
        return [not torch.equal(dataset[(epoch, n)]["hr"], original) for n in range(64)]

    assert flips(0, 0) == flips(0, 0)
    assert flips(0, 0) != flips(0, 1) and flips(0, 0) != flips(1, 0)
    assert 20 < sum(flips(0, 0)) < 44


def test_batches_are_as_documented(root: Path) -> None:
    module = _module(root, batch_size=3)
    batch = module.on_after_batch_transfer(next(iter(module.val_dataloader())), 0)
    assert {key: (value.dtype, tuple(value.shape)) for key, value in batch.items()} == {
        "hr": (torch.uint8, (3, 3, 64, 64)),
        "landmarks": (torch.float32, (3, 68, 2)),
        "index": (torch.int64, (3,)),
        "lr": (torch.float32, (3, 3, 8, 8)),
        "heatmaps": (torch.float32, (3, 68, 16, 16)),
    }
    hr = Image.fromarray(batch["hr"][0].permute(1, 2, 0).numpy())
    expected = np.asarray(hr.resize((8, 8), Image.Resampling.BICUBIC)).astype(float)
    assert np.abs(batch["lr"][0].permute(1, 2, 0).numpy() * 255 - expected).max() < 1.01


@pytest.mark.parametrize("workers", [0, 1])
def test_loaders_serve_every_face_in_the_right_order(root: Path, workers: int) -> None:
    module = _module(root, batch_size=2, num_workers=workers)
    assert [batch["index"].tolist() for batch in module.val_dataloader()] == [[0, 1], [2, 3], [4, 5], [6]]
    loader = module.train_dataloader()
    first, again = ([batch["index"].tolist() for batch in loader] for _ in range(2))
    loader.sampler.set_epoch(1)  # type: ignore[attr-defined]
    second = [batch["index"].tolist() for batch in loader]
    assert first == again != second
    assert [len(batch) for batch in first] == [2, 2, 2]  # the incomplete batch is left out
    assert len({index for batch in first for index in batch}) == 6


def test_batch_size_is_divided_among_devices(root: Path) -> None:
    module = _module(root, batch_size=4)
    served = []
    for rank in range(2):
        module.trainer = SimpleNamespace(global_rank=rank, world_size=2)  # type: ignore[assignment]
        served.append([batch["index"].tolist() for batch in module.val_dataloader()])
    assert served == [[[0, 2], [4, 6]], [[1, 3], [5]]]
    module.trainer = SimpleNamespace(global_rank=0, world_size=3)  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"batch_size 4 .* cannot be divided among 3"):
        module.train_dataloader()


def test_setup_says_what_was_kept(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = _module(root)
    assert capsys.readouterr().out.count("7 faces kept; left out 0") == 2
    module.setup("fit")
    assert capsys.readouterr().out == ""  # nothing is read twice


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"hr_size": 100}, "multiple of 64 pixels, got 100"), ({"batch_size": 0}, "got 0"), ({"crop_margin": 0.5}, "0.5")],
)
def test_impossible_settings_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FaceLandmarkDataModule("a", "b", **settings)


def test_too_few_faces_for_a_batch_is_an_error(root: Path) -> None:
    with pytest.raises(ValueError, match="batch_size 8 is larger than the 7 training faces"):
        _module(root, batch_size=8).train_dataloader()
