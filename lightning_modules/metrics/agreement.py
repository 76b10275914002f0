"""How well a classifier agrees with the radiologists' labels: by image, by study, by body part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_cohen_kappa

from lightning_modules.metrics.per_image import PerImageMetric, check_rows, first_rows


class Agreement(PerImageMetric):
    """Accuracy, AUROC and Cohen's kappa of images, and Cohen's kappa of studies.

    A study is abnormal by the mean probability of its views (Rajpurkar et al. 2018, the MURA
    paper), its label is abnormal if one of its views is. Each image counts once, whatever the
    number of ranks and the samplers' repetitions.

    Args:
        body_parts: Names behind the codes of ``body_part``; each gets a kappa of its own.
        threshold: Abnormal is a probability above it.
        kwargs: Further arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = Agreement(body_parts=["hand", "wrist"])
        >>> metric.update(
        ...     probability=torch.tensor([0.9, 0.4, 0.2, 0.1, 0.3, 0.7]),
        ...     label=torch.tensor([1, 1, 0, 0, 0, 1]),
        ...     index=torch.tensor([0, 1, 2, 3, 4, 5]),
        ...     study=torch.tensor([0, 0, 1, 2, 3, 3]),
        ...     body_part=torch.tensor([0, 0, 0, 0, 1, 1]),
        ... )
        >>> for name, value in metric.compute().items():
        ...     print(name, round(value.item(), 3))
        accuracy 0.833
        balanced_accuracy 0.833
        auroc 1.0
        kappa 0.667
        study_kappa 0.5
        study_kappa/hand 1.0
        study_kappa/wrist nan
    """

    columns: ClassVar[dict[str, torch.dtype]] = {
        "probability": torch.float32,
        "label": torch.int64,
        "index": torch.int64,
        "study": torch.int64,
        "body_part": torch.int64,
    }

    def __init__(
        self, body_parts: Sequence[str] = (), threshold: float = 0.5, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.body_parts = tuple(body_parts)
        self.threshold = threshold

    def update(
        self, probability: Tensor, label: Tensor, index: Tensor, study: Tensor, body_part: Tensor
    ) -> None:
        """Add the images of a batch.

        Args:
            probability: Probability of abnormal in [0, 1], ``(B,)``.
            label: 1 = abnormal, 0 = normal, ``(B,)``.
            index: Number of the image, ``(B,)``; of several rows with one number the first counts.
            study: Code of the study, ``(B,)``.
            body_part: Position of the body part in ``body_parts``, ``(B,)``; anything if there are
                none.

        Raises:
            ValueError: If the shapes differ, a probability is NaN or outside [0, 1], a label is
                neither 0 nor 1, or a body part has no name.
        """
        rows = {
            "probability": probability,
            "label": label,
            "index": index,
            "study": study,
            "body_part": body_part,
        }
        check_rows(self, **rows)
        named = ((body_part >= 0) & (body_part < len(self.body_parts))) | (not self.body_parts)
        valid = ((probability >= 0) & (probability <= 1), (label == 0) | (label == 1), named)
        shares, classes, parts = torch.stack([rule.all() for rule in valid]).tolist()  # one wait
        if not shares:
            raise ValueError(
                "a probability is NaN or outside [0, 1]: the model has diverged (lower "
                "optimizer.learning_rate), or scores were given instead of probabilities"
            )
        if not classes:
            raise ValueError(f"labels must be 0 or 1, got {sorted(set(label.tolist()))}")
        if not parts:
            raise ValueError(
                f"body part codes must be 0 to {len(self.body_parts) - 1}, the positions in "
                f"{list(self.body_parts)}, got {sorted(set(body_part.tolist()))}"
            )
        self.append(**rows)

    def compute(self) -> dict[str, Tensor]:
        """Compute all figures.

        Returns:
            float32 scalars: ``accuracy``, ``balanced_accuracy`` (mean recall of the classes that
            occur), ``auroc``, ``kappa``, ``study_kappa`` and ``study_kappa/<body part>``. AUROC and
            kappa are NaN where only one class occurs, all are where there is no image.
        """
        first = first_rows(self.column("index"))
        probability, label, study, body_part = (
            self.column(name)[first] for name in ("probability", "label", "study", "body_part")
        )
        correct = ((probability > self.threshold) == label.bool()).float()
        recalls = torch.stack([correct[label == value].mean() for value in (0, 1)])
        figures = {
            "accuracy": correct.mean(),
            "balanced_accuracy": recalls.nanmean(),
            "auroc": _auroc(probability, label),
            "kappa": _kappa(probability, label, self.threshold),
            "study_kappa": _kappa(*by_study(probability, label, study), self.threshold),
        }
        for code, name in enumerate(self.body_parts):
            part = body_part == code
            views = by_study(probability[part], label[part], study[part])
            figures[f"study_kappa/{name}"] = _kappa(*views, self.threshold)
        return figures


def by_study(probability: Tensor, label: Tensor, study: Tensor) -> tuple[Tensor, Tensor]:
    """Join the views of each study.

    Args:
        probability: ``(B,)``.
        label: 0 or 1, ``(B,)``.
        study: Code of the study, ``(B,)``.

    Returns:
        Mean probability and largest label of the S studies, each ``(S,)``, in order of the codes.

    Example:
        >>> import torch
        >>> probability, label = torch.tensor([0.25, 0.5, 1.0]), torch.tensor([0, 0, 1])
        >>> by_study(probability, label, study=torch.tensor([4, 2, 4]))
        (tensor([0.5000, 0.6250]), tensor([0, 1]))
    """
    codes, row = study.unique(return_inverse=True)
    # float64: the mean must not depend on the order in which ranks delivered the views.
    mean = probability.new_zeros(len(codes), dtype=torch.float64)
    mean = mean.scatter_reduce(0, row, probability.double(), "mean", include_self=False)
    worst = label.new_zeros(len(codes)).scatter_reduce(0, row, label, "amax")
    return mean.to(probability.dtype), worst


def _auroc(probability: Tensor, label: Tensor) -> Tensor:
    if len(label.unique()) < 2:
        return _nan_like(probability)
    return binary_auroc(probability, label)


def _kappa(probability: Tensor, label: Tensor, threshold: float) -> Tensor:
    if len(label.unique()) < 2:
        return _nan_like(probability)
    return binary_cohen_kappa(probability, label, threshold)


def _nan_like(probability: Tensor) -> Tensor:
    return probability.new_full((), float("nan"))
