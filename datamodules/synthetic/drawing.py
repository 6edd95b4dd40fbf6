"""Drawings of the heads of `shape` with their 68 exact landmarks.

A face is painted from its own landmarks, and from other points of the head, on a canvas a few times larger than the
image: the landmarks are exact. Reducing the canvas smooths the edges; then come a soft light from one side, and noise.

Lengths are in face units (see `shape`), points in canvas pixels, colours RGB in [0, 1].
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from scipy.interpolate import CubicHermiteSpline

from datamodules.synthetic import shape
from datamodules.synthetic.shape import Points

_MIN_CANVAS = 192  # pixels, so that lines keep their width in small images
_SHIFT = 4  # fractional bits of OpenCV's coordinates

_COMPLEXIONS = np.array([  # skin, hair and iris
    [[0.97, 0.82, 0.73], [0.72, 0.56, 0.32], [0.30, 0.42, 0.55]],
    [[0.95, 0.78, 0.67], [0.45, 0.30, 0.17], [0.28, 0.36, 0.26]],
    [[0.90, 0.71, 0.58], [0.60, 0.60, 0.60], [0.30, 0.19, 0.10]],
    [[0.76, 0.56, 0.42], [0.24, 0.15, 0.10], [0.30, 0.19, 0.10]],
    [[0.55, 0.38, 0.28], [0.07, 0.06, 0.06], [0.20, 0.11, 0.06]],
    [[0.40, 0.27, 0.20], [0.07, 0.06, 0.06], [0.20, 0.11, 0.06]],
])  # fmt: skip
_EYEBALL, _TEETH, _MOUTH = np.array([[0.95, 0.95, 0.95], [0.93, 0.91, 0.86], [0.2, 0.06, 0.06]])


def render_face(
    size: int, emotion: str, intensity: float, rng: np.random.Generator
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Draw one face, with an emotion whose intensity is 0 (not visible) to 1 (full); all else is drawn from `rng`.

    Generators in the same state give the same face at any size, 16 to 2048 pixels.

    Returns:
        The image, uint8, size,size,3, RGB, and the 68 iBUG landmarks, float32, 68,2 (x, y), in pixels: 0 is the
        centre of the first pixel.
    """
    if not 16 <= size <= 2048:
        raise ValueError(f"size is {size}, expected 16 to 2048 pixels")
    head = shape.sample_head(rng)
    expression = shape.sample_expression(emotion, intensity, rng)
    canvas = FaceCanvas(size * max(2, -(-_MIN_CANVAS // size)), head, shape.sample_pose(rng), rng)
    landmarks = shape.project(shape.face_landmarks(head, expression), canvas.pose)  # image widths
    points = landmarks * canvas.side - 0.5
    _draw_head(canvas, points)
    _draw_eye(canvas, points[36:42], points[17:22])
    _draw_eye(canvas, points[42:48], points[22:27][::-1])
    _draw_nose(canvas, points)
    _draw_mouth(canvas, points)
    return _photograph(canvas, size, rng), (landmarks * size - 0.5).astype(np.float32)


class FaceCanvas:
    """The colours of a person, the light, and the picture being painted: `pixels`, uint8, side,side,3."""

    def __init__(self, side: int, head: shape.Head, pose: shape.Pose, rng: np.random.Generator) -> None:
        self.side, self.head, self.pose = side, head, pose
        self.unit = pose.scale * side  # one face unit in pixels
        self.down = np.array([-np.sin(pose.roll), np.cos(pose.roll)]) * self.unit
        self.skin, self.hair, self.iris = rng.choice(_COMPLEXIONS) * rng.uniform(0.85, 1.1)
        self.lips = self.skin * np.array([0.93, 0.63, 0.63])
        self.has_long_hair = rng.random() < 0.4
        self.light = rng.uniform(-0.7, 0.7)  # how much brighter the right edge of the image is than the left one
        backdrop = rng.uniform(0.25, 0.6, (2, 3))  # top and bottom
        self.pixels = cv2.resize(_bytes(backdrop)[:, None], (side, side), interpolation=cv2.INTER_LINEAR)

    def place(self, points: Sequence[Sequence[float]] | Points, depth: float) -> Points:
        """Project points N,2 of the head, all at one depth, to canvas pixels."""
        return shape.project(np.insert(np.asarray(points), 2, depth, axis=1), self.pose) * self.side - 0.5

    def dome(self, width: float, height: float, bottom: float, depth: float) -> Points:
        """Return half an ellipse over the head, from right to left; it ends at the height `bottom`."""
        angle = np.linspace(0, np.pi, 21)
        y = bottom - (height + bottom) * np.sin(angle) ** 0.9
        return self.place(np.column_stack([width * np.cos(angle), y]), depth)

    def fill(self, outline: Points, colour: Points, within: Points | None = None) -> None:
        """Paint the inside of an outline, or the part of it within a second one."""
        if within is None:
            cv2.fillPoly(self.pixels, [_fixed_point(outline)], _bytes(colour).tolist(), cv2.LINE_AA, _SHIFT)
            return
        masks = np.zeros((2, self.side, self.side), np.uint8)
        for mask, edge in zip(masks, (outline, within), strict=True):
            cv2.fillPoly(mask, [_fixed_point(edge)], 1, shift=_SHIFT)
        self.pixels[masks.all(0)] = _bytes(colour)

    def disc(self, centre: Points, radius: float, colour: Points, within: Points | None = None) -> None:
        """Paint a disc around a canvas point."""
        angle = np.arange(24) * np.pi / 12
        self.fill(centre + radius * self.unit * np.column_stack([np.cos(angle), np.sin(angle)]), colour, within)

    def line(self, curve: Points, colour: Points, width: float) -> None:
        """Paint a line; its width is rounded to canvas pixels."""
        thickness, ink = max(1, round(width * self.unit)), _bytes(colour).tolist()
        cv2.polylines(self.pixels, [_fixed_point(curve)], False, ink, thickness, cv2.LINE_AA, _SHIFT)


def smooth_curve(points: Points) -> Points:
    """Return a Catmull-Rom spline, 6N-5,2, that passes through the points N,2 and so keeps the landmarks exact."""
    along = np.arange(len(points))
    spline = CubicHermiteSpline(along, points, np.gradient(points, axis=0))
    return np.asarray(spline(np.linspace(0, along[-1], 6 * len(points) - 5)))


def _bytes(colour: Points) -> npt.NDArray[np.uint8]:
    return np.asarray(255 * colour.clip(0, 1), np.uint8)


def _fixed_point(outline: Points) -> npt.NDArray[np.int32]:
    return np.asarray(np.rint(outline * 2**_SHIFT), np.int32)


def _draw_head(face: FaceCanvas, p: Points) -> None:
    """Draw neck and skin, with ears or hair around them."""
    skull = face.head.skull
    if face.has_long_hair:
        ends = face.place([[-1.25, 1.0], [-1.2, 2.2], [1.2, 2.2], [1.25, 1.0]], -0.4)
        face.fill(np.concatenate([face.dome(1.18, skull + 0.14, 0.2, -0.2), ends]), face.hair)
    face.fill(face.place([[-0.66, 0.9], [-0.8, 3.0], [0.8, 3.0], [0.66, 0.9]], -0.3), face.skin * 0.72)
    for ear in () if face.has_long_hair else face.place([[-0.97, 0.2], [0.97, 0.2]], -0.15):
        face.disc(ear, 0.16, face.skin * 0.88)
    face.fill(np.concatenate([smooth_curve(p[:17]), face.dome(1.0, skull, 0.02, 0.0)]), face.skin)
    edge = [[-1.0, -0.1], [-0.9, -0.5], [-0.5, -0.84], [0.0, -0.9], [0.5, -0.84], [0.9, -0.5], [1.0, -0.1]]
    top = face.dome(1.08, skull + 0.14, 0.1, -0.05)
    face.fill(np.concatenate([top, smooth_curve(face.place(edge, 0.05))]), face.hair)


def _draw_eye(face: FaceCanvas, eye: Points, brow: Points) -> None:
    """Draw an eye and its brow, whose points run from the outer to the inner end."""
    upper, lower = smooth_curve(eye[:4]), smooth_curve(eye[[3, 4, 5, 0]])
    outline = np.concatenate([upper, lower])
    centre = 0.6 * (eye[0] + eye[3]) / 2 + 0.4 * eye.mean(0) - 0.01 * face.down
    face.fill(outline, _EYEBALL)
    face.disc(centre, 0.095, face.iris, within=outline)
    face.disc(centre, 0.045, face.iris * 0.1, within=outline)
    face.disc(centre - 0.045 * face.down, 0.02, _EYEBALL, within=outline)
    face.line(lower, face.skin * 0.5, 0.016)
    face.line(upper, face.skin * 0.22, 0.032)
    curve = smooth_curve(brow)
    taper = np.interp(np.linspace(0, 1, len(curve)), [0, 0.35, 1], [0.2, 0.5, 0.7])[:, None]
    half = 0.065 * taper * face.down
    face.fill(np.concatenate([curve - half, (curve + half)[::-1]]), np.minimum(face.hair, face.skin * 0.5))


def _draw_nose(face: FaceCanvas, p: Points) -> None:
    """Draw the shaded side, the base and the nostrils."""
    face.fill(p[[27, 28, 29, 30, 33, 31 if face.light > 0 else 35]], face.skin * 0.86)
    face.line(smooth_curve(p[31:36]), face.skin * 0.6, 0.024)
    for wing, inner in ((31, 32), (35, 34)):
        face.disc(0.35 * p[wing] + 0.65 * p[inner], 0.035, face.skin * 0.35)


def _draw_mouth(face: FaceCanvas, p: Points) -> None:
    """Draw lips between the outer and the inner points; teeth where they part."""
    top, bottom = smooth_curve(p[60:65]), smooth_curve(p[[64, 65, 66, 67, 60]])
    face.fill(np.concatenate([smooth_curve(p[48:55]), top[::-1]]), face.lips * 0.84)
    face.fill(np.concatenate([smooth_curve(p[[54, 55, 56, 57, 58, 59, 48]]), bottom[::-1]]), face.lips)
    opening = p[66] - p[62]
    gap = float(np.linalg.norm(opening)) / face.unit
    if gap < 0.03:
        seam = np.concatenate([p[48:49], (p[60:65] + p[[60, 67, 66, 65, 64]]) / 2, p[54:55]])
        face.line(smooth_curve(seam), face.lips * 0.35, 0.024)
        return
    inside = np.concatenate([top, bottom])
    face.fill(inside, _MOUTH)
    face.fill(np.concatenate([top - opening, top[::-1] + min(0.45, 0.09 / gap) * opening]), _TEETH, within=inside)


def _photograph(face: FaceCanvas, size: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Reduce the picture; add light from one side, and noise."""
    image: npt.NDArray[Any] = cv2.resize(face.pixels, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32)
    image *= 1 + face.light * np.linspace(-0.5, 0.5, size, dtype=np.float32)[:, None]
    image += 2 * rng.standard_normal((size, size, 1), np.float32)
    return np.asarray(image.round().clip(0, 255), np.uint8)
