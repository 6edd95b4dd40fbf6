"""Votes become targets: by hand, and as in the reference targets of the real data."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from datamodules.ferplus.datamodule import load_split
from datamodules.ferplus.table import describe, open_table
from datamodules.labels import CLASSES, LABEL_MODES, argmax_labels, process_votes
from tests.datamodules.ferplus.ferplus_writers import votes

FIXTURE = Path(__file__).parents[1] / "fixtures" / "ferplus_votes.npz"
ROOT = Path(__file__).parents[2]
REAL, GOLDEN = ROOT / "data" / "ferplus", ROOT.parent / "shared" / "golden"
real_data = pytest.mark.skipif(
    not ((REAL / "fer2013new.csv").is_file() and (GOLDEN / "ferplus_targets.npz").is_file()),
    reason="needs the real data in data/ferplus and their reference targets",
)


def target(mode: str, **counts: int) -> dict[str, float] | None:
    """Target of one row of votes without its zeros (multi_target: without its 0.001), or None where it is dropped."""
    kept, targets = process_votes(np.array([votes(**counts)]), mode)  # type: ignore[arg-type]
    if not kept[0]:
        assert (targets[0] == 0).all()
        return None
    return {name: round(float(value), 6) for name, value in zip(CLASSES, targets[0], strict=True) if value > 0.0011}


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"happiness": 6, "neutral": 4}, {"happiness": 1.0}),
        ({"happiness": 5, "neutral": 5}, None),  # half is not a majority
        ({"happiness": 5, "neutral": 4, "fear": 1}, {"happiness": 1.0}),  # the single vote does not count: 5 of 9
        ({"happiness": 4, "neutral": 3, "fear": 3}, None),
        ({"unknown": 6, "neutral": 4}, None),
        ({"NF": 10}, None),
        ({"happiness": 1, "neutral": 1, "fear": 1}, None),  # nothing but single votes
        ({"happiness": 0}, None),
    ],
)
def test_majority(counts: dict[str, int], expected: dict[str, float] | None) -> None:
    assert target("majority", **counts) == expected


@pytest.mark.parametrize("mode", ["crossentropy", "probability"])
@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"happiness": 6, "neutral": 4}, {"happiness": 0.6, "neutral": 0.4}),
        ({"happiness": 8, "neutral": 2}, {"happiness": 1.0}),  # 80 % are covered by the first
        ({"happiness": 5, "neutral": 4, "fear": 1}, {"happiness": 0.555556, "neutral": 0.444444}),
        ({"happiness": 4, "neutral": 3, "fear": 3}, {"happiness": 0.4, "neutral": 0.3, "fear": 0.3}),
        ({"happiness": 4, "neutral": 2, "fear": 2, "anger": 2}, None),  # a tie for the second place makes four
        ({"happiness": 3, "neutral": 3, "fear": 2, "anger": 2}, None),  # as does one for the third
        ({"happiness": 5, "unknown": 4, "fear": 1}, {"happiness": 1.0}),  # unknown is dropped; 5 of 9 are enough
        ({"happiness": 5, "unknown": 5}, None),  # exactly half of the votes is too few
        ({"unknown": 5, "happiness": 4}, None),
        ({"unknown": 6, "neutral": 4}, None),
        ({"neutral": 2, "happiness": 2, "surprise": 2, "sadness": 2, "anger": 2}, None),
        ({"happiness": 1, "neutral": 1, "fear": 1}, None),
        ({"NF": 10}, None),
    ],
)
def test_distribution(mode: str, counts: dict[str, int], expected: dict[str, float] | None) -> None:
    assert target(mode, **counts) == expected


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"happiness": 6, "neutral": 4}, {"happiness": 1.0, "neutral": 1.0}),
        ({"happiness": 8, "neutral": 2}, {"happiness": 1.0}),  # 20 % is less than 30 %
        ({"happiness": 4, "neutral": 3, "fear": 3}, {"happiness": 1.0, "neutral": 1.0, "fear": 1.0}),
        ({"happiness": 3, "neutral": 3, "fear": 2, "anger": 2}, {"happiness": 1.0, "neutral": 1.0}),
        ({"happiness": 4, "neutral": 2, "fear": 2, "anger": 2}, None),  # 40 % of the votes are kept
        ({"happiness": 6, "unknown": 4}, {"happiness": 1.0}),
        ({"unknown": 6, "happiness": 4}, None),
        ({"happiness": 5, "unknown": 5}, {"happiness": 1.0}),  # of equals the first decides
    ],
)
def test_multi_target(counts: dict[str, int], expected: dict[str, float] | None) -> None:
    assert target("multi_target", **counts) == expected


def test_multi_target_leaves_a_thousandth_to_the_other_classes() -> None:
    _, targets = process_votes(np.array([votes(happiness=10)]), "multi_target")
    assert targets.dtype == np.float32
    assert targets[0].tolist() == np.where(np.arange(8) == 1, 1.0, 0.001).astype(np.float32).tolist()


def test_rows_keep_their_order_and_modes_do_not_change_the_votes() -> None:
    rows = np.array([votes(fear=10), votes(NF=10), votes(neutral=9, anger=1), votes(fear=10)])
    before = rows.copy()
    for mode in LABEL_MODES:
        kept, targets = process_votes(rows, mode)  # type: ignore[arg-type]
        assert kept.tolist() == [True, False, True, True]
        assert targets.argmax(axis=1)[kept].tolist() == [6, 0, 6]
    assert (rows == before).all()


def test_no_rows() -> None:
    kept, targets = process_votes(np.zeros((0, 10), dtype=np.int64), "majority")
    assert kept.shape == (0,)
    assert targets.shape == (0, 8)


def test_argmax_takes_the_first_of_equals_and_drops_unknown() -> None:
    rows = np.array(
        [votes(fear=5, neutral=5), votes(unknown=5, fear=4), votes(unknown=5, fear=5), votes(NF=3, anger=2)]
    )
    assert argmax_labels(rows).tolist() == [0, -1, 6, -1]


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="label_mode is 'median', expected one of majority, crossentropy"):
        process_votes(np.zeros((1, 10)), "median")  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", LABEL_MODES)
def test_reference_targets_of_300_vote_rows(mode: str) -> None:
    with np.load(FIXTURE) as reference:
        rows, expected = reference["votes"].astype(np.int64), reference[mode.replace("probability", "crossentropy")]
    kept, targets = process_votes(rows, mode)  # type: ignore[arg-type]
    assert len(rows) == 300
    assert 0 < (~kept).sum() < 200
    assert np.array_equal(kept, expected.any(axis=1))
    assert np.array_equal(targets, expected)


@real_data
@pytest.mark.parametrize(
    ("split", "folder", "images"), [("train", "FER2013Train", 28558), ("val", "FER2013Valid", 3579)]
)
def test_real_data_equal_the_reference(split: str, folder: str, images: int) -> None:
    counts = json.loads((GOLDEN / "ferplus_counts.json").read_text())["counts"]
    table = open_table(REAL)
    assert len(table.rows(split)) == images
    with np.load(GOLDEN / "ferplus_targets.npz") as reference:
        for mode in ("majority", "crossentropy", "multi_target"):
            data = load_split(REAL, split, mode)  # type: ignore[arg-type]
            expected = counts[f"{folder}/votes_by_name/{mode}"]
            assert data.names == reference[f"{folder}__{mode}__names"].tolist()
            assert np.array_equal(data.targets, reference[f"{folder}__{mode}__targets"])
            assert len(data.images) == expected["n"]
            assert np.bincount(data.targets.argmax(axis=1)).tolist() == expected["per_class"]


@real_data
def test_real_votes_by_row_and_of_label_csv_have_the_reference_counts() -> None:
    counts = json.loads((GOLDEN / "ferplus_counts.json").read_text())["counts"]
    usages = {"Training": "FER2013Train", "PublicTest": "FER2013Valid"}
    by_source: dict[str, list[list[int]]] = {}
    with (REAL / "fer2013new.csv").open(newline="") as file:
        for row in list(csv.reader(file))[1:]:
            if row[0] in usages and row[1]:
                by_source.setdefault(f"{usages[row[0]]}/votes_by_row", []).append([int(vote) for vote in row[2:]])
    for folder in usages.values():
        with (REAL / folder / "label.csv").open(newline="") as file:
            by_source[f"{folder}/label_csv"] = [[int(vote) for vote in row[2:]] for row in csv.reader(file)]
    for source, rows in by_source.items():
        for mode in ("majority", "crossentropy", "multi_target"):
            kept, targets = process_votes(np.array(rows), mode)  # type: ignore[arg-type]
            assert kept.sum() == counts[f"{source}/{mode}"]["n"]
            assert np.bincount(targets[kept].argmax(axis=1)).tolist() == counts[f"{source}/{mode}"]["per_class"]


@real_data
def test_real_duplicates() -> None:
    table = open_table(REAL)
    assert table.in_train()[table.rows("val")].sum() == 279
    assert "pixel-identical to a training image: 279 of val" in describe(table, "majority")
