"""The phantom's lesions: what they do to a bone's attenuation, and the pixels they occupy.

Each function works in the bone's own frame (``bones.Frame``) and returns a mask of the frame's
shape; metal is drawn on the whole film.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from datamodules.phantom.bones import Array, Bone, Frame, Pose, Random, Site, axis_point


@dataclass
class Fracture:
    """A broken line across a bone; ``distance`` (h, w) is signed, positive on the distal side."""

    distance: Array
    gap: float
    band: float
    half: float
    chips: list[tuple[float, float, float]]

    @classmethod
    def break_bone(
        cls, random: Random, frame: Frame, place: float, area: float, pixel: float
    ) -> Fracture:
        """Displace the bone's frame about a jagged line and return the line.

        Both ends of the bone stay in place: the step fades towards the distal end, and the axis
        bends towards a peak at the break.
        """
        at = place * frame.length
        half = float(frame.w[np.abs(frame.s - at) < 2].max(initial=frame.shaft))
        slope = random.choice((-1, 1)) * random.uniform(0.1, 0.75)
        knots = np.linspace(-1.5, 1.5, 10) * half
        jag = random.uniform(-1, 1, 10) * random.uniform(0.16, 0.3) * half
        line = at + slope * frame.v + np.interp(frame.v, knots, jag).astype(np.float32)
        distance = ((frame.s - line) / np.hypot(1, slope)).astype(np.float32)
        step = random.choice((-1, 1)) * random.uniform(0.4, 0.8) * half
        bend = random.choice((-1, 1)) * random.uniform(0.04, 0.2)
        reach = np.minimum(frame.s, frame.length - frame.s) / min(at, frame.length - at)
        fade = np.clip((frame.length - frame.s) / (frame.length - at), 0, 1)
        peak = bend * min(at, frame.length - at, 5 * half)
        frame.v = frame.v - peak * np.clip(reach, 0, 1) - step * fade * (distance > 0)
        band = float(np.clip(0.25 * area / half, 2.6 * pixel, 8.0 * pixel))
        chips = [
            (float(side), float(random.uniform(-0.5, 0.5)), float(random.uniform(0.2, 0.36)))
            for side in (-1, 1)
            if random.random() < 0.6
        ]
        return cls(distance, random.uniform(1.7, 2.6) * pixel, band, half, chips)

    def open_gap(self, taken: Array, frame: Frame) -> Array:
        """Darken the gap in ``taken`` in place, add the fragments, and return the mask."""
        # The broken ends are driven into one another beside the gap: denser there.
        edge = (np.abs(self.distance) - 2.1 * self.gap) / self.gap
        taken *= 1 + 0.6 * np.exp(-(edge**2))
        taken *= 1 - 0.97 * np.exp(-((self.distance / self.gap) ** 4))
        mask = (np.abs(self.distance) < self.band) & (np.abs(frame.v) < frame.w + 0.5)
        for side, along, size in self.chips:  # splinters of cortex beside the break
            away = ((frame.v / self.half - side * 1.2) / (0.7 * size)) ** 2
            away = away + ((self.distance / self.half - along) / (1.6 * size)) ** 2
            taken += 0.7 * np.clip(2.2 - 2 * away, 0, 1)
            mask |= away < 1
        return mask


def _blob(
    random: Random, frame: Frame, place: float, half: Array | float, long: float, off: float
) -> Array:
    """Return a rounded, uneven distance (h, w): below 1 inside a blob about the bone's axis."""
    across = (frame.v - off) / half
    along = (frame.s - place * frame.length) / long
    angle = np.arctan2(across, along)
    uneven = np.ones_like(angle)
    for lobes in (2, 3, 5):
        uneven += random.uniform(0.03, 0.11) * np.cos(lobes * angle + random.uniform(0, 6.3))
    return np.sqrt(across**2 + along**2) / uneven


def lytic(random: Random, frame: Frame, taken: Array, place: float, area: float) -> Array:
    """Eat a hole with a thinned cortex into ``taken`` in place and return the mask."""
    width = float(frame.w[np.abs(frame.s - place * frame.length) < 2].max(initial=frame.shaft))
    half = width * random.uniform(0.8, 1.05)
    long = float(np.clip(area / (np.pi * half), 0.9 * half, 3.0 * half))
    off = random.uniform(-0.25, 0.25) * width
    distance = _blob(random, frame, place, half, long, off)
    hole = 1 / (1 + np.exp(np.clip((distance - 1) * min(half, long) * 1.6, -30, 30)))
    # A shell of cortex stays along the bone's edge.
    shell = np.clip((np.abs(frame.v) - frame.w + 1.6) / 1.2, 0, 1)
    taken *= 1 - hole * (0.95 - 0.35 * shell)
    inside = np.abs(frame.v) < frame.w
    taken += 0.5 * inside * np.exp(-(((distance - 1.2) / 0.16) ** 2))  # the bone's reaction
    return (hole > 0.5) & inside


