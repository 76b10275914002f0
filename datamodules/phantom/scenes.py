"""The phantom's anatomy: which bones and soft tissue each of four views of a body part shows, cm.

Coordinates are (x, y) with y downwards, (0, 0) the film's centre.
"""

from collections.abc import Callable

import numpy as np

from datamodules.phantom.bones import Bone, Point, Random, Scene


def _finger(random: Random, view: int) -> Scene:
    scene = Scene((random.uniform(4.2, 5.6), random.uniform(8.6, 9.8)), muscle=0.55)
    flex = (0.0, 14.0, 6.0, -3.0)[view] + random.normal(0, 2)
    lengths = (5.0, 3.7, 2.35, 1.75)
    width = 0.5 * random.uniform(0.95, 1.08)
    _ray(scene, (-0.5 - 0.03 * flex, 7.7), 0.0 - 0.6 * flex, lengths, width, flex, (0, 1.4, 1, 0))
    if view != 1:
        for side in (-1, 1):
            if random.random() < 0.75:
                shorter = tuple(0.9 * value for value in lengths)
                base = (2.15 * side - 0.4, 7.9)
                _ray(scene, base, 5.0 * side, shorter, 0.9 * width, flex, (0, 0, 0, 0))
    return scene


def _hand(random: Random, view: int) -> Scene:
    scene = Scene((random.uniform(10.5, 12.5), random.uniform(15.0, 16.5)), muscle=0.5)
    squeeze = (1.0, 0.62, 0.8, 1.0)[view]
    spread = random.uniform(0.8, 1.25) * squeeze
    flex = (0.0, 5.0, 3.0, 0.0)[view] * random.uniform(0.5, 1.3)
    sites = (1.4, 1.0, 0.0, 0.0)
    for finger, length in enumerate((0.93, 1.0, 0.97, 0.84)):
        base = ((-1.75 + 1.12 * finger) * squeeze, 3.05 + 0.12 * abs(finger - 1))
        angle = (-9.0 + 7.5 * finger) * spread
        lengths = tuple(length * value for value in (4.5, 3.1, 1.95, 1.35))
        _ray(scene, base, angle, lengths, 0.44, flex, sites)
    lengths = (3.1, 2.3, 1.7)
    _ray(scene, (-2.5 * squeeze, 4.1), -42.0 * spread, lengths, 0.47, 6.0, (1.0, 0.8, 0.0))
    _carpals(scene, random, 2.5 * squeeze, 3.1, 5.3)
    scene.bones += _forearm_ends(5.5, 11.0, 0.9 * squeeze, 0.82)
    scene.soft.append([(0.1, 10.0, 2.6), (0, 6.5, 2.5), (0, 4.5, 3.0 * squeeze + 0.2)])
    palm = [(-0.9 * squeeze, 2.6, 2.0), (0.6 * squeeze, 2.2, 2.4), (0, 0.2, 2.4 * squeeze)]
    scene.soft.append(palm)
    return scene


def _wrist(random: Random, view: int) -> Scene:
    scene = Scene((random.uniform(7.2, 9.0), random.uniform(10.5, 12.0)), muscle=0.55)
    squeeze = (1.0, 0.55, 0.78, 1.0)[view]
    for finger, length in enumerate((0.95, 1.0, 0.93, 0.85)):
        base = ((-1.6 + 1.08 * finger) * squeeze, -1.6 + 0.1 * abs(finger - 1))
        _ray(scene, base, (-7 + 7 * finger) * squeeze, (4.6 * length, 3.3), 0.46, 3.0, (0.15, 0.0))
    _ray(scene, (-2.35 * squeeze, -0.7), -40.0 * squeeze, (3.1, 2.2), 0.5, 5.0, (0.15, 0.0))
    _carpals(scene, random, 2.45 * squeeze, -1.55, 0.75)
    scene.bones += _forearm_ends(0.95, 9.0, 0.95 * squeeze, 0.95)
    arm = [(0.1, 9.0, 2.9), (0.1, 4.0, 2.6 * squeeze + 0.3), (0, 0, 2.5 * squeeze + 0.5)]
    scene.soft.append(arm)
    scene.soft.append([(0, -2.0, 2.6 * squeeze + 0.6), (0, -6.0, 3.0 * squeeze + 0.5)])
    return scene


