"""Reading the raw files: both layouts, their quirks, and one clear error for whatever is wrong."""

import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.ferplus.datamodule import load_split
from datamodules.ferplus.table import KAGGLE_FILES, open_table
from tests.datamodules.ferplus.ferplus_writers import (
    Sample,
    face,
    votes,
    write_folders,
    write_kaggle,
    write_label_csv,
    write_votes,
)

SAMPLES = [
    Sample("Training", "fer0000000.png", votes(happiness=10), face(0)),
    Sample("Training", "fer0000001.png", votes(fear=10), face(1)),
    Sample("Training", "", votes(NF=10), face(2)),
    Sample("Training", "fer0000003.png", votes(unknown=10), face(3)),
    Sample("PublicTest", "fer0000004.png", votes(anger=10), face(4)),
    Sample("PrivateTest", "fer0000005.png", votes(disgust=10), face(5)),
]
TWICE = [*SAMPLES, Sample("Training", "fer0000001.png", votes(sadness=10), face(6))]


@pytest.mark.parametrize("layout", ["folders", *KAGGLE_FILES])
def test_both_layouts_give_the_same(layout: str, tmp_path: Path) -> None:
    if layout == "folders":
        write_folders(tmp_path, SAMPLES)
    else:
        write_kaggle(tmp_path, SAMPLES, layout)
    train = load_split(tmp_path, "train", "majority")
    assert train.names == ["fer0000000.png", "fer0000001.png"]  # not the one without a name, nor the unknown one
    assert train.images.dtype == np.uint8
    assert np.array_equal(train.images, np.stack([face(0), face(1)]))
    assert train.targets.dtype == np.float32
    assert train.targets.argmax(axis=1).tolist() == [1, 6]
    assert load_split(tmp_path, "val", "majority").targets.argmax(axis=1).tolist() == [4]
    assert load_split(tmp_path, "test", "majority").names == ["fer0000005.png"]


def test_by_row_both_of_a_repeated_name_count(tmp_path: Path) -> None:
    train = load_split(write_kaggle(tmp_path, TWICE), "train", "majority")
    assert train.names == ["fer0000000.png", "fer0000001.png", "fer0000001.png"]
    assert train.targets.argmax(axis=1).tolist() == [1, 6, 3]
    assert np.array_equal(train.images[1:], np.stack([face(1), face(6)]))


def test_by_name_the_later_row_of_a_repeated_name_counts(tmp_path: Path) -> None:
    train = load_split(write_folders(tmp_path, TWICE), "train", "majority")
    assert train.names == ["fer0000000.png", "fer0000001.png"]
    assert train.targets.argmax(axis=1).tolist() == [1, 3]
    assert np.array_equal(train.images[1], face(6))


def test_new_votes_come_before_the_older_ones(tmp_path: Path) -> None:
    write_folders(tmp_path, [sample for sample in SAMPLES if sample.usage == "Training"])
    older = [("fer0000000.png", votes(anger=10)), ("fer0000001.png", votes(fear=10)), ("fer0000003.png", votes(NF=10))]
    write_label_csv(tmp_path, "Training", older)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_split(tmp_path, "train", "majority").targets.argmax(axis=1).tolist() == [1, 6]
    (tmp_path / "fer2013new.csv").unlink()
    with pytest.warns(UserWarning, match=r"no fer2013new\.csv; using the older votes of label\.csv"):
        assert load_split(tmp_path, "train", "majority").targets.argmax(axis=1).tolist() == [4, 6]


def test_votes_of_a_split_that_is_not_there_are_passed_over(tmp_path: Path) -> None:
    write_folders(tmp_path, [sample for sample in SAMPLES if sample.usage != "PrivateTest"])
    write_votes(tmp_path, SAMPLES)
    assert load_split(tmp_path, "val", "majority").names == ["fer0000004.png"]
    with pytest.raises(ValueError, match="the split 'test' has no images; splits with images: train, val"):
        load_split(tmp_path, "test", "majority")


def test_byte_order_mark(tmp_path: Path) -> None:
    write_kaggle(tmp_path, SAMPLES)
    path = tmp_path / "fer2013.csv"
    path.write_text("\ufeff" + path.read_text())
    assert load_split(tmp_path, "train", "majority").names == ["fer0000000.png", "fer0000001.png"]


