"""How well a classifier agrees with the radiologists' labels: by image, by study, by body part."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_cohen_kappa

# Abnormal is a probability above it.
THRESHOLD = 0.5


def agreement(
    probability: Tensor, label: Tensor, study: Tensor, body_part: Tensor, names: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Accuracy, AUROC and Cohen's kappa of images, and Cohen's kappa of studies.

    All arguments are ``(B,)``: the probability of abnormal, the label, 1 = abnormal, the code of
    the study and the position of the body part in ``names``, each of which gets its own kappa.

    Returns:
        float32 scalars: ``accuracy``, ``balanced_accuracy`` (mean recall of the classes that
        occur), ``auroc``, ``kappa``, ``study_kappa`` and ``study_kappa/<body part>``. AUROC and
        kappa are NaN where only one class occurs.
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
        "study_kappa": _kappa(*by_study(probability, label, study)),
    }
    for code, name in enumerate(names):
        views = (values[body_part == code] for values in (probability, label, study))
        figures[f"study_kappa/{name}"] = _kappa(*by_study(*views))
    return figures


def by_study(probability: Tensor, label: Tensor, study: Tensor) -> tuple[Tensor, Tensor]:
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
