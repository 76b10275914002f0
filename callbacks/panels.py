"""Figure-2 panels, each epoch: what the maps show on a few fixed validation images.

Also the one drawing of radiographs for people, for all rooms. Pictures are uint8 ``(h, w, 3)``,
BGR. Lines are strokes (colour, width in pixels): a wide dark one below a light one is seen on film
and on bone.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor

CELL, CELL_GAP, HEADER = 192, 4, 22  # pixels
COUNT = 8  # images on a panel
Strokes = Sequence[tuple[tuple[int, int, int], int]]
NORMAL = 2  # kinds of images: 0 with a lesion mask, 1 abnormal without one


class MapPanels(Callback):
    """Write ``epoch_NNN.png`` with ``COUNT`` rows, image | maps | lesion mask.

    The images are the first of the val loader, of as many body parts as there are: up to three
    quarters abnormal, those with a mask first, the rest normal. Maps are drawn with the run's
    scale, not stretched image by image: a dark map says that the network saw little.
    ``to_loggers`` also hands them to W&B: radiographs leave the machine only when asked.
    """

    def __init__(self, folder: Path, to_loggers: bool) -> None:
        self.folder, self.to_loggers = folder, to_loggers
        self._chosen: dict[str, Tensor] = {}
        self._complete = False

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Look for the images, in the first validation only."""
        if self._complete or trainer.sanity_checking or not trainer.is_global_zero:
            return
        names = ("image", "label", "lesion_mask", "has_lesion", "body_part")
        images = {name: batch[name].cpu() for name in names if name in batch}
        if self._chosen:
            images = {name: torch.cat([self._chosen[name], images[name]]) for name in images}
        keep = spread(images, COUNT)
        self._chosen = {name: values[keep] for name, values in images.items()}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the panel of this epoch."""
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        self._complete = True
        network, chosen = cast(Any, pl_module), self._chosen
        with torch.no_grad():
            maps = network.maps(chosen["image"].to(network.device))
        shown = {name: maps[name].cpu() for name in network.judged_maps}
        panel = draw_panel(chosen["image"], shown, chosen["lesion_mask"], chosen["label"])
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"epoch_{trainer.current_epoch + 1:03d}.png"
        cv2.imwrite(str(path), panel)
        if self.to_loggers:
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.log_image("panel", [str(path)])


def spread(batch: dict[str, Tensor], count: int) -> Tensor:
    """Places of up to ``count`` images: three quarters abnormal, masked ones first, then normal."""
    kind = torch.where(batch["label"] == 1, (~batch["has_lesion"]).long(), NORMAL)
    part = batch.get("body_part", torch.zeros_like(kind))
    table = pd.DataFrame({"kind": kind.tolist(), "part": part.tolist()})
    # By turns: the first image of every body part, then the second of every part, and so on.
    table["turn"] = table.groupby(["kind", "part"]).cumcount()
    table = table.sort_values(["kind", "turn"], kind="stable")
    abnormal = table.index[table.kind < NORMAL][: count - count // 4]
    normal = table.index[table.kind == NORMAL][: count - len(abnormal)]
    return torch.tensor([*abnormal, *normal], dtype=torch.int64)


def draw_panel(image: Tensor, maps: dict[str, Tensor], mask: Tensor, label: Tensor) -> np.ndarray:
    """Draw rows of cells, image | each map over the image | lesion outline; BGR.

    Images (B, 1, H, W) of any range are stretched to their own minimum and maximum; maps and masks
    lie in [0, 1].
    """
    names = ["radiograph", *[name.upper() for name in maps], "lesion mask"]
    step = CELL + CELL_GAP
    canvas = np.full((HEADER + len(image) * step, len(names) * step, 3), 255, dtype=np.uint8)
    for column, name in enumerate(names):
        _write(canvas, name, (column * step + 4, HEADER - 7), (30, 30, 30))
    for row in range(len(image)):
        grey = _grey(image[row, 0].numpy())
        scaled = cv2.resize(mask[row, 0].numpy(), (CELL, CELL), interpolation=cv2.INTER_LINEAR)
        lines = contours(scaled >= 0.5, cv2.RETR_EXTERNAL)
        outlined = cv2.drawContours(grey.copy(), lines, -1, (80, 220, 80), 1, cv2.LINE_AA)
        cells = [grey, *[overlay(grey, m[row, 0].numpy()) for m in maps.values()], outlined]
        for column, picture in enumerate(cells):
            top, left = HEADER + row * step, column * step
            canvas[top : top + CELL, left : left + CELL] = picture
        place = (4, HEADER + row * step + CELL - 6)
        name = "abnormal" if label[row] else "normal"
        _write(canvas, name, place, (0, 0, 0), 3)  # an edge, to be read on white film
        _write(canvas, name, place, (255, 255, 255))
    return canvas


def overlay(grey: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lay a map (h, w) in [0, 1] over a grey image (H, W, 3): transparent at 0, colours to 1."""
    # Inferno rises in lightness alone, so that it survives colour blindness and grey print.
    heat = cv2.resize(heat.astype(np.float32), grey.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    colour = cv2.applyColorMap((heat * 255).clip(0, 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    strength = np.sqrt(heat.clip(0, 1))[..., None] * 0.75
    return (grey * (1 - strength) + colour * strength).astype(np.uint8)


def resize(
    image: np.ndarray, smallest: int, largest: int, enlarge: int = cv2.INTER_CUBIC
) -> np.ndarray:
    """Bring the longer side of an image ``(H, W)`` to between ``smallest`` and ``largest``, px."""
    side = max(image.shape)
    scale = min(max(side, smallest), largest) / side
    height, width = (max(1, round(length * scale)) for length in image.shape)
    method = cv2.INTER_AREA if scale < 1 else enlarge
    return cv2.resize(image, (width, height), interpolation=method)


def contours(mask: np.ndarray, mode: int = cv2.RETR_LIST) -> Sequence[np.ndarray]:
    """Lines ``(N, 1, 2)``, x before y, around a mask ``(H, W)``; RETR_LIST: around holes, too."""
    return cv2.findContours(mask.astype(np.uint8), mode, cv2.CHAIN_APPROX_NONE)[0]


def draw_outline(
    picture: np.ndarray, lines: Sequence[np.ndarray], strokes: Strokes, shift: int = 0
) -> None:
    """Draw closed lines into a picture; with ``shift`` their points count in 1/2**shift px."""
    for colour, width in strokes:
        cv2.polylines(picture, lines, True, colour, width, cv2.LINE_AA, shift)


def draw_peak(
    picture: np.ndarray, x: int, y: int, reach: tuple[int, int], strokes: Strokes
) -> None:
    """Draw four ticks around a peak, ``reach`` px from it: the peak itself stays visible."""
    for colour, width in strokes:
        for right, down in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            start, end = ((x + right * length, y + down * length) for length in reach)
            cv2.line(picture, start, end, colour, width, cv2.LINE_AA)


def encode(picture: np.ndarray, suffix: str = ".png", options: Sequence[int] = ()) -> bytes:
    """The file of a picture or a grey image ``(h, w)``."""
    return cv2.imencode(suffix, picture, options)[1].tobytes()


def _grey(image: np.ndarray) -> np.ndarray:
    low, high = float(image.min()), float(image.max())
    stretched = ((image - low) / max(high - low, 1e-6) * 255).astype(np.uint8)
    resized = cv2.resize(stretched, (CELL, CELL), interpolation=cv2.INTER_LINEAR)
    return cv2.cvtColor(resized, cv2.COLOR_GRAY2BGR)


def _write(
    canvas: np.ndarray, text: str, place: tuple[int, int], colour: tuple[int, ...], thick: int = 1
) -> None:
    cv2.putText(canvas, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, thick, cv2.LINE_AA)
