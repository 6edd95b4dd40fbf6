"""Drawn faces: exact landmarks, visible emotions, the files of FER+ and iBUG, the same bytes every time."""

import csv
import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest

from commands.synthetic import synthetic as write_built_in
from datamodules.labels import CLASSES
from datamodules.synthetic import writing as synthetic
from datamodules.synthetic.drawing import render_face, smooth_curve
from datamodules.synthetic.shape import Expression, Head, Pose, face_landmarks, project, sample_expression, sample_head
from models.heatmaps import FLIP_INDEX

COUNTS = {"train": 60, "val": 30, "test": 30}


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def _mean_landmarks(emotion: str, people: int = 30) -> np.ndarray:
    """Mean landmarks of an emotion at full strength in face units, 68,3."""
    faces = []
    for seed in range(people):
        rng = _rng(seed)
        faces.append(face_landmarks(sample_head(rng), sample_expression(emotion, 1.0, rng)))
    return np.mean(faces, axis=0)


def _luminance(image: np.ndarray, point: np.ndarray) -> float:
    """Gray value of an image at a point, bilinear."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return float(cv2.remap(gray, point[None, :1].astype(np.float32), point[None, 1:].astype(np.float32), 1)[0, 0])


def _csv_rows(root: Path) -> list[dict[str, str]]:
    with (root / "fer2013new.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def ferplus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic") / "ferplus"
    assert synthetic.write_ferplus(root, COUNTS, seed=3)
    return root


def test_same_generator_gives_the_same_face() -> None:
    image, landmarks = render_face(64, "fear", 0.7, _rng(1))
    again, landmarks_again = render_face(64, "fear", 0.7, _rng(1))
    other, landmarks_other = render_face(64, "fear", 0.7, _rng(2))
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.uint8
    assert landmarks.shape == (68, 2)
    assert landmarks.dtype == np.float32
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(landmarks, landmarks_again)
    assert np.abs(landmarks - landmarks_other).max() > 1
    assert np.abs(image.astype(int) - other).mean() > 5


def test_face_and_landmarks_scale_with_the_size() -> None:
    small, small_landmarks = render_face(96, "surprise", 1.0, _rng(4))
    large, large_landmarks = render_face(384, "surprise", 1.0, _rng(4))
    # Image edges, not pixel centres, coincide: 4 (x + 1/2) - 1/2.
    np.testing.assert_allclose(4 * (small_landmarks + 0.5) - 0.5, large_landmarks, atol=1e-3)
    reduced = cv2.resize(large, (96, 96), interpolation=cv2.INTER_AREA)
    assert np.abs(reduced.astype(float) - small).mean() < 6


@pytest.mark.parametrize("seed", range(12))
def test_landmarks_lie_inside_the_image(seed: int) -> None:
    _, landmarks = render_face(48, CLASSES[seed % 8], 1.0, _rng(seed))
    assert landmarks.min() > 0
    assert landmarks.max() < 47


def test_mirrored_pose_gives_mirrored_landmarks() -> None:
    expression = Expression(brow_inner=0.1, corner_left=0.14, corner_right=-0.02, jaw_drop=0.1)
    mirrored = dataclasses.replace(expression, corner_left=-0.02, corner_right=0.14)
    pose = Pose(yaw=0.3, pitch=-0.1, roll=0.12, x=0.48)
    turned = dataclasses.replace(pose, yaw=-0.3, roll=-0.12, x=0.52)
    points = project(face_landmarks(Head(), expression), pose)
    other = project(face_landmarks(Head(), mirrored), turned)
    np.testing.assert_allclose((points * [-1, 1] + [1, 0])[list(FLIP_INDEX)], other, atol=1e-12)


def test_projection_of_a_frontal_face() -> None:
    """By hand: scale 0.3 about the head's centre (0, 0.6), and 1 / (1 - 0.08 z) for what is nearer."""
    pose = Pose(scale=0.3, x=0.5, y=0.5)
    np.testing.assert_allclose(project(np.array([[1.0, 0.6, 0.0], [0.0, 1.6, 0.5]]), pose),
                               [[0.8, 0.5], [0.5, 0.5 + 0.3 / 0.96]])  # fmt: skip


def test_smooth_curves_pass_through_their_points() -> None:
    points = np.array([[0.0, 0.0], [1.0, 2.0], [3.0, 1.0], [4.0, 4.0]])
    np.testing.assert_allclose(smooth_curve(points)[::6], points, atol=1e-12)
    # Half-way between the middle two: (9 (p1 + p2) - (p0 + p3)) / 16.
    np.testing.assert_allclose(smooth_curve(points)[9], [2.0, 1.4375], atol=1e-12)


def test_yaw_moves_the_nose_sideways_and_narrows_the_far_half() -> None:
    points = project(face_landmarks(Head(), Expression()), Pose(yaw=0.35))
    assert points[30, 0] > points[8, 0] > 0.5  # the nose is nearer to the viewer than the chin
    assert points[16, 0] - points[27, 0] < points[27, 0] - points[0, 0]


