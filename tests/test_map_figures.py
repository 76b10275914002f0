"""Localisation from tables and histograms equals what the metrics say of the maps themselves."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.evaluation.compare import say
from experiments.evaluation.map_figures import (
    TOLERANCE,
    MapRows,
    groups,
    iou_curves,
    load_maps,
    localisation,
    save_maps,
)
from experiments.evaluation.statistics import estimates, patient_weights
from lightning_modules.metrics import localisation as peaks
from lightning_modules.metrics import overlap
from lightning_modules.metrics.boxes import box_iou_curve
from tests.test_localisation import draw

THRESHOLD = 0.4


def dice_of(region, mask):
    """Dice from IoU."""
    iou = overlap.iou(region, mask)
    return 2 * iou / (1 + iou)


def references(map, mask, has_lesion):
    """The figures of maps, straight from the maps with a lesion."""
    map, mask = map[has_lesion], mask[has_lesion]
    region = overlap.claimed(map, THRESHOLD)
    boxes = box_iou_curve(map, mask)
    shares = [(boxes >= least).float().mean(dim=0).amax().item() for least in (0.3, 0.5, 0.7)]
    return {
        "hit": peaks.hit(map, mask).float().mean(),
        "hit_near": (peaks.peak_distance(map, mask) <= TOLERANCE).float().mean(),
        "iou": overlap.iou(region, mask).mean(),
        "iou_otsu": overlap.iou(overlap.claimed(map, overlap.otsu_threshold(map)), mask).mean(),
        "dice": dice_of(region, mask).mean(),
        "energy": overlap.energy_in_mask(map, mask).mean(),
        "iou_bound": overlap.best_threshold(overlap.iou_curve(*overlap.level_counts(map, mask)))[1],
        "box_bound": np.mean(shares),
        "pixel_ap": peaks.average_precision(map.flatten(), (mask >= 0.5).flatten()),
    }


def judged(images=24, size=(12, 10)):
    """Maps with their table and rows, made the way an evaluation makes them."""
    map, mask, index, has_lesion = draw(images, size, levels=256)
    mask[::4] *= (torch.arange(10) < 4).float()  # lesions of several sizes
    mask[:, :, 1, 1] = has_lesion.float().view(-1, 1)
    map[1] = 0  # a normal image that stays dark
    region = overlap.claimed(map, THRESHOLD)
    nothing = torch.full((images,), math.nan)

    def of_lesions(values):
        return torch.where(has_lesion, values, nothing).double().numpy()

    table = pd.DataFrame(
        {
            "path": [f"{number}.png" for number in range(images)],
            "patient": [f"p{number // 2}" for number in range(images)],
            "body_part": np.where(np.arange(images) % 2, "hand", "wrist"),
            "lesion_type": np.where(has_lesion, np.where(np.arange(images) % 4, "lytic", ""), ""),
            "label": has_lesion.long().numpy(),
            "lesion_area": of_lesions((mask >= 0.5).float().mean((1, 2, 3))),
            "m_hit": pd.array(of_lesions(peaks.hit(map, mask).float()), dtype="Float64"),
            "m_distance": of_lesions(peaks.peak_distance(map, mask)),
            "m_iou": of_lesions(overlap.iou(region, mask)),
            "m_dice": of_lesions(dice_of(region, mask)),
            "m_iou_otsu": of_lesions(
                overlap.iou(overlap.claimed(map, overlap.otsu_threshold(map)), mask)
            ),
            "m_energy": of_lesions(overlap.energy_in_mask(map, mask)),
            "m_area": region.float().mean((1, 2, 3)).numpy(),
        }
    )
    lesion_pixels, pixels = overlap.level_counts(map, mask)
    counted = has_lesion.view(-1, 1)
    boxes = torch.where(counted, box_iou_curve(map, mask), math.nan)
    rows = MapRows(lesion_pixels.numpy(), (pixels * counted).numpy(), boxes.numpy())
    return (map, mask, index, has_lesion), table, rows


def test_figures_of_the_table_equal_those_of_the_maps():
    batch, table, rows = judged()
    figures = localisation(table, "m", rows)
    ones = np.ones((1, len(table)))
    map, mask, _, has_lesion = batch
    for name, expected in references(map, mask, has_lesion).items():
        assert figures[f"m/{name}"](ones)[0] == pytest.approx(float(expected), abs=1e-6), name


def test_groups_are_figures_of_their_images_alone():
    batch, table, rows = judged()
    figures = localisation(table, "m", rows)
    ones = np.ones((1, len(table)))
    hand = torch.arange(24) % 2 == 1
    map, mask, _, has_lesion = (values[hand] for values in batch)
    expected = references(map, mask, has_lesion)
    for name in ("hit", "iou", "pixel_ap"):
        value = figures[f"m/{name}/hand"](ones)[0]
        assert value == pytest.approx(float(expected[name]), abs=1e-6)
    found = groups(table)
    assert set(found) == {"hand", "wrist", "lytic", "small", "medium", "large"}
    masked = np.flatnonzero(table.lesion_area.notna())
    for names in (["hand", "wrist"], ["small", "medium", "large"]):
        assert sorted(np.concatenate([found[name] for name in names])) == masked.tolist()
    assert not set(found["lytic"]) & set(range(0, 24, 4))


def test_lesions_are_sized_by_their_share_of_the_image():
    table = pd.DataFrame(
        {
            "body_part": "hand",
            "lesion_type": "",
            "lesion_area": [0.009, 0.01, 0.039, 0.04, math.nan],
        }
    )
    found = {name: rows.tolist() for name, rows in groups(table).items()}
    assert found == {"hand": [0, 1, 2, 3], "small": [0], "medium": [1, 2], "large": [3]}


def test_groups_called_alike_are_told_apart():
    columns = {
        "body_part": ["elbow", "elbow", "hand", "small"],
        "lesion_type": ["large", "lytic", "elbow", "large"],
        "lesion_area": [0.001, 0.02, 0.02, 0.05],
        "m_hit": [1, 1, 1, 0],
    }
    table = pd.DataFrame(columns)
    assert {name: rows.tolist() for name, rows in groups(table).items()} == {
        "elbow": [0, 1],
        "hand": [2],
        "body_part/small": [3],
        "lesion_type/elbow": [2],
        "lesion_type/large": [0, 3],
        "lytic": [1],
        "small": [0],
        "medium": [1, 2],
        "large": [3],
    }
    figures = localisation(table, "m")
    assert figures["m/hit/lesion_type/large"](np.ones((1, 4)))[0] == 0.5
    assert figures["m/hit/large"](np.ones((1, 4)))[0] == 0
    assert say("m/hit/lesion_type/large") == "m's hit rate (lesion type large)"


def test_normal_images_count_where_something_is_shown():
    _, table, rows = judged()
    figures = localisation(table, "m", rows)
    ones = np.ones((1, len(table)))
    normal = table[table.label == 0]
    assert figures["m/shown_normal"](ones)[0] == pytest.approx(1 - 1 / len(normal))
    assert figures["m/shown_abnormal"](ones)[0] == 1


def test_without_a_threshold_nobody_knows_what_is_shown():
    _, table, _ = judged()
    figures = localisation(table.assign(m_area=math.nan), "m")
    for name in ("m/shown_normal", "m/shown_abnormal"):
        assert math.isnan(figures[name](np.ones((1, len(table))))[0])


def test_a_peak_is_near_up_to_the_tolerance():
    distance = [0.0, TOLERANCE, TOLERANCE + 1e-6, math.inf, math.nan]
    table = pd.DataFrame({"m_hit": [1, 0, 0, 0, math.nan], "m_distance": distance})
    near = localisation(table, "m")["m/hit_near"]
    assert near(np.ones((1, 5)))[0] == 2 / 4


def test_todays_columns_give_the_hit_rate_alone():
    _, table, _ = judged()
    found = localisation(table[["path", "patient", "body_part", "lesion_type", "m_hit"]], "m")
    assert set(found) == {"m/hit"}


def test_a_split_without_masks_gives_named_nan():
    _, table, rows = judged()
    none = table.assign(**{name: math.nan for name in table.columns if name.startswith("m_")})
    none = none.assign(lesion_area=math.nan, m_area=0.5)
    empty = MapRows(0 * rows.lesion_pixels, 0 * rows.pixels, np.full_like(rows.box_iou, math.nan))
    found = estimates(localisation(none, "m", empty), patient_weights(none.patient, 20))
    shown = {name for name, result in found.items() if not math.isnan(result.value)}
    assert shown == {"m/shown_normal", "m/shown_abnormal"}


def test_every_figure_lies_in_its_interval():
    _, table, rows = judged()
    found = estimates(localisation(table, "m", rows), patient_weights(table.patient, 200))
    for name, (value, low, high, _) in found.items():
        assert math.isnan(value) or low <= value <= high, name


def test_curves_equal_those_of_tensors():
    _, _, rows = judged()
    expected = overlap.iou_curve(
        torch.from_numpy(rows.lesion_pixels), torch.from_numpy(rows.pixels)
    )
    without = rows.lesion_pixels.sum(axis=1) == 0
    assert np.isnan(iou_curves(rows)[without]).all()
    assert iou_curves(rows)[~without] == pytest.approx(expected.numpy()[~without], abs=1e-6)


def test_rows_are_saved_with_the_images_they_belong_to(tmp_path):
    _, table, rows = judged()
    save_maps(tmp_path / "maps.npz", table, {"m": rows, "other": rows.take(np.arange(24))})
    loaded = load_maps(tmp_path / "maps.npz", table)
    assert list(loaded) == ["m", "other"]
    for one, other in zip(loaded["m"], rows, strict=True):
        assert np.array_equal(one, other, equal_nan=True)
    with pytest.raises(ValueError, match="maps.npz is of other images than the table"):
        load_maps(tmp_path / "maps.npz", table[::-1])


def test_what_does_not_fit_is_refused():
    _, table, rows = judged()
    with pytest.raises(ValueError, match="no maps of 'cam', but of m"):
        localisation(table, "cam")
    with pytest.raises(ValueError, match="rows are of 24 images, the table of 23"):
        localisation(table[1:], "m", rows)