def _forearm(random: Random, view: int) -> Scene:
    scene = Scene((random.uniform(6.8, 8.8), random.uniform(14.5, 16.5)), muscle=0.6)
    spread = (1.0, 0.62, 0.85, 1.0)[view]
    bow = random.uniform(0.02, 0.05)
    ends = (-0.95 * spread, -5.4), (-0.95 * spread, 6.2)
    radius = Bone(*ends, (0.88, 0.72, 1.45), lean=(0.0, 0.1), bow=bow, site=1.2, caps=(0.25, 0.3))
    ends = (0.95 * spread, -6.6), (1.15 * spread, 5.9)
    widths = (1.3, 0.66, 0.72)
    ulna = Bone(*ends, widths, lean=(-0.2, 0.0), bow=-0.4 * bow, site=1.0, caps=(0.5, 0.5))
    widths = (1.1, 1.05, 2.2 * spread + 0.3)
    humerus = Bone((0.1, -13), (0.0, -5.9), widths, bow=0.01, density=1.1, caps=(0.3, 0.3))
    scene.bones = [humerus, ulna, radius]
    _carpals(scene, random, 2.1 * spread + 0.2, 8.5, 6.4)
    scene.soft = [
        [(0, -10, 2.8), (0, -5.5, 3.2), (0.1, -2, 3.1), (0.1, 3, 2.5), (0, 7, 2.2), (0, 9, 2.6)]
    ]
    return scene


def _humerus(random: Random, view: int) -> Scene:
    scene = Scene((random.uniform(8.0, 10.5), random.uniform(15.5, 17.5)), muscle=0.75)
    turn = (1.0, 0.4, 0.7, 1.0)[view]
    shaft = 1.05 * random.uniform(0.94, 1.06)
    lean, bow = (-0.55 * turn, -0.15 * turn), random.uniform(-0.015, 0.015)
    widths = (2.1, shaft, 1.5 + 0.9 * turn)
    humerus = Bone((0.4, -7.0), (-0.2, 6.9), widths, lean, bow, site=1.0, caps=(0.95, 0.35))
    scapula = Bone((-3.0, -6.7), (-5.5, 2.5), (1.2, 0.5, 0.7), cortex=0.5, density=0.7)
    acromion = Bone((-6.5, -7.0), (1.2, -9.2), (0.6, 0.55, 0.9), density=0.7)
    ulna = Bone((0.6 * turn, 7.0), (1.1 * turn, 15), (1.25, 0.75, 0.7), caps=(0.5, 0.3))
    radius = Bone((-1.2 * turn, 7.5), (-1.0 * turn, 15), (0.9, 0.65, 0.7), caps=(0.25, 0.3))
    scene.bones = [scapula, acromion, humerus, ulna, radius]
    scene.soft = [
        [(-3, -9, 4.5), (-0.3, -6, 4.0), (0.1, -1, 3.3), (0.1, 4, 2.9), (0, 7, 3.0), (0, 12, 2.9)],
        [(-8.0, -8, 4.5), (-8.5, -2, 4.0), (-9.0, 4, 3.8)],
    ]
    return scene


def _elbow(random: Random, view: int) -> Scene:
    scene = Scene((random.uniform(8.5, 10.5), random.uniform(10.5, 12.0)), muscle=0.65)
    if view == 1:  # lateral, bent
        scene.size = (random.uniform(10.0, 11.5), random.uniform(9.5, 11.0))
        bend = np.radians(random.uniform(-12, 12))
        along = np.array([np.cos(bend), np.sin(bend)])
        far = 11.0 * along
        humerus = Bone(
            (-2.9, -11), (-2.3, 2.0), (1.1, 1.02, 1.35), lean=(0, 0.15), site=1.0, caps=(0.3, 0.85)
        )
        ulna = Bone(
            (-3.7, 2.9), (far[0] - 2.2, far[1] + 3.5), (1.15, 0.72, 0.7), bow=0.01, site=1.0
        )
        radius = Bone(
            (-0.5, 1.35), (far[0] - 1.2, far[1] + 1.7), (0.9, 0.62, 0.7), site=1.0, caps=(0.25, 0.3)
        )
        scene.bones = [humerus, ulna, radius]
        scene.soft = [
            [(-2.8, -10, 3.0), (-2.5, -3, 2.7), (-2.2, 1.6, 2.9)],
            [(-2.2, 1.6, 2.9), (1.5, 2.2, 2.8), (far[0] - 2, far[1] + 2.4, 2.5)],
        ]
        return scene
    turn = (1.0, 0.0, 0.72, 1.0)[view]
    humerus = Bone(
        (0.4, -12), (0.0, -0.3), (1.1, 1.08, 2.65 * turn), lean=(0, 0.1), site=1.0, caps=(0.3, 0.3)
    )
    ends = (0.75 * turn, -1.1), (1.3 * turn, 11)
    ulna = Bone(*ends, (1.45, 0.78, 0.7), bow=0.01, site=1.0, caps=(0.5, 0.3))
    radius = Bone(
        (-1.35 * turn, 0.35), (-1.2 * turn, 11), (1.05, 0.66, 0.7), site=1.0, caps=(0.22, 0.3)
    )
    scene.bones = [humerus, ulna, radius]
    scene.soft = [[(0.3, -10, 3.0), (0.2, -4, 3.0), (0, 0, 3.6), (0, 3, 3.5), (0, 10, 2.8)]]
    return scene


