"""The phantom's anatomy: bones and soft tissue, in centimetres, and the parts that scenes share.

Coordinates are (x, y) with y downwards. A bone is a bowed tube whose half width follows a profile
from its start to its end; soft tissue is a union of chains of circles. Nothing here knows of
pixels, of exposure or of lesions, except that a bone says whether a lesion may sit in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

Point = tuple[float, float]
Random = np.random.Generator

# Places along a bone, 0 = start, 1 = end, at which a profile of half widths is given.
KNOTS = (0.0, 0.08, 0.22, 0.5, 0.78, 0.92, 1.0)


@dataclass(frozen=True)
class Bone:
    """A tubular bone; lengths in cm."""

    start: Point  # proximal end
    end: Point  # distal end
    # Half widths at KNOTS; or of a long bone, which tapers, at its start, in its shaft, at its end.
    widths: tuple[float, ...]
    lean: Point = (0.0, 0.0)  # sideways offset of start and end (heads and condyles are lopsided)
    bow: float = 0.0  # sagitta of the bowed axis as a share of the length
    cortex: float = 0.34  # thickness of the shaft's cortex as a share of its half width
    density: float = 1.0  # attenuation relative to a limb's main bone
    site: float = 0.0  # relative chance that a lesion sits here, 0 = never
    caps: Point = (0.55, 0.55)  # length of the rounded start and end, in half widths there

    @property
    def profile(self) -> tuple[float, ...]:
        """Half widths at ``KNOTS``."""
        if len(self.widths) == len(KNOTS):
            return self.widths
        first, shaft, last = self.widths
        ends = (first, first, first, shaft, last, last, last)
        shares = (1.0, 0.75, 0.15, 0.0, 0.15, 0.75, 1.0)
        return tuple(s * end + (1 - s) * shaft for end, s in zip(ends, shares, strict=True))


@dataclass
class Scene:
    """What one view shows; lengths in cm."""

    size: Point  # width and height of the film; its centre is (0, 0)
    bones: list[Bone] = field(default_factory=list)  # in the order in which they are drawn
    # Chains of (x, y, radius); their union is the soft tissue.
    soft: list[list[tuple[float, float, float]]] = field(default_factory=list)
    muscle: float = 0.5  # attenuation of the thickest soft tissue relative to the main bone


def _turn(angle: float) -> np.ndarray:
    """Unit vector ``angle`` degrees from straight up, positive towards +x."""
    return np.array([np.sin(np.radians(angle)), -np.cos(np.radians(angle))])


def ray(
    scene: Scene,
    base: Point,
    angle: float,
    lengths: tuple[float, ...],
    width: float,
    flex: float = 0.0,
    sites: tuple[float, ...] = (1.0, 1.0, 0.6, 0.0),
) -> None:
    """Add a metacarpal and its phalanges, each turned ``flex`` degrees more than the last."""
    place = np.array(base)
    chain = [(*place, 1.9 * width)]
    for order, length in enumerate(lengths):
        direction = _turn(angle + flex * order)
        tip = place + direction * length
        thin = 1.0 - 0.13 * order
        far = (1.42 if order == 0 else 1.2) * width * thin
        scene.bones.append(
            Bone(
                tuple(place),
                tuple(tip),
                (1.5 * width * thin, 0.92 * width * thin, far),
                bow=0.02,
                site=sites[order],
                caps=(0.35, 0.75),
            )
        )
        chain += [(*(place + direction * length * t), 2.05 * width * thin) for t in (0.3, 0.65, 1)]
        place = tip + _turn(angle + flex * (order + 0.5)) * 0.32 * width
    chain[-1] = (*(place - _turn(angle) * 0.2 * width), 1.35 * width)
    scene.soft.append(chain)


def carpals(scene: Scene, random: Random, wide: float, top: float, bottom: float) -> None:
    """Add two rows of four carpal bones between the heights ``top`` and ``bottom``."""
    rows = (bottom + 0.25 * (top - bottom), bottom + 0.75 * (top - bottom))
    height = abs(top - bottom)
    for row, y in enumerate(rows):
        for column in range(4):
            x = wide * (-0.72 + 0.48 * column) + random.normal(0, 0.02) * wide
            lift = -0.07 * height * (1.5 - abs(column - 1.5)) * (1 if row == 0 else 0.5)
            half = 0.235 * wide * random.uniform(0.92, 1.08)
            long = 0.235 * height * (1.25 if (row, column) == (1, 2) else 1.0)
            tilt = random.uniform(-0.25, 0.25) * long
            scene.bones.append(
                Bone(
                    (x - tilt, y + lift + long),
                    (x + tilt, y + lift - long),
                    (0.9 * half, half, half, 0.95 * half, half, half, 0.85 * half),
                    cortex=0.22,
                    density=0.8,
                    caps=(0.9, 0.9),
                )
            )


def forearm_ends(wrist: float, bottom: float, spread: float, scale: float) -> list[Bone]:
    """Radius and ulna from ``bottom`` (off the film) up to the wrist joint."""
    radius = Bone(
        (-1.05 * spread, bottom),
        (-1.0 * spread, wrist),
        (0.8 * scale, 0.78 * scale, 1.5 * scale),
        lean=(0.0, -0.1 * scale),
        bow=0.012,
        site=1.6,
        caps=(0.3, 0.3),
    )
    ulna = Bone(
        (1.3 * spread, bottom),
        (1.45 * spread, wrist + 0.25 * scale),
        (0.75 * scale, 0.6 * scale, 0.85 * scale),
        bow=-0.01,
        site=1.0,
        caps=(0.3, 0.45),
    )
    return [ulna, radius]