def edit(path: Path, old: str, new: str, count: int = 1) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def cut_last_line(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def edit_pixels(change: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    """Changes the pixels in line 3 of the CSV."""

    def apply(root: Path) -> None:
        lines = (root / "fer2013.csv").read_text().splitlines()
        emotion, pixels, usage = lines[2].split(",")
        lines[2] = ",".join([emotion, " ".join(change(pixels.split())), usage])
        (root / "fer2013.csv").write_text("\n".join(lines) + "\n")

    return apply


PIXELS = r"fer2013\.csv, line 3: {}"
BAD_KAGGLE = {
    "column missing in votes": (
        lambda root: edit(root / "fer2013new.csv", ",contempt", ""),
        r"fer2013new\.csv: the header is \['Usage'.*'fear', 'unknown', 'NF'\], expected .*'contempt'",
    ),
    "column too many in votes": (
        lambda root: edit(root / "fer2013new.csv", ",NF", ",NF,bored"),
        r"fer2013new\.csv: the header is .*'bored'\], expected",
    ),
    "column twice": (
        lambda root: edit(root / "fer2013.csv", "emotion,pixels,Usage", "emotion,pixels,Usage,pixels"),
        r"fer2013\.csv: the header is \['emotion', 'pixels', 'Usage', 'pixels'\], expected",
    ),
    "column missing in pixels": (
        lambda root: edit(root / "fer2013.csv", "emotion,pixels,Usage", "emotion,pixels"),
        r"fer2013\.csv: the header is \['emotion', 'pixels'\], expected \['emotion', 'pixels', 'Usage'\]",
    ),
    "cell missing": (
        lambda root: edit(root / "fer2013new.csv", "fer0000001.png,0,", "fer0000001.png,"),
        r"fer2013new\.csv, line 3: 11 columns, expected 12",
    ),
    "pixel missing": (edit_pixels(lambda pixels: pixels[:-1]), PIXELS.format("there are 2303 pixels, expected 2304")),
    "pixel too many": (edit_pixels(lambda pixels: [*pixels, "7"]), PIXELS.format("there are 2305 pixels")),
    "no pixels": (edit_pixels(lambda pixels: []), PIXELS.format("there are 0 pixels")),
    "pixel too large": (
        edit_pixels(lambda pixels: [*pixels[1:], "256"]),
        PIXELS.format("one pixel is 256, expected 2304 integers from 0 to 255"),
    ),
    "pixel negative": (edit_pixels(lambda pixels: [*pixels[1:], "-1"]), PIXELS.format("one pixel is -1")),
    "pixel not whole": (
        edit_pixels(lambda pixels: [*pixels[1:], "1.5"]),
        PIXELS.format(r"pixels are not integers .*1\.5"),
    ),
    "pixel enormous": (edit_pixels(lambda pixels: [*pixels[1:], "9" * 30]), PIXELS.format("pixels are not integers")),
    "pixel a word": (edit_pixels(lambda pixels: [*pixels[1:], "x"]), PIXELS.format("pixels are not integers .*'x'")),
    "unknown usage in pixels": (
        lambda root: edit(root / "fer2013.csv", "PublicTest", "Validation"),
        r"fer2013\.csv, line 6: Usage is 'Validation', expected one of Training, PublicTest, PrivateTest",
    ),
    "unknown usage in votes": (
        lambda root: edit(root / "fer2013new.csv", "PublicTest", "publictest"),
        r"fer2013new\.csv, line 6: Usage is 'publictest', expected one of Training, PublicTest, PrivateTest",
    ),
    "fewer pixels": (
        lambda root: cut_last_line(root / "fer2013.csv"),
        r"fer2013\.csv has 5 rows, .*fer2013new\.csv has 6",
    ),
    "fewer votes": (
        lambda root: cut_last_line(root / "fer2013new.csv"),
        r"fer2013\.csv has 6 rows, .*fer2013new\.csv has 5",
    ),
    "another order": (
        lambda root: edit(root / "fer2013new.csv", "Training", "PublicTest"),
        r"fer2013\.csv, line 2: Usage is 'Training', expected 'PublicTest' as in .*fer2013new\.csv, line 2",
    ),
    "negative votes": (
        lambda root: edit(root / "fer2013new.csv", "png,0,10", "png,-1,10"),
        r"fer2013new\.csv, line 2: neutral is '-1', expected an integer from 0 to 1000",
    ),
    "votes a word": (
        lambda root: edit(root / "fer2013new.csv", "png,0,10", "png,0,ten"),
        r"fer2013new\.csv, line 2: happiness is 'ten'",
    ),
    "votes empty": (
        lambda root: edit(root / "fer2013new.csv", "png,0,10", "png,,10"),
        r"fer2013new\.csv, line 2: neutral is ''",
    ),
    "votes enormous": (
        lambda root: edit(root / "fer2013new.csv", "png,0,10", f"png,0,{'9' * 5000}"),
        r"fer2013new\.csv, line 2: happiness is '9999.*\.\.\.', expected",
    ),
    "votes missing": (
        lambda root: (root / "fer2013new.csv").unlink(),
        r"fer2013new\.csv with the FER\+ votes is missing beside fer2013\.csv",
    ),
    "empty file": (lambda root: (root / "fer2013.csv").write_text(""), r"fer2013\.csv: the header is \[\]"),
    "not text": (
        lambda root: (root / "fer2013.csv").write_bytes(bytes(range(128, 256))),
        r"fer2013\.csv: not a readable CSV",
    ),
    "digits of other scripts": (
        edit_pixels(lambda pixels: ["\u0661", *pixels[1:]]),
        PIXELS.format("pixels are not int"),
    ),
    "digits in groups": (edit_pixels(lambda pixels: ["1_0", *pixels[1:]]), PIXELS.format("pixels are not integers")),
    "name of the folder above": (
        lambda root: edit(root / "fer2013new.csv", "fer0000001.png", ".."),
        r"fer2013new\.csv, line 3: Image name is '\.\.', expected a plain file name",
    ),
    "name of two lines": (
        lambda root: edit(root / "fer2013new.csv", "fer0000001.png", '"fer\u2028.png"'),
        r"fer2013new\.csv, line 3: Image name is 'fer\\u2028\.png', expected a plain file name",
    ),
    "no header": (
        lambda root: edit(root / "fer2013.csv", "emotion,pixels,Usage\n", ""),
        r"fer2013\.csv: the header is \['3', '\d+ .*, expected \['emotion'",
    ),
    "a cell without end": (
        lambda root: (root / "fer2013.csv").write_text('emotion,pixels,Usage\n3,"' + "1 " * 200_000),
        r"fer2013\.csv: not a readable CSV file \(field larger",
    ),
}
PNG = "FER2013Train/fer0000001.png"


def save(image: np.ndarray) -> Callable[[Path], None]:
    return lambda root: Image.fromarray(image).save(root / PNG)


def truncate(keep: int) -> Callable[[Path], None]:
    return lambda root: (root / PNG).write_bytes((root / PNG).read_bytes()[:keep])


def pipe(name: str) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        (root / name).unlink()
        os.mkfifo(root / name)

    return apply


def flip_byte(root: Path) -> None:
    data = bytearray((root / PNG).read_bytes())
    data[len(data) // 2] ^= 0xFF
    (root / PNG).write_bytes(bytes(data))


BAD_FOLDERS = {
    "image too small": (save(face(0)[:47]), rf"{PNG}: is 48x47 pixels of mode L, expected an 8-bit gray"),
    "image in colour": (save(np.zeros((48, 48, 3), np.uint8)), rf"{PNG}: is 48x48 pixels of mode RGB"),
    "image of 16 bit": (save(np.zeros((48, 48), np.uint16)), rf"{PNG}: is 48x48 pixels of mode I;16"),
    "image of 1 bit": (save(np.zeros((48, 48), bool)), rf"{PNG}: is 48x48 pixels of mode 1,"),
    "truncated": (truncate(1500), rf"{PNG}: not a readable PNG"),
    "end missing": (truncate(-20), rf"{PNG}: not a readable PNG file \(image file is truncated"),
    "named pipe": (pipe(PNG), rf"{PNG}: not a readable PNG file \(.* is not a regular file"),
    "truncated in its header": (truncate(20), rf"{PNG}: not a readable PNG"),
    "empty image": (truncate(0), rf"{PNG}: not a readable PNG"),
    "flipped byte": (flip_byte, rf"{PNG}: not a readable PNG"),
    "not a PNG": (lambda root: Image.fromarray(face(0)).save(root / PNG, format="JPEG"), rf"{PNG}: not a readable PNG"),
    "image missing": (
        lambda root: (root / PNG).unlink(),
        rf"fer2013new\.csv, line 3: names the image .*{PNG}, which does not exist",
    ),
    "row missing": (
        lambda root: Image.fromarray(face(0)).save(root / "FER2013Train" / "fer0000009.png"),
        r"FER2013Train/fer0000009\.png: image without a row of votes",
    ),
    "name leads elsewhere": (
        lambda root: edit(root / "fer2013new.csv", "fer0000001.png", "../fer0000001.png"),
        r"fer2013new\.csv, line 3: Image name is '\.\./fer0000001\.png', expected a plain file name",
    ),
    "no votes": (
        lambda root: (root / "fer2013new.csv").unlink(),
        r"neither fer2013new\.csv nor FER2013Train/label\.csv exists",
    ),
    "no folders": (
        lambda root: [folder.rename(root / folder.name.lower()) for folder in root.glob("FER2013*")],
        r"no FER\+ data; looked for fer2013\.csv or icml_face_data\.csv",
    ),
}


@pytest.mark.parametrize(
    ("write", "damage", "message"),
    [(write_kaggle, *case) for case in BAD_KAGGLE.values()] + [(write_folders, *case) for case in BAD_FOLDERS.values()],
    ids=[*BAD_KAGGLE, *BAD_FOLDERS],
)
def test_bad_input_ends_in_one_clear_error(
    write: Callable[[Path, list[Sample]], Path], damage: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    damage(write(tmp_path, SAMPLES))
    with pytest.raises(ValueError) as error:
        load_split(tmp_path, "train", "majority")
    assert re.search(message, str(error.value)), str(error.value)
    assert str(tmp_path) in str(error.value)
    assert len(str(error.value)) < 600
    assert not list(tmp_path.glob(".superfer_cache/*"))  # nothing was kept of bad data


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('fer0000000.png,"(0, 0, 48, 48)",4,0', r"label\.csv, line 1: 4 columns, expected 12: "),
        ('fer0000000.png,"(0, 0, 48, 48)",4,0,0,0,6,-2,0,0,0,0', r"label\.csv, line 1: disgust is '-2'"),
        ('fer0000009.png,"(0, 0, 48, 48)",4,0,0,0,6,0,0,0,0,0', r"fer0000000\.png: image without a row of votes"),
    ],
)
def test_bad_older_votes(line: str, message: str, tmp_path: Path) -> None:
    write_folders(tmp_path, SAMPLES[:1])
    (tmp_path / "fer2013new.csv").unlink()
    (tmp_path / "FER2013Train" / "label.csv").write_text(line + "\n")
    with warnings.catch_warnings(), pytest.raises(ValueError, match=message):
        warnings.simplefilter("ignore")  # that the votes are old
        load_split(tmp_path, "train", "majority")


def test_missing_folder_split_and_empty_split(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere: no such folder"):
        load_split(tmp_path / "nowhere", "train", "majority")
    write_folders(tmp_path, SAMPLES)
    with pytest.raises(ValueError, match="split is 'validation', expected one of train, val, test"):
        load_split(tmp_path, "validation", "majority")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="label_mode is 'median'"):
        load_split(tmp_path, "train", "median")  # type: ignore[arg-type]
    for path in (tmp_path / "FER2013Valid").iterdir():
        path.unlink()
    write_votes(tmp_path, [sample for sample in SAMPLES if sample.usage != "PublicTest"])
    with pytest.raises(ValueError, match="the split 'val' has no images; splits with images: train, test"):
        load_split(tmp_path, "val", "majority")


def test_split_of_which_nothing_is_kept(tmp_path: Path) -> None:
    write_folders(tmp_path, [Sample("Training", "fer0000000.png", votes(NF=10), face(0))])
    with pytest.raises(ValueError, match="label_mode 'majority' keeps no image of the split 'train'"):
        load_split(tmp_path, "train", "majority")
    write_kaggle(tmp_path, [])
    with pytest.raises(ValueError, match=r"no row has an image; looked in fer2013\.csv and fer2013new\.csv"):
        open_table(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path: Path) -> None:
    write_kaggle(tmp_path, SAMPLES)
    (tmp_path / "fer2013.csv").chmod(0)
    with pytest.raises(ValueError, match=r"fer2013\.csv: not a readable CSV file \(.*Permission denied"):
        open_table(tmp_path)
