"""ResNet that reads one of eight emotions from a face.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; torchvision's implementation. Soft-target
cross-entropy and the multi-target loss: Barsoum et al., ICMI 2016 (arXiv 1608.01041), section 4.

Shapes: B batch, S side of the input.
"""

import math
from typing import Literal

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassF1Score,
    MulticlassRecall,
)

from datamodules.labels import CLASSES
from lightning_modules.optimization import training_length, warmup_then
from models.losses import multi_target_loss, soft_cross_entropy
from models.resnet import resnet

NUM_CLASSES = len(CLASSES)


class EmotionClassifier(L.LightningModule):
    """Trains and tests a ResNet on batches of ``FERPlusDataModule``.

    Args:
        arch: Which ResNet.
        in_channels: 1 takes the first channel (all are equal in gray images), 3 all of them.
        weights: ``imagenet`` starts from torchvision's weights, which are downloaded if they are not there yet.
        loss: ``multi_target`` for the label mode of that name, ``crossentropy`` for the others.
        optimizer: SGD with Nesterov momentum 0.9, or AdamW.
        learning_rate: Highest learning rate.
        weight_decay: On convolution and linear weights; not on biases and normalisation.
        schedule: ``cosine``, or ``step`` (divided by 10 at each milestone).
        warmup: Fraction of the training during which the learning rate rises linearly.
        milestones: Fractions of the training at which ``step`` acts.
        label_smoothing: Share of the uniform distribution in the targets.
        mixup: Parameter alpha of mixup (Zhang et al., ICLR 2018); 0 is none.
        mirror: Validates and tests with the mean of the probabilities of the image and its mirror image.
        class_weighting: Weights classes by the inverse of their frequency in training (mean 1 over images).
        channels_last: Memory format; faster on CPUs and on GPUs with tensor cores.
    """

    monitored = ("val/acc", "val/macro_f1", "val/ece", "val/loss")  # what may choose the best checkpoint

    def __init__(
        self,
        arch: Literal["resnet18", "resnet34", "resnet50"] = "resnet18",
        in_channels: Literal[1, 3] = 1,
        weights: Literal["none", "imagenet"] = "none",
        loss: Literal["crossentropy", "multi_target"] = "crossentropy",
        optimizer: Literal["sgd", "adamw"] = "sgd",
        learning_rate: float = 0.1,
        weight_decay: float = 5e-4,
        schedule: Literal["cosine", "step"] = "cosine",
        warmup: float = 0.1,
        milestones: tuple[float, ...] = (0.5, 0.75),
        label_smoothing: float = 0.05,
        mixup: float = 0.0,
        mirror: bool = False,
        class_weighting: bool = False,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        self.class_weight: Tensor
        limits = {"learning_rate": (learning_rate, 0, math.inf), "weight_decay": (weight_decay, 0, math.inf)}
        limits |= {
            "warmup": (warmup, 0, 0.9),
            "label_smoothing": (label_smoothing, 0, 0.9),
            "mixup": (mixup, 0, math.inf),
        }
        for name, (value, low, high) in limits.items():
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}, allowed are {low} to {high}")
        if loss == "multi_target" and (label_smoothing or mixup or class_weighting):
            raise ValueError(
                "loss multi_target takes no label_smoothing, mixup or class_weighting; set them to 0 and false"
            )
        self.save_hyperparameters(logger=False)
        self.net = resnet(arch, NUM_CLASSES, in_channels, pretrained=weights == "imagenet")
        if channels_last:
            self.net = self.net.to(memory_format=torch.channels_last)
        self.register_buffer("class_weight", torch.ones(NUM_CLASSES))
        self.train_acc = MulticlassAccuracy(NUM_CLASSES, average="micro")
        self.train_loss = MeanMetric()
        metrics = MetricCollection(
            {
                "acc": MulticlassAccuracy(NUM_CLASSES, average="micro"),
                "macro_f1": MulticlassF1Score(NUM_CLASSES, average="macro"),
                "ece": MulticlassCalibrationError(NUM_CLASSES, n_bins=15),
            }
        )
        self.val_metrics = metrics.clone(prefix="val/")
        self.val_recall = MulticlassRecall(NUM_CLASSES, average="none")

    def forward(self, image: Tensor) -> Tensor:
        """Float B,3,S,S in [0, 1] -> logits B,8."""
        hparams = self.hparams
        image = image[:, : hparams["in_channels"]]
        if hparams["channels_last"]:
            image = image.contiguous(memory_format=torch.channels_last)
        return self.net(image)

    def check_data(self, data: L.LightningDataModule) -> None:
        """Refuses a data module that this module cannot be trained or tested with; called before anything starts."""
        if not hasattr(data, "label_mode"):
            raise ValueError(f"{type(self).__name__} needs a FERPlusDataModule, got a {type(data).__name__}")
        if (data.label_mode == "multi_target") != (self.hparams["loss"] == "multi_target"):
            raise ValueError(
                f"data.label_mode is {data.label_mode!r} and model.loss is {self.hparams['loss']!r}; "
                "multi_target needs both, the other modes the loss crossentropy"
            )
        upscaler = getattr(data, "upscaler", None)
        if upscaler is not None and upscaler.channels > self.hparams["in_channels"]:
            raise ValueError(
                "data.upscaler gives RGB faces and model.in_channels is 1; set it to 3, or the colour to gray"
            )

    def on_fit_start(self) -> None:
        if self.hparams["class_weighting"]:
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            counts = torch.as_tensor(data.class_counts(), dtype=torch.float32, device=self.device)
            self.class_weight.copy_(counts.sum() / (NUM_CLASSES * counts.clamp(min=1)))

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.hparams["loss"] == "multi_target":
            return multi_target_loss(logits, targets)
        weight = self.class_weight if self.hparams["class_weighting"] else None
        return soft_cross_entropy(logits, targets, weight, self.hparams["label_smoothing"])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        image, target = batch["image"], batch["target"]
        if self.hparams["mixup"]:
            share = torch.distributions.Beta(self.hparams["mixup"], self.hparams["mixup"]).sample().to(image.device)
            order = torch.randperm(len(image), device=image.device)
            image = torch.lerp(image[order], image, share)
            target = torch.lerp(target[order], target, share)
        logits = self(image)
        loss = self._loss(logits, target)
        self.train_acc(logits.detach(), target.argmax(dim=1))
        self.train_loss.update(loss.detach(), weight=len(image))
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True)
        self.log("train/acc", self.train_acc, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def probabilities(self, image: Tensor) -> Tensor:
        """Float B,3,S,S in [0, 1] -> float32 B,8, as validation and testing judge them."""
        probability = self(image).float().softmax(dim=1)
        if self.hparams["mirror"]:
            probability = (probability + self(image.flip(-1)).float().softmax(dim=1)) / 2
        return probability

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        probability, label = self.probabilities(batch["image"]), batch["label"]
        loss = F.nll_loss(probability.clamp(min=1e-12).log(), label)
        self.val_metrics(probability, label)
        self.val_recall(probability, label)
        self.log("val/loss", loss, batch_size=len(label), sync_dist=True)
        self.log_dict(self.val_metrics, prog_bar=True)

    def on_validation_epoch_end(self) -> None:
        for name, value in zip(CLASSES, self.val_recall.compute(), strict=True):
            self.log(f"val/recall_{name}", value, sync_dist=True)
        self.val_recall.reset()

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return what `callbacks.prediction_report.PredictionReport` collects: `index` B and `probability` B,8."""
        return {"index": batch["index"], "probability": self.probabilities(batch["image"])}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        decayed = [p for p in self.parameters() if p.requires_grad and p.ndim > 1]
        others = [p for p in self.parameters() if p.requires_grad and p.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": self.hparams["weight_decay"]},
            {"params": others, "weight_decay": 0.0},
        ]
        rate = self.hparams["learning_rate"]
        optimizer: torch.optim.Optimizer
        if self.hparams["optimizer"] == "sgd":
            optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True)
        else:
            optimizer = torch.optim.AdamW(groups, lr=rate)
        steps = training_length(self.trainer)
        schedule, warmup, milestones = (self.hparams[key] for key in ("schedule", "warmup", "milestones"))
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_then(schedule, warmup, milestones, step / steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
