"""The phantom's bones: hollow round tubes in cm, and what they take from the ray.

The lengths on which a ray crosses cortex and medulla make the cortex the brighter rim. Lesions act
in the bone's own frame (s along, v across, pixels): what overlaps a lesion shows through it.
"""

from dataclasses import dataclass, field
from functools import lru_cache

import cv2
import numpy as np

Array = np.ndarray
STEPS = 256  # entries of a bone's tables along its axis
TILE = 128  # side of the trabecular texture, pixels
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


@dataclass
class Pose:
    """Where the scene's centimetres fall on the film: ``pixel = matrix @ cm + offset``."""

    matrix: Array
    offset: Array
    scale: float
    mirrored: bool

    def __call__(self, point: Point) -> Array:
        """Return the pixel place (x, y) of a point in centimetres."""
        return self.matrix @ np.asarray(point) + self.offset


@dataclass
class Site:
    """Where the lesion sits, and what is the same in all views of a study."""

    bone: int  # its number in the scene
    place: float  # along the bone, 0 to 1
    area: float  # wanted size, pixels
    metal: str  # kind of hardware, were it that


@dataclass
class Tissue:
    """What one person's bones are made of."""

    trabeculae: Array  # (TILE, TILE) texture, mean 0
    medulla: float  # attenuation of the medulla relative to cortex
    growing: bool  # whether growth plates are open


@dataclass
class Frame:
    """A bone in its own coordinates over the box of the film that holds it, all (h, w) float32."""

    box: tuple[slice, slice]  # rows, columns of the film
    s: Array  # distance along the axis from the start
    v: Array  # signed distance from the axis
    w: Array  # half width at s
    steps: Array  # s as an index into the bone's tables
    length: float
    shaft: float  # half width of its middle


def smooth_noise(random: Random, height: int, width: int, sigma: float) -> Array:
    """Return (height, width) noise of mean 0 and standard deviation 1, smooth over ``sigma`` px."""
    shrink = max(1.0, sigma / 1.5)
    small = random.standard_normal((int(height / shrink) + 4, int(width / shrink) + 4), np.float32)
    blurred: Array = cv2.GaussianBlur(small, (0, 0), sigma / shrink)
    blurred /= blurred.std() + 1e-6
    return cv2.resize(blurred, (width, height), interpolation=cv2.INTER_CUBIC)


def trabecular_texture(random: Random) -> Array:
    """Return a (TILE, TILE) net of fine struts, longer along the columns' direction."""
    fine = cv2.GaussianBlur(
        random.standard_normal((TILE, TILE), np.float32), (0, 0), sigmaX=0.8, sigmaY=1.9
    )
    coarse = smooth_noise(random, TILE, TILE, 5.0)
    return fine / fine.std() + 0.3 * coarse


@lru_cache(maxsize=64)  # asked for again where a lesion is placed
def _tables(bone: Bone, scale: float) -> tuple[Array, ...]:
    """Half width, axis offset and cortical thickness (STEPS + 1,) along a bone, pixels."""
    t = np.linspace(0, 1, STEPS + 1)
    length = float(np.hypot(bone.end[0] - bone.start[0], bone.end[1] - bone.start[1]))
    kernel = np.ones(25) / 25
    width = np.convolve(np.pad(np.interp(t, KNOTS, bone.profile), 12, "edge"), kernel, "valid")
    shaft = bone.profile[3]
    # The cortex thins towards the joints, where only the subchondral plate is left.
    cortex = np.interp(t, KNOTS, (0.09, 0.13, 0.7, 1, 0.7, 0.13, 0.09)) * bone.cortex * shaft
    for at_start, share in ((True, bone.caps[0]), (False, bone.caps[1])):
        cap = share * bone.profile[0 if at_start else -1] / length
        place = (t if at_start else 1 - t) / max(cap, 1e-6)
        # A superellipse: joints are blunter than a half circle.
        width = width * (1 - np.clip(1 - place, 0, 1) ** 2.2) ** (1 / 2.2)
    cortex = np.maximum(cortex, 0.09 * shaft)
    ease = np.clip((0.3 - t) / 0.3, 0, 1) ** 2, np.clip((t - 0.7) / 0.3, 0, 1) ** 2
    middle = 4 * bone.bow * length * t * (1 - t) + bone.lean[0] * ease[0] + bone.lean[1] * ease[1]
    return tuple((scale * one).astype(np.float32) for one in (width, middle, cortex))


