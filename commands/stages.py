"""Train the three stages of a generator one after another, and report what each reached and how fast.

    superfer stages [--size published|small] [--hr_size 128] [--hardware gpu] [OVERRIDE ...]

On a GPU, with compilation:  superfer stages --hr_size 384 --model.compile true
An override goes to every stage; --trainer.max_steps N shortens each, though not what is counted in batches (milestones,
--model.freeze_hourglass of the second stage), and --trainer.max_time cuts it off.
Minutes are those of everything, batches those before the last validation.
"""

import argparse
import time
from pathlib import Path

from commands.console import Parser
from commands.ending import orderly
from commands.train import train
from comparison.reading import read_metrics

STAGES = ("hourglass", "dic", "dicgan")

SHOWN = ("val/psnr_y", "val/psnr_y_bicubic", "val/ssim_y", "val/nme_interocular")


def arguments(stage: str, earlier: Path | None, options: argparse.Namespace, overrides: list[str]) -> list[str]:
    """Return the command line of `train.py` for a stage."""
    name = stage if options.size == "published" else f"{stage}_small"
    wide = max(1.0, options.hr_size / 128)  # as wide on the face as the published Gaussians on one of 128 px
    given = [f"--config=configs/generator/{name}.yaml", f"--config=configs/hardware/{options.hardware}.yaml"]
    given += [f"--data.hr_size={options.hr_size}", f"--data.heatmap_sigma={wide}"]
    if stage == "hourglass":
        given += [f"--model.start_sigma={4 * wide}"]
    if earlier:
        given += [f"--model.{'hourglass' if stage == 'dic' else 'initial'}_weights={earlier}"]
    if stage == "dicgan":
        given += [f"--model.discriminator.size={options.hr_size}"]
    return [*given, *overrides]


@orderly()
def stages(args: list[str] | None = None) -> dict[str, Path]:
    """Parse the command line, train, print a table; return the run folders by stage."""
    parser = Parser(prog="superfer stages", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", choices=("published", "small"), default="published", help="default: published")
    parser.add_argument("--hr_size", type=int, default=128, help="side of the HR faces, px (default: 128)")
    parser.add_argument("--hardware", choices=("gpu", "cpu"), default="gpu", help="default: gpu")
    parser.add_argument("--trainer.devices", choices=("1",), help="others would train the first stage again")
    options, overrides = parser.parse_known_args(args)
    runs: dict[str, Path] = {}
    lines = [f"| stage | minutes | batches | {' | '.join(SHOWN)} | run |", "|---" * 8 + "|"]
    for stage in STAGES:
        began = time.monotonic()
        runs[stage] = train(arguments(stage, next(reversed(runs.values()), None), options, overrides))
        minutes, logged = (time.monotonic() - began) / 60, read_metrics(runs[stage] / "metrics.csv", SHOWN)
        last = {name: points[-1] for name, points in logged.items()}  # nothing if no validation was reached
        batches = str(max((step + 1 for _, step, _ in last.values()), default=""))
        cells = [f"{last[name][2]:.4g}" if name in last else "" for name in SHOWN]
        lines += [f"| {' | '.join([stage, f'{minutes:.1f}', batches, *cells, str(runs[stage])])} |"]
        print("\n".join(lines), flush=True)  # after every stage: a later one may fail
    return runs
