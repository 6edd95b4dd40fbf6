"""Every reader, given anything at all, gives data or one clear error, and leaves nothing half-written."""

import contextlib
import io
import json
import pickle
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from commands.cli import SuperFERCLI
from commands.ending import refusals
from comparison.reading import read_runs
from comparison.recomputing import check_figures
from datamodules.faces.annotations import FaceError, find_faces, read_pts
from datamodules.faces.cropping import read_image
from datamodules.faces.packed import pack_faces
from datamodules.ferplus.table import open_table
from datamodules.image_folder import UpscaleTask, largest_first, read_batches
from models.dic import DIC
from run_state.folder import share_with_children
from run_state.identity import read_record
from run_state.metrics_csv import cut_back
from storage.checkpoints import CheckpointError, read_checkpoint, safetensors_bytes
from storage.pickles import load_plain_pickle
from storage.reading import read_mapping
from tests.comparison.runs import right_except, write_run
from tests.datamodules.faces.face_writers import points, write_csv, write_face, write_pkl, write_pts
from tests.datamodules.ferplus.ferplus_writers import MIXED, write_folders, write_kaggle
from tests.tiny_runs import classifier_args, generator_args

# The same inputs every time: a failure here is to be found by whoever causes it.
fuzzed = settings(
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.generate,),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@st.composite
def damage(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """A few changes of a file: bytes altered, cut out, put in, doubled, the end cut off; or other content."""
    kind = draw(st.sampled_from(["alter", "cut", "insert", "double", "truncate", "replace"]))
    places = draw(st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4))
    other = draw(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))

    def change(content: bytes) -> bytes:
        if kind == "replace":
            return other
        for place, new in places:
            at = int(place * len(content))
            if kind == "truncate":
                content = content[:at]
            elif kind == "alter":
                content = content[:at] + new + content[at + len(new) :]
            elif kind == "cut":
                content = content[:at] + content[at + len(new) :]
            elif kind == "insert":
                content = content[:at] + new + content[at:]
            else:
                content = content[:at] + content[max(0, at - 40) :]
        return content

    return change


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One sound file of every kind."""
    folder = tmp_path_factory.mktemp("sound")
    write_pts(folder / "face.pts", points())
    write_pkl(folder / "faces.pkl", {"a.png": points(), "b.png": points(1)})
    write_csv(folder / "faces.csv", {"a": points(), "b": points(1)})
    rng = np.random.default_rng(0)
    for mode, name in (("L", "gray.png"), ("RGB", "color.png"), ("RGB", "color.jpg")):
        shape = (48, 48) if mode == "L" else (48, 48, 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8), mode).save(folder / name)
    net = DIC(4, 1, 1, 0, 8)
    torch.save(
        {"dic_config": net.config, "state_dict": {f"net.{k}": v for k, v in net.state_dict().items()}},
        folder / "dic.ckpt",
    )
    torch.save(net.state_dict(), folder / "legacy.pth", _use_new_zipfile_serialization=False)
    (folder / "dic.safetensors").write_bytes(safetensors_bytes(net.state_dict(), {"dic_config": net.config}))
    (folder / "kaggle").mkdir()
    write_kaggle(folder / "kaggle", MIXED)
    (folder / "folders").mkdir()
    write_folders(folder / "folders", MIXED)
    return folder


READERS: dict[str, tuple[Callable[[Path], object], tuple[type[Exception], ...]]] = {
    "face.pts": (read_pts, (FaceError,)),
    "faces.pkl": (load_plain_pickle, (ValueError,)),
    "faces.csv": (lambda path: find_faces(path.parent, path), (ValueError,)),
    "gray.png": (read_image, (FaceError,)),
    "color.jpg": (read_image, (FaceError,)),
    "color.png": (lambda path: list(read_batches(largest_first([UpscaleTask(path, ())]), 1, 1)), ()),
    "dic.ckpt": (DIC.from_checkpoint, (CheckpointError,)),
    "dic.safetensors": (DIC.from_checkpoint, (CheckpointError,)),
    "legacy.pth": (read_checkpoint, (CheckpointError,)),
}


@pytest.mark.parametrize("name", READERS)
@given(change=damage())
@fuzzed
def test_file(name: str, sound: Path, change: Callable[[bytes], bytes]) -> None:
    read, errors = READERS[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(change((sound / name).read_bytes()))
        try:
            read(path)
        except errors as error:
            assert str(error).strip()
        assert [file.name for file in Path(folder).iterdir()] == [name]


def _weights(path: Path) -> list[float]:
    net = DIC.from_checkpoint(path)
    return [net.num_steps, *torch.cat([value.flatten() for value in net.state_dict().values()]).tolist()]


WITH_CHECKSUMS: dict[str, Callable[[Path], object]] = {
    "gray.png": lambda path: np.asarray(read_image(path)).tolist(),
    "color.png": lambda path: np.asarray(read_image(path)).tolist(),
    "dic.safetensors": _weights,
    "dic.ckpt": _weights,
}


@pytest.mark.parametrize("name", WITH_CHECKSUMS)
@given(change=damage())
@fuzzed
def test_what_is_read_of_a_damaged_file_is_what_was_written(
    name: str, sound: Path, change: Callable[[bytes], bytes]
) -> None:
    read = WITH_CHECKSUMS[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(change((sound / name).read_bytes()))
        with contextlib.suppress(FaceError, CheckpointError):
            assert read(path) == read(sound / name)


@pytest.mark.parametrize(
    ("layout", "name"),
    [("kaggle", "fer2013.csv"), ("kaggle", "fer2013new.csv"), ("folders", "fer2013new.csv"), ("folders", "PNG")],
)
@given(change=damage())
@fuzzed
def test_ferplus(layout: str, name: str, sound: Path, change: Callable[[bytes], bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        shutil.copytree(sound / layout, root)
        path = root / name if name != "PNG" else sorted(root.glob("FER2013Train/*.png"))[0]
        path.write_bytes(change(path.read_bytes()))
        try:
            table = open_table(root)
            assert table.images.shape[1:] == (48, 48) and len(table.images) == len(table.votes)
        except ValueError as error:
            assert str(error).strip()
            assert not list((root / ".superfer_cache").glob("*")), "an error leaves no cache"


@given(change=damage(), which=st.sampled_from(["a.png", "a.pts"]))
@fuzzed
def test_preparing_leaves_damaged_faces_out(change: Callable[[bytes], bytes], which: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        faces, out = Path(folder) / "faces", Path(folder) / "out"
        faces.mkdir()
        write_face(faces, "a")
        write_face(faces, "b")
        (faces / which).write_bytes(change((faces / which).read_bytes()))
        pack_faces(faces, None, out, 64, 1.3)
        manifest = json.loads((out / "manifest.json").read_text())
        assert set(manifest["names"]) | {entry["name"] for entry in manifest["left_out"]} >= {"a", "b"}
        assert "b" in manifest["names"]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner),
        max_leaves=10,
    )
)
@fuzzed
def test_plain_pickles_come_back(value: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plain.pkl"
        path.write_bytes(pickle.dumps(value))
        assert repr(load_plain_pickle(path)) == repr(value)


ODD: list[object] = [-1, 0, 3, 1.5, float("nan"), True, "", "x", "3", None, [], [1, "x"], {}, {"x": 1}]


@pytest.fixture(scope="module")
def configurations(tiny_ferplus: Path, tiny_faces: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Whole configurations of a classifier and of a generator, with every default, as runs record them."""
    runs = tmp_path_factory.mktemp("runs")
    texts = []
    for arguments in (classifier_args(tiny_ferplus, runs), generator_args(tiny_faces, runs)):
        cli = SuperFERCLI("train", arguments)
        texts.append(cli.parser.dump(cli.config, skip_none=False))
    return texts


