"""Says what a FER+ data set holds: kept and dropped images, and images that occur in more than one split."""

import numpy as np

from datamodules.ferplus_labels import CLASSES, LabelMode, process_votes
from datamodules.ferplus_source import SPLITS, FERPlusTable


def duplicates_across(table: FERPlusTable) -> dict[tuple[str, str], int]:
    """For each pair of splits, the number of images of the first that are pixel-identical to one of the second."""
    present = [split for split in SPLITS if len(table.rows(split))]
    return {
        (one, other): int(np.isin(table.identity[table.rows(one)], table.identity[table.rows(other)]).sum())
        for one in present
        for other in present
        if one != other
    }


def describe(table: FERPlusTable, label_mode: LabelMode) -> str:
    """A table of images per split and class, and the duplicates.

    Args:
        table: The data.
        label_mode: The mode of the training split; validation and test always count by the majority rule.

    Returns:
        Lines of text.
    """
    lines = ["FER+               images    kept dropped  " + " ".join(f"{name[:9]:>9}" for name in CLASSES)]
    for split in SPLITS:
        rows = table.rows(split)
        mode: LabelMode = label_mode if split == "train" else "majority"
        kept, targets = process_votes(table.votes[rows], mode)
        counts = np.bincount(targets[kept].argmax(axis=1), minlength=len(CLASSES)) if kept.any() else np.zeros(8, int)
        lines.append(
            f"{split + ' ' + mode:<18} {len(rows):>6} {kept.sum():>7} {(~kept).sum():>7}  "
            + " ".join(f"{count:>9}" for count in counts)
        )
    pairs = [f"{count} of {one} in {other}" for (one, other), count in duplicates_across(table).items()]
    lines.append("pixel-identical images: " + ("; ".join(pairs) or "only one split is there"))
    return "\n".join(lines)
