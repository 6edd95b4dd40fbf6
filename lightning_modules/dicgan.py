"""Training of DICGAN, third stage: a DIC generator and a discriminator, against each other.

Losses as published: pixel (L1) x 1 and heatmap (MSE) x 0.1, both summed over the steps; perceptual (L1 of features)
x 0.1 and adversarial x 0.005, both on the last step. The hourglass is frozen. In every batch the generator takes a
step, then the discriminator, on the images that the generator made before its step.

Reference:
    Ma et al., CVPR 2020 (arXiv 2003.13063), sections 3.4 and 4.1.
"""

import math
import warnings
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from lightning_modules.base import Optimization
from lightning_modules.generator import GeneratorTask
from models.dic import DIC
from models.light_cnn import LightCNN
from models.losses import HEATMAP_WEIGHT, HourglassFeatures, adversarial_loss, dic_losses, perceptual_loss
from run_state.lightning_internals import expect_unused_parameters

PUBLISHED = Optimization(lr=1e-4, schedule="multistep", milestones=(10_000, 20_000, 40_000))


class DICGANModule(GeneratorTask):
    """Train a DIC generator with pixel, heatmap, perceptual and adversarial losses.

    `trainer.global_step` counts batches, as in the other stages, not the steps of both optimisers.

    Args:
        discriminator: its opponent, built for the size of the HR faces.
        initial_weights: run folder or checkpoint of the DIC stage.
        perceptual: network whose feature maps are compared, for instance `models.light_cnn.LightCNNFeatures`; None
            takes the generator's own hourglass, which knows faces and needs no file.
        optimizer: for both networks.
        perceptual_weight: of the perceptual loss; 0 skips it.
        compile: have `torch.compile` translate the generator.
    """

    not_averaged = ("discriminator.",)

    def __init__(
        self,
        net: DIC,
        discriminator: LightCNN,
        initial_weights: str | None = None,
        perceptual: nn.Module | None = None,
        optimizer: Optimization = PUBLISHED,
        perceptual_weight: float = 0.1,
        adversarial_weight: float = 0.005,
        compile: bool = False,
    ) -> None:
        super().__init__(net, initial_weights, optimizer, compile)
        self.weights = {"pixel": 1.0, "heatmap": HEATMAP_WEIGHT}
        self.weights |= {"perceptual": perceptual_weight, "adversarial": adversarial_weight}
        for name, weight in self.weights.items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"{name}_weight is {weight}, expected 0 or more")
        self.automatic_optimization = False
        self.net.HG.requires_grad_(False)
        self.discriminator = discriminator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        features = HourglassFeatures(self.net.HG) if perceptual is None else perceptual
        # In a tuple, to keep it out of checkpoints and out of DDP.
        self._features = (features.requires_grad_(False).eval(),)

    def check(self, data: L.LightningDataModule, trainer: L.Trainer) -> None:
        super().check(data, trainer)
        size = data.hr_size  # type: ignore[attr-defined]
        if size != self.discriminator.size:
            raise ValueError(f"model.discriminator.size is {self.discriminator.size}, expected data.hr_size, {size}")
        # Scaled gradients need Lightning's wrapper of both optimisers; clipping and accumulating would be done here.
        for name, works, expected in (
            ("precision", trainer.precision != "16-mixed", "bf16-mixed or 32"),
            ("gradient_clip_val", not trainer.gradient_clip_val, "null"),
            ("accumulate_grad_batches", trainer.accumulate_grad_batches == 1, "1 (change data.batch_size)"),
        ):
            if not works:
                raise ValueError(f"trainer.{name} is {getattr(trainer, name)}, expected {expected} with DICGAN")
        expect_unused_parameters(trainer.strategy)  # each backward pass leaves one network out

    def on_fit_start(self) -> None:
        self._features[0].to(self.device)

    def on_train_start(self) -> None:
        if self.untrained and self.trainer.global_step == 0:
            warnings.warn(
                "the generator starts untrained, and this stage never trains its hourglass: pass model.initial_weights",
                stacklevel=1,
            )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        target = self.target(batch)
        image, losses = self._generator_step(batch, target)
        self.log_losses(losses | self._discriminator_step(image, target))
        for scheduler in self.lr_schedulers():  # type: ignore[union-attr]
            scheduler.step()  # type: ignore[call-arg]

    def _generator_step(self, batch: dict[str, Tensor], target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Update the generator; return the last step's image, B,3,H,W, detached, and the losses."""
        optimizer = self.optimizers()[0]  # type: ignore[index]
        images, heatmaps = self(batch["lr"])
        pixel, heatmap = dic_losses(images, heatmaps, target, batch["heatmaps"])
        losses = {"pixel": pixel, "heatmap": heatmap}
        if self.weights["perceptual"]:
            losses["perceptual"] = perceptual_loss(self._features[0], images[-1], target)
        self.discriminator.requires_grad_(False)  # its gradients are not needed here
        losses["adversarial"] = adversarial_loss(self.discriminator(images[-1]), real=True)
        losses["total"] = torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum()
        optimizer.zero_grad()
        self.manual_backward(losses["total"])
        optimizer.step()
        self.discriminator.requires_grad_(True)
        return images[-1].detach(), {f"g/{name}": loss for name, loss in losses.items()}

    def _discriminator_step(self, image: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Update the discriminator; return its losses and its mean outputs."""
        # The optimiser itself, not Lightning's wrapper of it, which would count a second step for the same batch.
        optimizer = self.optimizers(use_pl_optimizer=False)[1]  # type: ignore[index]
        logits = {"real": self.discriminator(target), "fake": self.discriminator(image)}
        values = {name: adversarial_loss(logit, real=name == "real") for name, logit in logits.items()}
        values["total"] = values["real"] + values["fake"]
        optimizer.zero_grad()
        self.manual_backward(values["total"])
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]  # as the wrapper would
            callback.on_before_optimizer_step(self.trainer, self, optimizer)
        optimizer.step()
        values |= {f"logit_{name}": logit.mean() for name, logit in logits.items()}
        return {f"d/{name}": value for name, value in values.items()}

    def configure_optimizers(self) -> Any:
        built = [self.optimizer.build(net.parameters(), self.trainer) for net in (self.net, self.discriminator)]
        return [optimizer for optimizer, _ in built], [scheduler for _, scheduler in built]
