"""Geometry of the drawn faces: a parametric head in three dimensions and its 68 landmarks.

A face is described in face units: 1 is half the width of the face at the ears, x points to the right of the image, y
down, z to the viewer, and the origin lies between the eyes. The head (who it is) and the expression (what it does)
give 68 points in these units; the pose (how it is seen) projects them, and anything else that is attached to the face,
to the image. The landmarks are exact because the faces are drawn from them. "Left" and "right" are those of the image.

The order of the 68 points is that of iBUG 300-W (Sagonas et al. 2013): 0-16 jaw, 17-26 brows, 27-35 nose, 36-47 eyes,
48-59 outer and 60-67 inner lips. The expressions are built from movements in the spirit of the action units of
Ekman and Friesen's Facial Action Coding System (1978).

Shapes: K = 68 landmarks, N points, coordinates last.
"""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[Any]  # float64, ...,2 or ...,3

# Where each point of the left eye (36-41) comes on the right one (42-47).
_MIRRORED_EYE = (3, 2, 1, 0, 5, 4)

_HEAD_CENTRE = np.array([0.0, 0.6, 0.0])  # the point about which the head turns

_PERSPECTIVE = 0.08  # how much larger one face unit nearer to the viewer looks


@dataclass(frozen=True)
class Head:
    """Who it is. Lengths in face units; `eye_open` and `lip` are factors of the usual height."""

    length: float = 1.62  # from the eyes to the chin
    jaw_power: float = 0.85  # below 1 a square jaw, 1 an ellipse
    depth: float = 1.0
    eye_x: float = 0.42
    eye_width: float = 0.18
    eye_open: float = 1.0
    eye_tilt: float = 0.0  # outer corner up
    brow_y: float = -0.29
    brow_arch: float = 0.07
    nose_y: float = 0.78
    nose_width: float = 0.19
    mouth_y: float = 1.08
    mouth_width: float = 0.36
    lip: float = 1.0
    skull: float = 1.42  # from the eyes to the top of the head


@dataclass(frozen=True)
class Expression:
    """What it does. Movements in face units, except the lids, `lip_press` and `nose_wrinkle`, which are fractions."""

    brow_inner: float = 0.0  # up
    brow_outer: float = 0.0  # up
    brow_pinch: float = 0.0  # inner ends towards each other
    lid_upper: float = 0.0  # 1 doubles the upper half of the eye's opening, -1 closes it
    lid_lower: float = 0.0  # 1 closes the lower half
    corner_left: float = 0.0  # up
    corner_right: float = 0.0  # up
    stretch: float = 0.0  # wider mouth, as a fraction of its width
    jaw_drop: float = 0.0
    lip_raise: float = 0.0
    lip_press: float = 0.0
    nose_wrinkle: float = 0.0


@dataclass(frozen=True)
class Pose:
    """How it is seen. Angles in radians; `scale` is one face unit and `x`, `y` the head's centre, in image widths."""

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    scale: float = 0.34
    x: float = 0.5
    y: float = 0.5


def _both(corner: float) -> dict[str, float]:
    return {"corner_left": corner, "corner_right": corner}


# Two ways to express each emotion at full intensity; a face shows one of them.
_PROTOTYPES: dict[str, tuple[Expression, Expression]] = {
    "neutral": (Expression(), Expression()),
    "happiness": (
        Expression(**_both(0.15), stretch=0.18, lid_lower=0.4, lid_upper=-0.15, jaw_drop=0.14, lip_raise=0.05),
        Expression(**_both(0.14), stretch=0.16, lid_lower=0.35),
    ),
    "surprise": (
        Expression(brow_inner=0.15, brow_outer=0.15, lid_upper=0.7, jaw_drop=0.36, stretch=-0.2, lip_raise=0.02),
        Expression(brow_inner=0.17, brow_outer=0.17, lid_upper=0.8, jaw_drop=0.2, stretch=-0.16),
    ),
    "sadness": (
        Expression(brow_inner=0.13, brow_outer=-0.07, brow_pinch=0.05, lid_upper=-0.3, **_both(-0.13), stretch=-0.05),
        Expression(brow_inner=0.11, brow_outer=-0.08, brow_pinch=0.04, lid_upper=-0.5, **_both(-0.16)),
    ),
    "anger": (
        Expression(brow_inner=-0.14, brow_pinch=0.07, lid_upper=-0.1, lid_lower=0.3, lip_press=0.8, **_both(-0.05)),
        Expression(brow_inner=-0.14, brow_pinch=0.07, lid_lower=0.3, jaw_drop=0.17, lip_raise=0.05, stretch=0.04),
    ),
    "disgust": (
        Expression(
            brow_inner=-0.09, brow_outer=-0.05, brow_pinch=0.03, lid_upper=-0.3, lid_lower=0.5, lip_raise=0.12,
            nose_wrinkle=1.0, **_both(-0.08),
        ),
        Expression(
            brow_inner=-0.08, brow_outer=-0.05, brow_pinch=0.03, lid_upper=-0.35, lid_lower=0.5, lip_raise=0.11,
            nose_wrinkle=1.0, **_both(-0.06), jaw_drop=0.12,
        ),
    ),
    "fear": (
        Expression(
            brow_inner=0.16, brow_outer=0.03, brow_pinch=0.07, lid_upper=0.6, stretch=0.2, jaw_drop=0.13, **_both(-0.06)
        ),
        Expression(
            brow_inner=0.17, brow_outer=0.02, brow_pinch=0.07, lid_upper=0.55, stretch=0.24, jaw_drop=0.06,
            **_both(-0.08),
        ),
    ),
    "contempt": (
        Expression(corner_left=0.15, corner_right=-0.03, lid_upper=-0.25, lid_lower=0.15, lip_press=0.3),
        Expression(corner_left=-0.03, corner_right=0.15, lid_upper=-0.25, lid_lower=0.15, lip_press=0.3),
    ),
}  # fmt: skip

