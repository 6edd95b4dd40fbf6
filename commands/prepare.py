"""Cut faces out around their landmarks and pack them: `superfer prepare`."""

from collections.abc import Sequence
from pathlib import Path

from commands.ending import Parser, orderly, refusals
from datamodules.faces.packed import IMAGES, LANDMARKS, MANIFEST, pack_faces
from datamodules.synthetic import SYNTHETIC_MARKER


@orderly()
def prepare(args: Sequence[str] | None = None) -> None:
    """Pack the faces of a folder; exit with code 2 where nothing can be packed."""
    parser = Parser(
        prog="superfer prepare",
        description="Cut faces out around their 68 landmarks and pack them for generator training.",
    )
    parser.add_argument("--faces", type=Path, required=True, help="folder of images, with NAME.pts unless --landmarks")
    parser.add_argument("--landmarks", type=Path, help="the DIC authors' annotation .pkl, or a CSV name,x0,y0,...")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--hr_size", type=int, default=128, help="side of the faces, px (default %(default)s)")
    parser.add_argument(
        "--margin", type=float, default=1.3, help="crop side as a multiple of the landmark box side (%(default)s)"
    )
    parser.add_argument("--min_face_size", type=float, default=0, help="smallest crop side in original px")
    options = parser.parse_args(args)
    with refusals():
        _refuse_foreign(options.out)
        faces = pack_faces(
            options.faces, options.landmarks, options.out, options.hr_size, options.margin, options.min_face_size
        )
    print(f"{options.out}: {faces.summary}; the whole list is in {MANIFEST}")


def _refuse_foreign(out: Path) -> None:
    """Refuse to replace anything but a prepared folder: it may be somebody's work."""
    present = {path.name for path in out.iterdir()} if out.is_dir() else {out.name} if out.exists() else set()
    ours = {IMAGES, LANDMARKS, MANIFEST, SYNTHETIC_MARKER} if MANIFEST in present else set()
    if present - ours:
        raise ValueError(f"{out} holds {min(present - ours)!r}, which would be lost, expected an empty or new folder")
