"""Stage 2: the area that PCAM marks must be enough to classify (paper, stage 2, equation (3))."""

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_modules.attention import normalise, pcam, soft_mask
from lightning_modules.losses import guided_loss
from lightning_modules.stage1 import ABNORMAL, Batch, Outputs, Stage1Classifier

# e^P / e at chance, P = 0.5: what is known of the accuracy before the first validation.
ALPHA_AT_CHANCE = math.exp(-0.5)
# Of a BatchNorm.
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


class SecondPass(nn.Module):
    """Gives the pass of masked images its place in BatchNorm's running statistics.

    In training each pass is normalised by its own batch; evaluation needs running statistics, and
    masked images, mostly of one grey, have others than whole ones. So the masked pass has its "own"
    second set, or, with "image", is evaluated with those of whole images and leaves them alone,
    which suits it the less, the smaller the area that the mask keeps. The paper does not say.
    """

    def __init__(self, network: nn.Module, statistics: str) -> None:
        super().__init__()
        # Of three buffers a BatchNorm: running_mean_0, running_var_0, num_batches_tracked_0, ...
        paths = [name.rpartition(".")[::2] for name, _ in network.named_buffers()]
        names = [(path, leaf) for path, leaf in paths if leaf in BUFFERS]
        self.names = {
            f"{leaf}_{place // 3}": f"{path}.{leaf}" for place, (path, leaf) in enumerate(names)
        }
        self.own = statistics == "own"
        if self.own:
            for ours, theirs in self.names.items():
                self.register_buffer(ours, network.get_buffer(theirs).clone())

    def forward(self, network: nn.Module, image: Tensor) -> list[Tensor]:
        """The pyramid that ``network`` makes of masked images."""
        statistics = {
            # A copy: the batch's statistics are used but not remembered.
            theirs: self.get_buffer(ours) if self.own else network.get_buffer(theirs).clone()
            for ours, theirs in self.names.items()
        }
        features: list[Tensor] = functional_call(network, statistics, (image,))
        return features


class Stage2GuidedAttention(Stage1Classifier):
    """Stage 1's classifier that must also classify the image masked by its own PCAM.

    L = (1 - alpha) L1 + alpha L2, equation (3). Gradient flows through the soft mask, which is how
    the attention learns. ``alpha``, the confidence in the attention, in [0, 1], is set from
    outside, epoch by epoch. Which map makes the mask and what fills the rest is ours.
    """

    stage = "stage2"

    def configure_network(self) -> None:
        """As before, and the masked pass's BatchNorm statistics."""
        super().configure_network()
        self.alpha = ALPHA_AT_CHANCE
        self.second_pass = SecondPass(self.encoder, self.attention.statistics)

    def mask_class(self, logits: Tensor, label: Tensor) -> Tensor:
        """The class (B,) whose map makes each image's mask, as ``attention.source`` says."""
        if self.attention.source == "predicted":
            return logits.argmax(1)
        return label if self.attention.source == "true" else torch.full_like(label, ABNORMAL)

    def mask_map(self, outputs: Outputs, label: Tensor) -> Tensor:
        """The map (B, 1, h, w), unbounded, that makes the mask."""
        return self.pcam_of(outputs.pyramid, self.mask_class(outputs.logits, label))

    def pcam_of(self, pyramid: list[Tensor], chosen: Tensor) -> Tensor:
        """PCAM (B, 1, h, w) of one class an image, ``chosen`` (B,)."""
        maps = pcam(pyramid[-1], self.fc.weight)
        return maps.gather(1, chosen.view(-1, 1, 1, 1).expand(-1, 1, *maps.shape[-2:]))

    def mask_image(self, image: Tensor, attention: Tensor) -> Tensor:
        """The image (B, 1, H, W) where the map (B, 1, h, w) is high, elsewhere the fill."""
        shown = self.upsample(normalise(attention), image.shape[-2:])
        kept = soft_mask(shown, self.attention.omega, self.attention.sigma)
        return self.attention.fill + (image - self.attention.fill) * kept

    def classify_masked(self, image: Tensor, attention: Tensor, share: Tensor | None) -> Tensor:
        """Class scores (B, 2) of the masked image; the mask carries gradient to the encoder."""
        masked = self.mask_image(image, attention)
        return self.classify(self.second_pass(self.encoder, masked)[-1], share)

    def masked_logits(self, image: Tensor, label: Tensor) -> Tensor:
        """Class scores (B, 2) of images (B, 1, H, W) under the mask of the training."""
        outputs = self.unmasked_pass(image)
        return self.classify_masked(image, self.mask_map(outputs, label), outputs.share)

    def swapped_masked_logits(self, image: Tensor, label: Tensor) -> Tensor:
        """Class scores (B, 2) of images (B, 1, H, W) under the PCAM of the *other* class.

        The test for a leak: a network that reads the class off the mask's shape follows the mask,
        and its accuracy here falls to 0 or sticks to one class.
        """
        outputs = self.unmasked_pass(image)
        other = 1 - self.mask_class(outputs.logits, label)
        return self.classify_masked(image, self.pcam_of(outputs.pyramid, other), outputs.share)

    def losses(self, batch: Batch) -> tuple[dict[str, Tensor], Outputs]:
        """L1, L2 and their sum by equation (3), and what they were computed from; alpha 0: L1."""
        named, outputs = super().losses(batch)
        if self.loss.alpha == 0:  # then L2 counts for nothing, and half of the time is saved
            return named, outputs
        attention = self.mask_map(outputs, batch["label"])
        outputs.masked = self.classify_masked(batch["image"], attention, outputs.share)
        l1, l2 = named["l1"], self.classification_loss(outputs.masked, batch)
        loss = guided_loss(l1, l2, self.alpha)
        return {"loss": loss, "l1": l1, "l2": l2, "alpha": l1.new_full((), self.alpha)}, outputs