def test_emotions_move_brows_eyes_and_mouth() -> None:
    mean = {emotion: _mean_landmarks(emotion) for emotion in CLASSES}
    y = {emotion: points[:, 1] for emotion, points in mean.items()}
    corners = {emotion: (v[48] + v[54]) / 2 - (v[51] + v[57]) / 2 for emotion, v in y.items()}  # positive: down
    opening = {emotion: v[40] + v[41] + v[46] + v[47] - v[37] - v[38] - v[43] - v[44] for emotion, v in y.items()}
    parted = {emotion: v[66] - v[62] for emotion, v in y.items()}
    brow_tilt = {emotion: (v[17] + v[26] - v[21] - v[22]) / 2 for emotion, v in y.items()}  # positive: inner end up
    assert corners["happiness"] < corners["neutral"] - 0.05 < corners["sadness"] - 0.1
    assert opening["surprise"] > 1.25 * opening["neutral"] > 1.5 * opening["disgust"]
    assert parted["surprise"] > parted["happiness"] > parted["neutral"] + 0.02
    assert brow_tilt["sadness"] > brow_tilt["neutral"] + 0.1 > brow_tilt["anger"] + 0.15
    assert y["surprise"][17:27].mean() < y["neutral"][17:27].mean() - 0.1
    assert np.ptp(mean["fear"][48:55, 0]) > 1.1 * np.ptp(mean["neutral"][48:55, 0])
    assert y["disgust"][33] < y["neutral"][33] - 0.03  # the nose is wrinkled


def test_contempt_raises_one_corner() -> None:
    lopsided = [abs(np.subtract(*face_landmarks(Head(), sample_expression("contempt", 1.0, _rng(i)))[[48, 54], 1]))
                for i in range(20)]  # fmt: skip
    level = [abs(np.subtract(*face_landmarks(Head(), sample_expression("happiness", 1.0, _rng(i)))[[48, 54], 1]))
             for i in range(20)]  # fmt: skip
    assert min(lopsided) > 0.05
    assert np.mean(lopsided) > 2.5 * np.mean(level)


def test_features_are_drawn_at_their_landmarks() -> None:
    """Luminance across lines and edges of the face, on average over people; such a line is 4 pixels wide."""
    across = dict.fromkeys(("lips", "chin", "brow", "left eye", "right eye"), 0.0)
    along = dict.fromkeys(("left eye", "right eye"), 0.0)
    for seed in range(40):
        image, p = render_face(384, "neutral", 1.0, _rng(seed))
        right = (p[45] - p[36]) / np.linalg.norm(p[45] - p[36])
        down = np.array([-right[1], right[0]])
        places = {"lips": (p[62] + p[66]) / 2, "chin": p[8], "brow": p[19], "left eye": p[36], "right eye": p[45]}
        for name, place in places.items():
            across[name] += np.array([_luminance(image, place + shift * down) for shift in range(-10, 11)])
        for name, outwards in (("left eye", -right), ("right eye", right)):
            along[name] += np.array([_luminance(image, places[name] + shift * outwards) for shift in range(-10, 11)])
    for name in ("lips", "left eye", "right eye"):  # lines: darkest in the middle
        assert abs(across[name].argmin() - 10) <= 1, name
    assert abs(np.diff(across["chin"]).argmin() - 9.5) <= 1  # from the skin to the neck
    assert np.average(range(21), weights=across["brow"].max() - across["brow"]) == pytest.approx(10, abs=1)
    for name in along:  # from the corner of the lids, two pixels thick there, to the skin
        assert 10 <= np.diff(along[name]).argmax() <= 12, name


def test_render_face_refuses_sizes() -> None:
    with pytest.raises(ValueError, match="size is 8, expected 16 to 2048 pixels"):
        render_face(8, "fear", 1.0, _rng(0))


