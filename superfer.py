"""The command `superfer`: one verb for each thing that people do, each a function in `commands/`.

    superfer train --config configs/classifier/bilinear.yaml
    superfer test --ckpt_path RUN
    superfer compare RUN RUN

Importing this module costs nothing: PyTorch is loaded by the verb that needs it.
"""

import sys
from collections.abc import Sequence
from importlib import import_module

from commands.ending import importing
from run_state.names import did_you_mean

VERBS = {
    "train": "train a generator or a classifier, or resume a run",
    "test": "test a trained classifier on one split of its data",
    "upscale": "upscale a data set into its cache, or a folder of images",
    "compare": "compare tested classifiers: verdict, tables, figures",
    "experiment": "train, test and compare many arms and seeds, several at a time",
    "runs": "list runs: how far each is, its best value, and which settings differ",
    "upload": "send runs to W&B that were trained offline, killed, or tested",
    "prepare": "cut faces out around their landmarks, for training generators",
    "export": "write a generator's weights for other programs",
    "demo": "run the whole comparison on built-in synthetic faces",
}
USAGE = "usage: superfer VERB [OPTION ...]\n\n" + "\n".join(f"  {verb:<10} {does}" for verb, does in VERBS.items())


def main(args: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit code, 2 if there is no such verb."""
    verb, *words = (sys.argv[1:] if args is None else args) or ["--help"]
    if verb in ("-h", "--help"):
        print(f"{USAGE}\n\nsuperfer VERB --help tells more about each.")
        return 0
    if verb not in VERBS:
        hint = did_you_mean(verb, VERBS) or f"; expected one of {', '.join(VERBS)}"
        print(f"error: superfer has no verb {verb!r}{hint}", file=sys.stderr)
        return 2
    with importing():
        run = getattr(import_module(f"commands.{verb}"), verb)
    run(words)
    return 0


if __name__ == "__main__":
    sys.exit(main())
