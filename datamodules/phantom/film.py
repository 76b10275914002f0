"""The phantom's film: soft tissue, collimator, lead markers, exposure and noise.

All of it is drawn alike for normal and abnormal images.
"""

from itertools import pairwise

import cv2
import numpy as np

from datamodules.phantom.bones import Array, Pose, Random, Scene, smooth_noise
from datamodules.phantom.lesions import disc, fill, stroke


def soft_tissue(random: Random, scene: Scene, pose: Pose, shape: tuple[int, int]) -> Array:
    """Return the thickness of soft tissue (H, W) float32, about 0..1."""
    inside = np.zeros(shape, np.uint8)
    for chain in scene.soft:
        points = [(pose((x, y)), radius * pose.scale) for x, y, radius in chain]
        for (first, near), (last, far) in pairwise(points):
            along = (last - first) / max(float(np.linalg.norm(last - first)), 1e-6)
            side = np.array([-along[1], along[0]])
            near_side, far_side = side * near, side * far
            ends = first + near_side, last + far_side, last - far_side, first - near_side
            fill(inside, np.array(ends), cv2.LINE_8)
        for centre, radius in points:
            disc(inside, centre, radius)
    # A border of ones: the film's edge cuts the limb, it is no skin.
    padded = cv2.copyMakeBorder(inside, 24, 24, 24, 24, cv2.BORDER_REPLICATE)
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, 3)[24:-24, 24:-24]
    deepest = np.float32(max(3.2 * pose.scale, 1))
    share = np.minimum(depth / deepest, 1)
    thick = np.sqrt(share * (2 - share))
    thick = cv2.GaussianBlur(thick, (0, 0), 1.2 * max(shape) / 160)
    height, width = shape
    planes = smooth_noise(random, height, width, 0.09 * max(shape))
    return thick * (1 + 0.07 * planes)


def foreign_bodies(random: Random, bones: Array, mirrored: bool, pixel: float) -> Array:
    """Return metal (H, W) float32 that says nothing of the label: markers, buttons, clips."""
    metal = np.zeros(bones.shape, np.uint8)
    covered = cv2.boxFilter(bones, -1, (2 * round(6 * pixel) + 1,) * 2)
    if random.random() < 0.9:
        letter = "R" if mirrored else "L"
        _letters(random, metal, covered, letter, random.uniform(0.5, 0.8) * pixel, pixel)
    if random.random() < 0.2:
        words = str(random.choice(("AP", "PA", "LAT", "PORT", "3")))
        _letters(random, metal, covered, words, 0.32 * pixel, 1)
    if random.random() < 0.05:
        disc(metal, _free_place(random, covered, 0.1), random.uniform(2, 4) * pixel)
    if random.random() < 0.04:
        angle = random.uniform(0, np.pi)
        first = _free_place(random, covered, 0.1)
        reach = np.array([np.cos(angle), np.sin(angle)]) * random.uniform(6, 12) * pixel
        stroke(metal, first, first + reach, 1.6 * pixel)
    return metal.astype(np.float32) / 255


def beam(random: Random, shape: tuple[int, int]) -> Array:
    """Return how much of the beam reaches each pixel (H, W) float32, 0 outside the collimator."""
    height, width = shape
    if random.random() < 0.25:
        return np.ones(shape, np.float32)
    left, top, right, bottom = random.uniform(-0.03, 0.09, 4)  # how far each edge lies inside
    right, bottom = 1 - right, 1 - bottom
    corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    centred = (corners - 0.5) * (width, height)
    angle = np.radians(random.normal(0, 2.5))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = centred @ turn.T + np.array([width, height]) / 2
    open_field = np.zeros(shape, np.uint8)
    fill(open_field, points)
    return cv2.GaussianBlur(open_field, (0, 0), random.uniform(0.5, 1.2)).astype(np.float32) / 255


def expose(
    random: Random, bones: Array, soft: Array, metal: Array, beam: Array, pixel: float
) -> Array:
    """Return the film (H, W) uint8 for the attenuation of bones, soft tissue and metal."""
    height, width = bones.shape
    anatomy = 1.5 * bones + soft
    hardness = random.uniform(0.45, 0.85)
    bright = 1 - np.exp(-hardness * (anatomy + 4.0 * metal))
    bright = cv2.GaussianBlur(bright, (0, 0), random.uniform(0.4, 0.65) * pixel)
    sample = np.sort((1 - np.exp(-hardness * anatomy[::3, ::3])).ravel())
    white = float(sample[int(0.992 * len(sample))])
    base = random.uniform(0.02, 0.1)
    level = random.uniform(0.66, 1.0)
    film = base + (level - base) * bright / max(white, 0.2)
    gamma = random.uniform(0.9, 1.25)
    film = np.clip(film, 0, 1.15) ** gamma
    across = np.linspace(-1, 1, width, dtype=np.float32)[None, :] * random.normal(0, 0.03)
    down = np.linspace(-1, 1, height, dtype=np.float32)[:, None] * random.normal(0, 0.03)
    film *= 1 + across + down
    white_noise = random.standard_normal((height, width), np.float32)
    grain = cv2.GaussianBlur(white_noise, (0, 0), random.uniform(0.35, 0.7) * pixel)
    strength = random.uniform(0.006, 0.014)
    film += grain / grain.std() * strength * (0.4 + film)
    shutter = random.uniform(0.0, 0.03)
    film = shutter + (film - shutter) * beam
    return np.clip(np.rint(film * 255), 0, 255).astype(np.uint8)


def _letters(
    random: Random, metal: Array, covered: Array, text: str, height: float, pixel: float
) -> None:
    """Put ``text`` where no bone is, upright, turned or mirrored."""
    thickness = max(1, round(1.4 * pixel))
    (wide, high), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, height, thickness)
    side = max(wide, high) + 6
    if side > min(metal.shape):
        return  # no room on a tiny film
    stamp = np.zeros((side, side), np.uint8)
    origin = ((side - wide) // 2, (side + high) // 2)
    cv2.putText(stamp, text, origin, cv2.FONT_HERSHEY_SIMPLEX, height, 255, thickness, cv2.LINE_AA)
    turn = cv2.getRotationMatrix2D((side / 2, side / 2), float(random.normal(0, 12)), 1)
    turned: Array = cv2.warpAffine(stamp, turn, (side, side))
    if random.random() < 0.15:
        turned = turned[:, ::-1]
    corner = _free_place(random, covered, 0.07) - side / 2
    x, y = (int(value) for value in np.clip(corner, 0, np.array(metal.shape[::-1]) - side))
    place = metal[y : y + side, x : x + side]
    np.maximum(place, turned * random.uniform(0.5, 1.0), out=place, casting="unsafe")


def _free_place(random: Random, covered: Array, edge: float) -> Array:
    """Return a pixel place (x, y) towards the film's border, off the bones where there is room."""
    height, width = covered.shape
    places = random.uniform(edge, 1 - edge, (12, 2))
    sides = random.integers(0, 2, 12)
    places[np.arange(12), sides] = edge + random.uniform(0, 0.12, 12)
    places = np.where(random.random((12, 2)) < 0.5, 1 - places, places)
    rows, columns = (places[:, 1] * height).astype(int), (places[:, 0] * width).astype(int)
    return places[int(np.argmin(covered[rows, columns]))] * (width, height)