def test_faces_on_disk_are_images_with_one_based_points(tmp_path: Path) -> None:
    assert synthetic.write_faces(tmp_path / "faces", count=3, size=64, seed=5)
    rng = np.random.default_rng((5, 0, 2))
    image, landmarks = render_face(64, CLASSES[2], rng.uniform(0.2, 1.0), rng)
    stored = cv2.imread(str(tmp_path / "faces" / "face00002.png"), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(stored, image)
    lines = (tmp_path / "faces" / "face00002.pts").read_text().splitlines()
    assert lines[:3] == ["version: 1", "n_points: 68", "{"]
    assert lines[-1] == "}"
    np.testing.assert_allclose(np.loadtxt(lines[3:-1]) - 1, landmarks, atol=1e-3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["faces"]  # nothing temporary is left


def test_ferplus_layout(ferplus: Path) -> None:
    header = (ferplus / "fer2013new.csv").read_text().splitlines()[0]
    assert header == ("Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF")
    rows = _csv_rows(ferplus)
    for folder, usage, count in (("Train", "Training", 60), ("Valid", "PublicTest", 30), ("Test", "PrivateTest", 30)):
        named = [row["Image name"] for row in rows if row["Usage"] == usage and row["Image name"]]
        assert sorted(named) == sorted(path.name for path in (ferplus / f"FER2013{folder}").iterdir())
        assert len(named) == count
        assert sum(row["Usage"] == usage and not row["Image name"] for row in rows) == 1
    votes = np.array([[int(value) for value in list(row.values())[2:]] for row in rows])
    assert votes.min() == 0
    assert set(votes.sum(1)) == {10}
    image = cv2.imread(str(ferplus / "FER2013Valid" / "fer0000060.png"), cv2.IMREAD_UNCHANGED)
    assert image is not None
    assert image.shape == (48, 48)
    assert image.dtype == np.uint8
    assert image.std() > 5


def test_every_class_has_a_majority_in_every_split(ferplus: Path) -> None:
    for usage in ("Training", "PublicTest", "PrivateTest"):
        votes = np.array([[int(v) for v in list(r.values())[2:]] for r in _csv_rows(ferplus) if r["Usage"] == usage])
        assert set(votes.argmax(1)[votes.max(1) >= 8]) >= set(range(8))


def test_some_images_recur_in_other_splits(ferplus: Path) -> None:
    train = {path.read_bytes() for path in (ferplus / "FER2013Train").iterdir()}
    assert len(train) == 60
    for folder in ("FER2013Valid", "FER2013Test"):
        assert sum(path.read_bytes() in train for path in (ferplus / folder).iterdir()) == 1


def test_votes_follow_the_intensity_and_the_frequencies() -> None:
    samples = synthetic.plan_split("train", {"train": 2000, "val": 30, "test": 30}, seed=0)
    faces = [sample for sample in samples if sample.emotion]
    share = {emotion: np.mean([sample.emotion == emotion for sample in faces]) for emotion in CLASSES}
    assert share["neutral"] == pytest.approx(0.33, abs=0.01)
    assert share["disgust"] == pytest.approx(0.03, abs=0.01)
    agreement = np.array([sample.votes[CLASSES.index(sample.emotion)] for sample in faces])
    intensity = np.array([sample.intensity for sample in faces])
    assert agreement[intensity > 0.85].mean() > 8
    assert agreement[intensity < 0.4].mean() < 6
    assert 0.005 < np.mean([sample.votes[9] > 5 for sample in samples]) < 0.02


def test_written_once_and_replaced_when_the_arguments_change(tmp_path: Path) -> None:
    root = tmp_path / "faces"
    assert synthetic.write_faces(root, count=2, size=32, seed=0)
    (root / "face00000.png").unlink()
    assert not synthetic.write_faces(root, count=2, size=32, seed=0)
    assert not (root / "face00000.png").exists()
    assert synthetic.write_faces(root, count=1, size=32, seed=0)
    assert sorted(path.name for path in root.iterdir()) == ["SYNTHETIC", "face00000.png", "face00000.pts"]


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photograph.jpg").write_bytes(b"mine")
    (tmp_path / "SYNTHETIC").touch()  # as in a packed folder
    with pytest.raises(FileExistsError, match="was not written by"):
        synthetic.write_faces(tmp_path, count=1, size=32, seed=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["SYNTHETIC", "photograph.jpg"]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "render_face", fail)
    with pytest.raises(KeyboardInterrupt):
        synthetic.write_faces(tmp_path / "faces", count=1, size=32, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_write_ferplus_refuses_small_splits(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="val is 5, expected at least 24"):
        synthetic.write_ferplus(tmp_path / "ferplus", {**COUNTS, "val": 5}, seed=0)


def test_command_line_writes_the_same_bytes_every_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(root: Path, faces: int = 3) -> str:
        numbers = ["--val-faces", "2", "--size", "32", "--train", "30", "--val", "24", "--test", "24", "--seed", "3"]
        write_built_in(["--root", str(root), "--faces", str(faces), *numbers])
        return capsys.readouterr().out

    def contents(root: Path) -> dict[str, bytes]:
        return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}

    assert "written" in run(tmp_path / "a")
    first = contents(tmp_path / "a")
    assert {"SYNTHETIC", "faces/train/face00000.pts", "faces/val/face00001.png", "ferplus/fer2013new.csv"} < set(first)
    assert first["faces/train/face00000.png"] != first["faces/val/face00000.png"]
    assert "already there" in run(tmp_path / "a")
    run(tmp_path / "b", faces=4)  # a face depends on the seed and its own number alone
    marker = "faces/train/SYNTHETIC"  # it records the number of faces
    assert first.items() - contents(tmp_path / "b").items() == {(marker, first[marker])}


def test_command_line_reports_errors_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        write_built_in(["--root", str(tmp_path), "--faces", "0"])
    assert exit_.value.code == 2
    assert "count is 0, expected at least 1" in capsys.readouterr().err
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as exit_:
        write_built_in(["--root", str(tmp_path / "file")])  # not a folder
    assert exit_.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")
