"""The phantom: a pure function of (seed, number), in MURA's tree, with no cue but the lesion."""

import shutil

import cv2
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from datamodules.index import DataError, check_index, check_patients_apart
from datamodules.mura import CSVS
from datamodules.options import Data, Lesions
from datamodules.phantom.drawing import BODY_PARTS, LESION_TYPES, VIEWS, case, draw
from datamodules.phantom.source import PhantomDataModule, draw_tree, image_path

COUNT = 60
SAMPLE = 180


@pytest.fixture(scope="module")
def drawings():
    return [draw(0, number) for number in range(SAMPLE)]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantom") / "tree"
    root.mkdir()  # an empty folder is filled
    draw_tree(root, seed=0, count=COUNT)
    return root


@pytest.fixture
def copy(tree, tmp_path):
    return shutil.copytree(tree, tmp_path / "copy")


def module_of(root, lesions_path=None, **options):
    data = Data(root=str(root), **{"count": COUNT, **options})
    return PhantomDataModule(data, Lesions(path=lesions_path))


def test_drawing_depends_on_seed_and_number_alone(drawings):
    for number in (17, 3, 111):  # another order than the fixture's
        again = draw(0, number)
        assert again.image.tobytes() == drawings[number].image.tobytes()
        assert again.mask.tobytes() == drawings[number].mask.tobytes()
    assert draw(1, 3).image.tobytes() != drawings[3].image.tobytes()
    assert len({drawing.image.tobytes() for drawing in drawings}) == SAMPLE


def test_studies_share_what_a_study_is():
    cases = [case(0, number) for number in range(10 * sum(VIEWS))]
    studies = {}
    for one in cases:
        studies.setdefault(one.study, []).append(one)
    for views in studies.values():
        assert len({(v.patient, v.body_part, v.label, v.lesion_type) for v in views}) == 1
        assert [v.view for v in views] == list(range(len(views)))
    assert {len(views) for views in studies.values()} == {1, 2, 3, 4}
    visits = {(one.patient, one.visit) for one in cases}
    assert len(visits) == len(studies), "a patient's studies are told apart by their visit"
    assert len({patient for patient, _ in visits}) == 0.9 * len(studies)
    assert np.mean([views[0].label for views in studies.values()]) == pytest.approx(0.45)
    assert {views[0].body_part for views in studies.values()} == set(BODY_PARTS)


def test_lesions_are_marked_on_abnormal_images_and_only_there(drawings):
    for drawing in drawings:
        assert drawing.image.dtype == drawing.mask.dtype == np.uint8
        assert drawing.mask.shape == drawing.image.shape
        assert set(np.unique(drawing.mask)) == ({0, 255} if drawing.label else {0})
        assert (drawing.lesion_type in LESION_TYPES) == bool(drawing.label)
        if drawing.lesion_type == "hardware":  # metal is brighter than the bone around it
            near = cv2.dilate(drawing.mask, np.ones((9, 9), np.uint8)) > drawing.mask
            inside, around = drawing.image[drawing.mask > 0], drawing.image[near]
            assert np.median(inside) > np.median(around) + 20
    assert {drawing.lesion_type for drawing in drawings} == {"", *LESION_TYPES}
    areas = [np.mean(drawing.mask > 0) for drawing in drawings if drawing.label]
    assert 0.001 < min(areas) < 0.008 < np.median(areas) < 0.025 < max(areas) < 0.08


def test_no_trivial_cue_tells_the_label(drawings):
    label = [drawing.label for drawing in drawings]
    assert 0.4 < np.mean(label) < 0.5
    images = [drawing.image for drawing in drawings]
    energy = [np.mean(np.square(np.gradient(image / 1.0))) for image in images]
    files = [len(cv2.imencode(".png", image)[1]) for image in images]
    others = zip(*((each.mean(), np.mean(each > 250), each.size) for each in images), strict=True)
    for score in (energy, files, *others):
        assert 0.35 < roc_auc_score(label, score) < 0.65


def test_the_tree_is_muras_complete_and_drawn_once(tree):
    assert sorted(path.name for path in tree.iterdir()) == ["MURA-v1.1", "lesions", "phantom.json"]
    mura = tree / "MURA-v1.1"
    assert sorted(path.name for path in mura.iterdir()) == sorted([*CSVS, "train", "valid"])
    listed = "".join((mura / csv).read_text() for csv in CSVS if "paths" in csv).splitlines()
    assert {str(path.relative_to(tree)) for path in mura.rglob("*.png")} == set(listed)
    for number in (0, 31):
        about, drawing = case(0, number), draw(0, number)
        (path,) = {image_path(about, split) for split in ("train", "valid")} & set(listed)
        files = {path: drawing.image, f"lesions/masks/{path}.png": drawing.mask}
        for name, pixels in list(files.items())[: 1 + drawing.label]:
            assert np.array_equal(cv2.imread(str(tree / name), cv2.IMREAD_UNCHANGED), pixels)
    before = tree.stat().st_mtime_ns
    module_of(tree).prepare_source()
    assert tree.stat().st_mtime_ns == before
    table = check_index(module_of(tree).build_index(), "phantom")
    check_patients_apart(table, "phantom")
    assert len(table) == COUNT
    for column in ("lesion_mask", "lesion_type"):
        assert ((table[column] != "") == (table["label"] == 1)).all()
    assert (table["hardware"] == (table["lesion_type"] == "hardware")).all()
    assert set(table["body_part"]) == set(BODY_PARTS)
    assert 0.1 < (table["split"] == "test").mean() < 0.3


@pytest.mark.parametrize(
    ("old", "new", "options", "message"),
    [
        ("", "", {"seed": 4}, r"another phantom \(.*'seed': 0.*'seed': 4.* or delete an old"),
        ('"version": ', '"version": 9', {}, "another phantom .* to have it drawn anew"),
        ('"csv_hash": "', '"csv_hash": "f', {}, "expected .* as it was drawn"),
    ],
)
def test_another_phantom_in_the_root(copy, old, new, options, message):
    note = copy / "phantom.json"
    note.write_text(note.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        module_of(copy, **options).prepare_source()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "holiday.txt").write_text("sun")
    few = r"data\.count=2 images .* use a larger data\.count"
    for name, message in {"": "is no phantom", "holiday.txt/x": "cannot", "few": few}.items():
        with pytest.raises(DataError, match=message):
            module_of(tmp_path / name, count=2).prepare_source()
    assert {path.name for path in tmp_path.iterdir()} == {".few.lock", "holiday.txt"}


def test_a_damaged_tree_is_to_be_drawn_anew(copy, tmp_path):
    next(copy.glob("lesions/masks/**/image1.png*")).unlink()
    what = r"lesions\.csv, row \d+: the mask .* cannot be read"
    message = rf"the phantom is damaged: .*{what}.*. Fix: delete {copy} to have it drawn anew"
    with pytest.raises(DataError, match=message):
        module_of(copy).build_index()
    with pytest.raises(DataError) as caught:
        module_of(copy, lesions_path=str(tmp_path)).build_index()
    assert "drawn anew" not in str(caught.value), "a lesion folder of the user's"
