"""Stage 2: the area that PCAM marks must be enough to classify (paper, stage 2, equation (3))."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from lightning_modules.attention import normalise, pcam, soft_mask, upsample
from lightning_modules.batch_statistics import PASSES, SecondPass
from lightning_modules.losses import guided_loss
from lightning_modules.stage1 import ABNORMAL, Batch, Stage1Classifier
from lightning_modules.stem import StemConvolution

MASK_SOURCES = ("abnormal", "predicted", "true")
GRADIENTS = ("pytorch", "convolution")
# e^P / e at chance, P = 0.5: what is known of the accuracy before the first validation.
ALPHA_AT_CHANCE = math.exp(-0.5)


class Stage2GuidedAttention(Stage1Classifier):
    """Stage 1's classifier that must also classify the image masked by its own PCAM.

    L = (1 - alpha) L1 + alpha L2, equation (3). The soft mask is GAIN's (Li et al. 2018, section
    3.1); gradient flows through it, which is how the attention learns. Which map makes the mask,
    what fills the rest and that the masked pass leaves BatchNorm's running statistics alone is
    ours: the paper does not say.

    Attributes:
        alpha: confidence in the attention, in [0, 1]; set from outside, epoch by epoch.

    Args:
        body_parts: see ``Stage1Classifier``, as all arguments up to ``schedule``.
        class_weights: (normal, abnormal) weight of an image in L1 and L2.
        label_smoothing: share of the target given to the other class, in L1 and L2.
        dropout: on the pooled features.
        width: scales the encoder's inner widths.
        learning_rate: of AdamW, after warm-up.
        weight_decay: of AdamW.
        warmup_epochs: epochs of linear warm-up.
        schedule: "cosine" or "constant".
        omega: steepness of the soft mask.
        sigma: threshold of the soft mask, on the map that runs from 0 to 1 in each image.
        mask_source: whose PCAM makes the mask: "abnormal" (that class for every image), "predicted"
            class, or "true" class: that mask's shape tells the label, an ablation.
        mask_fill: what masked-out pixels become, in units of the model's input.
        mask_statistics: BatchNorm's running statistics in the masked pass, see ``SecondPass``:
            "own", "image" (those of the unmasked pass, left alone) or "both" (one set that both
            passes move).
        mask_shrink: what the sides of the masked image are divided by before its pass (ours): 2
            makes that pass cost a quarter, and lesions in it half as long.
        mask_gradient: how a processor sums the gradient at the masked image: "pytorch", its own
            kernel, or "convolution", faster and the same but for rounding, see
            ``stem.image_gradient``.

    Raises:
        ValueError: ``mask_source``, ``mask_statistics`` or ``mask_gradient`` is unknown, or
            ``mask_shrink`` below 1.
    """

    stage = "stage2"

    def __init__(
        self,
        body_parts: list[str] | None = None,
        class_weights: tuple[float, float] = (1.0, 1.0),
        label_smoothing: float = 0.0,
        dropout: float = 0.0,
        width: float = 1.0,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.3,
        warmup_epochs: float = 1.0,
        schedule: str = "cosine",
        omega: float = 10.0,
        sigma: float = 0.5,
        mask_source: str = "abnormal",
        mask_fill: float = 0.0,
        mask_statistics: str = "own",
        mask_shrink: int = 1,
        mask_gradient: str = "pytorch",
    ) -> None:
        super().__init__(
            body_parts=body_parts,
            class_weights=class_weights,
            label_smoothing=label_smoothing,
            dropout=dropout,
            width=width,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            warmup_epochs=warmup_epochs,
            schedule=schedule,
        )
        self.alpha = ALPHA_AT_CHANCE
        self.check_mask_source(mask_source)
        if mask_statistics not in PASSES:
            raise ValueError(
                f"attention.statistics={mask_statistics} is none of {', '.join(PASSES)}"
            )
        if mask_shrink < 1:
            raise ValueError(f"attention.shrink={mask_shrink}: 1 or more")
        if mask_gradient not in GRADIENTS:
            raise ValueError(
                f"attention.gradient={mask_gradient} is none of {', '.join(GRADIENTS)}"
            )
        cast(StemConvolution, self.encoder.stem[0]).fast_gradient = mask_gradient == "convolution"
        self.second_pass = SecondPass(self.encoder, mask_statistics)

    def check_mask_source(self, source: str) -> None:
        """Raise where this stage has no such map."""
        if source not in MASK_SOURCES:
            raise ValueError(f"attention.source={source} is none of {', '.join(MASK_SOURCES)}")

    # The mask -------------------------------------------------------------------------------------

    def mask_class(self, logits: Tensor, label: Tensor | None) -> Tensor:
        """The class (B,) whose map makes each image's mask, as ``mask_source`` says."""
        source = self.hparams["mask_source"]
        if source == "predicted":
            return logits.argmax(1)
        if source == "true":
            if label is None:
                raise ValueError("attention.source=true makes the mask from the label: give it")
            return label
        return torch.full((len(logits),), ABNORMAL, device=logits.device)

    def mask_map(self, pyramid: list[Tensor], logits: Tensor, label: Tensor | None) -> Tensor:
        """The map (B, 1, h, w), unbounded, that makes the mask."""
        return self.pcam_of(pyramid, self.mask_class(logits, label))

    def pcam_of(self, pyramid: list[Tensor], chosen: Tensor) -> Tensor:
        """PCAM (B, 1, h, w) of one class an image, ``chosen`` (B,)."""
        maps = pcam(pyramid[-1], self.fc.weight)
        return maps.gather(1, chosen.view(-1, 1, 1, 1).expand(-1, 1, *maps.shape[-2:]))

    def mask_image(self, image: Tensor, attention: Tensor) -> Tensor:
        """The image (B, 1, H, W) where the map (B, 1, h, w) is high, ``mask_fill`` elsewhere."""
        kept = soft_mask(
            upsample(normalise(attention), image.shape[-2:]),
            self.hparams["omega"],
            self.hparams["sigma"],
        )
        fill = self.hparams["mask_fill"]
        return fill + (image - fill) * kept

    def classify_masked(self, image: Tensor, attention: Tensor) -> Tensor:
        """Class scores (B, 2) of the masked image; the mask carries gradient to the encoder."""
        masked = self.mask_image(image, attention)
        if (shrink := self.hparams["mask_shrink"]) > 1:
            masked = avg_pool2d(masked, shrink)
        with self.second_pass.of(self.encoder):
            return self.classify(self.encoder(masked)[-1])

    def masked_logits(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        """Class scores (B, 2) of images (B, 1, H, W) under the mask of the training.

        Raises:
            ValueError: ``mask_source`` is "true" and ``label`` (B,) is not given.
        """
        pyramid = self.encoder(image)
        return self.classify_masked(
            image, self.mask_map(pyramid, self.classify(pyramid[-1]), label)
        )

    def swapped_masked_logits(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        """Class scores (B, 2) of images (B, 1, H, W) under the PCAM of the *other* class.

        The test for a leak: a network that reads the class off the mask's shape follows the mask,
        and its accuracy here falls to 0 or sticks to one class.

        Raises:
            ValueError: ``mask_source`` is "true" and ``label`` (B,) is not given.
        """
        pyramid = self.encoder(image)
        other = 1 - self.mask_class(self.classify(pyramid[-1]), label)
        return self.classify_masked(image, self.pcam_of(pyramid, other))

    # The step -------------------------------------------------------------------------------------

    def encode(self, image: Tensor) -> list[Tensor]:
        """The pyramid that losses and maps share."""
        return self.encoder(image)

    def losses(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor, list[Tensor]]:
        """L1, L2 and their sum by equation (3); class scores (B, 2) and the pyramid."""
        image, label = batch["image"], batch["label"]
        pyramid = self.encode(image)
        logits = self.classify(pyramid[-1])
        masked = self.classify_masked(image, self.mask_map(pyramid, logits, label))
        l1 = self.classification_loss(logits, label)
        l2 = self.classification_loss(masked, label)
        loss = guided_loss(l1, l2, self.alpha)
        if not self.training:
            correct = (masked.argmax(1) == label).float().mean()
            self.val_means.add({"masked_accuracy": correct}, len(label))
        return (
            {"loss": loss, "l1": l1, "l2": l2, "alpha": l1.new_full((), self.alpha)},
            logits,
            pyramid,
        )
