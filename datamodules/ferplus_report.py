"""Says what a FER+ data set holds: kept and dropped images, and images that occur in more than one split."""

import numpy as np

from datamodules.ferplus_labels import VOTE_COLUMNS, LabelMode, process_votes
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
    """A table of kept and dropped images per split and class, and the duplicates.

    Args:
        table: The data.
        label_mode: The mode of the training split; validation and test always count by the majority rule.

    Returns:
        Lines of text. Each image counts for the entry with the most votes, the first of equals.
    """
    entries = " ".join(f"{name[:9]:>9}" for name in VOTE_COLUMNS)
    lines = [f"{'FER+':<30} {'images':>6} {entries}"]
    for split in SPLITS:
        votes = table.votes[table.rows(split)]
        if not len(votes):
            lines.append(f"{split}: no images")
            continue
        mode: LabelMode = label_mode if split == "train" else "majority"
        kept, _ = process_votes(votes, mode)
        top = votes.argmax(axis=1)
        for what, chosen in (("kept", kept), ("dropped", ~kept)):
            counts = " ".join(f"{count:>9}" for count in np.bincount(top[chosen], minlength=len(VOTE_COLUMNS)))
            lines.append(f"{f'{split}, {mode}, {what}':<30} {chosen.sum():>6} {counts}")
    pairs = [f"{count} of {one} in {other}" for (one, other), count in duplicates_across(table).items()]
    lines.append("pixel-identical images: " + ("; ".join(pairs) or "only one split is there"))
    return "\n".join(lines)
