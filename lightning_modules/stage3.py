"""Stage 3: a decoder on the shared encoder learns the clinicians' masks (paper, equation (4))."""

from __future__ import annotations

import torch
from torch import Tensor, distributed

from lightning_modules.attention import normalise
from lightning_modules.decoder import Decoder
from lightning_modules.losses import lesion_loss, weakly_supervised_loss
from lightning_modules.stage1 import ABNORMAL, Batch, Outputs
from lightning_modules.stage2 import Stage2GuidedAttention

# From here on the FCN's output counts as a lesion that it sees.
SEEN = 0.5


class Stage3WeaklySupervised(Stage2GuidedAttention):
    """Stage 2 plus an FCN, whose encoder is the classifier's, that draws the lesion.

    L = (1 - alpha) L1 + alpha L2 + lambda L3, equation (4). Ours and off by default: L4, which
    draws PCAM towards the FCN (the shared encoder alone moves the classifier's map little).
    """

    stage = "stage3"
    map_methods = ("cam", "pcam", "fcn")

    def configure_network(self) -> None:
        """As before, and the decoder."""
        super().configure_network()
        # After the encoder and the FC layer, and with the random state put back: with the same seed
        # both start, and drop out, as stage 2's do.
        with torch.random.fork_rng(devices=[]):
            self.decoder = Decoder(self.encoder.channels, self.encoder.offsets)

    @property
    def classifies(self) -> bool:
        """Whether the FC layer learns; from the masks alone it does not."""
        return self.loss.classification

    @property
    def judged_maps(self) -> tuple[str, ...]:
        """All three; from the masks alone the FCN's only."""
        return self.map_methods if self.classifies else ("fcn",)

    def unmasked_pass(self, image: Tensor) -> Outputs:
        """As before, with the FCN's output."""
        pyramid = self.encoder(image)
        drawn = {"fcn": self.decoder(pyramid)}
        return Outputs(pyramid, self.classify(pyramid[-1]), drawn=drawn)

    def mask_map(self, outputs: Outputs, label: Tensor) -> Tensor:
        """As in stage 2, or the FCN's output without gradient: L2 must not redraw the lesion."""
        own = self.attention.source == "fcn"
        return outputs.drawn["fcn"].detach() if own else super().mask_map(outputs, label)

    def losses(self, batch: Batch) -> tuple[dict[str, Tensor], Outputs]:
        """L1, L2, L3 and their sum by equation (4), and what they were computed from."""
        named: dict[str, Tensor] = {}
        if self.classifies:
            named, outputs = super().losses(batch)
        else:
            outputs = self.unmasked_pass(batch["image"])
        marked = batch["has_lesion"]
        if self.loss.normal_masks:
            marked = marked | (batch["label"] == 0)
        l3 = self.mask_error(outputs.drawn["fcn"], batch["lesion_mask"], marked)
        weight = self.loss.lambda_lesion
        if self.classifies:
            loss = weakly_supervised_loss(named["l1"], named["l2"], l3, self.alpha, weight)
            if self.loss.lambda_attention:
                named["l4"] = self.attention_loss(batch, outputs)
                loss = loss + self.loss.lambda_attention * named["l4"]
        else:
            # The FC layer stays in the graph: DDP waits for a gradient of every parameter.
            loss = weight * l3 + 0.0 * outputs.logits.sum()
        return {**named, "loss": loss, "l3": l3}, outputs

    def attention_loss(self, batch: Batch, outputs: Outputs) -> Tensor:
        """L4: mean squared error of each image's PCAM, stretched to [0, 1], from its target."""
        target, counts = batch["lesion_mask"], batch["has_lesion"]
        if self.attention.target == "fcn":
            # Detached: PCAM follows the FCN, never the other way round. An FCN that sees nothing
            # yet teaches nothing.
            drawn = outputs.drawn["fcn"].detach()
            sees = (batch["label"] == ABNORMAL) & (drawn.amax((1, 2, 3)) > SEEN)
            target = torch.where(counts.view(-1, 1, 1, 1), target, drawn)
            counts = counts | sees
        own = normalise(self.raw_maps(outputs)["pcam"])
        return self.mask_error(self.upsample(own, target.shape[-2:]), target, counts)

    def mask_error(self, output: Tensor, mask: Tensor, counts: Tensor) -> Tensor:
        """Mean squared error of maps (B, 1, H, W) over the images that ``counts`` (B,) marks."""
        images = counts.sum().float()
        if self.training and distributed.is_available() and distributed.is_initialized():
            # DDP takes the mean of the ranks' gradients: divided by the ranks' mean number, an
            # image weighs the same whichever rank drew it.
            distributed.all_reduce(images)
            images = images / distributed.get_world_size()
        return lesion_loss(output, mask, counts, images)

    def on_validation_epoch_end(self) -> None:
        """As before; the FCN's output is a probability already and keeps its own scale."""
        super().on_validation_epoch_end()
        self.map_scale[self.map_methods.index("fcn")] = 1.0
