"""Random changes to training images, a pure function of (seed, draw, image).

The transform is seeded anew for every sample, so workers, ranks and restarts cannot change it.
"""

import os
import random

import cv2
import numpy as np

# Without this the import asks PyPI for a newer version; compute nodes have no network.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations as A

from datamodules.options import Augmentation


class Augmenter:
    """Augment an image and its lesion mask together; an option of 0 switches its change off."""

    def __init__(self, strength: Augmentation, seed: int) -> None:
        self.seed = seed
        moves = A.Affine(
            rotate=(-strength.rotate, strength.rotate),
            scale=(1 - strength.scale, 1 + strength.scale),
            translate_percent=(-strength.shift, strength.shift),
            interpolation=cv2.INTER_LINEAR,
            mask_interpolation=cv2.INTER_LINEAR,
            p=1.0,
        )
        greys = A.RandomBrightnessContrast(strength.brightness, strength.contrast, p=1.0)
        steps: list[tuple[float, A.BasicTransform]] = [
            (strength.flip, A.HorizontalFlip(p=strength.flip)),
            (strength.rotate or strength.scale or strength.shift, moves),
            (strength.brightness or strength.contrast, greys),
            (strength.noise, A.GaussNoise(std_range=(0.0, strength.noise), p=1.0)),
        ]
        self.steps = [step for wanted, step in steps if wanted]

    def __call__(
        self, image: np.ndarray, mask: np.ndarray | None, draw: int, index: int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Change ``image`` and ``mask``, both (H, W) uint8."""
        seed = int(np.random.SeedSequence((self.seed, draw, index)).generate_state(1)[0])
        # One state for all steps, unlike Compose's seed: it would tie contrast to the flip.
        states = np.random.default_rng(seed), random.Random(seed)
        for step in self.steps:
            step.set_random_state(*states)
            # albumentations wants a channel axis for noise to be drawn per pixel, not per row
            targets = {"image": image[..., None]} | ({} if mask is None else {"mask": mask})
            changed = step(**targets)
            image, mask = changed["image"][..., 0], changed.get("mask")
        return image, mask
