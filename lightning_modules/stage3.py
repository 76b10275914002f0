"""Stage 3: a decoder on the shared encoder learns the clinicians' masks (paper, equation (4))."""

import torch
from torch import Tensor, distributed

from lightning_modules.attention import lesion_weight
from lightning_modules.decoder import Decoder
from lightning_modules.encoder import Encoder, EncoderError, gather
from lightning_modules.losses import LESION_LOSSES, mean_error, weakly_supervised_loss
from lightning_modules.stage1 import Batch, Outputs
from lightning_modules.stage2 import Stage2GuidedAttention


class Stage3WeaklySupervised(Stage2GuidedAttention):
    """Stage 2 plus an FCN, whose encoder is the classifier's, that draws the lesion.

    L = (1 - alpha) L1 + alpha L2 + lambda L3, equation (4). Ours and off by default: the classifier
    looks where the FCN looks (the shared encoder alone moves its map little).
    """

    stage = "stage3"

    def configure_network(self) -> None:
        """As before, and the decoder."""
        super().configure_network()
        own, wanted = tuple(self.encoder.strides), Encoder.strides
        if own != wanted:
            what = f"model.encoder: stage 3's decoder expects strides {wanted}, got {own}"
            raise EncoderError(f"{what}. Fix: features at those, or stage 1 or 2")
        # After the encoder and the FC layer, and with the random state put back: with the same seed
        # both start, and drop out, as stage 2's do.
        with torch.random.fork_rng(devices=[]):
            self.decoder = Decoder(self.encoder.channels, self.encoder.offsets)

    @property
    def map_methods(self) -> tuple[str, ...]:
        """As before, the evidence where the FCN weighs it, and the FCN's map."""
        evidence = ("evidence",) if self.attention.pooling == "lesion" else ()
        return ("cam", "pcam", *evidence, "fcn")

    @property
    def classifies(self) -> bool:
        """Whether the FC layer learns; from the masks alone it does not."""
        return self.loss.classification

    @property
    def judged_maps(self) -> tuple[str, ...]:
        """All, first what nothing teaches; from the masks alone the FCN's only."""
        if not self.classifies:
            return ("fcn",)
        maps = self.map_methods
        return maps if self.loss.lambda_lesion else (*maps[2:], *maps[:2])

    def unmasked_pass(self, image: Tensor) -> Outputs:
        """As before, with the FCN's output, which weighs the positions where that is wanted.

        Detached: the classifier must look where the FCN looks, and not draw its map.
        """
        pyramid = self.encoder(image)
        scores = self.decoder(pyramid)
        last, share = pyramid[-1], None
        if self.attention.pooling == "lesion":
            weight = lesion_weight(scores.detach().sigmoid(), self.attention.floor)
            share = gather(weight / weight[0].numel(), last.shape[-2:], self.encoder.offsets[-1])
        return Outputs(pyramid, self.classify(last, share), None, scores, share)

    def raw_maps(self, outputs: Outputs) -> dict[str, Tensor]:
        """As before, and the FCN's; where that weighs the positions, the evidence.

        Evidence is PCAM times the weight, pixel by pixel: its mean is what speaks for abnormal in
        the class score. The FCN's map is then multiplied by the probability, so that a normal film
        that has something like a lesion stays dark.
        """
        assert outputs.lesion_scores is not None, "of stage 3's unmasked pass"
        maps, lesion = super().raw_maps(outputs), outputs.lesion_scores.sigmoid()
        if self.attention.pooling == "lesion":
            weight = lesion_weight(lesion.detach(), self.attention.floor)
            maps["evidence"] = weight * self.upsample(maps["pcam"], weight.shape[-2:])
            lesion = lesion * outputs.probability.view(-1, 1, 1, 1)
        return {**maps, "fcn": lesion}

    def features(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """As before; the decoder is asked only where it weighs the positions."""
        if self.attention.pooling == "mean":
            return super().features(image)
        outputs = self.unmasked_pass(image)
        return outputs.pyramid[-1], outputs.share

    def losses(self, batch: Batch) -> tuple[dict[str, Tensor], Outputs]:
        """L1, L2, L3 and their sum by equation (4), and what they were computed from."""
        if self.classifies:
            named, outputs = super().losses(batch)
        else:
            outputs = self.unmasked_pass(batch["image"])
            # 0, but of the FC layer: DDP waits for a gradient of every parameter.
            named = {"loss": 0.0 * outputs.logits.sum()}
        marked = batch["has_lesion"].float()
        if self.loss.normal_masks:
            marked = marked + self.loss.normal_weight * (batch["label"] == 0)
        assert outputs.lesion_scores is not None, "of stage 3's unmasked pass"
        error = LESION_LOSSES[self.loss.lesion]
        l3 = self.mean_over_ranks(error(outputs.lesion_scores, batch["lesion_mask"]), marked)
        loss = weakly_supervised_loss(named["loss"], l3, self.loss.lambda_lesion)
        return {**named, "loss": loss, "l3": l3}, outputs

    def mean_over_ranks(self, errors: Tensor, weight: Tensor) -> Tensor:
        """Mean of errors (B,) over the images that have a weight (B,), on all ranks together."""
        images = (weight > 0).sum().float()
        if self.training and distributed.is_available() and distributed.is_initialized():
            # DDP takes the mean of the ranks' gradients: divided by the ranks' mean number, an
            # image weighs the same whichever rank drew it.
            distributed.all_reduce(images)
            images = images / distributed.get_world_size()
        return mean_error(errors, weight, images)

    def on_validation_epoch_end(self) -> None:
        """As before; the FCN's output is a probability already and keeps its own scale."""
        super().on_validation_epoch_end()
        self.map_scale[self.map_methods.index("fcn")] = 1.0