# How far people are from the mean head, as standard deviations in the order of Head's fields.
_HEAD_SPREAD = (0.07, 0.07, 0.1, 0.018, 0.012, 0.14, 0.012, 0.025, 0.02, 0.04, 0.022, 0.03, 0.025, 0.16, 0.05)

# How far a resting face is from the prototype, as standard deviations in the order of Expression's fields.
_RESTING_SPREAD = (0.02, 0.02, 0.012, 0.1, 0.08, 0.014, 0.014, 0.04, 0.012, 0.008, 0.1, 0.06)


def sample_head(rng: np.random.Generator) -> Head:
    """Draw a person; always the same number of draws."""
    n = rng.standard_normal(len(_HEAD_SPREAD)).clip(-2.2, 2.2)
    mean = Head()
    values = dict(zip(vars(mean), np.array(list(vars(mean).values())) + n * _HEAD_SPREAD, strict=True))
    values["mouth_y"] += 0.03 * n[0] + 0.025 * n[9]  # with the chin and the nose
    return Head(**values)


def sample_expression(emotion: str, intensity: float, rng: np.random.Generator) -> Expression:
    """Draw an individual expression of an emotion; always the same number of draws.

    Args:
        emotion: One of the eight classes.
        intensity: 0 (not to be seen) to 1 (full).
        rng: Source of the variant shown, of the strength of each movement and of the face's habits.
    """
    prototype = _PROTOTYPES[emotion][int(rng.integers(2))]
    movements = np.array(list(vars(prototype).values()))
    gains = rng.uniform(0.75, 1.25, movements.size)
    habits = rng.standard_normal(movements.size) * np.array(_RESTING_SPREAD)
    values = movements * intensity * gains + habits
    # Neither the jaw nor the lips can close further than shut.
    limits = {"jaw_drop": 0.0, "lip_raise": 0.0, "lip_press": 0.0, "nose_wrinkle": 0.0, "lid_upper": -0.75}
    named = dict(zip(vars(prototype), values.tolist(), strict=True))
    return Expression(**{name: max(value, limits.get(name, -1.0)) for name, value in named.items()})


def sample_pose(rng: np.random.Generator) -> Pose:
    """Draw a roughly frontal view; always the same number of draws."""
    n = rng.standard_normal(6).clip(-2.0, 2.0)
    return Pose(
        yaw=0.22 * n[0],
        pitch=0.1 * n[1],
        roll=0.09 * n[2],
        scale=0.34 + 0.012 * n[3],
        x=0.5 + 0.015 * n[4],
        y=0.52 + 0.012 * n[5],
    )


def face_landmarks(head: Head, expression: Expression) -> Points:
    """Return the 68 landmarks of an expression on a head, K,3, face units."""
    x, y = np.concatenate([part(head, expression) for part in (_jaw, _brows, _nose, _eyes, _mouth)]).T
    lifted = np.column_stack([x, y, head.depth * (0.62 - 0.55 * x**2 - 0.12 * (y - 0.7) ** 2)])
    lifted[27:31, 2] += head.depth * np.array([0.0, 0.08, 0.17, 0.27])
    lifted[31:36, 2] += head.depth * np.array([0.05, 0.1, 0.13, 0.1, 0.05])
    lifted[36:48, 2] -= 0.04
    return lifted


def project(points: Points, pose: Pose) -> Points:
    """Project N,3 face units to N,2 image widths: 0 and 1 are the outer edges of the image."""
    turned = (points - _HEAD_CENTRE) @ _rotation(pose).T
    nearer = 1.0 / (1.0 - _PERSPECTIVE * turned[:, 2:])
    return np.asarray(turned[:, :2] * nearer * pose.scale + np.array([pose.x, pose.y]))


