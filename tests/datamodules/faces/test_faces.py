"""FaceLandmarkDataModule: batches, mirroring, order and the division among devices."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate

from datamodules.faces.augmentation import LandmarkAugmentation, to_gray
from datamodules.faces.datamodule import FaceDataset, FaceLandmarkDataModule, complete_batch
from datamodules.faces.packed import FaceSet, pack_faces
from datamodules.faces.splits import hold_out, photograph
from datamodules.image_folder import digest_of
from datamodules.synthetic.writing import write_faces
from models.heatmaps import heatmaps_to_landmarks, landmarks_to_heatmaps
from models.resampling import resize_bicubic
from tests.datamodules.faces.face_writers import points, write_face


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces")
    write_faces(folder, count=7, size=96, seed=0)
    return folder


def _module(root: Path, **settings: Any) -> FaceLandmarkDataModule:
    module = FaceLandmarkDataModule(str(root), str(root), hr_size=64, val_min_face_size=0, **settings)
    module.setup("fit")
    return module


def _same_faces(count: int) -> FaceSet:
    """The same face many times."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1, 64, 64, 3), dtype=np.uint8).repeat(count, 0)
    landmarks = rng.uniform(10, 50, (1, 68, 2)).astype(np.float32).repeat(count, 0)
    sides, digests = np.full(count, 64.0), [digest_of(images[0].tobytes())[:32]] * count
    return FaceSet(["x"] * count, images, np.arange(count), landmarks, sides, digests)


def test_mirroring_depends_on_seed_epoch_and_index_alone() -> None:
    faces, augmentation = _same_faces(64), LandmarkAugmentation()

    def flips(seed: int, epoch: int) -> list[bool]:
        dataset = FaceDataset(faces, augmentation, seed)
        batch = torch.utils.data.default_collate([dataset[(epoch, n)] for n in range(64)])
        changed = complete_batch(batch, augmentation)
        mirrored = (changed["hr"] != batch["hr"]).flatten(1).any(1)
        assert torch.equal(changed["hr"][mirrored], batch["hr"][mirrored].flip(-1))
        return [bool(one) for one in mirrored]

    assert flips(0, 0) == flips(0, 0)
    assert flips(0, 0) != flips(0, 1) and flips(0, 0) != flips(1, 0)
    assert 20 < sum(flips(0, 0)) < 44


def test_heatmaps_have_the_width_that_is_asked_for(root: Path) -> None:
    module = _module(root, heatmap_sigma=2.5)
    batch = module.on_after_batch_transfer(next(iter(module.val_dataloader())), 0)
    assert torch.equal(batch["heatmaps"], landmarks_to_heatmaps(batch["landmarks"] / 4, 16, 2.5))
    assert not torch.allclose(batch["heatmaps"], landmarks_to_heatmaps(batch["landmarks"] / 4, 16))
    for wrong in (0.0, -1.0, 17.0, float("nan")):
        with pytest.raises(ValueError, match=f"heatmap_sigma is {wrong}, expected more than 0 and at most 16"):
            _module(root, heatmap_sigma=wrong)


EVERYTHING = {
    "rotation": 20.0, "scale": 0.1, "shift": 0.05, "gray": 0.5, "blur": 1.0, "noise": 6.0, "contrast": 0.2, "jpeg": 40,
}  # fmt: skip


def test_changes_depend_neither_on_workers_nor_on_the_rest_of_the_batch(root: Path) -> None:
    def served(workers: int, batch_size: int) -> dict[int, dict[str, torch.Tensor]]:
        augmentation = LandmarkAugmentation(**EVERYTHING)  # type: ignore[arg-type]
        module = _module(root, batch_size=batch_size, num_workers=workers, augmentation=augmentation)
        loader = module.train_dataloader()
        loader.sampler.set_epoch(3)  # type: ignore[attr-defined]
        rows: dict[int, dict[str, torch.Tensor]] = {}
        for batch in loader:
            done = module.on_after_batch_transfer(batch, 0)
            rows |= {int(n): {key: done[key][row] for key in done} for row, n in enumerate(done["index"])}
        return rows

    alone, together, elsewhere = served(0, 1), served(0, 3), served(2, 3)
    assert (len(alone), len(together)) == (7, 6)
    for index, face in together.items():
        for key, value in face.items():
            assert torch.equal(value, elsewhere[index][key]), key
            assert torch.equal(value, alone[index][key]), key


