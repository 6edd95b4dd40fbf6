"""Trained networks from files, this project's and the authors'."""

from pathlib import Path

from models.dic import DIC
from models.hourglass import FeedbackHourglass
from models.light_cnn import LightCNNFeatures
from models.loading import (
    DIC_KIND,
    DISCRIMINATOR_KIND,
    FEATURES_KIND,
    HOURGLASS_KIND,
    build_strictly,
    dic_sizes,
    hourglass_sizes,
    kind_of,
    load_strictly,
    network_weights,
)
from storage.checkpoints import read_checkpoint


def load_generator(path: str | Path) -> DIC:
    """Load a trained generator, whether trained with this project or published by the authors.

    Args:
        path: a checkpoint of this project (it carries `dic_config`), or any file that `DIC.from_official` takes.

    Returns:
        The network on the CPU in eval mode. If the training kept averaged weights, they are what is loaded.

    Raises:
        FileNotFoundError: if there is no such file.
        storage.checkpoints.CheckpointError: if the file is unsafe or damaged, or is not a DIC.
    """
    checkpoint = read_checkpoint(path)
    weights = network_weights(checkpoint, path, DIC_KIND)
    config = checkpoint["dic_config"] if "dic_config" in checkpoint else dic_sizes(weights, path)
    return build_strictly(DIC, config, weights, path).eval()


def start_from(net: DIC, path: str | Path, hourglass_will_do: bool = True) -> None:
    """Give a generator the weights of an earlier stage.

    Args:
        net: what is to be trained.
        path: a checkpoint of this project or of the authors: a whole generator, or a hourglass, which becomes `net.HG`.
        hourglass_will_do: whether the latter is allowed.

    Raises:
        FileNotFoundError: if there is no such file.
        storage.checkpoints.CheckpointError: if the file is unsafe or damaged, or holds another network.
    """
    kinds = (DIC_KIND, HOURGLASS_KIND) if hourglass_will_do else (DIC_KIND,)
    weights = network_weights(read_checkpoint(path), path, *kinds)
    load_strictly(net.HG if kind_of(weights) == HOURGLASS_KIND else net, weights, path)


def replace_hourglass(net: DIC, path: str | Path) -> None:
    """Give a generator the weights of a hourglass, of this project or of the authors, and leave the rest as it is.

    Raises:
        FileNotFoundError: if there is no such file.
        storage.checkpoints.CheckpointError: if the file is unsafe or damaged, or holds another network.
    """
    load_strictly(net.HG, network_weights(read_checkpoint(path), path, HOURGLASS_KIND), path)


def load_hourglass(path: str | Path) -> FeedbackHourglass:
    """Load a trained hourglass, whether trained with this project or published by the authors (`FB_HG_68_CelebA.pth`).

    Returns:
        The network on the CPU in eval mode.

    Raises:
        FileNotFoundError: if there is no such file.
        storage.checkpoints.CheckpointError: if the file is unsafe or damaged, or is not a feedback hourglass.
    """
    weights = network_weights(read_checkpoint(path), path, HOURGLASS_KIND)
    return build_strictly(FeedbackHourglass, hourglass_sizes(weights, path), weights, path).eval()


def load_light_cnn_features(path: str | Path) -> LightCNNFeatures:
    """Load the published perceptual features (`LightCNN_feature.pth`), or those of a discriminator.

    Returns:
        The network on the CPU in eval mode.

    Raises:
        FileNotFoundError: if there is no such file.
        storage.checkpoints.CheckpointError: if the file is unsafe or damaged, or holds another network.
    """
    weights = network_weights(read_checkpoint(path), path, FEATURES_KIND, DISCRIMINATOR_KIND)
    features = {key: value for key, value in weights.items() if key.startswith("features.")}
    return build_strictly(LightCNNFeatures, {}, features, path).eval()
