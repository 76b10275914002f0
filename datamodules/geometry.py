"""How an image came into the cache, and how a map finds its way back: one affine, in whole pixels.

An upright radiograph is cropped to a box, scaled to fit a square and centred on black (letterbox).
"""

from typing import NamedTuple

import cv2
import numpy as np

# Film outside the exposed field, letterbox bars: the value of no exposure.
BLACK = 0
# A row or column mostly brighter than BAR is a bar, not body. EDGE pixels around the small copy may
# hold thinner bars and are left out; the margin restores them where the body leaves the film.
BAR, EDGE = 225, 6
# Film is a grey level +- FILM_SPREAD that at least FILM_SHARE of the pixels have.
FILM_SPREAD, FILM_SHARE = 5, 0.2


class Geometry(NamedTuple):
    """Box of the original that was kept, and the box of the square that it fills (pixels)."""

    height: int
    width: int
    crop_left: int
    crop_top: int
    crop_width: int
    crop_height: int
    left: int
    top: int
    inner_width: int
    inner_height: int

    @property
    def inside(self) -> tuple[slice, slice]:
        """Rows and columns of the square that the image fills."""
        rows = slice(self.top, self.top + self.inner_height)
        return rows, slice(self.left, self.left + self.inner_width)

    @property
    def kept(self) -> tuple[slice, slice]:
        """Rows and columns of the original that were kept."""
        rows = slice(self.crop_top, self.crop_top + self.crop_height)
        return rows, slice(self.crop_left, self.crop_left + self.crop_width)


def letterbox(
    height: int, width: int, size: int, box: tuple[int, int, int, int] | None = None
) -> Geometry:
    """Fit an image (or its ``box``: left, top, width, height) into a square of ``size`` pixels."""
    crop = box or (0, 0, width, height)
    scale = size / max(crop[2:])
    inner_width, inner_height = (max(1, round(side * scale)) for side in crop[2:])
    left, top = (size - inner_width) // 2, (size - inner_height) // 2
    return Geometry(height, width, *crop, left, top, inner_width, inner_height)


def wrong_size(shape: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """What is wrong with a mask of another ``(H, W)`` than its upright original."""
    actual, wanted = (f"{width}x{height} px" for height, width in (shape, expected))
    return f"is {actual}: expected {wanted}, as its image is upright. Fix: draw it on the original"


def to_square(image: np.ndarray, geometry: Geometry, size: int) -> np.ndarray:
    """Bring an original (H, W) image or mask into the cached square (size, size), same dtype."""
    g = geometry
    # Area averaging keeps thin fracture lines when shrinking; it cannot enlarge.
    shrinks = g.inner_width < g.crop_width or g.inner_height < g.crop_height
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    square = np.full((size, size), BLACK, dtype=image.dtype)
    inner_size = (g.inner_width, g.inner_height)
    square[g.inside] = cv2.resize(image[g.kept], inner_size, interpolation=method)
    return square


def from_square(square: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Bring a map (size, size) back to the original upright image (H, W); zero outside the crop."""
    g = geometry
    size = (g.crop_width, g.crop_height)
    crop = cv2.resize(square[g.inside], size, interpolation=cv2.INTER_LINEAR)
    if crop.shape == (g.height, g.width):  # most are not cropped: no second copy
        return crop
    full = np.zeros((g.height, g.width), dtype=square.dtype)
    full[g.kept] = crop
    return full


def map_from_square(square: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Bring a map with values in [0, 1] back; a constant one stays so: it peaks nowhere."""
    if square.min() == square.max():  # or it would peak where its crop ends
        return np.full((geometry.height, geometry.width), square.flat[0], dtype=square.dtype)
    return from_square(square, geometry).clip(0, 1)  # interpolation may round a 1 up


def content_box(image: np.ndarray) -> tuple[int, int, int, int]:
    """Find the exposed body: left, top, width, height of the bright content of a radiograph.

    Film is the commonest grey level of the darker half of a small blurred copy; what rises above is
    exposed. The box holds every region of at least a twentieth of the largest (two views on one
    film stay, a side marker goes). Without film all is kept: cutting too much costs the lesion.
    """
    height, width = image.shape
    scale = 128 / max(height, width)
    sides = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(image, sides, interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (5, 5), 0)
    counts = np.bincount(small.ravel(), minlength=256)
    near = np.convolve(counts, np.ones(2 * FILM_SPREAD + 1), mode="same")
    level = int(near[: max(1, round(float(small.mean())))].argmax())
    exposed = small > level + 2 * FILM_SPREAD
    exposed[np.percentile(small, 40, axis=1) > BAR] = False
    exposed[:, np.percentile(small, 40, axis=0) > BAR] = False
    exposed[:EDGE] = exposed[-EDGE:] = False
    exposed[:, :EDGE] = exposed[:, -EDGE:] = False
    if near[level] < FILM_SHARE * small.size or not exposed.any():
        return 0, 0, width, height
    regions = cv2.connectedComponentsWithStats(exposed.astype(np.uint8))[2][1:]
    regions = regions[regions[:, cv2.CC_STAT_AREA] > 0.05 * regions[:, cv2.CC_STAT_AREA].max()]
    starts, pad = regions[:, :2], 0.05 * max(height, width)
    low = np.maximum(0, starts.min(axis=0) / scale - pad).astype(int)
    ends = (starts + regions[:, 2:4]).max(axis=0) / scale + pad
    sides = np.minimum((width, height), np.ceil(ends).astype(int)) - low
    if sides.prod() < 0.05 * height * width:
        return 0, 0, width, height
    return int(low[0]), int(low[1]), int(sides[0]), int(sides[1])