def axis_point(bone: Bone, pose: Pose, place: float) -> Array:
    """Return the pixel (x, y) of the bone's axis at ``place`` (0..1)."""
    start, end = pose(bone.start), pose(bone.end)
    along = (end - start) / np.linalg.norm(end - start)
    across = np.array([-along[1], along[0]]) * (-1 if pose.mirrored else 1)
    middle = _tables(bone, pose.scale)[1]
    return start + (end - start) * place + across * middle[int(place * STEPS)]


def bone_frame(bone: Bone, pose: Pose, shape: tuple[int, int]) -> tuple[Frame, Array] | None:
    """Return the bone's frame and its cortical thickness, or None where it is off the film."""
    start, end = pose(bone.start), pose(bone.end)
    length = float(np.linalg.norm(end - start))
    along = (end - start) / length
    across = np.array([-along[1], along[0]]) * (-1 if pose.mirrored else 1)
    widths, middles, cortex = _tables(bone, pose.scale)
    margin = 1.25 * float(widths.max() + np.abs(middles).max()) + 3
    low = np.floor(np.minimum(start, end) - margin).astype(int)
    high = np.ceil(np.maximum(start, end) + margin).astype(int)
    x0, y0 = np.maximum(low, 0)
    x1, y1 = np.minimum(high, (shape[1], shape[0]))
    if x1 - x0 < 2 or y1 - y0 < 2:
        return None
    x = np.arange(x0, x1, dtype=np.float32)[None, :] - np.float32(start[0])
    y = np.arange(y0, y1, dtype=np.float32)[:, None] - np.float32(start[1])
    s = x * np.float32(along[0]) + y * np.float32(along[1])
    v = x * np.float32(across[0]) + y * np.float32(across[1])
    steps = (np.clip(s / length, 0, 1) * STEPS).astype(np.int32)
    w = widths[steps] * ((s >= 0) & (s <= length))
    box, shaft = (slice(y0, y1), slice(x0, x1)), bone.profile[3] * pose.scale
    return Frame(box, s, v - middles[steps], w, steps, length, shaft), cortex


def attenuation(bone: Bone, frame: Frame, cortex: Array, tissue: Tissue, shift: int) -> Array:
    """Return what the bone takes from the ray (h, w), in half widths of its own shaft."""
    square = frame.v**2
    outer = np.sqrt(np.maximum(frame.w**2 - square, 0))
    inner_radius = np.maximum(frame.w - cortex[frame.steps], 0)
    inner = np.sqrt(np.maximum(inner_radius**2 - square, 0))
    rows = (frame.s * 0.8 + shift).astype(np.int32) % TILE
    columns = (frame.v + 2 * shift).astype(np.int32) % TILE
    # More struts near the joints than in the shaft's marrow.
    spongy = np.interp(
        np.linspace(0, 1, STEPS + 1), (0, 0.1, 0.3, 0.7, 0.9, 1), (2.0, 1.8, 1, 1, 1.8, 2.0)
    ).astype(np.float32)[frame.steps]
    struts = 1 + 0.12 * spongy * tissue.trabeculae[rows, columns]
    taken = (outer - inner) + inner * (tissue.medulla * spongy * struts)
    # A head is flatter than it is wide.
    taken *= np.sqrt(frame.shaft / np.maximum(frame.w, frame.shaft)) / frame.shaft
    if tissue.growing:
        taken *= _growth_plates(bone, frame)
    return taken * np.float32(bone.density)


def _growth_plates(bone: Bone, frame: Frame) -> Array:
    """Return a factor (h, w) with a regular dark line across the ends of a growing bone."""
    factor = np.ones_like(frame.s)
    for at_start, place in ((True, 0.1), (False, 0.9)):
        if bone.profile[0 if at_start else -1] < 1.12 * bone.profile[3]:
            continue
        curve = 0.12 * frame.w * np.cos(2.2 * frame.v / np.maximum(frame.w, 1))
        distance = np.abs(frame.s - place * frame.length - curve)
        factor *= 1 - 0.38 * np.exp(-(distance**2)) + 0.2 * np.exp(-((distance - 2.4) ** 2))
    return factor
