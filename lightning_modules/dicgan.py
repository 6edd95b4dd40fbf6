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
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import Tensor, nn

from lightning_modules.generator import GeneratorModule
from lightning_modules.optimization import Adam, training_length
from models.dic import DIC
from models.light_cnn import LightCNN
from models.losses import (
    GANLoss,
    HourglassFeatures,
    VGG19Features,
    dic_losses,
    discriminator_loss,
    generator_loss,
    perceptual_loss,
)
from models.pretrained import load_hourglass, load_light_cnn_features
from run_state.folder import find_checkpoint
from run_state.lightning_internals import expect_unused_parameters

PUBLISHED_MILESTONES = (10_000, 20_000, 40_000)


def find_unused_parameters(strategy: Strategy) -> None:
    """Have DDP expect parameters without gradients: each of the two backward passes leaves one network without any.

    A strategy that was built has no public setting for it. False is overridden, since that is what a strategy given by
    its class has by default, and DICGAN cannot be trained with it; `static_graph`, the other way, is left alone.
    """
    if isinstance(strategy, DDPStrategy) and not strategy._ddp_kwargs.get("static_graph"):
        strategy._ddp_kwargs["find_unused_parameters"] = True


class DICGANModule(GeneratorModule):
    """Trains a DIC generator with pixel, heatmap, perceptual and adversarial losses.

    ``trainer.global_step`` counts batches, as in the other stages, not the steps of both optimisers.

    Args:
        net: the generator.
        discriminator: its opponent, built for the size of the HR faces.
        initial_weights: run folder or checkpoint of the DIC stage.
        perceptual: whose features are compared: `hourglass`, `lightcnn` (the authors'), `vgg19` (torchvision's) or
            `none`.
        perceptual_weights: `hourglass`: run folder or checkpoint of the hourglass stage, by default the generator's own
            hourglass, which descends from it; `lightcnn`: the authors' `LightCNN_feature.pth`.
        optimizer: Adam and its schedule, for both networks.
        heatmap_weight: of the heatmap loss; the pixel loss has weight 1.
        perceptual_weight: of the perceptual loss.
        adversarial_weight: of the adversarial loss.
        gan_loss: the game that the two play; vanilla as published.
        channels_last: keep weights and images in channels-last order.
        compile: have `torch.compile` translate the generator.

    Raises:
        ValueError: an argument is out of its range, or `onecycle` has no known length.
        FileNotFoundError, storage.checkpoints.CheckpointError: weights cannot be used.
    """

    not_averaged = ("discriminator.",)

    def __init__(
        self,
        net: DIC,
        discriminator: LightCNN,
        initial_weights: str | None = None,
        perceptual: Literal["hourglass", "lightcnn", "vgg19", "none"] = "hourglass",
        perceptual_weights: str | None = None,
        optimizer: Adam = Adam(milestones=PUBLISHED_MILESTONES),  # noqa: B008  (frozen)
        heatmap_weight: float = 0.1,
        perceptual_weight: float = 0.1,
        adversarial_weight: float = 0.005,
        gan_loss: GANLoss = "vanilla",
        channels_last: bool = True,
        compile: bool = False,
    ) -> None:
        weights = {"heatmap": heatmap_weight, "perceptual": perceptual_weight, "adversarial": adversarial_weight}
        for name, weight in weights.items():
            if weight < 0:
                raise ValueError(f"{name}_weight must not be negative, got {weight}")
        super().__init__(net, initial_weights, hourglass_will_do=False, channels_last=channels_last, compile=compile)
        self.automatic_optimization = False
        self.net.HG.requires_grad_(False)
        self.discriminator = discriminator.to(memory_format=self.memory_format)
        # In a tuple, so that it is no part of the checkpoint, nor of what DDP looks after.
        self._features = (self._perceptual_network(perceptual, perceptual_weights),)
        self.weights = {"g/pixel": 1.0} | {f"g/{name}": weight for name, weight in weights.items()}
        self.optimizer = optimizer
        self.gan_loss = gan_loss

    def _perceptual_network(self, kind: str, path: str | None) -> nn.Module | None:
        if path is not None and kind in ("vgg19", "none"):
            raise ValueError(f"perceptual {kind} takes no perceptual_weights, got {path}")
        if kind == "lightcnn" and path is None:
            raise ValueError("perceptual lightcnn needs perceptual_weights: the authors' LightCNN_feature.pth")
        features: nn.Module | None = None
        if kind == "hourglass":
            features = HourglassFeatures(self.net.HG if path is None else load_hourglass(find_checkpoint(path)))
        elif kind == "lightcnn":
            features = load_light_cnn_features(find_checkpoint(str(path)))
        elif kind == "vgg19":
            features = VGG19Features()
        return features.requires_grad_(False).eval() if features is not None else None

    def check_data(self, data: L.LightningDataModule) -> None:
        super().check_data(data)
        size = getattr(data, "hr_size", None)
        if size != self.discriminator.size:
            raise ValueError(f"the discriminator is for images of {self.discriminator.size} px, data.hr_size is {size}")

    def configure_optimizers(self) -> Any:
        trained = [parameter for parameter in self.net.parameters() if parameter.requires_grad]
        built = [self.optimizer.build(p, self._length) for p in (trained, self.discriminator.parameters())]
        return [optimizer for optimizer, _ in built], [scheduler for _, scheduler in built]

    def _length(self) -> int:
        return training_length(self.trainer)

    def check_trainer(self, trainer: L.Trainer) -> None:
        """Refuse settings of the trainer, complete its strategy; called before anything starts."""
        self.optimizer.check(trainer)
        if trainer.precision == "16-mixed":  # its scaled gradients need Lightning's wrapper of both optimisers
            raise ValueError("trainer.precision is 16-mixed, with which DICGAN cannot be trained; use bf16-mixed")
        if trainer.gradient_clip_val:
            raise ValueError("trainer.gradient_clip_val is set; DICGAN's two optimisers clip nothing, leave it out")
        if trainer.accumulate_grad_batches != 1:
            raise ValueError(
                "trainer.accumulate_grad_batches is not 1; DICGAN cannot accumulate, change data.batch_size"
            )
        expect_unused_parameters(trainer.strategy)  # each backward pass leaves one network without

    def on_fit_start(self) -> None:
        if self._features[0] is not None:
            self._features[0].to(self.device)

    def on_train_start(self) -> None:
        if self._untrained and self.trainer.global_step == 0:
            warnings.warn(
                "nobody has trained this generator, and its hourglass will not be trained here: give initial_weights, "
                "the run folder or checkpoint of a DIC stage",
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
        if self._features[0] is not None:
            terms["g/perceptual"] = perceptual_loss(self._features[0], images[-1], target)
        self.discriminator.requires_grad_(False)  # its gradients are not needed here
        terms["g/adversarial"] = generator_loss(self.gan_loss, self.discriminator(images[-1]))
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
        losses = {name: discriminator_loss(self.gan_loss, logits[name], name == "real") for name in logits}
        total = losses["real"] + losses["fake"]
        optimizer.zero_grad()
        self.manual_backward(total)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]  # as the wrapper would
            callback.on_before_optimizer_step(self.trainer, self, optimizer)
        optimizer.step()
        outputs = {f"d/logit_{name}": value.mean() for name, value in logits.items()}
        return {f"d/{name}": value for name, value in losses.items()} | {"d/total": total} | outputs
