"""FER+: reading, labels, batches."""

from datamodules.ferplus.datamodule import FERPlusDataModule, FERPlusSplit, load_split

__all__ = ["FERPlusDataModule", "FERPlusSplit", "load_split"]
