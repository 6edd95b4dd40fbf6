"""Training of DIC, second stage: pixel and landmark losses at every step.

Losses as published: the L1 distance of every step's image to the HR face, plus 0.1 times the mean squared error of
every step's heatmaps, both summed over the T steps, both on mean-subtracted images. Gradients flow from each image
back through the heatmaps that guided it.

Reference:
    Ma et al., CVPR 2020 (arXiv 2003.13063), section 3.4.
"""

import warnings

import lightning as L
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer

from lightning_modules.generator import GeneratorModule
from lightning_modules.optimization import Adam, training_length
from models.dic import DIC
from models.losses import dic_losses
from models.pretrained import replace_hourglass
from run_state.folder import find_checkpoint


class DICModule(GeneratorModule):
    """Trains a DIC generator with pixel and heatmap losses.

    Args:
        net: the generator.
        initial_weights: run folder or checkpoint of the hourglass stage, whose network becomes the generator's, or of
            a generator to train on; None trains from scratch.
        hourglass_weights: run folder or checkpoint of the hourglass stage, whose network replaces that of the generator
            in `initial_weights`: one for faces of another size, say.
        freeze_hourglass: number of batches (optimiser steps) in which the hourglass stays as it is, for one that has
            been trained. Published: 2,000 on CelebA, 20,000 on Helen.
        optimizer: Adam and its schedule.
        heatmap_weight: of the heatmap loss; the pixel loss has weight 1.
        channels_last: keep weights and images in channels-last order: the same numbers, 1.3 times as fast on CPUs.
        compile: have `torch.compile` translate the network; pays on GPUs in long trainings.

    Raises:
        ValueError: an argument is out of its range, or `onecycle` has no known length.
        FileNotFoundError, storage.checkpoints.CheckpointError: weights cannot be used.
    """

    def __init__(
        self,
        net: DIC,
        initial_weights: str | None = None,
        hourglass_weights: str | None = None,
        freeze_hourglass: int = 0,
        optimizer: Adam = Adam(),  # noqa: B008  (frozen)
        heatmap_weight: float = 0.1,
        channels_last: bool = True,
        compile: bool = False,
    ) -> None:
        if heatmap_weight < 0:
            raise ValueError(f"heatmap_weight must not be negative, got {heatmap_weight}")
        if freeze_hourglass < 0:
            raise ValueError(f"freeze_hourglass must not be negative, got {freeze_hourglass}")
        if hourglass_weights is not None and initial_weights is None:
            raise ValueError("hourglass_weights needs a generator in initial_weights; a hourglass alone belongs there")
        will_do = hourglass_weights is None  # one hourglass is enough
        super().__init__(net, initial_weights, hourglass_will_do=will_do, channels_last=channels_last, compile=compile)
        if hourglass_weights is not None:
            replace_hourglass(self.net, find_checkpoint(hourglass_weights))
        self.freeze_hourglass = freeze_hourglass
        self.optimizer = optimizer
        self.heatmap_weight = heatmap_weight

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer, scheduler = self.optimizer.build(self.net.parameters(), lambda: training_length(self.trainer))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def check_trainer(self, trainer: L.Trainer) -> None:
        """Refuse settings of the trainer; called before anything starts."""
        self.optimizer.check(trainer)

    def on_train_start(self) -> None:
        if self._untrained and self.trainer.global_step == 0 < self.freeze_hourglass:
            warnings.warn(
                f"a hourglass that nobody has trained is frozen for {self.freeze_hourglass} batches: give "
                "initial_weights, or set freeze_hourglass to 0",
                stacklevel=1,
            )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        images, heatmaps = self(batch["lr"])
        pixel, heatmap = dic_losses(images, heatmaps, self.target(batch), batch["heatmaps"])
        total = pixel + self.heatmap_weight * heatmap
        self.log_terms({"g/pixel": pixel, "g/heatmap": heatmap, "g/total": total})
        return total

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        # Gradients are dropped, not switched off: DDP has to know from the start which parameters will have some. Adam
        # skips parameters without a gradient, and clipping, which comes after this, does not count them.
        if self.trainer.global_step < self.freeze_hourglass:
            for parameter in self.net.HG.parameters():
                parameter.grad = None
