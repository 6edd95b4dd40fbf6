"""Training of DICGAN, third stage: a DIC generator and a discriminator, against each other.

Losses as published: pixel (L1) x 1 and heatmap (MSE) x 0.1, both summed over the steps; perceptual (L1 of features)
x 0.1 and adversarial x 0.005, both on the last step. The hourglass is frozen. In every batch the generator takes a
step, then the discriminator, on the images that the generator had made.

The published pixel loss of this stage takes the last step T times (a slip of the code, against the paper); here every
step counts once, as in the stage before.

Reference:
    Ma et al., CVPR 2020 (arXiv 2003.13063), sections 3.4 and 4.1.
"""

import warnings
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from lightning_modules.generator import GeneratorTask
from lightning_modules.optimization import Optimization
from models.dic import DIC
from models.light_cnn import LightCNN
from models.losses import HourglassFeatures, adversarial_loss, dic_losses, perceptual_loss
from run_state.lightning_internals import expect_unused_parameters

PUBLISHED = Optimization(lr=1e-4, schedule="multistep", milestones=(10_000, 20_000, 40_000))


class DICGANModule(GeneratorTask):
    """Trains a DIC generator with pixel, heatmap, perceptual and adversarial losses.

    `trainer.global_step` counts batches, as in the other stages, not the steps of both optimisers.

    Args:
        net: the generator.
        discriminator: its opponent, built for the size of the HR faces.
        initial_weights: run folder or checkpoint of the DIC stage.
        perceptual: network whose feature maps are compared, for instance `models.losses.VGG19Features`; None takes the
            generator's own hourglass, which knows faces and needs no file.
        optimizer: optimiser and schedule, for both networks.
        heatmap_weight: of the heatmap loss; the pixel loss has weight 1.
        perceptual_weight: of the perceptual loss; 0 leaves it out.
        adversarial_weight: of the adversarial loss.
        compile: have `torch.compile` translate the generator.

    Raises:
        ValueError: an argument is out of its range.
        FileNotFoundError, storage.checkpoints.CheckpointError: weights cannot be used.
    """

    not_averaged = ("discriminator.",)

    def __init__(
        self,
        net: DIC,
        discriminator: LightCNN,
        initial_weights: str | None = None,
        perceptual: nn.Module | None = None,
        optimizer: Optimization = PUBLISHED,
        heatmap_weight: float = 0.1,
        perceptual_weight: float = 0.1,
        adversarial_weight: float = 0.005,
        compile: bool = False,
    ) -> None:
        weights = {"heatmap": heatmap_weight, "perceptual": perceptual_weight, "adversarial": adversarial_weight}
        for name, weight in weights.items():
            if weight < 0:
                raise ValueError(f"{name}_weight is {weight}, expected 0 or more")
        super().__init__(net, initial_weights, optimizer, compile)
        self.automatic_optimization = False
        self.net.HG.requires_grad_(False)
        self.discriminator = discriminator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        features = HourglassFeatures(self.net.HG) if perceptual is None else perceptual
        # In a tuple, so that it is no part of the checkpoint, nor of what DDP looks after.
        self._features = (features.requires_grad_(False).eval(),)
        self.weights = {"g/pixel": 1.0} | {f"g/{name}": weight for name, weight in weights.items()}

    def check(self, data: L.LightningDataModule, trainer: L.Trainer) -> None:
        super().check(data, trainer)
        size = data.hr_size  # type: ignore[attr-defined]
        if size != self.discriminator.size:
            raise ValueError(f"model.discriminator.size is {self.discriminator.size}, expected data.hr_size, {size}")
        # Scaled gradients need Lightning's wrapper of both optimisers; clipping and accumulating would be done here.
        if trainer.precision == "16-mixed":
            raise ValueError("trainer.precision is 16-mixed, expected bf16-mixed or 32 with DICGAN")
        if trainer.gradient_clip_val:
            raise ValueError(f"trainer.gradient_clip_val is {trainer.gradient_clip_val}, expected null with DICGAN")
        if trainer.accumulate_grad_batches != 1:
            raise ValueError(
                f"trainer.accumulate_grad_batches is {trainer.accumulate_grad_batches}, expected 1 with DICGAN: change "
                "data.batch_size"
            )
        expect_unused_parameters(trainer.strategy)  # each backward pass leaves one network without

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
        image, generator_terms = self._generator_step(batch, target)
        discriminator_terms = self._discriminator_step(image, target)
        self.log_terms(generator_terms | discriminator_terms)
        for scheduler in self.lr_schedulers():  # type: ignore[union-attr]
            scheduler.step()  # type: ignore[call-arg]

    def _generator_step(self, batch: dict[str, Tensor], target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Update the generator; return the last step's image, B,3,H,W, detached, and the loss terms."""
        optimizer = self.optimizers()[0]  # type: ignore[index]
        images, heatmaps = self(batch["lr"])
        pixel, heatmap = dic_losses(images, heatmaps, target, batch["heatmaps"])
        terms = {"g/pixel": pixel, "g/heatmap": heatmap}
        if self.weights["g/perceptual"]:
            terms["g/perceptual"] = perceptual_loss(self._features[0], images[-1], target)
        self.discriminator.requires_grad_(False)  # its gradients are not needed here
        terms["g/adversarial"] = adversarial_loss(self.discriminator(images[-1]), real=True)
        total = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        optimizer.zero_grad()
        self.manual_backward(total)
        optimizer.step()
        self.discriminator.requires_grad_(True)
        return images[-1].detach(), terms | {"g/total": total}

    def _discriminator_step(self, image: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Update the discriminator; return the loss terms and its mean outputs."""
        # The optimiser itself, not Lightning's wrapper of it, which would count a second step for the same batch.
        optimizer = self.optimizers(use_pl_optimizer=False)[1]  # type: ignore[index]
        logits = {"real": self.discriminator(target), "fake": self.discriminator(image)}
        losses = {name: adversarial_loss(logits[name], real=name == "real") for name in logits}
        total = losses["real"] + losses["fake"]
        optimizer.zero_grad()
        self.manual_backward(total)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]  # as the wrapper would
            callback.on_before_optimizer_step(self.trainer, self, optimizer)
        optimizer.step()
        outputs = {f"d/logit_{name}": value.mean() for name, value in logits.items()}
        return {f"d/{name}": value for name, value in losses.items()} | {"d/total": total} | outputs

    def configure_optimizers(self) -> Any:
        built = [self.optimizer.build(net.parameters(), self.trainer) for net in (self.net, self.discriminator)]
        return [optimizer for optimizer, _ in built], [scheduler for _, scheduler in built]
