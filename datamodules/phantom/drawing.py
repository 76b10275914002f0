"""Synthetic bone radiographs, each a pure function of (seed, number).

A study's attributes (body part, label, lesion, age, bone density) come from (seed, study), a view's
pose and exposure from (seed, number): images may be drawn in any order, by any number of processes.
"""

from dataclasses import dataclass

import numpy as np

from datamodules.phantom.bones import (
    TILE,
    Array,
    Pose,
    Random,
    Scene,
    Site,
    Tissue,
    attenuation,
    axis_point,
    bone_frame,
    trabecular_texture,
)
from datamodules.phantom.film import beam, expose, foreign_bodies, soft_tissue
from datamodules.phantom.lesions import Fracture, hardware, lytic, sclerotic
from datamodules.phantom.scenes import SCENES

# Raised whenever a pixel of any drawing changes, so that older trees are not taken for new ones.
VERSION = 1

BODY_PARTS = tuple(SCENES)
LESION_TYPES = ("fracture", "lytic", "sclerotic", "hardware")
LESION_SHARES = (0.34, 0.2, 0.16, 0.3)
METALS = ("plate", "plate", "side plate", "nail", "wires", "screws")
# Views of each study and the patient it is of, repeated for ever: 22 images of 9 patients.
VIEWS = (2, 3, 1, 2, 3, 4, 2, 1, 3, 1)
PATIENTS = (0, 1, 2, 3, 3, 4, 5, 6, 7, 8)
# Of twenty studies in a row nine are abnormal.
RUN, ABNORMAL = 20, 9

_STUDY, _LABELS, _PARTS, _VIEW = range(4)


@dataclass(frozen=True)
class Case:
    """What is known of an image before it is drawn."""

    patient: int  # number of the person, from 1
    study: int  # number of the visit among all studies, from 0
    visit: int  # number of the visit among the patient's own, from 1
    view: int  # number of the view within the study, from 0
    body_part: str  # one of BODY_PARTS
    label: int  # 1 = abnormal
    lesion_type: str  # one of LESION_TYPES, "" where normal


@dataclass(frozen=True)
class Drawing(Case):
    """A synthetic radiograph and all that is known of it."""

    image: Array  # (H, W) uint8
    mask: Array  # (H, W) uint8, 255 on the pixels of the lesion, all 0 where normal


def _random(seed: int, purpose: int, number: int) -> Random:
    return np.random.default_rng((seed, purpose, number))


def case(seed: int, number: int) -> Case:
    """Return who and what image ``number`` (from 0) shows, without drawing it."""
    block, place = divmod(number, sum(VIEWS))
    starts = np.cumsum((0, *VIEWS))
    within = int(np.searchsorted(starts, place, side="right")) - 1
    study = block * len(VIEWS) + within
    patient = block * (PATIENTS[-1] + 1) + PATIENTS[within] + 1
    visit = 1 + PATIENTS[:within].count(PATIENTS[within])
    run, member = divmod(study, RUN)
    label = int(_random(seed, _LABELS, run).permutation(RUN)[member] < ABNORMAL)
    run, member = divmod(study, len(BODY_PARTS))
    part = BODY_PARTS[_random(seed, _PARTS, run).permutation(len(BODY_PARTS))[member]]
    lesion = str(_random(seed, _STUDY, study).choice(LESION_TYPES, p=LESION_SHARES))
    return Case(patient, study, visit, place - int(starts[within]), part, label, lesion * label)


def draw(seed: int, number: int) -> Drawing:
    """Draw image ``number``: the same arguments give the same bytes, whatever was drawn before."""
    about = case(seed, number)
    person = _random(seed, _STUDY, about.study)
    person.random(8)  # leaves those that case() draws alone
    random = _random(seed, _VIEW, number)
    scene = SCENES[about.body_part](random, about.view)
    shape, pose = _pose(random, person, scene)
    pixel = max(shape) / 160.0  # a pixel of the default training size
    medulla, growing = float(person.uniform(0.16, 0.27)), bool(person.random() < 0.08)
    tissue = Tissue(trabecular_texture(random), medulla, growing)
    site = _choose_site(random, person, scene, pose, shape)
    bones, metal, mask = _draw_bones(random, about.lesion_type, scene, pose, shape, site, tissue)
    soft = scene.muscle * soft_tissue(random, scene, pose, shape)
    metal = np.maximum(metal, foreign_bodies(random, bones, pose.mirrored, pixel))
    reached = beam(random, shape)
    mask &= reached > 0.5
    image = expose(random, bones, soft, metal, reached, pixel)
    return Drawing(**vars(about), image=image, mask=mask * np.uint8(255))


