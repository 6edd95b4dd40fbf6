"""The average of the weights lies where the weights are."""

from typing import Any

import torch

from callbacks.weight_average import WeightAverage
from lightning_modules.classifier import EmotionClassifier
from run_state.lightning_internals import average_model


def test_the_average_follows_the_module_to_its_device() -> None:
    """Lightning makes it first, and moves the module to its device afterwards."""
    trainer: Any = None
    module, averaging = EmotionClassifier(width=8), WeightAverage()
    averaging.setup(trainer, module, "fit")
    assert next(average_model(averaging).parameters()).device == torch.device("cpu")
    module.to("meta")
    averaging.on_fit_start(trainer, module)
    own = average_model(averaging)
    assert {tensor.device.type for tensor in [*own.parameters(), *own.buffers()]} == {"meta"}
