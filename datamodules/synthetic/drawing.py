"""Synthetic faces: drawing of the heads of `synthetic_shape` with their 68 exact landmarks.

A face is drawn on an enlarged canvas from its own landmarks and from points attached to the head, so that the
landmarks are where the drawing is. Everything but the noise of the sensor is drawn from the generator before the size
matters: the same generator gives the same person at any size.

Shapes: K = 68 landmarks, S canvas side. Colours are RGB in [0, 1]; lengths are in face units (see `synthetic_shape`).
"""

import cv2
import numpy as np
import numpy.typing as npt

from datamodules.synthetic.canvas import Face, Image, Look, ribbon, sample_look, smooth_curve
from datamodules.synthetic.shape import Points, sample_expression, sample_head, sample_pose

_MIN_SIZE, _MAX_SIZE = 16, 2048

_MIN_CANVAS = 192


def render_face(
    size: int, emotion: str, intensity: float, rng: np.random.Generator
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Draw one face.

    Args:
        size: Side of the image in pixels, 16 to 2048. Generators in the same state give the same face at any size.
        emotion: What the face expresses, one of the eight classes.
        intensity: How strongly, 0 (not at all) to 1.
        rng: Source of everything that varies: person, expression, pose, light, background, camera.

    Returns:
        The image, uint8, size,size,3, RGB, and the 68 iBUG landmarks, float32, 68,2 (x, y), in pixels: 0 is the
        centre of the first pixel.

    Raises:
        ValueError: If the size, emotion or intensity is not one of those above.
    """
    if not _MIN_SIZE <= size <= _MAX_SIZE:
        raise ValueError(f"size is {size!r}; it must lie in [{_MIN_SIZE}, {_MAX_SIZE}] pixels")
    head = sample_head(rng)
    expression = sample_expression(emotion, intensity, rng)
    pose = sample_pose(rng)
    look = sample_look(rng)
    factor = max(2, -(-_MIN_CANVAS // size))
    face = Face(size * factor, head, expression, pose, look)
    _draw_head(face)
    _draw_eyes(face)
    _draw_nose(face)
    _draw_mouth(face)
    _draw_lines(face)
    _draw_hair(face)
    if look.glasses:
        _draw_glasses(face)
    return _photograph(face.develop(size), look, rng), (face.fractions * size - 0.5).astype(np.float32)


def _photograph(image: Image, look: Look, rng: np.random.Generator) -> Image:
    """What a camera makes of the scene, uint8: exposure, colour cast, blur and noise."""
    size = len(image)
    sigma = look.blur * size / 1000
    if sigma > 0.2:
        image = cv2.GaussianBlur(image, (0, 0), sigma)
    noise = rng.standard_normal((size, size, 1), np.float32)
    seen = image * (look.exposure * look.cast).astype(np.float32) + look.noise * noise
    return np.asarray(np.round(seen.clip(0, 1) * 255), np.uint8)


def _arc(face: Face, wide: float, high: float, start_y: float, depth: float) -> Points:
    """Half an ellipse over the head, from the right side at height `start_y` to the left, canvas pixels."""
    angle = np.linspace(0, np.pi, 21)
    arc = np.column_stack([wide * np.cos(angle), start_y - (high + start_y) * np.sin(angle) ** 0.9])
    return face.place(arc, depth)


def _draw_head(face: Face) -> None:
    """What lies behind and below the features: hair, shoulders, neck, ears, skin."""
    look, head = face.look, face.head
    if look.hair_style in (2, 4):
        back = np.concatenate([_arc(face, 1.22, head.skull + 0.16, 0.2, -0.2),
                               face.place([[-1.3, 1.0], [-1.2, 2.0], [1.2, 2.0], [1.3, 1.0]], -0.4)])  # fmt: skip
        face.fill(smooth_curve(back, True), look.hair, lit=0.6)
    body = face.place([[-2.6, 3.2], [-1.7, 2.25], [-0.6, 1.95], [0.6, 1.95], [1.7, 2.25], [2.6, 3.2]], -0.4)
    face.fill(smooth_curve(body, False), look.cloth, lit=0.5)
    neck = face.place(
        [[-0.66, 0.9], [-0.62, 1.6], [-0.72, 2.05], [0.0, 2.3], [0.72, 2.05], [0.62, 1.6], [0.66, 0.9]], -0.3
    )
    face.fill(smooth_curve(neck, True), look.skin * 0.68, lit=0.8)
    for side in (-1, 1):
        ear = face.place(
            [[side * x, y] for x, y in ((0.93, 0.0), (1.1, -0.06), (1.13, 0.2), (1.03, 0.5), (0.92, 0.5))], -0.15
        )
        face.fill(smooth_curve(ear, True), look.skin * 0.86, lit=0.7)
    jaw = smooth_curve(face.points[:17], False)
    outline = np.concatenate([jaw, _arc(face, 1.0, head.skull, 0.02, 0.0)])
    face.fill(outline, look.skin)
    for cheek in (face.points[[1, 31, 40]].mean(0), face.points[[15, 35, 47]].mean(0)):
        face.fill(face.disc(cheek, 0.2), look.skin * [1.04, 0.82, 0.8], 0.35, soft=0.09, within=outline)
    chin = np.concatenate([face.points[2:15], face.points[[54, 53, 52, 33, 50, 49, 48]]])
    face.fill(chin, look.hair, 0.75 * look.beard, soft=0.05, within=outline)


def _draw_hair(face: Face) -> None:
    """Hair over the forehead, with a few strands."""
    look, skull = face.look, face.head.skull
    if look.hair_style == 0:
        return
    line = look.hairline if look.hair_style < 3 else look.hairline - 0.24
    side = 0.1 if look.hair_style == 1 else 0.55
    top = _arc(face, 1.1, skull + 0.14, side, -0.05)
    middle = [[-0.55, -line], [-0.1, -line - 0.06], [0.4, -line + 0.02]]
    edge = smooth_curve(face.place([[-1.0, -0.1], [-0.9, -0.5], *middle, [0.88, -0.5], [1.0, -0.1]], 0.05), False)
    outline = np.concatenate([top, edge])
    face.fill(outline, look.hair, lit=0.75)
    t = np.linspace(-0.85, 0.85, 11)
    ends = np.stack(
        [[0.4 * t, 0 * t - skull - 0.08], [0.75 * t, 0 * t - skull + 0.15], [0.98 * t, 0.42 * t**2 - line - 0.18]]
    )
    placed = face.place(ends.swapaxes(1, 2).reshape(-1, 2), 0.0)
    strands = list(smooth_curve(placed.reshape(3, -1), False).reshape(-1, len(t), 2).swapaxes(0, 1))
    face.strokes(strands, look.hair * 1.25 + 0.02, 0.02, lit=0.75)


def _draw_eyes(face: Face) -> None:
    """Eyes and brows."""
    look, unit = face.look, face.unit
    dark = np.minimum(look.skin * 0.25, 0.16)
    below, aside = np.array([0.0, unit]), np.array([unit, 0.0])
    for eye, brow in ((face.points[36:42], face.points[17:22]), (face.points[42:48], face.points[22:27][::-1])):
        outline = smooth_curve(eye, True)
        upper, lower = smooth_curve(eye[:4], False), smooth_curve(eye[[3, 4, 5, 0]], False)
        crease = upper + (upper.mean(0) - lower.mean(0)) * 0.25 - 0.045 * below
        face.fill(ribbon(crease, 0.025 * unit), look.skin * 0.5, 0.6, soft=0.008)
        face.fill(ribbon(lower + 0.05 * below, 0.03 * unit), look.skin * 0.55, 0.2 + 0.35 * look.age, soft=0.02)
        face.fill(outline, np.array([0.93, 0.91, 0.89]), lit=0.8)
        centre = 0.75 * (eye[0] + eye[3]) / 2 + 0.25 * eye.mean(0) - 0.018 * below
        face.fill(face.disc(centre, 0.082), look.iris, lit=0.5, within=outline)
        face.fill(face.disc(centre, 0.04), np.full(3, 0.02), lit=0.0, within=outline)
        face.fill(face.disc(centre + 0.03 * (aside - below), 0.014), np.ones(3), 0.9, lit=0.0, within=outline)
        face.fill(ribbon(upper, 0.034 * unit), dark)
        face.fill(ribbon(lower, 0.014 * unit), look.skin * 0.45, 0.6)
        widths = look.brow_width * unit * np.interp(np.linspace(0, 1, 25), [0, 0.35, 1], [0.5, 1.1, 1.5])
        face.fill(ribbon(smooth_curve(brow, False), widths), np.minimum(look.hair, look.skin * 0.55), 0.92, soft=0.008)


def _draw_nose(face: Face) -> None:
    """Nostrils, wings and the shadow below; the ridge is made by the light."""
    look, unit, p = face.look, face.unit, face.points
    shadow = look.skin * 0.45
    for wing, next_, side in ((31, 32, -1), (35, 34, 1)):
        nostril = 0.35 * p[wing] + 0.65 * p[next_] + [0.0, -0.012 * unit]
        outline = face.disc(nostril, 0.045)
        outline[:, 1] = nostril[1] + 0.55 * (outline[:, 1] - nostril[1])
        face.fill(outline, shadow * 0.6, 0.85, soft=0.012)
        across = (p[35] - p[31]) / np.linalg.norm(p[35] - p[31])
        up = np.array([across[1], -across[0]]) * unit
        curve = np.stack([p[wing] + 0.1 * up, p[wing] + side * across * 0.035 * unit + 0.03 * up, p[wing]])
        face.fill(ribbon(smooth_curve(curve, False), 0.02 * unit), shadow, 0.5, soft=0.01)
    face.fill(ribbon(smooth_curve(p[31:36], False), 0.02 * unit), shadow, 0.45, soft=0.012)


def _draw_mouth(face: Face) -> None:
    """Lips between the outer and the inner points; teeth and darkness where they part."""
    look, unit, p = face.look, face.unit, face.points
    upper = np.concatenate([smooth_curve(p[48:55], False), smooth_curve(p[[64, 63, 62, 61, 60]], False)])
    lower = np.concatenate(
        [smooth_curve(p[[54, 55, 56, 57, 58, 59, 48]], False), smooth_curve(p[[60, 67, 66, 65, 64]], False)]
    )
    face.fill(lower, look.lips, soft=0.006)
    face.fill(upper, look.lips * 0.82, soft=0.006)
    inside = np.concatenate([smooth_curve(p[60:65], False), smooth_curve(p[[64, 65, 66, 67, 60]], False)])
    gap = np.linalg.norm(p[66] - p[62]) / unit
    face.fill(inside, np.array([0.16, 0.05, 0.05]), lit=0.4)
    if gap > 0.03:
        down = (p[66] - p[62]) / gap
        teeth = np.concatenate(
            [p[60:65], p[[64, 63, 62, 61, 60]] + down * min(0.6 * gap, 0.04 + 0.8 * face.expression.lip_raise)]
        )
        face.fill(teeth, np.array([0.9, 0.87, 0.8]), 0.92, lit=0.6, within=inside)
        if gap > 0.16:
            tongue = face.disc(p[66] - 0.02 * down, 0.13)
            face.fill(tongue, np.array([0.62, 0.27, 0.26]), 0.8, lit=0.5, soft=0.02, within=inside)
    seam = smooth_curve(np.concatenate([p[48:49], (p[60:65] + p[[60, 67, 66, 65, 64]]) / 2, p[54:55]]), False)
    face.fill(ribbon(seam, 0.022 * unit), look.lips * 0.3, 0.8 if gap < 0.03 else 0.25)
    for corner in (p[48], p[54]):
        face.fill(face.disc(corner, 0.022), look.skin * 0.4, 0.6, soft=0.012)


def _draw_lines(face: Face) -> None:
    """Folds of the skin that movements and age leave: cheeks, forehead, between the brows, on the nose."""
    look, e, p, unit = face.look, face.expression, face.points, face.unit
    dark = look.skin * 0.5
    for wing, corner, raised in ((p[31], p[48], e.corner_left), (p[35], p[54], e.corner_right)):
        out = (corner - (p[48] + p[54]) / 2) / np.linalg.norm(corner - p[51]) * unit
        fold = np.stack([wing + 0.06 * out, 0.5 * (wing + corner) + 0.17 * out, corner + 0.12 * out])
        strength = min(0.1 + 2.2 * max(raised, 0.0) + 0.3 * e.nose_wrinkle + 0.3 * look.age, 0.6)
        face.fill(ribbon(smooth_curve(fold, False), 0.022 * unit), dark, strength, soft=0.014)
    brows = 0.5 * (p[19] + p[24])
    up = (brows - p[28]) / np.linalg.norm(brows - p[28]) * unit
    across = (p[26] - p[17]) / np.linalg.norm(p[26] - p[17])
    raised = max(e.brow_inner, 0.0) + max(e.brow_outer, 0.0)
    for height in (0.14, 0.24, 0.34) if raised + look.age > 0.1 else ():
        line = brows + height * up + 0.9 * ((p[18:26] - brows) @ across)[:, None] * across
        face.fill(ribbon(smooth_curve(line, False), 0.018 * unit), dark, 1.2 * raised + 0.15 * look.age, soft=0.012)
    frown = max(e.brow_pinch, 0.0) * (1.0 if e.brow_inner < 0 else 0.4)
    for brow, other in ((p[21], p[22]), (p[22], p[21])) if frown > 0.005 else ():
        inner = 0.8 * brow + 0.2 * other
        crease = np.stack([inner + 0.05 * up, inner - 0.07 * up])
        face.fill(ribbon(crease, 0.022 * unit), dark, min(8 * frown, 0.65), soft=0.01)
    for height in (0.35, 0.75) if e.nose_wrinkle > 0.1 else ():
        middle = p[27] + height * (p[28] - p[27])
        half = (p[42] - p[39]) * 0.3
        wrinkle = np.stack([middle - half - 0.05 * up, middle, middle + half - 0.05 * up])
        face.fill(ribbon(smooth_curve(wrinkle, False), 0.016 * unit), dark, 0.35 * e.nose_wrinkle, soft=0.012)


def _draw_glasses(face: Face) -> None:
    """Two rims, a bridge and temples."""
    p, unit, colour = face.points, face.unit, np.full(3, 0.1)
    centres = [p[36:42].mean(0), p[42:48].mean(0)]
    for centre, temple in zip(centres, (p[0], p[16]), strict=True):
        rim = face.disc(centre, 0.235)
        face.fill(ribbon(np.concatenate([rim, rim[:1]]), 0.03 * unit), colour, lit=0.3)
        out = (temple - centre) / np.linalg.norm(temple - centre) * 0.235 * unit
        face.fill(ribbon(np.stack([centre + out, temple]), 0.03 * unit), colour, lit=0.3)
    inward = (centres[1] - centres[0]) / np.linalg.norm(centres[1] - centres[0]) * 0.235 * unit
    face.fill(ribbon(np.stack([centres[0] + inward, centres[1] - inward]), 0.03 * unit), colour, lit=0.3)
