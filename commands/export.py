"""Export a trained network to the authors' format or to safetensors.

    superfer export --ckpt_path RUN_OR_CHECKPOINT --out FILE

FILE.pth has the authors' layout, so that their code can load what was trained here: a generator under `state_dict`, or
under `netG` with its discriminator under `netD`; the parameters of an hourglass lie bare in the file. FILE.safetensors
cannot hold code; the sizes of the network and, of a generator, the cropping of its training faces are in its metadata.
Both load here as well. Where the training averaged the weights of the generator, the average is written.
"""

import io
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from commands.ending import Parser, orderly, refusals
from models.dic import DIC
from models.hourglass import FeedbackHourglass
from models.loading import DIC_KIND, DISCRIMINATOR_KIND, HOURGLASS_KIND, kind_of, network_weights
from run_state.folder import find_checkpoint
from storage.atomic import write_atomically
from storage.checkpoints import read_checkpoint, safetensors_bytes

DISCRIMINATOR = "discriminator."


def official_layout(checkpoint: dict[str, Any], path: Path, weights: dict[str, Tensor]) -> dict[str, Any]:
    """Return the networks of a checkpoint, `weights` one of them, in the layout that the authors' code loads."""
    if kind_of(weights) == HOURGLASS_KIND:
        return weights  # their code takes whatever is in the file for parameters, and ignores missing ones
    entries = checkpoint.get("state_dict", {}).items()
    opponent = {key[len(DISCRIMINATOR) :]: value for key, value in entries if str(key).startswith(DISCRIMINATOR)}
    if not opponent:
        return {"state_dict": weights}
    return {"netG": weights, "netD": network_weights(opponent, path, DISCRIMINATOR_KIND)}


def write_weights(source: str | Path, out: Path) -> None:
    """Write the generator or hourglass of a run folder or checkpoint file to `out`, completely or not at all."""
    if out.suffix not in (".pth", ".safetensors"):
        raise ValueError(f"out is {out}, expected a name that ends in .pth or .safetensors")
    path = find_checkpoint(source)
    checkpoint: dict[str, Any] = read_checkpoint(path)
    written = kind_of(network_weights(checkpoint, path, DIC_KIND, HOURGLASS_KIND)) or ""
    network = DIC if written == DIC_KIND else FeedbackHourglass
    net = network.from_checkpoint(path)  # what fits no network is not written
    weights = dict(net.state_dict())
    if out.suffix == ".pth":
        buffer = io.BytesIO()
        layout = official_layout(checkpoint, path, weights)
        torch.save(layout, buffer)
        write_atomically(out, buffer.getvalue())
        written += " and its discriminator" if "netD" in layout else ""
        steps = net.config.get("num_steps", 4)
        if steps != 4:
            problem = f"this layout does not record the number of steps ({steps}): readers assume 4"
            print(f"warning: {problem}. Export to .safetensors to keep it", file=sys.stderr)
    else:
        metadata: dict[str, object] = {"dic_config" if network is DIC else "hourglass_config": net.config}
        metadata |= {"faces": checkpoint["faces"]} if "faces" in checkpoint else {}
        write_atomically(out, safetensors_bytes(weights, metadata))
    print(f"{written} of {path} written to {out}")


@orderly()
def export(args: list[str] | None = None) -> None:
    """Parse the command line, and write the file; a refusal is one line and exit code 2."""
    parser = Parser(prog="superfer export", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--ckpt_path", required=True, help="run folder (its best, else latest checkpoint), or a file")
    parser.add_argument("--out", required=True, type=Path, help="FILE.pth (the authors' layout) or FILE.safetensors")
    options = parser.parse_args(args)
    with refusals():
        write_weights(options.ckpt_path, options.out)
