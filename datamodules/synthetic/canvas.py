"""The canvas of the synthetic faces: how a person looks, the light on a head, and painting of lit outlines.

The skin is lit by the normals of a height field: an ellipsoid with a nose, eye sockets, cheeks, lips and folds added
as Gaussians at the landmarks.

Shapes: K = 68 landmarks, N points, S canvas side, G side of the lighting grid. Colours are RGB in [0, 1].
"""

import functools
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from datamodules.synthetic.shape import Expression, Head, Points, Pose, face_landmarks, project, surface_depth

Image = npt.NDArray[Any]  # float32 unless said otherwise

_SHIFT = 4  # fractional bits of OpenCV's coordinates

# Light is smooth: computed on a small grid, then enlarged. At 64 the matrix product below stays on one thread.
_GRID = 64

_GRID_WIDTH = 1.1  # in image widths: more than one, as it is turned with the head

_CIRCLE = np.stack([np.cos(np.arange(20) * np.pi / 10), np.sin(np.arange(20) * np.pi / 10)], axis=1)

_SKINS = np.array([[0.97, 0.82, 0.73], [0.90, 0.71, 0.58], [0.76, 0.56, 0.42], [0.55, 0.38, 0.28], [0.36, 0.24, 0.18]])

_HAIRS = np.array([[0.07, 0.06, 0.06], [0.24, 0.15, 0.1], [0.45, 0.3, 0.17], [0.72, 0.56, 0.32], [0.6, 0.6, 0.6]])

_IRISES = np.array([[0.2, 0.11, 0.06], [0.3, 0.19, 0.1], [0.28, 0.36, 0.26], [0.3, 0.42, 0.55]])


@dataclass(frozen=True)
class Look:
    """How a person and a photograph look; colours are arrays of 3."""

    skin: Points
    hair: Points
    iris: Points
    lips: Points
    cloth: Points
    backdrop: Points  # 2,3: top and bottom
    backdrop_blots: Image  # 7,7
    skin_blots: Image  # 9,9
    hair_style: int  # 0 bald, 1 short, 2 long, 3 fringe, 4 long with a fringe
    hairline: float
    brow_width: float
    beard: float
    glasses: bool
    age: float
    light: Points  # unit vector to the light
    ambient: float
    exposure: float
    cast: Points
    blur: float  # sigma in thousandths of the image side
    noise: float


def sample_look(rng: np.random.Generator) -> Look:
    """Draw skin, hair, light, background and camera; always the same number of draws."""
    u = rng.random(32)
    tone = u[0] ** 1.3 * (len(_SKINS) - 1)
    low = min(int(tone), len(_SKINS) - 2)
    skin = _SKINS[low] + (tone - low) * (_SKINS[low + 1] - _SKINS[low])
    skin = skin * (1 + 0.06 * (u[1:4] - 0.5))
    hair = _HAIRS[min(int(u[4] * 6 * (0.55 if tone > 2 else 1.0)), 4)] * (0.7 + 0.5 * u[5])
    light = np.array([1.8 * (u[6] - 0.5), -0.1 - 0.9 * u[7], 0.75 + 0.4 * u[8]])
    return Look(
        skin=skin,
        hair=hair,
        iris=_IRISES[min(int(u[9] * (4 if tone < 1.5 else 1.9)), 3)] * (0.7 + 0.4 * u[10]),
        lips=skin * np.array([0.93, 0.66, 0.66]) * (0.86 + 0.2 * u[11]),
        cloth=u[12:15] * 0.8 + 0.05,
        backdrop=np.stack([u[15:18], 0.5 * u[15:18] + 0.5 * u[18:21]]) * (0.5 + 0.5 * u[21]),
        backdrop_blots=rng.standard_normal((7, 7)).astype(np.float32),
        skin_blots=rng.standard_normal((9, 9)).astype(np.float32),
        hair_style=int(u[22] * 5.0),
        hairline=0.82 + 0.18 * u[23],
        brow_width=0.04 + 0.03 * u[24],
        beard=max(0.0, 2.2 * u[25] - 1.6),
        glasses=bool(u[26] < 0.1),
        age=u[27] ** 2,
        light=light / np.linalg.norm(light),
        ambient=0.35 + 0.35 * u[28],
        exposure=0.72 + 0.4 * u[29],
        cast=1 + 0.05 * rng.standard_normal(3).clip(-2, 2),
        blur=1.0 + 5.0 * u[30] ** 3,
        noise=0.004 + 0.02 * u[31] ** 2,
    )


