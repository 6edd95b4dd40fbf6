"""Training of DIC, second stage: pixel and landmark losses at every step.

Losses as published: the L1 distance of each step's image to the HR face, plus 0.1 times the mean squared error of its
heatmaps, both summed over the T steps, on mean-subtracted images. Gradients flow from each image back through the
heatmaps that guided it.

Reference:
    Ma et al., CVPR 2020 (arXiv 2003.13063), section 3.4.
"""

import warnings

from torch import Tensor
from torch.optim import Optimizer

from lightning_modules.base import Optimization
from lightning_modules.generator import PUBLISHED, GeneratorTask, load_weights
from models.dic import DIC
from models.losses import HEATMAP_WEIGHT, dic_losses


class DICModule(GeneratorTask):
    """Train a DIC generator with pixel and heatmap losses.

    Args:
        initial_weights: run folder or checkpoint of a generator to train on; None trains from scratch.
        hourglass_weights: run folder or checkpoint of the hourglass stage, whose network becomes the generator's.
        freeze_hourglass: optimiser steps for which a trained hourglass stays as it is. Published: 2,000 on CelebA,
            20,000 on Helen.
        compile: have `torch.compile` translate the network; pays on GPUs in long trainings.
    """

    def __init__(
        self,
        net: DIC,
        initial_weights: str | None = None,
        hourglass_weights: str | None = None,
        freeze_hourglass: int = 0,
        optimizer: Optimization = PUBLISHED,
        compile: bool = False,
    ) -> None:
        if freeze_hourglass < 0:
            raise ValueError(f"freeze_hourglass is {freeze_hourglass}, expected 0 or more")
        super().__init__(net, initial_weights, optimizer, compile)
        if hourglass_weights is not None:
            load_weights(self.net.HG, "hourglass_weights", hourglass_weights)
            self.untrained = False
        self.freeze_hourglass = freeze_hourglass

    def on_train_start(self) -> None:
        if self.untrained and self.freeze_hourglass and self.trainer.global_step == 0:
            warnings.warn(
                f"an untrained hourglass is frozen for {self.freeze_hourglass} batches: pass model.hourglass_weights, "
                "or set model.freeze_hourglass to 0",
                stacklevel=1,
            )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        images, heatmaps = self(batch["lr"])
        pixel, heatmap = dic_losses(images, heatmaps, self.target(batch), batch["heatmaps"])
        total = pixel + HEATMAP_WEIGHT * heatmap
        self.log_losses({"g/pixel": pixel, "g/heatmap": heatmap, "g/total": total})
        return total

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        # Dropped, not switched off: DDP has to know from the start which parameters will have gradients. The optimiser
        # skips parameters without one, and clipping, which comes after this, does not count them.
        if self.trainer.global_step < self.freeze_hourglass:
            for parameter in self.net.HG.parameters():
                parameter.grad = None
