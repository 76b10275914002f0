"""What happens to an image depends on (seed, epoch, image) and on nothing else."""

import albumentations as A
import numpy as np
import pytest

from datamodules.augmentation import Augmenter
from datamodules.options import Augmentation

IMAGE = np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)
ALL = Augmentation(noise=0.05)


def test_is_a_pure_function_of_seed_epoch_and_image() -> None:
    """Other calls before do not matter; each argument does."""
    first = Augmenter(ALL, 3)(IMAGE, None, 5, 7)[0]
    used = Augmenter(ALL, 3)
    for row in range(4):
        used(IMAGE, None, 0, row)
    assert (used(IMAGE, None, 5, 7)[0] == first).all()
    for seed, epoch, row in [(4, 5, 7), (3, 6, 7), (3, 5, 8)]:
        assert (Augmenter(ALL, seed)(IMAGE, None, epoch, row)[0] != first).any()


def test_the_mask_moves_with_the_image() -> None:
    """A bright square is its own mask: they still agree afterwards, whatever the draw."""
    square = np.zeros((64, 64), np.uint8)
    square[20:36, 28:50] = 255
    augment = Augmenter(Augmentation(brightness=0, contrast=0), 0)
    for row in range(20):
        image, mask = augment(square, square.copy(), 0, row)
        assert mask is not None
        assert np.abs(image.astype(int) - mask.astype(int)).max() <= 1
        assert 0.5 * 16 * 22 < (mask > 127).sum() < 1.6 * 16 * 22


def test_zero_strength_changes_nothing() -> None:
    """Every strength at 0 is the identity."""
    still = Augmentation(True, 0, 0, 0, 0, 0, 0, 0)
    assert (Augmenter(still, 0)(IMAGE, None, 0, 0)[0] == IMAGE).all()


@pytest.mark.parametrize(
    "strength",
    [
        Augmentation(),
        ALL,
        Augmentation(rotate=180, scale=0.5, shift=0.5, flip=1.0, contrast=1.0),
        Augmentation(flip=0.0, rotate=0.0, scale=0.0),
    ],
)
def test_the_steps_are_what_compose_makes_of_them(strength: Augmentation) -> None:
    """To the bit."""
    augment = Augmenter(strength, 3)
    compose = A.Compose(augment.steps)
    for row in range(25):
        mask = IMAGE.copy() if row % 2 else None
        image, moved = augment(IMAGE[:, :48], mask if mask is None else mask[:, :48], 1, row)
        compose.set_random_seed(int(np.random.SeedSequence((3, 1, row)).generate_state(1)[0]))
        targets = {} if mask is None else {"mask": mask[:, :48]}
        wanted = compose(image=IMAGE[:, :48, None], **targets)
        assert (image == wanted["image"][..., 0]).all()
        assert mask is None or (moved == wanted["mask"]).all()
