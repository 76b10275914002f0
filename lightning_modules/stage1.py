"""Stage 1: a ResNet-23 classifies radiographs; CAM and PCAM show where it looked."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torchmetrics import CatMetric, MetricCollection

from lightning_modules.attention import cam, pcam, scale_map, upsample
from lightning_modules.encoder import OUT_CHANNELS, Encoder
from lightning_modules.metrics import Agreement, HitRate, PixelAveragePrecision
from lightning_modules.running_means import RunningMeans

Batch = dict[str, Tensor]
ABNORMAL = 1
# Share of val images whose peak may exceed the map scale: a single outlier must not darken all
# others.
SCALE_QUANTILE = 0.99
# AdamW's memory of squared gradients: some 50 steps instead of the usual 1000, a third of a short
# training here.
BETA2 = 0.98


class Stage1Classifier(LightningModule):
    """Normal / abnormal classifier whose class activation maps need neither hooks nor gradients.

    Args:
        body_parts: names behind the batch's ``body_part`` codes.
        class_weights: (normal, abnormal) weight of an image in the loss, mean about 1.
        label_smoothing: share of the target given to the other class.
        dropout: on the pooled features.
        width: scales the encoder's inner widths.
        learning_rate: of AdamW, after warm-up.
        weight_decay: of AdamW, on convolution and FC weights only.
        warmup_epochs: epochs of linear warm-up.
        schedule: "cosine" to zero over the run, or "constant".
    """

    stage = "stage1"
    map_methods: tuple[str, ...] = ("cam", "pcam")
    class_weights: Tensor
    map_scale: Tensor

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
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.encoder = Encoder(width=width)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(OUT_CHANNELS, 2)
        self.register_buffer("class_weights", torch.tensor(class_weights), persistent=False)
        # One scale a map method and run, so that maps of different images compare.
        self.register_buffer("map_scale", torch.ones(len(self.map_methods)))
        self.configure_metrics()

    def configure_metrics(self) -> None:
        """Create what accumulates over an epoch."""
        self.train_means = RunningMeans()
        self._resumed_means: dict[str, list[float]] = {}
        self.val_means = RunningMeans()
        self.agreement = Agreement(body_parts=self.hparams["body_parts"] or [])
        # The other metrics refuse a NaN; looking for it here too would make a GPU wait.
        self.peaks = CatMetric(nan_strategy="disable")
        self.localisation = nn.ModuleDict(
            {
                name: MetricCollection({"hit": HitRate(), "pixel_ap": PixelAveragePrecision()})
                for name in self.map_methods
            }
        )

    @property
    def classifies(self) -> bool:
        """Whether the FC layer learns."""
        return True

    @property
    def judged_maps(self) -> tuple[str, ...]:
        """Maps that training teaches something; figures are logged of these."""
        return self.map_methods

    # The network ----------------------------------------------------------------------------------

    def classify(self, features: Tensor) -> Tensor:
        """Class scores (B, 2) float32 of the last features (B, 128, h, w)."""
        # A lesion fills one position in a hundred: in bf16 its share of the mean would be rounded
        # away. The plain mean, since AdaptiveAvgPool2d has no deterministic backward on CUDA.
        with torch.autocast(features.device.type, enabled=False):
            return self.fc(self.dropout(features.float().mean((2, 3))))

    def forward(self, image: Tensor) -> Tensor:
        """Class scores (B, 2) of images (B, 1, H, W) as ``on_after_batch_transfer`` leaves them."""
        return self.classify(self.encoder(image)[-1])

    def raw_maps(self, pyramid: list[Tensor]) -> dict[str, Tensor]:
        """Equations (1) and (2) for the abnormal class: (B, 1, h, w) float32, unbounded."""
        features, weight = pyramid[-1], self.fc.weight[ABNORMAL : ABNORMAL + 1]
        return {"cam": cam(features, weight), "pcam": pcam(features, weight)}

    def explain(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Probability of abnormal (B,) and the maps of ``maps``, from one pass."""
        pyramid = self.encoder(image)
        probability = self.classify(pyramid[-1]).softmax(1)[:, ABNORMAL]
        raw = self.raw_maps(pyramid)
        scaled = {
            name: upsample(scale_map(raw[name], scale), image.shape[-2:])
            for name, scale in zip(self.map_methods, self.map_scale, strict=True)
        }
        return probability, scaled

    def maps(self, image: Tensor) -> dict[str, Tensor]:
        """Maps of the abnormal class from the unmasked pass, each float32 (B, 1, H, W) in [0, 1].

        Negative values are cut, then one scale a run (over val, kept in the checkpoint) maps to 1:
        a normal image may stay dark, and maps of different images compare.
        """
        return self.explain(image)[1]

    # The steps ------------------------------------------------------------------------------------

    def classification_loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """Class-weighted cross-entropy, mean over images (L1 of the paper)."""
        losses = F.cross_entropy(
            logits, label, reduction="none", label_smoothing=self.hparams["label_smoothing"]
        )
        # Dividing by the images and not by their weights keeps the mean over ranks exact.
        return (losses * self.class_weights[label]).mean()

    def losses(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor, list[Tensor]]:
        """Named losses (``loss`` is optimised), class scores (B, 2) and the pyramid."""
        pyramid = self.encoder(batch["image"])
        logits = self.classify(pyramid[-1])
        l1 = self.classification_loss(logits, batch["label"])
        return {"loss": l1, "l1": l1}, logits, pyramid

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch; its named parts are averaged over the epoch."""
        losses, logits, _ = self.losses(batch)
        if self.classifies:
            losses["accuracy"] = (logits.argmax(1) == batch["label"]).float().mean()
        self.train_means.add(losses, len(batch["label"]))
        return losses["loss"]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect probabilities and maps of a batch; on several ranks it may be empty."""
        if not len(batch["label"]):
            return
        losses, logits, pyramid = self.losses(batch)
        self.val_means.add({"loss": losses["loss"]}, len(batch["label"]))
        image_ids = batch["index"]
        if self.classifies:
            self.agreement.update(
                logits.softmax(1)[:, ABNORMAL],
                batch["label"],
                image_ids,
                batch.get("study", image_ids),  # without studies each image is one
                batch.get("body_part", torch.zeros_like(image_ids)),
            )
        raw = self.raw_maps(pyramid)
        tops = [raw[name].amax((1, 2, 3)).clamp(min=0) for name in self.map_methods]
        self.peaks.update(torch.stack(tops, dim=1))
        judged = batch["has_lesion"].nonzero()[:, 0]
        if len(judged):
            masks = [batch[key][judged] for key in ("lesion_mask", "index", "has_lesion")]
            for name in self.judged_maps:
                shown = upsample(raw[name][judged].clamp(min=0), batch["image"].shape[-2:])
                self.figures_of(name).update(shown, *masks)

    def figures_of(self, name: str) -> MetricCollection:
        """Hit rate and pixel AP of a map on val, at training size."""
        return cast(MetricCollection, self.localisation[name])

    # The ends of epochs ---------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Take up the running means of an epoch that was cut in two, a share of them each rank."""
        self.train_means.load(self._resumed_means, 1 / self.trainer.world_size)

    def on_validation_epoch_start(self) -> None:
        """Stop a run that diverged before its figures are computed."""
        loss = self.train_means.compute(self.trainer.strategy).get("loss", 0.0)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss became {loss} in epoch {self.current_epoch + 1}; lower "
                "optimizer.learning_rate, or train with trainer.precision=32-true"
            )

    def on_train_epoch_end(self) -> None:
        """Log the epoch's means."""
        means = self.train_means.compute(self.trainer.strategy)
        self.log_dict({f"train/{name}": value for name, value in means.items()})
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        self.train_means.reset()

    def on_validation_epoch_end(self) -> None:
        """Log agreement and localisation on val; set the map scale."""
        self.log_dict(
            {
                f"val/{name}": value
                for name, value in self.val_means.compute(self.trainer.strategy).items()
            }
        )
        self.val_means.reset()
        if self.classifies:
            agreement = self.agreement.compute()
            self.log_dict({f"val/{name}": value for name, value in agreement.items()})
            self.agreement.reset()
        tops = self.peaks.compute().float()
        self.map_scale.copy_(tops.quantile(SCALE_QUANTILE, dim=0))
        self.peaks.reset()
        for name in self.judged_maps:
            for figure, value in self.figures_of(name).compute().items():
                self.log(f"val/{name}/{figure}", value)
            self.figures_of(name).reset()

    # Optimisation and state -----------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW; a schedule by step: linear warm-up, then cosine to zero (or constant)."""
        decayed = [p for p in self.parameters() if p.ndim > 1]
        plain = [p for p in self.parameters() if p.ndim <= 1]  # biases and BatchNorm
        optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": self.hparams["weight_decay"]},
                {"params": plain, "weight_decay": 0.0},
            ],
            lr=self.hparams["learning_rate"],
            betas=(0.9, BETA2),
        )
        total = int(self.trainer.estimated_stepping_batches)
        steps_per_epoch = max(1, total // (self.trainer.max_epochs or 1))
        warmup = min(total - 1, round(self.hparams["warmup_epochs"] * steps_per_epoch))
        cosine = self.hparams["schedule"] == "cosine"

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            if not cosine:
                return 1.0
            return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the running means, so that a resumed epoch logs the whole epoch's."""
        checkpoint["stage"] = self.stage
        checkpoint["train_means"] = self.train_means.state(self.trainer.strategy)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember the running means until the number of ranks is known."""
        self._resumed_means = checkpoint["train_means"]