def _assert_built_or_refused(text: str) -> None:
    """Parses a configuration and builds everything: that succeeds, or ends in one message with exit code 2."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()) as printed:
        path, runs = Path(folder) / "config.yaml", Path(folder) / "runs"
        path.write_bytes(text.encode(errors="replace"))
        cli: SuperFERCLI | None = None
        try:
            with refusals():
                cli = SuperFERCLI("train", ["--config", str(path), f"--runs={runs}"])
                cli.build()
        except SystemExit as error:
            assert error.code == 2 and printed.getvalue().count("error:") == 1
        share_with_children(None)
        assert hasattr(cli, "trainer") or not list(runs.glob("*/*")), "a refusal leaves no run folder"


@pytest.mark.filterwarnings("ignore")
@given(change=damage(), which=st.integers(0, 1))
@settings(fuzzed, max_examples=fuzzed.max_examples // 4)
def test_damaged_configuration(configurations: list[str], change: Callable[[bytes], bytes], which: int) -> None:
    _assert_built_or_refused(change(configurations[which].encode()).decode(errors="replace"))


@pytest.mark.filterwarnings("ignore")
@given(which=st.integers(0, 1), place=st.floats(0, 1, exclude_max=True), value=st.sampled_from(ODD))
@settings(fuzzed, max_examples=fuzzed.max_examples // 2)
def test_senseless_setting(configurations: list[str], which: int, place: float, value: object) -> None:
    config = yaml.safe_load(configurations[which])
    leaves: list[tuple[dict[str, object], str]] = []

    def walk(tree: dict[str, object]) -> None:
        for name, inside in tree.items():
            leaves.append((tree, name))
            if isinstance(inside, dict):
                walk(inside)

    walk(config)
    tree, name = leaves[int(place * len(leaves))]
    tree[name] = value
    _assert_built_or_refused(yaml.safe_dump(config))


@given(change=damage(), name=st.sampled_from(["run.json", "config.yaml", "metrics.csv", "*_test.json", "*_test.csv"]))
@fuzzed
def test_run_folder(change: Callable[[bytes], bytes], name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = write_run(Path(folder) / "run", "bilinear", 0, right_except(1), splits=("test",))
        (path,) = run.glob(name)
        path.write_bytes(change(path.read_bytes()))
        for read in (
            lambda: check_figures(read_runs([run])),
            lambda: read_record(run),
            lambda: read_mapping(run / "config.yaml"),
            lambda: cut_back(run / "metrics.csv", 2),
        ):
            try:
                read()
            except ValueError as error:
                assert path.name in str(error) or "metrics_test.json" in str(error)  # which no longer fits
        assert not list(run.glob(".*"))
