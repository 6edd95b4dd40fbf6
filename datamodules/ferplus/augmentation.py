"""Random changes of a face, the same for every arm. The only module that imports albumentations."""

import os

import albumentations as A
import cv2
import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # albumentations looks for updates online when imported

cv2.setNumThreads(1)  # the loader's workers are the parallelism; threads of their own would get in each other's way


class FaceAugmentation:
    """Rotate, scale, shift, mirror, and change brightness and contrast: a function of (seed, epoch, index) alone.

    Args:
        rotation: Largest angle, degrees.
        scale: Largest relative change of size.
        shift: Largest shift as a fraction of the side.
        flip: Probability of mirroring.
        brightness: Largest change as a fraction of the full range.
        contrast: Largest relative change.
    """

    def __init__(
        self,
        rotation: float = 20.0,
        scale: float = 0.15,
        shift: float = 0.07,
        flip: float = 0.5,
        brightness: float = 0.2,
        contrast: float = 0.2,
    ) -> None:
        for name, value, most in (
            ("rotation", rotation, 180), ("scale", scale, 0.9), ("shift", shift, 1), ("flip", flip, 1),
            ("brightness", brightness, 1), ("contrast", contrast, 1),
        ):  # fmt: skip
            if not 0 <= value <= most:
                raise ValueError(f"augmentation.{name} is {value}, expected 0 to {most}")
        self._compose = A.Compose(
            [
                A.HorizontalFlip(p=flip),
                A.Affine(
                    rotate=(-rotation, rotation),
                    scale=(1 - scale, 1 + scale),
                    translate_percent=(-shift, shift),
                    border_mode=cv2.BORDER_REPLICATE,
                    p=1.0,
                ),
                A.RandomBrightnessContrast(brightness_limit=brightness, contrast_limit=contrast, p=1.0),
            ]
        )

    def __call__(self, image: np.ndarray, seed: int, epoch: int, index: int) -> np.ndarray:
        """Return an image, uint8 H,W,C, with the changes drawn for it."""
        self._compose.set_random_seed(int(np.random.SeedSequence((seed, epoch, index)).generate_state(1)[0]))
        return self._compose(image=image)["image"]