def smooth_curve(points: Points, closed: bool) -> Points:
    """Catmull-Rom spline through points N,D, M,D; it passes through every point, which keeps the landmarks exact."""
    return _spline(len(points), closed) @ points


@functools.cache
def _spline(number: int, closed: bool, steps: int = 6) -> Points:
    """The spline as a matrix: each of its points is a weighted sum of the given ones."""
    p = np.eye(number)
    before = p[-1:] if closed else 2 * p[:1] - p[1:2]
    after = p[:2] if closed else 2 * p[-1:] - p[-2:-1]
    p = np.concatenate([before, p, after])
    t = np.linspace(0.0, 1.0, steps, endpoint=False)[:, None]
    weights = (-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2)
    pieces = sum(0.5 * w * p[i : len(p) - 3 + i, None] for i, w in enumerate(weights))
    curve = np.reshape(pieces, (-1, number))
    return curve if closed else np.concatenate([curve, np.eye(number)[-1:]])


def ribbon(points: Points, widths: Points | float) -> Points:
    """Outline of a stroke along points N,2 with full widths N."""
    along = np.empty_like(points)
    along[1:-1] = points[2:] - points[:-2]
    along[0], along[-1] = points[1] - points[0], points[-1] - points[-2]
    along *= (np.asarray(widths) / 2 / (np.hypot(along[:, 0], along[:, 1]) + 1e-9))[:, None]
    normal = along[:, ::-1] * [-1.0, 1.0]
    return np.concatenate([points + normal, (points - normal)[::-1]])


