"""ResNet that reads one of eight emotions from a face.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; torchvision's implementation. Soft-target
cross-entropy and the multi-target loss: Barsoum et al., ICMI 2016 (arXiv 1608.01041), section 4.
"""

from typing import ClassVar, Literal

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassF1Score,
    MulticlassRecall,
)

from datamodules.labels import CLASSES
from lightning_modules.base import Optimization, Task
from models.losses import multi_target_loss, soft_cross_entropy
from models.resnet import Arch, resnet

NUM_CLASSES = len(CLASSES)
SGD_COSINE = Optimization(name="sgd", lr=0.1, weight_decay=5e-4, schedule="cosine", warmup=0.1)


class EmotionClassifier(Task):
    """Train and test a ResNet on batches of `FERPlusDataModule`.

    Args:
        in_channels: 1 takes the first channel (all are equal in gray images), 3 all of them.
        loss: `multi_target` for the label mode of that name, `crossentropy` for the others.
        label_smoothing: share of the uniform distribution in the targets.
        mixup: parameter alpha of mixup (Zhang et al., ICLR 2018); 0 is none.
        mirror: validate and test with the mean probabilities of the image and its mirror image.
        width: channels of the first of four stages, 8 to 512; 32 costs a quarter of 64 at the same depth.
    """

    monitored: ClassVar = {"val/acc": "max", "val/macro_f1": "max", "val/ece": "min", "val/loss": "min"}

    def __init__(
        self,
        arch: Arch = "resnet18",
        in_channels: Literal[1, 3] = 1,
        loss: Literal["crossentropy", "multi_target"] = "crossentropy",
        optimizer: Optimization = SGD_COSINE,
        label_smoothing: float = 0.05,
        mixup: float = 0.0,
        mirror: bool = False,
        width: int = 64,
    ) -> None:
        super().__init__()
        for name, value, high in (("label_smoothing", label_smoothing, 0.9), ("mixup", mixup, 100)):
            if not 0 <= value <= high:
                raise ValueError(f"{name} is {value}, expected 0 to {high}")
        if loss == "multi_target" and (label_smoothing or mixup):
            raise ValueError("loss is multi_target, expected label_smoothing 0 and mixup 0")
        self.in_channels, self.loss, self.optimizer = in_channels, loss, optimizer
        self.label_smoothing, self.mixup, self.mirror = label_smoothing, mixup, mirror
        net = resnet(arch, NUM_CLASSES, in_channels, width)
        self.net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.train_acc = MulticlassAccuracy(NUM_CLASSES, average="micro")
        self.train_loss = MeanMetric(nan_strategy="disable")
        self.val_metrics = MetricCollection(
            {
                "val/acc": MulticlassAccuracy(NUM_CLASSES, average="micro"),
                "val/macro_f1": MulticlassF1Score(NUM_CLASSES, average="macro"),
                "val/ece": MulticlassCalibrationError(NUM_CLASSES, n_bins=15),
            }
        )
        self.val_recall = MulticlassRecall(NUM_CLASSES, average="none")

    def check(self, data: L.LightningDataModule, trainer: L.Trainer) -> None:
        if not hasattr(data, "label_mode"):
            raise ValueError(f"data is a {type(data).__name__}, expected a FERPlusDataModule")
        if (data.label_mode == "multi_target") != (self.loss == "multi_target"):
            raise ValueError(
                f"data.label_mode is {data.label_mode!r} and model.loss is {self.loss!r}, expected both or neither "
                "to be multi_target"
            )
        if data.upscaler.channels > self.in_channels:  # type: ignore[attr-defined]
            raise ValueError("model.in_channels is 1, expected 3 for an upscaler of RGB faces")
        super().check(data, trainer)

    def forward(self, image: Tensor) -> Tensor:
        """Float B,3,S,S in [0, 1] -> logits B,8."""
        return self.net(image[:, : self.in_channels].contiguous(memory_format=torch.channels_last))

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.loss == "multi_target":
            return multi_target_loss(logits, targets)
        return soft_cross_entropy(logits, targets, self.label_smoothing)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        image, target = batch["image"], batch["target"]
        if self.mixup:
            share = torch.distributions.Beta(self.mixup, self.mixup).sample().item()
            order = torch.randperm(len(image), device=image.device)
            image = torch.lerp(image[order], image, share)
            target = torch.lerp(target[order], target, share)
        logits = self(image)
        loss = self._loss(logits, target)
        self.train_acc.update(logits.detach(), target.argmax(dim=1))
        self.train_loss.update(loss.detach().expand(len(image)))  # with "disable", torchmetrics ignores weights
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True)
        self.log("train/acc", self.train_acc, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def probabilities(self, image: Tensor) -> Tensor:
        """Float B,3,S,S in [0, 1] -> float32 B,8, for validation and testing."""
        probability = self(image).float().softmax(dim=1)
        if self.mirror:
            probability = (probability + self(image.flip(-1)).float().softmax(dim=1)) / 2
        return probability

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return what `callbacks.prediction_sheet` draws: `index` and `label` B, and `probability` B,8."""
        probability, label = self.probabilities(batch["image"]), batch["label"]
        loss = F.nll_loss(probability.clamp(min=1e-12).log(), label)
        self.val_metrics.update(probability, label)
        self.val_recall.update(probability, label)
        self.log("val/loss", loss, batch_size=len(label), sync_dist=True)
        self.log_dict(self.val_metrics, prog_bar=True)
        return {"index": batch["index"], "label": label, "probability": probability}

    def on_validation_epoch_end(self) -> None:
        for name, value in zip(CLASSES, self.val_recall.compute(), strict=True):
            self.log(f"val/recall_{name}", value, sync_dist=True)
        self.val_recall.reset()

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return what `callbacks.prediction_report` collects: `index` B and `probability` B,8."""
        return {"index": batch["index"], "probability": self.probabilities(batch["image"])}
