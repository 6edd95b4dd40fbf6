"""Reproducible pseudo-random weights, so that golden outputs need no file of weights."""

import json
from pathlib import Path

import numpy as np
import torch

SHAPES = Path(__file__).parents[1] / "tests" / "fixtures" / "dic_shapes.json"


def hash_uniform(count: int, stream: int) -> np.ndarray:
    """Return `count` float64 numbers in [-1, 1): a 32-bit integer hash of the position."""
    low = np.uint64(0xFFFFFFFF)
    state = np.arange(count, dtype=np.uint64) * np.uint64(2654435761)
    state = (state + np.uint64((stream + 1) * 2246822519 % 2**32)) & low
    for _ in range(2):
        state = ((state ^ (state >> np.uint64(16))) * np.uint64(0x45D9F3B)) & low
    state ^= state >> np.uint64(16)
    return state / 2.0**31 - 1.0


def _deviation(key: str, shape: list[int]) -> float:
    """Return the standard deviation of a convolution's weights: He's, times the gain that keeps DIC in range."""
    if ".upBlocks." in key:
        fan_in = shape[0] * (12 / 8) ** 2
    elif key == "out.0.weight":
        fan_in = shape[0] * (8 / 4) ** 2
    else:
        fan_in = shape[1] * shape[2] * shape[3]
    gains = {
        "HG.compress_in.weight": 0.3 * 0.7,
        "conv_out.0.weight": 0.35 * 0.5,
        "HG.hg_conv_out.2.weight": 0.02 * 1.5,
        "block.compress_in.0.weight": 0.7,
    }
    gain = gains.get(key, 1.0)
    if key.startswith("HG.") and ".conv_block.3." in key:
        gain = 0.35 * 0.5
    if key.startswith("block.fusion_block.resnet") and key.endswith("res.2.weight"):
        gain = 0.5 * 0.3
    return (2.0 / fan_in) ** 0.5 * gain


def published_weights() -> dict[str, torch.Tensor]:
    """Return weights of the published size under which images and heatmaps have the range of a trained network's."""
    shapes = json.loads(SHAPES.read_text())["DIC"]["state"]
    weights = {}
    for stream, (key, shape) in enumerate(shapes.items()):
        values = hash_uniform(int(np.prod(shape)), stream)
        if len(shape) == 4:
            values = values * _deviation(key, shape) * 3**0.5
        elif shape == [1]:  # slope of a PReLU
            values = (values + 1) / 2 * 0.35 + 0.05
        elif key == "HG.hg_conv_out.2.bias":
            values = values * 0.05 + 0.015
        else:
            values = values * 0.08
        weights[key] = torch.from_numpy(values.reshape(shape).astype(np.float32))
    return weights