def sclerotic(
    random: Random, frame: Frame, taken: Array, place: float, area: float, texture: Array
) -> Array:
    """Add a dense, blurred focus to ``taken`` in place and return the mask."""
    width = float(frame.w[np.abs(frame.s - place * frame.length) < 2].max(initial=frame.shaft))
    half = width * random.uniform(0.6, 0.85)
    long = float(np.clip(area / (np.pi * half), 0.9 * half, 3.0 * half))
    distance = _blob(random, frame, place, half, long, random.uniform(-0.2, 0.2) * width)
    focus = np.exp(-0.693 * distance**4)
    inside = np.abs(frame.v) < frame.w
    taken += focus * inside * (random.uniform(1.0, 1.35) + 0.12 * texture)
    return (focus > 0.5) & inside


def fill(canvas: Array, corners: Array, line: int = cv2.LINE_AA) -> None:
    """Draw a convex polygon of ``corners`` (x, y) on uint8 (H, W), to a 16th of a pixel."""
    cv2.fillConvexPoly(canvas, np.rint(corners * 16).astype(np.int32), 255, line, 4)


def stroke(canvas: Array, first: Array, last: Array, width: float) -> None:
    """Draw a straight bar of ``width`` px from ``first`` to ``last`` (x, y) on uint8 (H, W)."""
    along = (last - first) / max(float(np.linalg.norm(last - first)), 1e-6)
    side = np.array([-along[1], along[0]]) * width / 2
    fill(canvas, np.array([first + side, last + side, last - side, first - side]))


def disc(canvas: Array, centre: Array, radius: float, value: int = 255) -> None:
    """Draw a filled circle of ``radius`` px about ``centre`` (x, y) on uint8 (H, W)."""
    x, y = np.rint(np.asarray(centre) * 16).astype(int).tolist()
    cv2.circle(canvas, (x, y), max(1, round(radius * 16)), value, -1, cv2.LINE_AA, 4)


def hardware(
    random: Random, bone: Bone, pose: Pose, shape: tuple[int, int], site: Site, pixel: float
) -> Array:
    """Return the metal (H, W) uint8 of a plate, a nail, wires or screws on ``bone``."""
    metal = np.zeros(shape, np.uint8)
    length = float(np.linalg.norm(pose(bone.end) - pose(bone.start)))
    shaft = bone.profile[3] * pose.scale
    reach = np.clip(random.uniform(2.6, 4.0) * shaft, 13 * pixel, 26 * pixel) / length
    first, last = np.clip((site.place - reach, site.place + reach), 0.04, 0.96)
    ends = axis_point(bone, pose, first), axis_point(bone, pose, last)
    along = (ends[1] - ends[0]) / np.linalg.norm(ends[1] - ends[0])
    across = np.array([-along[1], along[0]]) * random.choice((-1, 1))
    kind = site.metal
    thread = max(1.5 * pixel, 0.14 * shaft)
    count = int(random.integers(4, 7))
    spots = [ends[0] + (ends[1] - ends[0]) * t for t in np.linspace(0.06, 0.94, count)]
    if kind == "plate":
        stroke(metal, *ends, max(0.62 * shaft, 3.2 * pixel))
        for spot in spots:
            disc(metal, spot, max(0.42 * shaft, 2.2 * pixel))
        gaps = metal.copy()
        for spot, used in zip(spots, random.random(count) < 0.3, strict=True):
            if used:
                disc(gaps, spot, max(0.16 * shaft, 0.9 * pixel), 60)
        metal = gaps
    elif kind == "side plate":
        side = across * 1.02 * shaft
        stroke(metal, ends[0] + side, ends[1] + side, max(0.34 * shaft, 2.4 * pixel))
        for spot in spots:
            stroke(metal, spot + side * 1.25, spot - side * random.uniform(0.5, 1.0), thread)
    elif kind == "nail":
        stroke(metal, *ends, max(0.55 * shaft, 3.0 * pixel))
        for spot in (spots[0], spots[-1]):
            stroke(metal, spot - across * 1.15 * shaft, spot + across * 1.15 * shaft, thread)
    elif kind == "wires":
        for sign in (-1, 1):
            lift = across * shaft * sign * random.uniform(0.7, 1.2)
            stroke(metal, ends[0] + lift, ends[1] - lift, max(1.7 * pixel, 0.16 * shaft))
    else:
        for spot in spots[1:4]:
            slant = along * random.uniform(-0.5, 0.5) * shaft
            tip = spot + across * 1.1 * shaft + slant
            head = spot - across * 1.2 * shaft - slant
            stroke(metal, head, tip, max(1.8 * pixel, 0.24 * shaft))
            disc(metal, head, max(1.8 * pixel, 0.28 * shaft))
    return metal