def test_degradations_reach_low_resolution_alone(root: Path) -> None:
    clean = LandmarkAugmentation(flip=0)
    worse = LandmarkAugmentation(flip=0, blur=1, noise=10, contrast=0.3, jpeg=10)
    first, second = (
        module.on_after_batch_transfer(next(iter(module.train_dataloader())), 0)
        for module in (_module(root, batch_size=4, augmentation=one) for one in (clean, worse))
    )
    assert torch.equal(first["hr"], second["hr"]) and torch.equal(first["heatmaps"], second["heatmaps"])
    assert ((first["lr"] - second["lr"]).abs().flatten(1).mean(1) > 0.01).all()
    assert set(first) == set(second) == {"hr", "landmarks", "index", "lr", "heatmaps"}
    levels = second["lr"] * 255
    assert torch.allclose(levels, levels.round(), atol=1e-4)  # still an 8-bit image


def test_moved_faces_have_heatmaps_of_the_moved_landmarks(root: Path) -> None:
    module = _module(root, batch_size=4, augmentation=LandmarkAugmentation(rotation=15, shift=0.05))
    batch = module.on_after_batch_transfer(next(iter(module.train_dataloader())), 0)
    found = heatmaps_to_landmarks(batch["heatmaps"], subpixel=True) * 4
    inside = ((batch["landmarks"] > 2) & (batch["landmarks"] < 58)).all(-1)
    assert inside.float().mean() > 0.5
    assert (found - batch["landmarks"])[inside].abs().max() < 0.01


def test_without_augmentation_and_in_validation_faces_are_served_as_they_are(root: Path) -> None:
    module = _module(root, batch_size=7, augment=False)
    assert module.val_set is not None
    for loader in (module.train_dataloader(), module.val_dataloader()):
        batch = next(iter(loader))
        assert set(batch) == {"hr", "landmarks", "index"}
        done = module.on_after_batch_transfer(batch, 0)
        for row, index in enumerate(batch["index"].tolist()):
            np.testing.assert_array_equal(done["hr"][row].permute(1, 2, 0), module.val_set.faces.image(index))


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
    assert first != [batch["index"].tolist() for batch in _module(root, batch_size=2, seed=1).train_dataloader()]


def test_batch_size_is_divided_among_devices(root: Path) -> None:
    module = _module(root, batch_size=4)
    served = []
    for rank in range(2):
        module.trainer = SimpleNamespace(global_rank=rank, world_size=2)  # type: ignore[assignment]
        served.append([batch["index"].tolist() for batch in module.val_dataloader()])
    assert served == [[[0, 2], [4, 6]], [[1, 3], [5]]]
    module.trainer = SimpleNamespace(global_rank=0, world_size=3)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="batch_size is 4, expected a multiple of the 3 devices"):
        module.train_dataloader()


