"""Stage 2: the area that PCAM marks must be enough to classify (paper, stage 2, equation (3))."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_modules.attention import normalise, pcam, soft_mask, upsample
from lightning_modules.batch_statistics import SecondPass
from lightning_modules.losses import guided_loss
from lightning_modules.stage1 import ABNORMAL, Batch, Outputs, Stage1Classifier

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
    """

    stage = "stage2"

    def configure_network(self) -> None:
        """As before, and the masked pass's BatchNorm statistics."""
        super().configure_network()
        self.alpha = ALPHA_AT_CHANCE
        self.second_pass = SecondPass(self.encoder, self.attention.statistics)

    # The mask -------------------------------------------------------------------------------------

    def mask_class(self, logits: Tensor, label: Tensor | None) -> Tensor:
        """The class (B,) whose map makes each image's mask, as ``attention.source`` says."""
        if self.attention.source == "predicted":
            return logits.argmax(1)
        if self.attention.source == "true":
            if label is None:
                raise ValueError("attention.source=true makes the mask from the label: give it")
            return label
        return torch.full((len(logits),), ABNORMAL, device=logits.device)

    def mask_map(self, outputs: Outputs, label: Tensor | None) -> Tensor:
        """The map (B, 1, h, w), unbounded, that makes the mask."""
        return self.pcam_of(outputs.pyramid, self.mask_class(outputs.logits, label))

    def pcam_of(self, pyramid: list[Tensor], chosen: Tensor) -> Tensor:
        """PCAM (B, 1, h, w) of one class an image, ``chosen`` (B,)."""
        maps = pcam(pyramid[-1], self.fc.weight)
        return maps.gather(1, chosen.view(-1, 1, 1, 1).expand(-1, 1, *maps.shape[-2:]))

    def mask_image(self, image: Tensor, attention: Tensor) -> Tensor:
        """The image (B, 1, H, W) where the map (B, 1, h, w) is high, elsewhere the fill."""
        shown = upsample(normalise(attention), image.shape[-2:])
        kept = soft_mask(shown, self.attention.omega, self.attention.sigma)
        return self.attention.fill + (image - self.attention.fill) * kept

    def classify_masked(self, image: Tensor, attention: Tensor) -> Tensor:
        """Class scores (B, 2) of the masked image; the mask carries gradient to the encoder."""
        masked = self.mask_image(image, attention)
        return self.classify(self.second_pass(self.encoder, masked)[-1])

    def masked_logits(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        """Class scores (B, 2) of images (B, 1, H, W) under the mask of the training.

        ``label`` (B,) is needed where ``attention.source`` is "true".
        """
        return self.classify_masked(image, self.mask_map(self.unmasked_pass(image), label))

    def swapped_masked_logits(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        """Class scores (B, 2) of images (B, 1, H, W) under the PCAM of the *other* class.

        The test for a leak: a network that reads the class off the mask's shape follows the mask,
        and its accuracy here falls to 0 or sticks to one class.
        """
        pyramid = self.encoder(image)
        other = 1 - self.mask_class(self.classify(pyramid[-1]), label)
        return self.classify_masked(image, self.pcam_of(pyramid, other))

    # The step -------------------------------------------------------------------------------------

    def losses(self, batch: Batch) -> tuple[dict[str, Tensor], Outputs]:
        """L1, L2 and their sum by equation (3), and what they were computed from."""
        image, label = batch["image"], batch["label"]
        outputs = self.unmasked_pass(image)
        outputs.masked = self.classify_masked(image, self.mask_map(outputs, label))
        l1 = self.classification_loss(outputs.logits, label)
        l2 = self.classification_loss(outputs.masked, label)
        loss = guided_loss(l1, l2, self.alpha)
        return {"loss": loss, "l1": l1, "l2": l2, "alpha": l1.new_full((), self.alpha)}, outputs
