"""Which images a panel shows."""

import torch

from callbacks.panels import spread


def chosen(label, has_lesion, body_part, count):
    batch = {"label": label, "has_lesion": has_lesion, "body_part": body_part}
    tensors = {name: torch.tensor(values) for name, values in batch.items()}
    return spread(tensors, count).tolist()


def test_abnormal_images_of_all_parts_come_first_and_some_are_normal():
    label = [1, 1, 1, 1, 0, 0, 0, 1]
    part = [0, 0, 1, 1, 0, 0, 1, 2]
    assert chosen(label, [True] * 8, part, 4) == [0, 2, 7, 4]
    assert chosen(label, [True] * 8, part, 8) == [0, 2, 7, 1, 3, 4, 6, 5]


def test_masked_images_come_before_others_and_gaps_are_filled():
    assert chosen([1, 1, 1], [False, True, False], [0, 0, 1], 4) == [1, 0, 2]
    assert chosen([0, 0, 0, 0, 0], [False] * 5, [0, 0, 0, 0, 1], 4) == [0, 4, 1, 2]
