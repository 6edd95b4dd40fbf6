"""Random changes of a face, the same for every arm. The only module that imports albumentations."""

import math
import os
from typing import Any, TypeAlias

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # albumentations looks for updates online when imported

import albumentations as A
import cv2
import numpy as np

cv2.setNumThreads(1)  # the loader's workers are the parallelism; threads of their own would get in each other's way


class FaceAugmentation(A.ImageOnlyTransform):
    """Rotate, scale, shift and mirror in one bilinear warp, change brightness and contrast by one lookup table.

    The aspect ratio is kept. Beyond its border an image is continued by repetition. One warp and one table take a
    quarter of the time of separate transforms (docs/performance.md), and interpolate only once.

    Args:
        rotation: Largest angle, degrees.
        scale: Largest relative change of size.
        shift: Largest shift along each axis, as a fraction of the side.
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
        super().__init__(p=1.0)
        for name, value, most in (
            ("rotation", rotation, 180), ("scale", scale, 0.9), ("shift", shift, 1), ("flip", flip, 1),
            ("brightness", brightness, 1), ("contrast", contrast, 1),
        ):  # fmt: skip
            if not 0 <= value <= most:
                raise ValueError(f"augmentation.{name} is {value}, expected 0 to {most}")
        self.rotation, self.scale, self.shift, self.flip = rotation, scale, shift, flip
        self.brightness, self.contrast = brightness, contrast

    def get_params(self) -> dict[str, Any]:
        draw = self.py_random.uniform
        angle = math.radians(draw(-self.rotation, self.rotation))
        factor = 1 + draw(-self.scale, self.scale)
        shift = draw(-self.shift, self.shift), draw(-self.shift, self.shift)
        mirror = -1 if draw(0, 1) < self.flip else 1
        cosine, sine = factor * math.cos(angle), factor * math.sin(angle)
        contrast, brightness = 1 + draw(-self.contrast, self.contrast), draw(-self.brightness, self.brightness)
        levels = contrast * np.arange(256, dtype=np.float32) + 255 * brightness
        return {
            "turn": np.array([[mirror * cosine, -sine], [mirror * sine, cosine]]),
            "shift": shift,
            "table": levels.round().clip(0, 255).astype(np.uint8),
        }

    def apply(self, img: np.ndarray, turn: np.ndarray, shift: tuple[float, float], table: np.ndarray, **_: Any) -> Any:
        """Change an image, uint8 H,W,C."""
        size = np.array(img.shape[1::-1])
        centre = (size - 1) / 2
        matrix = np.column_stack([turn, centre - turn @ centre + shift * size])
        warped = cv2.warpAffine(img, matrix, size.tolist(), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return cv2.LUT(warped, table).reshape(img.shape)


Augmentation: TypeAlias = FaceAugmentation | A.BasicTransform | A.BaseCompose  # the first needs no class_path


def augment(augmentation: Augmentation, image: np.ndarray, seed: int, epoch: int, index: int) -> np.ndarray:
    """Return an image, uint8 H,W,C, with changes that are a function of (seed, epoch, index) alone."""
    augmentation.set_random_seed(int(np.random.SeedSequence((seed, epoch, index)).generate_state(1)[0]))
    changed: np.ndarray = augmentation(image=image)["image"]
    if (changed.shape, changed.dtype) != (image.shape, image.dtype):
        expected = f"{image.dtype} {image.shape}, as it was given"
        raise ValueError(f"the augmentation returned {changed.dtype} {changed.shape}, expected {expected}")
    return changed
