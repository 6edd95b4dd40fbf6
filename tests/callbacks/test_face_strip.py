"""FaceStrip: what a strip shows, of which faces, where and when."""

from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from callbacks.face_strip import FOUND_COLOUR, HEADER, TRUE_COLOUR, FaceStrip, compose_strip
from datamodules.faces.datamodule import FaceLandmarkDataModule
from datamodules.synthetic.writing import write_faces
from lightning_modules.dic import DICModule
from models.dic import DIC

SMALL = {"num_features": 4, "num_steps": 2, "num_groups": 1, "num_fusion_blocks": 1, "hourglass_features": 8}


def test_strip_shows_every_panel_in_its_place() -> None:
    def plain(value: int, side: int = 64) -> torch.Tensor:
        return torch.full((3, side, side), value, dtype=torch.uint8)

    lr = plain(0, 8)
    lr[:, 0, 1] = 90
    found, true = torch.full((68, 2), 20.0), torch.full((68, 2), 40.0)
    true[3] = torch.tensor([-5.0, 300.0])  # outside: not drawn, not an error
    panels = {"LR": lr, "bicubic": plain(10), "step 1": plain(20), "step 2": plain(30), "HR": plain(40)}
    strip = compose_strip(panels, plain(30), found, true)
    assert strip.shape == (HEADER + 64, 6 * 64, 3)
    pictures = strip[HEADER:].reshape(64, 6, 64, 3).swapaxes(0, 1)
    assert (pictures[0, :8, 8:16] == 90).all() and (pictures[0, 8:] == 0).all()  # blocks of 8: not interpolated
    for panel, value in enumerate((10, 20, 30, 40), start=1):
        assert (pictures[panel] == value).all()
    assert tuple(pictures[5, 20, 20]) == FOUND_COLOUR and tuple(pictures[5, 40, 40]) == TRUE_COLOUR
    assert (pictures[5] == 30).all(axis=-1).mean() > 0.99  # the last step beneath the landmarks


@pytest.mark.parametrize("count", [4, 12])
def test_same_faces_once_per_validation(tmp_path: Path, count: int) -> None:
    write_faces(tmp_path / "faces", count, size=80, seed=0)
    data = FaceLandmarkDataModule(
        str(tmp_path / "faces"), str(tmp_path / "faces"), hr_size=64, batch_size=2, val_min_face_size=0
    )
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        limit_train_batches=1,
        num_sanity_val_steps=1,
        logger=False,
        callbacks=[FaceStrip()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=tmp_path / "run",
    )
    trainer.fit(DICModule(DIC(**SMALL)), data)

    shown = range(0, 12, 2) if count == 12 else range(4)  # no more than there are
    pictures = sorted((tmp_path / "run" / "faces").iterdir())
    assert [path.name for path in pictures] == ["batch_0000001.png", "batch_0000002.png"]  # none of the sanity check
    picture = np.asarray(Image.open(pictures[1]))
    assert picture.shape == (len(shown) * (HEADER + 64), 6 * 64, 3)
    assert data.val_set is not None
    for row, index in enumerate(shown):
        top = row * (HEADER + 64) + HEADER
        np.testing.assert_array_equal(picture[top : top + 64, 4 * 64 : 5 * 64], data.val_set.faces.image(index))
        points = data.val_set.faces.landmarks[index].round().astype(int)
        colours = [tuple(picture[top + y, 5 * 64 + x]) for x, y in points if min(x, y) >= 0 and max(x, y) < 64]
        assert colours.count(TRUE_COLOUR) > len(colours) / 2  # found ones hide the rest

    blank, nowhere = torch.zeros(3, 64, 64, dtype=torch.uint8), torch.full((68, 2), -9.0)
    titles = ("LR", "bicubic", "step 1", "step 2", "HR")
    labelled, plain = (
        compose_strip(dict.fromkeys(titles, blank), blank, nowhere, nowhere, synthetic)[:HEADER]
        for synthetic in (True, False)
    )
    assert (picture[:HEADER] == labelled).all() and (labelled != plain).any()
