"""Write the built-in data, drawn faces: `python -m datamodules.synthetic`."""

from collections.abc import Sequence
from pathlib import Path

from commands.ending import Parser, orderly, refusals
from datamodules.labels import SPLITS
from datamodules.synthetic import SYNTHETIC_MARKER
from datamodules.synthetic.writing import VAL_SEED, write_faces, write_ferplus
from storage.atomic import write_atomically


@orderly()
def synthetic(args: Sequence[str] | None = None) -> None:
    """Write drawn faces: DIR/faces/train and DIR/faces/val with landmarks, --size pixels wide, and DIR/ferplus."""
    parser = Parser(prog="python -m datamodules.synthetic", description=synthetic.__doc__)
    parser.add_argument("--root", type=Path, required=True, metavar="DIR")
    defaults = {"faces": 200, "val-faces": 40, "size": 128, "train": 1200, "val": 240, "test": 240, "seed": 0}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"default {default}")
    options = parser.parse_args(args)
    root, counts = options.root, {split: getattr(options, split) for split in SPLITS}
    with refusals():
        wrote = write_faces(root / "faces" / "train", options.faces, options.size, options.seed)
        wrote |= write_faces(root / "faces" / "val", options.val_faces, options.size, options.seed + VAL_SEED)
        wrote |= write_ferplus(root / "ferplus", counts, options.seed)
        write_atomically(root / SYNTHETIC_MARKER, "")
    faces, gray = options.faces + options.val_faces, sum(counts.values())
    print(f"{root}: {faces} landmarked and {gray} 48x48 synthetic faces", "written" if wrote else "were already there")