def test_setup_says_what_was_kept(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = _module(root)
    printed = capsys.readouterr().out
    for purpose in ("training", "validation"):
        assert f"7 faces of at least 0 px for {purpose}, of {root}: 7 faces; left out 0\n" in printed
    module.setup("fit")
    module.prepare_data()
    assert capsys.readouterr().out == ""  # nothing is read twice


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hr_size": 100}, "hr_size is 100, expected a multiple of 64"),
        ({"batch_size": 0}, "batch_size is 0, expected 1 or more"),
        ({"crop_margin": 0.5}, "margin is 0.5, expected 1"),
        ({"val_fraction": 0.1}, "val_root is 'b' and val_fraction 0.1, expected one of them"),
        ({"val_root": None}, "val_root is None and val_fraction None, expected one"),
        ({"val_root": None, "val_fraction": 1.0}, "val_fraction is 1.0, expected more than 0 and less than 1"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FaceLandmarkDataModule("a", **{"val_root": "b", **settings})


def test_too_few_faces_for_a_batch_is_an_error(root: Path) -> None:
    with pytest.raises(ValueError, match="batch_size is 8, expected at most the 7 training images"):
        _module(root, batch_size=8).train_dataloader()


@pytest.mark.parametrize("hr_size", [128, 384])
def test_prepared_folders_serve_the_same_batches(tiny_faces: Path, tmp_path: Path, hr_size: int) -> None:
    pack_faces(tiny_faces, None, tmp_path / "packed", hr_size, 1.3, 0)
    modules = [
        FaceLandmarkDataModule(str(root), str(root), hr_size=hr_size, batch_size=3, val_min_face_size=0)
        for root in (tiny_faces, tmp_path / "packed")
    ]
    assert modules[0].fingerprint == modules[1].fingerprint
    assert modules[1].synthetic
    assert isinstance(modules[1].train_set, FaceDataset)
    assert isinstance(modules[1].train_set.faces.images, np.memmap)
    for raw, packed in zip(*(module.train_dataloader() for module in modules), strict=True):
        first, second = (
            module.on_after_batch_transfer(batch, 0) for module, batch in zip(modules, (raw, packed), strict=True)
        )
        assert first["lr"].shape == (3, 3, hr_size // 8, hr_size // 8)
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_prepared_folders_must_be_what_was_asked_for(tiny_faces: Path, tmp_path: Path) -> None:
    pack_faces(tiny_faces, None, tmp_path / "packed", 64, 1.3, 0)
    module = FaceLandmarkDataModule(str(tmp_path / "packed"), str(tiny_faces), hr_size=128, val_min_face_size=0)
    with pytest.raises(ValueError, match=r"packed holds faces of 64 px .*expected hr_size 128 and crop_margin 1\.3"):
        module.setup("fit")


@pytest.mark.parametrize("prepared", [False, True])
def test_validation_faces_are_held_out_by_photograph(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], prepared: bool
) -> None:
    root = tmp_path / "faces"
    for number in range(20):
        for crop in (1, 2):
            small = number == 19
            write_face(
                root, f"{number}_{crop}", 40 + points(number) / 5 if small else points(number), 2 * number + crop
            )
    if prepared:
        pack_faces(root, None, tmp_path / "packed", 64, 1.3, 0)
        root = tmp_path / "packed"

    def split(seed: int) -> tuple[list[str], list[str]]:
        module = FaceLandmarkDataModule(
            str(root), val_fraction=0.3, hr_size=64, min_face_size=50, val_min_face_size=60, batch_size=2, seed=seed
        )
        module.setup("fit")
        assert module.train_set is not None and module.val_set is not None
        first = module.val_set[(0, 0)]["hr"].permute(1, 2, 0)
        np.testing.assert_array_equal(first, module.val_set.faces.image(0))
        return module.train_set.faces.names, module.val_set.faces.names

    training, validation = split(0)
    assert split(1) == (training, validation)
    assert not {photograph(name) for name in training} & {photograph(name) for name in validation}
    assert {*training, *validation} == {f"{number}_{crop}" for number in range(19) for crop in (1, 2)}
    assert 2 <= len(validation) <= 20
    printed = capsys.readouterr().out
    assert f"{len(training)} faces of at least 50 px for training, of {root}: 40 faces; left out 0\n" in printed
    assert f"{len(validation)} faces of at least 60 px for validation, of {root}: 40 faces; left out 0\n" in printed


def test_a_part_that_holds_nobody_is_refused(tmp_path: Path) -> None:
    write_face(tmp_path, "a")
    with pytest.raises(
        ValueError, match=r"^0 faces of at least 0 px for validation, of .*: 1 faces; left out 0; change"
    ):
        FaceLandmarkDataModule(str(tmp_path), val_fraction=0.01, hr_size=64, val_min_face_size=0).setup("fit")


def test_faces_between_the_two_limits_are_trained_with_and_not_validated(tmp_path: Path) -> None:
    for number in range(40):
        write_face(tmp_path, str(number), 40 + (points(number) - 40) * 0.7 if number % 2 else points(number), number)
    module = FaceLandmarkDataModule(
        str(tmp_path), val_fraction=0.3, hr_size=64, min_face_size=50, val_min_face_size=60, batch_size=2
    )
    module.setup("fit")
    assert module.train_set is not None and module.val_set is not None
    assert module.train_set.faces.crop_sides.min() == pytest.approx(0.7 * 78)
    assert module.val_set.faces.crop_sides.min() == pytest.approx(78)
    held_out = {name for name in map(str, range(40)) if hold_out([name], 0.3)[0]}
    assert set(module.train_set.faces.names) == {str(number) for number in range(40)} - held_out
    assert set(module.val_set.faces.names) == {name for name in held_out if int(name) % 2 == 0} != held_out


def test_generated_faces_may_be_in_both_folders_and_others_not(tmp_path: Path) -> None:
    for name in ("train", "val"):
        (tmp_path / name).mkdir()
        write_face(tmp_path / name / "faces", "1", seed=len(name))
    train, val = tmp_path / "train" / "faces", tmp_path / "val" / "faces"
    for marked in (train, val):
        (marked / "SYNTHETIC").touch()
        module = FaceLandmarkDataModule(str(train), str(val), hr_size=64, val_min_face_size=0)
        if marked is train:  # only one of them
            with pytest.raises(ValueError, match="of the same photograph"):
                module.setup("fit")
        else:
            module.setup("fit")


def test_faces_of_one_photograph_in_both_folders_are_refused(tmp_path: Path) -> None:
    write_face(tmp_path / "train", "100_1", seed=1)
    write_face(tmp_path / "val", "100_2", seed=2)
    module = FaceLandmarkDataModule(str(tmp_path / "train"), str(tmp_path / "val"), hr_size=64, val_min_face_size=0)
    with pytest.raises(ValueError, match=r"of the same photograph as a training face, .*'100_2' and.*'100_1'"):
        module.setup("fit")
    for path in (tmp_path / "val").iterdir():
        path.rename(path.with_stem("200"))
    module.setup("fit")
    write_face(tmp_path / "val", "200", seed=1)
    with pytest.raises(ValueError, match=r"of the same pixels as a training face, .*'200' and.*'100_1'"):
        FaceLandmarkDataModule(str(tmp_path / "train"), str(tmp_path / "val"), hr_size=64, val_min_face_size=0).setup(
            "fit"
        )


def test_validation_sees_what_the_generator_is_for_and_the_same_in_every_epoch(tiny_faces: Path) -> None:
    augmentation = LandmarkAugmentation(flip=1.0, rotation=40.0, shift=0.2, gray=1.0, noise=8.0)
    data = FaceLandmarkDataModule(
        str(tiny_faces), str(tiny_faces), hr_size=64, val_min_face_size=0, augmentation=augmentation
    )
    data.setup("fit")
    assert data.val_set is not None
    first, second = (
        data.on_after_batch_transfer(default_collate([data.val_set[epoch, index] for index in range(4)]), 0)
        for epoch in (0, 1)
    )
    faces = data.val_set.faces
    expected = to_gray(torch.from_numpy(np.stack([faces.image(index) for index in range(4)])).permute(0, 3, 1, 2))
    assert torch.equal(first["hr"], expected)
    torch.testing.assert_close(first["landmarks"], torch.from_numpy(faces.landmarks[:4]), atol=1e-4, rtol=0)
    clean = resize_bicubic(expected, 8).float() / 255
    assert 0.5 / 255 < (first["lr"] - clean).abs().mean() < 8 / 255
    assert torch.equal(first["lr"], second["lr"])
    for augmentation, drawn in ((LandmarkAugmentation(gray=1.0), True), (LandmarkAugmentation(rotation=9.0), False)):
        other = FaceLandmarkDataModule(
            str(tiny_faces), str(tiny_faces), hr_size=64, val_min_face_size=0, augmentation=augmentation
        )
        other.setup("fit")
        assert other.val_set is not None and ("draws" in other.val_set[0, 0]) == drawn
