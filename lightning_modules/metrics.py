"""What an epoch logs: running means, agreement with the labels, how well a map finds the lesion."""

from collections.abc import Sequence

import torch
from pytorch_lightning.strategies import Strategy
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc, binary_cohen_kappa

from lightning_modules.attention import has_peak, peak

THRESHOLD = 0.5  # abnormal is a probability above it
NEGATIVE = 2**15  # levels of the negative bfloat16


class RunningMeans:
    """Named means over an epoch, each value weighted by its number of images.

    Unlike ``self.log(on_epoch=True)`` the sums are kept in the checkpoint: an epoch that was cut in
    two logs what an uncut one does. Every rank must add the same names, and call ``state`` and
    ``compute``.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, values: dict[str, Tensor], images: int) -> None:
        """Add scalars, each a mean over ``images`` images."""
        for name, value in values.items():
            # Stays on the device: no synchronisation a step.
            part = value.detach().double() * images
            part = torch.stack([part, torch.full_like(part, images)])
            earlier = self.sums.get(name)
            self.sums[name] = part if earlier is None else earlier.to(part.device) + part

    def state(self, strategy: Strategy) -> dict[str, list[float]]:
        """Sum and number of images of each name over all ranks."""
        return {
            # A copy: the strategy reduces in place, and these sums go on growing.
            name: strategy.reduce(sums.clone(), reduce_op="sum").tolist()
            for name, sums in self.sums.items()
        }

    def compute(self, strategy: Strategy) -> dict[str, float]:
        """Means over all ranks."""
        return {name: total / images for name, (total, images) in self.state(strategy).items()}

    def load(self, state: dict[str, list[float]], share: float) -> None:
        """Take up this rank's ``share`` of the sums of ``state``."""
        self.sums = {
            name: torch.tensor(sums, dtype=torch.float64) * share for name, sums in state.items()
        }


def agreement(
    probability: Tensor, label: Tensor, study: Tensor, body_part: Tensor, names: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Accuracy, AUROC and Cohen's kappa of images, and Cohen's kappa of studies: float32 scalars.

    All arguments are ``(B,)``: the probability of abnormal, the label, 1 = abnormal, the code of
    the study and the position of the body part in ``names``, each of which gets its own kappa.
    Balanced accuracy is the mean recall of the classes that occur; AUROC and kappa are NaN where
    only one class occurs.
    """
    if bool(probability.isnan().any()):
        raise FloatingPointError(
            "a probability is NaN: the model has diverged. Fix: a lower optimizer.learning_rate."
        )
    label = label.long()
    correct = ((probability > THRESHOLD) == label.bool()).float()
    recalls = torch.stack([correct[label == value].mean() for value in (0, 1)])
    one_class = bool(recalls.isnan().any())
    figures = {
        "accuracy": correct.mean(),
        "balanced_accuracy": recalls.nanmean(),
        "auroc": recalls.mean() if one_class else binary_auroc(probability, label),
        "kappa": _kappa(probability, label),
        "study_kappa": _kappa(*_by_study(probability, label, study)),
    }
    for code, name in enumerate(names):
        views = (values[body_part == code] for values in (probability, label, study))
        figures[f"study_kappa/{name}"] = _kappa(*_by_study(*views))
    return figures


class Localisation(Metric):
    """``hit`` and ``pixel_ap`` over images with a lesion, all of one size; NaN without any image.

    ``hit``, the pointing game (Zhang et al. 2018, "Top-down neural attention by excitation
    backprop", IJCV): the share of images whose map peaks in the lesion. ``pixel_ap``: average
    precision over the pooled pixels of maps of any range, on bfloat16's levels (8 bits a power of
    2): the sum over levels of precision times the gain in recall. Memory does not grow with images.

    Example:
        >>> import torch
        >>> metric = Localisation()
        >>> maps = torch.tensor([0.9, 0.6, 0.3, 0.1]).view(1, 1, 2, 2)
        >>> metric.update(maps, torch.tensor([True, False, True, False]).view(1, 1, 2, 2))
        >>> metric.compute()
        {'hit': tensor(1.), 'pixel_ap': tensor(0.8333)}
    """

    full_state_update = False
    hits: Tensor
    images: Tensor
    pixels: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("hits", "images"):
            self.add_state(name, default=torch.tensor(0.0), dist_reduce_fx="sum")
        # Of each level, how many pixels lie outside and in lesions.
        levels = torch.zeros(2, 2 * NEGATIVE, dtype=torch.int64)
        self.add_state("pixels", default=levels, dist_reduce_fx="sum")

    def update(self, maps: Tensor, lesion: Tensor) -> None:
        """Add images: maps ``(B, 1, H, W)`` of any range and lesions, bool ``(B, 1, H, W)``."""
        self.hits += hit(maps, lesion).sum()
        self.images += len(maps)
        # Bits of a bfloat16 count upwards with its value, those of negative ones downwards; + 0.0
        # makes -0.0 a 0.
        bits = (maps.detach().float() + 0.0).bfloat16().view(torch.int16).long().flatten()
        level = torch.where(bits < 0, -bits, bits + NEGATIVE)
        place = level + 2 * NEGATIVE * lesion.flatten()  # not by bincount, which waits for a GPU
        self.pixels.view(-1).index_add_(0, place, torch.ones_like(place))

    def compute(self) -> dict[str, Tensor]:
        """Both figures in [0, 1], float32 scalars."""
        missed, hits = self.pixels.flip(1).cumsum(dim=1).double()
        gain = hits.diff(prepend=hits.new_zeros(1))
        pixel_ap = (gain * hits / (missed + hits).clamp(min=1)).sum() / hits[-1]
        return {"hit": self.hits / self.images, "pixel_ap": pixel_ap.float()}


def hit(maps: Tensor, lesion: Tensor) -> Tensor:
    """Whether each map's peak lies in the lesion, bool ``(B, 1, H, W)``; a constant map misses."""
    x, y = peak(maps).long().unbind(dim=1)
    inside = lesion[torch.arange(len(maps), device=maps.device), 0, y, x]
    return inside & has_peak(maps)


def _by_study(probability: Tensor, label: Tensor, study: Tensor) -> tuple[Tensor, Tensor]:
    """Mean probability and largest label of the S studies, each ``(S,)``, by their codes.

    A study is abnormal by the mean probability of its views (Rajpurkar et al. 2018, the MURA
    paper), its label is abnormal if one of its views is.
    """
    codes, row = study.unique(return_inverse=True)
    # float64: the mean must not depend on the order in which ranks delivered the views.
    mean = probability.new_zeros(len(codes), dtype=torch.float64)
    mean = mean.scatter_reduce(0, row, probability.double(), "mean", include_self=False)
    worst = label.new_zeros(len(codes)).scatter_reduce(0, row, label, "amax")
    return mean.to(probability.dtype), worst


def _kappa(probability: Tensor, label: Tensor) -> Tensor:
    if len(label.unique()) < 2:
        return probability.new_full((), float("nan"))
    return binary_cohen_kappa(probability, label, THRESHOLD)