@functools.lru_cache(maxsize=8)
def _rotation(pose: Pose) -> Points:
    cos, sin = np.cos, np.sin
    yaw = np.array([[cos(pose.yaw), 0, sin(pose.yaw)], [0, 1, 0], [-sin(pose.yaw), 0, cos(pose.yaw)]])
    pitch = np.array([[1, 0, 0], [0, cos(pose.pitch), -sin(pose.pitch)], [0, sin(pose.pitch), cos(pose.pitch)]])
    roll = np.array([[cos(pose.roll), -sin(pose.roll), 0], [sin(pose.roll), cos(pose.roll), 0], [0, 0, 1]])
    return np.asarray(roll @ yaw @ pitch)


def _jaw(head: Head, expression: Expression) -> Points:
    angle = np.linspace(0.0, np.pi, 17)
    x = -np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** head.jaw_power
    down = np.sin(angle) ** 1.1
    return np.column_stack([x, 0.02 + (head.length + 0.75 * expression.jaw_drop * down**4 - 0.02) * down])


def _brows(head: Head, expression: Expression) -> Points:
    t = np.linspace(0.0, 1.0, 5)  # from the outer to the inner end
    x = 0.75 - 0.56 * t - expression.brow_pinch * t**2
    arch = head.brow_arch * np.array([-0.6, 0.6, 0.9, 0.5, -0.1])
    y = head.brow_y - arch - expression.brow_inner * t**1.5 - expression.brow_outer * (1 - t)
    left = np.column_stack([-x, y])
    return np.concatenate([left, (left * [-1, 1])[::-1]])


def _nose(head: Head, expression: Expression) -> Points:
    lift = 0.05 * expression.nose_wrinkle
    ridge = np.linspace(0.06, head.nose_y - 0.13 - lift, 4)
    wide = head.nose_width * (1 + 0.15 * expression.nose_wrinkle)
    base_x = wide * np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    base_y = head.nose_y - lift + np.array([-0.05, -0.01, 0.02, -0.01, -0.05])
    return np.concatenate([np.column_stack([np.zeros(4), ridge]), np.column_stack([base_x, base_y])])


def _eyes(head: Head, expression: Expression) -> Points:
    upper = 0.09 * head.eye_open * (1 + expression.lid_upper)
    lower = 0.05 * head.eye_open * (1 - 0.7 * min(expression.lid_lower, 1.0))
    along = head.eye_width * np.array([-1.0, -0.34, 0.34, 1.0, 0.34, -0.34])
    tilt = head.eye_tilt * np.array([-1.0, -0.4, 0.4, 1.0, 0.4, -0.4])
    left = np.column_stack([along - head.eye_x, np.array([0.0, -upper, -upper, 0.02, lower, lower]) + tilt])
    return np.concatenate([left, (left * [-1, 1])[list(_MIRRORED_EYE)]])


def _mouth(head: Head, expression: Expression) -> Points:
    """The 12 outer and 8 inner lip points: a resting mouth, opened, then bent by its corners."""
    thick = head.lip * (1 - 0.65 * min(expression.lip_press, 1.0))
    across = np.array([-1.0, -0.64, -0.27, 0.0, 0.27, 0.64, 1.0, 0.64, 0.27, 0.0, -0.27, -0.64])
    inside = np.array([-0.86, -0.3, 0.0, 0.3, 0.86, 0.3, 0.0, -0.3])
    height = thick * np.array([0.0, -0.055, -0.095, -0.08, -0.095, -0.055, 0.0, 0.07, 0.12, 0.13, 0.12, 0.07])
    inside[[1, 3, 5, 7]] *= 1 + min(3 * expression.jaw_drop, 0.6)  # an open mouth is round, not a triangle
    u = np.concatenate([across, inside])
    y = np.concatenate([height, thick * np.array([0.0, -0.006, 0.0, -0.006, 0.0, 0.008, 0.01, 0.008])])
    is_upper = np.isin(np.arange(20), (1, 2, 3, 4, 5, 13, 14, 15))
    is_lower = np.isin(np.arange(20), (7, 8, 9, 10, 11, 17, 18, 19))
    bow = 1 - 0.55 * u**2  # the middle of a lip moves more than its sides
    y = y - expression.lip_raise * bow * is_upper
    y = y + expression.jaw_drop * np.where(is_lower, bow, 0.4 * u**6)
    rightness = (1 + np.clip(2 * u, -1, 1)) / 2
    corner = (1 - rightness) * expression.corner_left + rightness * expression.corner_right
    y = y - corner * (u**2 - 0.2)
    x = u * head.mouth_width * (1 + expression.stretch)
    return np.column_stack([x, y + head.mouth_y])
