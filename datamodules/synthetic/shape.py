"""Geometry of the drawn faces: a parametric head in three dimensions and its 68 landmarks.

A face is described in face units: 1 is half the width of the face at the ears, x points to the right of the image, y
down, z to the viewer, and the origin lies between the eyes. Head and expression give 68 points in these units; the
pose projects them, and whatever else is attached to the face, to the image. "Left" and "right" are the image's.

The order of the 68 points is that of iBUG 300-W (Sagonas et al. 2013): 0-16 jaw, 17-26 brows, 27-35 nose, 36-47 eyes,
48-59 outer and 60-67 inner lips. The expressions are built from movements in the spirit of the action units of
Ekman and Friesen's Facial Action Coding System (1978).
"""

from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

Points = npt.NDArray[Any]  # float64, ...,2 or ...,3

_HEAD_CENTRE = np.array([0.0, 0.6, 0.0])  # the point about which the head turns
_PERSPECTIVE = 0.08  # how much larger one face unit nearer to the viewer looks


@dataclass(frozen=True)
class Head:
    """A person; the defaults are the mean. Lengths in face units; `eye_open` and `lip` are factors of usual heights."""

    length: float = 1.62  # from the eyes to the chin
    jaw_power: float = 0.85  # below 1 a square jaw, 1 an ellipse
    eye_x: float = 0.42
    eye_width: float = 0.18
    eye_open: float = 1.0
    brow_y: float = -0.29
    nose_y: float = 0.78
    nose_width: float = 0.19
    mouth_y: float = 1.08
    mouth_width: float = 0.36
    lip: float = 1.0
    skull: float = 1.42  # from the eyes to the top of the head


@dataclass(frozen=True)
class Expression:
    """What a face does. Movements in face units; the lids, `stretch`, `lip_press` and `nose_wrinkle` are fractions."""

    brow_inner: float = 0.0  # up
    brow_outer: float = 0.0  # up
    brow_pinch: float = 0.0  # inner ends towards each other
    lid_upper: float = 0.0  # 1 doubles the upper half of the eye's opening, -1 closes it
    lid_lower: float = 0.0  # 1 closes the lower half
    corner_left: float = 0.0  # up
    corner_right: float = 0.0  # up
    stretch: float = 0.0  # wider mouth
    jaw_drop: float = 0.0  # 0 or more, as are those below
    lip_raise: float = 0.0
    lip_press: float = 0.0
    nose_wrinkle: float = 0.0


@dataclass(frozen=True)
class Pose:
    """The view. Angles in radians; `scale` is one face unit and `x`, `y` the head's centre, in image widths."""

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    scale: float = 0.34
    x: float = 0.5
    y: float = 0.5


# Each emotion at full intensity, in the order of Expression's fields.
_PROTOTYPES = {
    #             brow                  lid           corner        stretch  jaw   lip         nose
    #             inner  outer  pinch   upper  lower  left   right           drop  raise press wrinkle
    "neutral":    ( 0.0,   0.0,  0.0,    0.0,   0.0,   0.0,   0.0,    0.0,   0.0,  0.0,  0.0, 0.0),
    "happiness":  ( 0.0,   0.0,  0.0,   -0.1,   0.4,   0.15,  0.15,   0.18,  0.12, 0.04, 0.0, 0.0),
    "surprise":   ( 0.16,  0.16, 0.0,    0.75,  0.0,   0.0,   0.0,   -0.18,  0.3,  0.02, 0.0, 0.0),
    "sadness":    ( 0.13, -0.07, 0.05,  -0.4,   0.0,  -0.15, -0.15,  -0.05,  0.0,  0.0,  0.0, 0.0),
    "anger":      (-0.14,  0.0,  0.07,  -0.1,   0.3,  -0.05, -0.05,   0.0,   0.0,  0.0,  0.8, 0.0),
    "disgust":    (-0.09, -0.05, 0.03,  -0.3,   0.5,  -0.07, -0.07,   0.0,   0.05, 0.12, 0.0, 1.0),
    "fear":       ( 0.16,  0.03, 0.07,   0.6,   0.0,  -0.07, -0.07,   0.22,  0.1,  0.0,  0.0, 0.0),
    "contempt":   ( 0.0,   0.0,  0.0,   -0.25,  0.15,  0.15, -0.03,   0.0,   0.0,  0.0,  0.3, 0.0),
}  # fmt: skip


def sample_head(rng: np.random.Generator) -> Head:
    """Draw a person: every measure deviates from its mean by 5 % or so."""
    mean = np.array(astuple(Head()))
    return Head(*(mean * (1 + 0.05 * rng.standard_normal(mean.size).clip(-2, 2))))