class Face:
    """One face being drawn: its points in canvas pixels, its light, and the canvas itself.

    The canvas holds four channels, uint8: the colour of what is painted (not of its shaded side), and how much the
    light on the head counts there. `develop` puts the two together.
    """

    def __init__(self, side: int, head: Head, expression: Expression, pose: Pose, look: Look) -> None:
        self.head, self.expression, self.pose, self.look = head, expression, pose, look
        self.side, self.unit = side, pose.scale * side
        self.fractions = project(face_landmarks(head, expression), pose)  # image widths
        self.points = self.fractions * side - 0.5
        self.canvas = _backdrop(side, look)

    def place(self, points: list[list[float]] | Points, depth: float | None = None) -> Points:
        """Canvas pixels of face units N,2, on the face's surface or at a fixed depth."""
        flat = np.asarray(points, dtype=np.float64)
        z = surface_depth(flat, self.head) if depth is None else np.full(len(flat), depth)
        return project(np.column_stack([flat, z]), self.pose) * self.side - 0.5

    def disc(self, centre: Points, radius: float) -> Points:
        """Outline of a circle around a canvas point; the radius is in face units."""
        return centre + radius * self.unit * _CIRCLE

    def fill(
        self, outline: Points, colour: Points, opacity: float = 1.0, lit: float = 1.0, soft: float = 0.0,
        within: Points | None = None,
    ) -> None:  # fmt: skip
        """Paint the inside of an outline.

        Args:
            outline: N,2, canvas pixels.
            colour: RGB in [0, 1].
            opacity: Share of the paint, [0, 1].
            lit: How much the light on the head counts, 0 to 1.
            soft: Width (sigma) of the paint's blurred edge, face units.
            within: A second outline; nothing outside of it is painted.
        """
        ink = _ink(colour, lit)
        if opacity >= 1 and soft == 0 and within is None:
            cv2.fillPoly(self.canvas, [_fixed_point(outline)], ink, cv2.LINE_AA, _SHIFT)
            return
        margin = 2 + 3 * soft * self.unit
        (left, top), (right, bottom) = outline.min(0).tolist(), outline.max(0).tolist()
        left, top = max(int(left - margin), 0), max(int(top - margin), 0)
        right, bottom = min(int(right + margin + 1), self.side), min(int(bottom + margin + 1), self.side)
        if opacity <= 0 or right <= left or bottom <= top:
            return
        corner, shape = np.array([left, top]), (bottom - top, right - left)
        weight: Image = _mask(outline - corner, shape) * np.float32(min(opacity, 1.0) / 255)
        if soft > 0:
            weight = cv2.GaussianBlur(weight, (0, 0), soft * self.unit)
        if within is not None:
            weight *= _mask(within - corner, shape) * np.float32(1 / 255)
        region = self.canvas[top:bottom, left:right]
        change = np.array(ink, np.float32) - region
        change *= weight[..., None]
        change += region
        region[:] = change + np.float32(0.5)

    def strokes(self, curves: list[Points], colour: Points, width: float, lit: float) -> None:
        """Paint thin lines; the width is in face units, rounded to canvas pixels."""
        ink = _ink(colour, lit)
        thickness = max(1, round(width * self.unit))
        cv2.polylines(
            self.canvas, [_fixed_point(curve) for curve in curves], False, ink, thickness, cv2.LINE_AA, _SHIFT
        )

    def develop(self, size: int) -> Image:
        """The lit face at its final size, size,size,3, RGB; 1 is white."""
        small = cv2.resize(self.canvas, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        shade = cv2.resize(_lighting(self), (size, size), interpolation=cv2.INTER_LINEAR)[..., None]
        return small[..., :3] * (1 + small[..., 3:] * (shade - 1))


def _ink(colour: Points, lit: float) -> list[float]:
    return [255 * min(max(value, 0.0), 1.0) for value in (*colour.tolist(), lit)]


def _fixed_point(outline: Points) -> Image:
    return np.asarray(np.rint(outline * 2**_SHIFT), np.int32)


def _mask(outline: Points, shape: tuple[int, int]) -> Image:
    """Antialiased coverage of an outline, 0 to 255."""
    mask = np.zeros(shape, np.uint8)
    cv2.fillPoly(mask, [_fixed_point(outline)], 255, cv2.LINE_AA, _SHIFT)
    return mask


def _backdrop(side: int, look: Look) -> Image:
    """A vertical blend of two colours with large soft blots, unlit: uint8, S,S,4."""
    blots = cv2.resize(look.backdrop_blots, (24, 24), interpolation=cv2.INTER_CUBIC)
    down = np.linspace(0, 1, 24)[:, None, None]
    blend = (look.backdrop[0] * (1 - down) + look.backdrop[1] * down) * (1 + 0.22 * blots[..., None])
    unlit = np.zeros((24, 24, 1))
    small = (np.concatenate([blend, unlit], 2).clip(0, 1) * 255).astype(np.uint8)
    return cv2.resize(small, (side, side), interpolation=cv2.INTER_LINEAR).astype(np.uint8)


def _bumps(face: Face, points: Points) -> Points:
    """Hills and hollows of the face as rows x, y, height, radius; `points` are the landmarks in flat face units."""
    e, p = face.expression, points
    places: list[Points] = []
    sizes: list[tuple[float, float]] = []

    def add(at: Points, height: float, radius: float) -> None:
        places.append(at.reshape(-1, 2))
        sizes.extend([(height, radius)] * (at.size // 2))

    for t in np.linspace(0, 1, 6).tolist():
        add(p[27] + t * (p[30] - p[27]), 0.024 + 0.05 * t, 0.085 + 0.03 * t)
    along = np.linspace(0, 1, 6)[:, None]
    add(p[30], 0.08, 0.12)
    add(1.1 * p[[31, 35]] - 0.1 * p[33], 0.045, 0.075)
    sides = (
        (-1, p[36:42], p[17:22], p[31], p[48], e.corner_left),
        (1, p[42:48], p[22:27], p[35], p[54], e.corner_right),
    )
    for side, eye, brow, wing, corner, raised in sides:
        centre, out, smile = eye.mean(0), np.array([side, 0.0]), max(raised, 0.0)
        add(centre, -0.1, 0.17)
        add(centre, 0.035, 0.08)
        add(brow, 0.016, 0.09)
        add(np.array([centre[0], 0.85 * wing[1]]) + 0.08 * out, 0.05 + 0.3 * smile, 0.21)
        fold = 0.005 + 0.06 * smile + 0.008 * e.nose_wrinkle + 0.01 * face.look.age
        add(wing + 0.08 * out + along * (corner - wing + 0.06 * out), -fold, 0.045)
        add(corner + 0.03 * out, -0.012 - 0.05 * abs(raised), 0.05)
    add(p[49:54], 0.012, 0.06)
    add(p[56:59], 0.02, 0.07)
    add(p[57] + [0, 0.12], -0.05, 0.09)
    add(p[8] - [0, 0.22], 0.08, 0.18)
    add((p[21] + p[22]) / 2, -0.08 * max(e.brow_pinch, 0.0), 0.04)
    return np.column_stack([np.concatenate(places), sizes])


def _lighting(face: Face) -> Image:
    """Brightness G,G of the face's surface under the look's light; a surface that faces the viewer is near 1."""
    look, pose = face.look, face.pose
    # Computed for an upright head, whose Gaussians are products of a row and a column; then turned.
    centre = project(np.array([[0.0, 0.45, 0.0]]), pose)[0]
    back = np.array([[np.cos(pose.roll), np.sin(pose.roll)], [-np.sin(pose.roll), np.cos(pose.roll)]])
    x = (((np.arange(_GRID) + 0.5) / _GRID - 0.5) * _GRID_WIDTH / pose.scale).astype(np.float32)
    bumps = _bumps(face, (face.fractions - centre) @ back.T / pose.scale).astype(np.float32)
    columns, rows = (np.exp(-((x[:, None] - bumps[:, i]) ** 2) / (2 * bumps[:, 3] ** 2)) for i in (0, 1))
    ellipsoid = 1 - 0.8 * ((x[None] / 1.12) ** 2 + (x[:, None] / 1.62) ** 2)
    height = 0.95 * np.sqrt(np.maximum(ellipsoid, 0.08)) + (rows * bumps[:, 2]) @ columns.T
    slope_y, slope_x = np.gradient(height, x[1] - x[0])
    light = np.append(back @ look.light[:2], look.light[2]).astype(np.float32)
    length = np.sqrt(1 + slope_x**2 + slope_y**2)
    facing = np.maximum(light[2] - slope_x * light[0] - slope_y * light[1], 0) / length
    shade = look.ambient + (1 - look.ambient) * facing / light[2] + 0.18 * facing**24
    # Where each point of the image lies on the upright grid.
    turn = np.column_stack([back, (0.5 - back @ centre / _GRID_WIDTH) * _GRID - 0.5])
    turn[:, :2] /= _GRID_WIDTH
    turn[:, 2] += turn[:, :2].sum(1) * 0.5
    border = cv2.BORDER_REPLICATE
    upright = shade.clip(0, 1.4).astype(np.float32)
    turned = cv2.warpAffine(
        upright, turn, (_GRID, _GRID), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=border
    )
    return (turned * (1 + 0.025 * cv2.resize(look.skin_blots, (_GRID, _GRID), interpolation=cv2.INTER_CUBIC))).astype(
        np.float32
    )
