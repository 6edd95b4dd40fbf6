"""The paper's two figures: what they show of which run."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from comparison.figures import choose_faces, draw_curves, draw_faces, png
from comparison.reading import Run, read_runs
from tests.comparison.runs import BILINEAR, DIC, right_except, write_run


@pytest.fixture
def pair(tmp_path: Path) -> list[Run]:
    arms = {"bilinear": BILINEAR, "dic": DIC}
    return read_runs([write_run(tmp_path / arm, arm, 0, right) for arm, right in arms.items()])


def arms_of(runs: list[Run]) -> dict[str, list[Run]]:
    return {run.arm: [run] for run in runs}


def test_figure1_asks_every_arm_for_the_same_faces_and_shows_them(pair: list[Run]) -> None:
    asked: list[tuple[Run, str, list[str]]] = []

    def flat_faces(run: Run, split: str, names: list[str]) -> np.ndarray:
        asked.append((run, split, names))
        return np.full((len(names), 384, 384), 60 if run.arm == "bilinear" else 200, np.uint8)

    def draw() -> bytes:
        figure = draw_faces(arms_of(pair), "test", "majority", "synthetic data", load=flat_faces)
        assert "synthetic data, test split, seeds: bilinear 0, dic 0" in figure.get_suptitle()
        assert "9 of n = 35 images (majority rule)" in figure.get_suptitle()
        return png(figure)

    picture = draw()
    (run_a, split_a, names_a), (run_b, split_b, names_b) = asked
    assert run_a is pair[0] and run_b is pair[1]
    assert split_a == split_b == "test"
    assert names_a == names_b and len(set(names_a)) == 9
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("L")).astype(int)
    shown = [(abs(pixels - shade) <= 1).mean() for shade in (60, 200)]
    assert shown[0] == pytest.approx(shown[1], rel=0.01) and sum(shown) > 0.5, "of the figure's area"
    assert draw() == picture


def test_figure1_says_label_and_answer_of_each_face(pair: list[Run]) -> None:
    def gray(run: Run, split: str, names: list[str]) -> np.ndarray:
        return np.zeros((len(names), 8, 8), np.uint8)

    figure = draw_faces(arms_of(pair), "test", "majority", "FER+", load=gray)
    first = figure.subfigs[0]
    assert first.get_suptitle() == "label: happiness"  # image 8, which bilinear alone gets right
    assert [(axes.get_title(), axes.get_xlabel()) for axes in first.axes] == [
        ("bilinear", "\N{CHECK MARK} happiness 0.65"),
        ("dic", "\N{BALLOT X} surprise 0.65"),
    ]


def test_chosen_faces_cover_each_outcome_and_have_a_label(pair: list[Run]) -> None:
    both = [run.tested["test"] for run in pair]
    rows = choose_faces(both, "majority", 9)
    right = np.stack([p.right("majority") for p in both])[:, rows]
    assert (both[0].labels["majority"][rows] >= 0).all()
    outcomes = [tuple(column) for column in right.T.tolist()]
    assert {outcome: outcomes.count(outcome) for outcome in set(outcomes)} == {
        (True, False): 1,  # image 8 is the only one
        (False, True): 3,
        (True, True): 3,
        (False, False): 2,
    }
    assert len(set(both[0].labels["majority"][rows].tolist())) == 7  # every class that there is
    assert rows == [8, 4, 5, 6, 27, 24, 11, 2, 0], "drawn at random, the same every time"


def test_no_labelled_face_is_refused(pair: list[Run]) -> None:
    for run in pair:
        run.tested["test"].labels["majority"][:] = -1
    with pytest.raises(ValueError, match="no image of split test has a label"):
        draw_faces(arms_of(pair), "test", "majority", "FER+", lambda *_: pytest.fail("nothing to load"))


def test_figure2_draws_the_logged_curves_in_percent(pair: list[Run]) -> None:
    figure = draw_curves(arms_of(pair), "synthetic data", {"val": 35, "test": 34})
    accuracy, loss = figure.axes
    lines = {line.get_label(): line for line in accuracy.get_lines()}
    assert sorted(map(str, lines)) == [
        "bilinear, training (best accuracy 86.67)",
        "bilinear, validation (best accuracy 77.00)",
        "dic, training (best accuracy 86.67)",
        "dic, validation (best accuracy 82.00)",
    ]
    line = lines["dic, validation (best accuracy 82.00)"]
    assert list(line.get_xdata()) == list(range(8))
    assert line.get_ydata() == pytest.approx([47, 52, 57, 62, 67, 72, 77, 82])
    assert np.asarray(loss.get_lines()[2].get_ydata())[0] == pytest.approx(1.0)
    title = "Accuracy and loss against epoch: synthetic data\nvalidation n = 35; seeds: bilinear 0; dic 0"
    assert figure.get_suptitle() == title


def test_figure2_shows_the_mean_of_several_runs(tmp_path: Path) -> None:
    runs = read_runs([write_run(tmp_path / str(seed), "dic", seed, DIC) for seed in (0, 1)])
    _, loss = draw_curves({"dic": runs}, "FER+", {}).axes
    first, second, mean = (np.asarray(line.get_ydata())[0] for line in loss.get_lines()[:3])
    assert second - first == pytest.approx(1 / 50) and mean == pytest.approx((first + second) / 2)
    assert loss.get_lines()[2].get_label() == "dic, training, mean of 2"


def test_nothing_is_cut_off_with_many_arms_of_long_names(tmp_path: Path) -> None:
    names = [f"an_arm_with_a_name_of_more_than_forty_characters_{i}" for i in range(3)]
    runs = read_runs([write_run(tmp_path / name, name, 0, right_except(i)) for i, name in enumerate(names)])
    for figure in (
        draw_curves(arms_of(runs), "FER+", {"val": 35}),
        draw_faces(arms_of(runs), "test", "majority", "FER+", lambda *args: np.zeros((len(args[2]), 8, 8), np.uint8)),
    ):
        pixels = np.asarray(Image.open(io.BytesIO(png(figure))).convert("L"))
        edges = [pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]]
        assert all((edge == 255).all() for edge in edges), "a margin all around"