def sample_expression(emotion: str, intensity: float, rng: np.random.Generator) -> Expression:
    """Draw an individual expression of one of the eight emotions; intensity 0 (not visible) to 1 (full)."""
    movements = np.array(_PROTOTYPES[emotion])
    movements *= intensity * rng.uniform(0.75, 1.25, movements.size)
    movements += 0.015 * rng.standard_normal(movements.size)  # no face is quite at rest
    movements[8:] = movements[8:].clip(min=0)
    return Expression(*movements)


def sample_pose(rng: np.random.Generator) -> Pose:
    """Draw a roughly frontal view."""
    n = rng.standard_normal(6).clip(-2.0, 2.0)
    return Pose(*(astuple(Pose()) + n * [0.22, 0.1, 0.09, 0.012, 0.015, 0.012]))


def face_landmarks(head: Head, expression: Expression) -> Points:
    """Return the 68 landmarks of an expression on a head, 68,3, in face units."""
    x, y = np.concatenate([part(head, expression) for part in (_jaw, _brows, _nose, _eyes, _mouth)]).T
    lifted = np.column_stack([x, y, (0.62 - 0.55 * x**2 - 0.12 * (y - 0.7) ** 2)])
    lifted[27:31, 2] += np.array([0.0, 0.08, 0.17, 0.27])
    lifted[31:36, 2] += np.array([0.05, 0.1, 0.13, 0.1, 0.05])
    lifted[36:48, 2] -= 0.04
    return lifted


def project(points: Points, pose: Pose) -> Points:
    """Project N,3 face units to N,2 image widths: 0 and 1 are the outer edges of the image."""
    turned = Rotation.from_euler("ZYX", [pose.roll, pose.yaw, pose.pitch]).apply(points - _HEAD_CENTRE)
    nearer = 1.0 / (1.0 - _PERSPECTIVE * turned[:, 2:])
    return np.asarray(turned[:, :2] * nearer * pose.scale + np.array([pose.x, pose.y]))


def _jaw(head: Head, expression: Expression) -> Points:
    angle = np.linspace(0.0, np.pi, 17)
    x = -np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** head.jaw_power
    down = np.sin(angle) ** 1.1
    return np.column_stack([x, 0.02 + (head.length + 0.75 * expression.jaw_drop * down**4 - 0.02) * down])


def _brows(head: Head, expression: Expression) -> Points:
    t = np.linspace(0.0, 1.0, 5)  # from the outer to the inner end
    x = 0.75 - 0.56 * t - expression.brow_pinch * t**2
    arch = np.array([-0.042, 0.042, 0.063, 0.035, -0.007])
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
    left = np.column_stack([along - head.eye_x, [0.0, -upper, -upper, 0.02, lower, lower]])
    return np.concatenate([left, (left * [-1, 1])[[3, 2, 1, 0, 5, 4]]])  # from the inner corner to the outer


def _mouth(head: Head, expression: Expression) -> Points:
    """Return 12 outer and 8 inner lip points: a resting mouth, opened, then bent by its corners."""
    thick = head.lip * (1 - 0.65 * min(expression.lip_press, 1.0))
    across = np.array([-1.0, -0.64, -0.27, 0.0, 0.27, 0.64, 1.0, 0.64, 0.27, 0.0, -0.27, -0.64])
    inside = np.array([-0.86, -0.3, 0.0, 0.3, 0.86, 0.3, 0.0, -0.3])
    height = thick * np.array([0.0, -0.055, -0.095, -0.08, -0.095, -0.055, 0.0, 0.07, 0.12, 0.13, 0.12, 0.07])
    inside[[1, 3, 5, 7]] *= 1 + min(3 * expression.jaw_drop, 0.6)  # an open mouth is round, not a triangle
    u = np.concatenate([across, inside])
    y = np.concatenate([height, thick * np.array([0.0, -0.006, 0.0, -0.006, 0.0, 0.008, 0.01, 0.008])])
    upper, lower = [1, 2, 3, 4, 5, 13, 14, 15], [7, 8, 9, 10, 11, 17, 18, 19]
    bow = 1 - 0.55 * u**2  # the middle of a lip moves more than its sides
    y[upper] -= expression.lip_raise * bow[upper]
    drop = 0.4 * u**6
    drop[lower] = bow[lower]
    y += expression.jaw_drop * drop
    rightness = (1 + np.clip(2 * u, -1, 1)) / 2
    corner = (1 - rightness) * expression.corner_left + rightness * expression.corner_right
    y -= corner * (u**2 - 0.2)
    return np.column_stack([u * head.mouth_width * (1 + expression.stretch), y + head.mouth_y])
