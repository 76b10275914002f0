"""Stage 3: a decoder on the shared encoder learns the clinicians' masks (paper, equation (4))."""

from __future__ import annotations

import torch
from torch import Tensor, distributed

from lightning_modules.attention import normalise, upsample
from lightning_modules.decoder import Decoder
from lightning_modules.losses import lesion_loss, weakly_supervised_loss
from lightning_modules.stage1 import ABNORMAL, Batch
from lightning_modules.stage2 import MASK_SOURCES, Stage2GuidedAttention

ATTENTION_TARGETS = ("fcn", "masks")
# From here on the FCN's output counts as a lesion that it sees.
SEEN = 0.5


class Stage3WeaklySupervised(Stage2GuidedAttention):
    """Stage 2 plus an FCN, whose encoder is the classifier's, that draws the lesion.

    L = (1 - alpha) L1 + alpha L2 + lambda L3, equation (4), L3 the mean squared error on images
    that have a lesion mask (0 in a batch without any).

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
        sigma: threshold of the soft mask.
        mask_source: as in ``Stage2GuidedAttention``, or "fcn": the FCN's output (ours).
        mask_fill: what masked-out pixels become, in units of the model's input.
        mask_statistics: as in ``Stage2GuidedAttention``.
        mask_shrink: as in ``Stage2GuidedAttention``.
        mask_gradient: as in ``Stage2GuidedAttention``.
        lambda_lesion: lambda, the weight of L3.
        classification: False trains the FCN on the masks alone, lambda L3: the reference that tells
            what the image labels add.
        normal_masks: give normal images an empty mask in L3 (ours, not the paper's).
        lambda_attention: weight of L4, the squared distance of PCAM from ``attention_target``; 0
            leaves it out (ours: the paper's shared encoder alone moves the classifier's map
            little).
        attention_target: "masks", the drawn lesions, or "fcn": those where there are any and on
            all other abnormal images what the FCN draws.

    Raises:
        ValueError: ``mask_source`` or ``attention_target`` is unknown.
    """

    stage = "stage3"
    map_methods = ("cam", "pcam", "fcn")

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
        lambda_lesion: float = 1.0,
        classification: bool = True,
        normal_masks: bool = False,
        lambda_attention: float = 0.0,
        attention_target: str = "fcn",
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
            omega=omega,
            sigma=sigma,
            mask_source=mask_source,
            mask_fill=mask_fill,
            mask_statistics=mask_statistics,
            mask_shrink=mask_shrink,
            mask_gradient=mask_gradient,
        )
        if attention_target not in ATTENTION_TARGETS:
            raise ValueError(
                f"attention.target={attention_target} is none of {', '.join(ATTENTION_TARGETS)}"
            )
        # After the encoder and the FC layer, and with the random state put back: with the same seed
        # both start, and drop out, as stage 2's do.
        with torch.random.fork_rng(devices=[]):
            self.decoder = Decoder(self.encoder.channels)

    def check_mask_source(self, source: str) -> None:
        """Raise where this stage has no such map."""
        if source not in (*MASK_SOURCES, "fcn"):
            raise ValueError(f"attention.source={source} is none of {', '.join(MASK_SOURCES)}, fcn")

    @property
    def classifies(self) -> bool:
        """Whether the FC layer learns; from the masks alone it does not."""
        return bool(self.hparams["classification"])

    @property
    def judged_maps(self) -> tuple[str, ...]:
        """All three; from the masks alone the FCN's only."""
        return self.map_methods if self.classifies else ("fcn",)

    # The FCN --------------------------------------------------------------------------------------

    def encode(self, image: Tensor) -> list[Tensor]:
        """The encoder's pyramid, with the FCN's output."""
        return DrawnPyramid(self.encoder(image), self.decoder)

    def draw(self, pyramid: list[Tensor]) -> Tensor:
        """The FCN's output (B, 1, H, W) in [0, 1], float32."""
        return pyramid.drawn if isinstance(pyramid, DrawnPyramid) else self.decoder(pyramid)

    def raw_maps(self, pyramid: list[Tensor]) -> dict[str, Tensor]:
        """CAM and PCAM (B, 1, h, w), and the FCN's output (B, 1, H, W)."""
        return {**super().raw_maps(pyramid), "fcn": self.draw(pyramid)}

    def mask_map(self, pyramid: list[Tensor], logits: Tensor, label: Tensor | None) -> Tensor:
        """As in stage 2, or the FCN's output without gradient: L2 must not redraw the lesion."""
        if self.hparams["mask_source"] == "fcn":
            return self.draw(pyramid).detach()
        return super().mask_map(pyramid, logits, label)

    # The step -------------------------------------------------------------------------------------

    def losses(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor, list[Tensor]]:
        """L1, L2, L3 and their sum by equation (4); class scores (B, 2) and the pyramid."""
        named: dict[str, Tensor] = {}
        if self.classifies:
            named, logits, pyramid = super().losses(batch)
        else:
            pyramid = self.encode(batch["image"])
            logits = self.classify(pyramid[-1])
        marked = batch["has_lesion"]
        if self.hparams["normal_masks"]:
            marked = marked | (batch["label"] == 0)
        l3 = lesion_loss(
            self.draw(pyramid), batch["lesion_mask"], marked, self.images_a_rank(marked)
        )
        weight = self.hparams["lambda_lesion"]
        if self.classifies:
            loss = weakly_supervised_loss(named["l1"], named["l2"], l3, self.alpha, weight)
            if self.hparams["lambda_attention"]:
                named["l4"] = self.attention_loss(batch, pyramid)
                loss = loss + self.hparams["lambda_attention"] * named["l4"]
        else:
            # The FC layer stays in the graph: DDP waits for a gradient of every parameter.
            loss = weight * l3 + 0.0 * logits.sum()
        return {**named, "loss": loss, "l3": l3}, logits, pyramid

    def attention_loss(self, batch: Batch, pyramid: list[Tensor]) -> Tensor:
        """L4: mean squared error of each image's PCAM, stretched to [0, 1], from its target."""
        target, counts = batch["lesion_mask"], batch["has_lesion"]
        if self.hparams["attention_target"] == "fcn":
            # Detached: PCAM follows the FCN, never the other way round. An FCN that sees nothing
            # yet teaches nothing.
            drawn = self.draw(pyramid).detach()
            sees = (batch["label"] == ABNORMAL) & (drawn.amax((1, 2, 3)) > SEEN)
            target = torch.where(counts.view(-1, 1, 1, 1), target, drawn)
            counts = counts | sees
        own = normalise(self.raw_maps(pyramid)["pcam"])
        own = upsample(own, target.shape[-2:])
        return lesion_loss(own, target, counts, self.images_a_rank(counts))

    def images_a_rank(self, counts: Tensor) -> Tensor:
        """Mean number over ranks of the images that count, ``counts`` bool (B,).

        DDP takes the mean of the ranks' gradients: dividing by this, an image weighs the same
        whichever rank drew it.
        """
        number = counts.sum().float()
        if self.training and distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(number)
            number = number / distributed.get_world_size()
        return number

    def on_validation_epoch_end(self) -> None:
        """As before; the FCN's output is a probability already and keeps its own scale."""
        super().on_validation_epoch_end()
        self.map_scale[self.map_methods.index("fcn")] = 1.0


class DrawnPyramid(list[Tensor]):
    """The encoder's features with what the decoder drew from them.

    Loss, mask and map of one step then share one pass of the decoder.

    Args:
        features: the encoder's pyramid.
        decoder: draws the lesion map from it.
    """

    def __init__(self, features: list[Tensor], decoder: Decoder) -> None:
        super().__init__(features)
        self.drawn: Tensor = decoder(features)