def _pose(random: Random, person: Random, scene: Scene) -> tuple[tuple[int, int], Pose]:
    """Choose the film's shape (H, W) in pixels and how the scene lies on it."""
    mirrored = bool(person.random() < 0.5)
    scale = int(random.integers(160, 261)) / max(scene.size)  # the longest side, pixels
    width, height = (round(side * scale) for side in scene.size)
    angle = random.normal(0, 5) if random.random() < 0.92 else random.uniform(-25, 25)
    if random.random() < 0.05:
        angle += 180
    angle = np.radians(angle)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    zoom = scale * random.uniform(0.94, 1.1)
    matrix = turn @ np.diag([-1.0 if mirrored else 1.0, 1.0]) * zoom
    offset = np.array([width, height]) * (0.5 + random.uniform(-0.05, 0.05, 2))
    return (height, width), Pose(matrix, offset, zoom, mirrored)


def _choose_site(
    random: Random, person: Random, scene: Scene, pose: Pose, shape: tuple[int, int]
) -> Site:
    """Choose the lesion's bone and place; a person's views agree as far as the film shows it."""
    height, width = shape
    wanted = person.uniform(0.22, 0.78) + random.uniform(-0.02, 0.02)
    draws = person.gumbel(size=64)
    metal = str(person.choice(METALS))
    best, site = -np.inf, Site(0, 0.5, 0.0, metal)
    places = np.linspace(0.2, 0.8, 25)
    for margin in (0.2, 0.12):
        for number, bone in enumerate(scene.bones):
            score = np.log(bone.site) + draws[number] if bone.site > 0 else -np.inf
            if score <= best:
                continue
            points = np.array([axis_point(bone, pose, t) for t in (0.2, 0.8)])
            points = points[0] + (points[1] - points[0]) * ((places - 0.2) / 0.6)[:, None]
            low, high = np.outer((margin, 1 - margin), (width, height))
            inside = np.all((points > low) & (points < high), axis=1)
            if inside.any():
                nearest = places[inside][np.argmin(np.abs(places[inside] - wanted))]
                best, site = score, Site(number, float(nearest), 0.0, metal)
        if best > -np.inf:
            break
    site.area = height * width * float(np.exp(random.normal(np.log(0.019), 0.3)))
    return site


def _draw_bones(
    random: Random,
    lesion_type: str,
    scene: Scene,
    pose: Pose,
    shape: tuple[int, int],
    site: Site,
    tissue: Tissue,
) -> tuple[Array, Array, Array]:
    """Return bone attenuation, metal coverage (both (H, W) float32) and the lesion (H, W) bool."""
    bones, metal = np.zeros((2, *shape), np.float32)
    mask = np.zeros(shape, bool)
    pixel = max(shape) / 160.0
    main = max(bone.profile[3] for bone in scene.bones)
    for number, bone in enumerate(scene.bones):
        made = bone_frame(bone, pose, shape)
        if made is None:
            continue
        frame, cortex = made
        kind = lesion_type if number == site.bone else ""
        if kind == "fracture":
            broken = Fracture.break_bone(random, frame, site.place, site.area, pixel)
        shift = int(random.integers(0, 4096)) + 4096
        taken = attenuation(bone, frame, cortex, tissue, shift)
        patch = None
        if kind == "fracture":
            patch = broken.open_gap(taken, frame)
        elif kind == "lytic":
            patch = lytic(random, frame, taken, site.place, site.area)
        elif kind == "sclerotic":
            along, across = ((at + shift).astype(np.int32) % TILE for at in (frame.s, frame.v))
            texture = tissue.trabeculae[along, across]
            patch = sclerotic(random, frame, taken, site.place, site.area, texture)
        elif kind == "hardware":
            plate = hardware(random, bone, pose, shape, site, pixel)
            metal = plate.astype(np.float32) / np.float32(255)
            mask |= plate > 127
        # Thin bones take less of the ray than thick ones beside them, but never vanish.
        bones[frame.box] += taken * np.float32((bone.profile[3] / main) ** 0.6)
        if patch is not None:
            mask[frame.box] |= patch
    return bones, metal, mask