def _shoulder(random: Random, view: int) -> Scene:
    scene = Scene((random.uniform(12.0, 14.5), random.uniform(11.5, 13.0)), muscle=0.8)
    turn = (1.0, 0.6, 0.8, 1.0)[view]
    out = random.uniform(-0.3, 0.6)
    ends = (2.9, -2.5), (3.9 + out, 10.5)
    humerus = Bone(*ends, (2.25, 1.15, 1.2), lean=(-0.6 * turn, 0.0), site=1.6, caps=(0.95, 0.3))
    clavicle = Bone((-7.5, -3.4), (1.7, -4.3), (0.9, 0.6, 0.85), bow=0.05, density=0.9, site=0.8)
    acromion = Bone(
        (-4.5, -1.6), (3.2, -3.75), (0.45, 0.55, 0.85), cortex=0.3, density=0.75, caps=(0.5, 0.8)
    )
    ends = (0.7, -1.0), (-2.9, 8.0)
    widths = (1.75, 1.5, 0.8, 0.55, 0.5, 0.45, 0.4)
    scapula = Bone(*ends, widths, lean=(-0.5, 0.0), cortex=0.45, density=0.75, caps=(0.3, 0.5))
    coracoid = Bone((-0.9, -1.9), (0.9, -1.1), (0.55, 0.45, 0.5), density=0.8, caps=(0.6, 0.9))
    ribs = []
    for rib in range(4):
        ends = (-8.5, -1.2 + 2.3 * rib), (-2.6 - 0.25 * rib, 1.0 + 2.4 * rib)
        ribs.append(Bone(*ends, (0.4, 0.36, 0.4), bow=0.16, cortex=0.4, density=0.65))
    scene.bones = [*ribs, scapula, acromion, coracoid, clavicle, humerus]
    scene.soft = [
        [(-9, 0, 4.4), (-3.0, -1.5, 4.2), (1.5, -1.6, 4.4), (3.3, 0.5, 3.7), (4.2 + out, 9, 3.2)],
        [(-9, 2, 4.0), (-6.0, 6, 4.2), (-5.5, 10, 4.0)],
    ]
    return scene


def _turn(angle: float) -> np.ndarray:
    """Unit vector ``angle`` degrees from straight up, positive towards +x."""
    return np.array([np.sin(np.radians(angle)), -np.cos(np.radians(angle))])


def _ray(
    scene: Scene,
    base: Point,
    angle: float,
    lengths: tuple[float, ...],
    width: float,
    flex: float,
    sites: tuple[float, ...],
) -> None:
    """Add a metacarpal and its phalanges, each turned ``flex`` degrees more than the last."""
    place = np.array(base)
    chain = [(*place, 1.9 * width)]
    for order, length in enumerate(lengths):
        direction = _turn(angle + flex * order)
        tip = place + direction * length
        thin = 1.0 - 0.13 * order
        far = (1.42 if order == 0 else 1.2) * width * thin
        ends = tuple(place), tuple(tip)
        widths = (1.5 * width * thin, 0.92 * width * thin, far)
        scene.bones.append(Bone(*ends, widths, bow=0.02, site=sites[order], caps=(0.35, 0.75)))
        chain += [(*(place + direction * length * t), 2.05 * width * thin) for t in (0.3, 0.65, 1)]
        place = tip + _turn(angle + flex * (order + 0.5)) * 0.32 * width
    chain[-1] = (*(place - _turn(angle) * 0.2 * width), 1.35 * width)
    scene.soft.append(chain)


def _carpals(scene: Scene, random: Random, wide: float, top: float, bottom: float) -> None:
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
            ends = (x - tilt, y + lift + long), (x + tilt, y + lift - long)
            widths = (0.9 * half, half, half, 0.95 * half, half, half, 0.85 * half)
            scene.bones.append(Bone(*ends, widths, cortex=0.22, density=0.8, caps=(0.9, 0.9)))


def _forearm_ends(wrist: float, bottom: float, spread: float, scale: float) -> list[Bone]:
    """Radius and ulna from ``bottom`` (off the film) up to the wrist joint."""
    ends = (-1.05 * spread, bottom), (-1.0 * spread, wrist)
    widths = (0.8 * scale, 0.78 * scale, 1.5 * scale)
    radius = Bone(*ends, widths, lean=(0.0, -0.1 * scale), bow=0.012, site=1.6, caps=(0.3, 0.3))
    ends = (1.3 * spread, bottom), (1.45 * spread, wrist + 0.25 * scale)
    widths = (0.75 * scale, 0.6 * scale, 0.85 * scale)
    ulna = Bone(*ends, widths, bow=-0.01, site=1.0, caps=(0.3, 0.45))
    return [ulna, radius]


SCENES: dict[str, Callable[[Random, int], Scene]] = {
    "elbow": _elbow,
    "finger": _finger,
    "forearm": _forearm,
    "hand": _hand,
    "humerus": _humerus,
    "shoulder": _shoulder,
    "wrist": _wrist,
}
