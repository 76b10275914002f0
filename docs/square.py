"""Make the network's square of an image: python square.py MODEL.onnx IMAGE SQUARE.npy."""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image


def read(path: str) -> tuple[np.ndarray, str, int]:
    """Pixels (H, W), their kind, and the EXIF orientation."""
    if path.endswith(".npy"):
        return (image := np.load(path)), f"{image.dtype} {image.shape}", 1
    with Image.open(path) as file:
        # The pixels first: a PNG may name its orientation after them.
        return np.asarray(file), file.mode, file.getexif().get(0x0112, 1)


about = onnxruntime.InferenceSession(sys.argv[1]).get_modelmeta().custom_metadata_map
try:
    image, kind, orientation = read(sys.argv[2])
except OSError as error:
    image, kind, orientation = np.empty(0), f"a file that Pillow cannot read ({error})", 1
grey = image.ndim == 2 and image.dtype == np.uint8 and kind != "P"  # P: numbers of a palette
if not grey or orientation not in (0, 1):
    sys.exit(
        f"{sys.argv[2]}: expected 8-bit grey and upright, got {kind}, EXIF orientation "
        f'{orientation}. Fix: np.save("image.npy", decode(Path(...))), decode from '
        "datamodules.decode, and give image.npy"
    )
recipe = json.loads(about["preprocessing"])
size, (height, width) = recipe["image_size"], image.shape
if recipe["crop"] != "none" or recipe["contrast"] != "none" or max(image.shape) < size:
    sys.exit(f"make the square in another way, as the training did: {recipe}")


def shrink(rows: np.ndarray, count: int) -> np.ndarray:
    """The mean of the rows that fall into each of ``count`` new ones."""
    edges, at = np.arange(count + 1) * len(rows) / count, np.arange(len(rows))
    share = np.minimum(edges[1:, None], at + 1) - np.maximum(edges[:-1, None], at)
    result: np.ndarray = share.clip(0) @ rows * count / len(rows)
    return result


scale = size / max(height, width)
h, w = max(1, round(height * scale)), max(1, round(width * scale))
top, left = (size - h) // 2, (size - w) // 2
square = np.zeros((size, size), np.uint8)
square[top : top + h, left : left + w] = shrink(shrink(image, h).T, w).T.round()
np.save(sys.argv[3], square)
print(f"x of the image: (x + 0.5 - {left}) * {width / w} - 0.5")
print(f"y of the image: (y + 0.5 - {top}) * {height / h} - 0.5")
