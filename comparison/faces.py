"""Faces as a finished run saw them; apart from the figures, because this brings torch along."""

from pathlib import Path

import lightning as L
import numpy as np
import yaml
from jsonargparse import ArgumentError, ArgumentParser

from comparison.reading import Split
from datamodules.ferplus.datamodule import FERPlusDataModule


def arm_images(config: Path, split: Split, names: list[str]) -> np.ndarray:
    """Faces as the arm of a finished run saw them, before the reduction to its input size.

    Args:
        config: ``config.yaml`` of the run.
        split: Where the faces are.
        names: Which ones.

    Returns:
        uint8 N,384,384, or N,384,384,3 where the arm has colours.

    Raises:
        ValueError: The configuration, the data or a name is wrong.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(L.LightningDataModule, "data", required=True)
    try:
        parsed = parser.parse_object({"data": yaml.safe_load(config.read_text())["data"]})
    except (ArgumentError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ValueError(f"{config}: does not describe the data of a run ({error})") from error
    data = parser.instantiate(parsed).data
    if not isinstance(data, FERPlusDataModule):
        raise ValueError(f"{config}: the data are {type(data).__name__}, needed is FERPlusDataModule")
    images = data.faces(split, names)
    return images[:, 0] if images.shape[1] == 1 else images.transpose(0, 2, 3, 1)
