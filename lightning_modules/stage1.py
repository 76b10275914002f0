"""Stage 1: a ResNet-23 classifies radiographs; CAM and PCAM show where it looked."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import LRSchedulerConfigType, OptimizerLRSchedulerConfig
from torch import Tensor, distributed, nn
from torchmetrics import CatMetric

from lightning_modules.attention import cam, pcam, scale_map, upsample, views
from lightning_modules.encoder import ENCODERS, Encoder
from lightning_modules.losses import mean_error
from lightning_modules.metrics import Localisation, RunningMeans, agreement
from lightning_modules.options import REMOVED, Attention, Loss, Model, Optimizer
from lightning_modules.timm_encoder import TimmEncoder

Batch = dict[str, Tensor]
Section = TypeVar("Section", Model, Loss, Attention, Optimizer)
ABNORMAL = 1
SCALE_QUANTILE = 0.99  # of val images' peaks: a single outlier must not darken all others
# AdamW's memory of squared gradients: some 50 steps, not 1000, a third of a short training here.
BETA2 = 0.98


@dataclass
class Outputs:
    """What the network gives for a batch; losses, the mask and the maps share it."""

    pyramid: list[Tensor]  # features of the unmasked pass, fine to coarse
    logits: Tensor  # class scores (B, 2) of the unmasked pass
    masked: Tensor | None = None  # class scores (B, 2) of the masked pass, from stage 2 on
    lesion_scores: Tensor | None = None  # the FCN's (B, 1, H, W), before the sigmoid, of stage 3
    # weights of the last features (B, 1, h, w) in the classifier's mean, of sum 1; None: all equal
    share: Tensor | None = None

    @property
    def probability(self) -> Tensor:
        """Of abnormal, float32 (B,)."""
        return self.logits.softmax(1)[:, ABNORMAL]


class Stage1Classifier(LightningModule):
    """Normal / abnormal classifier whose class activation maps need neither hooks nor gradients.

    All stages are constructed here, from options or from their plain values, as ``hparams`` and
    checkpoints hold them; a later stage extends ``configure_network``. ``body_parts`` are the names
    behind the batch's codes, ``class_weights`` those of a normal and an abnormal image in the loss.
    """

    stage = "stage1"
    class_weights: Tensor
    map_scale: Tensor

    def __init__(
        self,
        model: Model | Mapping[str, Any] | None = None,
        loss: Loss | Mapping[str, Any] | None = None,
        attention: Attention | Mapping[str, Any] | None = None,
        optimizer: Optimizer | Mapping[str, Any] | None = None,
        body_parts: Sequence[str] = (),
        class_weights: Sequence[float] = (1.0, 1.0),
    ) -> None:
        super().__init__()
        self.model, self.loss = options(Model, model), options(Loss, loss)
        self.attention = options(Attention, attention)
        self.optimizer = options(Optimizer, optimizer)
        self.body_parts = list(body_parts)
        names = "model", "loss", "attention", "optimizer"
        plain: dict[str, Any] = {name: asdict(getattr(self, name)) for name in names}
        plain |= {"body_parts": self.body_parts, "class_weights": list(class_weights)}
        self.save_hyperparameters(plain, logger=False)  # loggers know the configuration
        self.register_buffer("class_weights", torch.tensor(class_weights), persistent=False)
        # One scale a map method and run, so that maps of different images compare.
        self.register_buffer("map_scale", torch.ones(len(self.map_methods)))
        self.configure_network()
        self.train_means, self.val_means = RunningMeans(), RunningMeans()
        self._resumed_means: dict[str, list[float]] = {}
        # A row an image: probability, label, study, body part, the maximum of each raw map.
        # agreement refuses a NaN; looking for it here too would make a GPU wait.
        self.rows = CatMetric(nan_strategy="disable")
        self.localisation = nn.ModuleDict({name: Localisation() for name in self.map_methods})

    def configure_network(self) -> None:
        """Create all that has weights; a later stage's come after those of the one before."""
        kind, _, backbone = self.model.encoder.partition(":")
        self.encoder: Encoder = (
            TimmEncoder(backbone) if backbone else ENCODERS[kind](width=self.model.width)
        )
        self.dropout = nn.Dropout(self.model.dropout)
        self.fc = nn.Linear(self.encoder.channels[-1], 2)

    @property
    def map_methods(self) -> tuple[str, ...]:
        """Names of the maps, in the order in which they are shown."""
        return ("cam", "pcam")

    @property
    def classifies(self) -> bool:
        """Whether the FC layer learns."""
        return True

    @property
    def judged_maps(self) -> tuple[str, ...]:
        """Maps that figures are logged of, the best last."""
        return self.map_methods

    @property
    def best_map(self) -> str:
        """The map to show where one must do."""
        return self.judged_maps[-1]

    # The network ----------------------------------------------------------------------------------

    def classify(self, features: Tensor, share: Tensor | None = None) -> Tensor:
        """Class scores (B, 2) float32 of the last features (B, C, h, w) and their share."""
        # A lesion fills one position in a hundred: in bf16 its share of the mean would be rounded
        # away. The plain mean, since AdaptiveAvgPool2d has no deterministic backward on CUDA.
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            pooled = features.mean((2, 3)) if share is None else (features * share).sum((2, 3))
            return self.fc(self.dropout(pooled))

    def features(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Last features (B, C, h, w) of images (B, 1, H, W), and their share in the mean."""
        return self.encoder(image)[-1], None

    def forward(self, image: Tensor) -> Tensor:
        """Class scores (B, 2) of images (B, 1, H, W) as ``on_after_batch_transfer`` leaves them."""
        return self.classify(*self.features(image))

    def unmasked_pass(self, image: Tensor) -> Outputs:
        """The pass that classifies and that all maps come from."""
        pyramid = self.encoder(image)
        return Outputs(pyramid, self.classify(pyramid[-1]))

    def raw_maps(self, outputs: Outputs) -> dict[str, Tensor]:
        """Equations (1) and (2) for the abnormal class, unbounded, float32 (B, 1, h, w)."""
        features, weight = outputs.pyramid[-1], self.fc.weight[ABNORMAL : ABNORMAL + 1]
        return {"cam": cam(features, weight), "pcam": pcam(features, weight)}

    def upsample(self, maps: Tensor, size: torch.Size) -> Tensor:
        """Maps of the last features, or as large as the image, at the image's (H, W)."""
        return upsample(maps, size, self.encoder.offsets[-1])

    def explain(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Probability of abnormal (B,) and the maps, each float32 (B, 1, H, W) in [0, 1].

        A pass a view gives both. Negative values are cut, then one scale a run (of val, kept in the
        checkpoint) maps to 1: a normal image may stay dark, and maps of different images compare.
        """
        probabilities, seen, size = [], [], image.shape[-2:]
        for view in views(self.model.mirror, self.model.zoom):
            shown = view.of(image)
            outputs = self.unmasked_pass(shown)
            probabilities.append(outputs.probability)
            raw = self.raw_maps(outputs)
            scaled = [
                self.upsample(scale_map(raw[name], scale), shown.shape[-2:])
                for name, scale in zip(self.map_methods, self.map_scale, strict=True)
            ]
            seen.append(torch.stack([view.back(maps, size) for maps in scaled]))
        every = torch.stack(seen).mean(0)
        return torch.stack(probabilities).mean(0), dict(zip(self.map_methods, every, strict=True))

    def maps(self, image: Tensor) -> dict[str, Tensor]:
        """The maps of ``explain``."""
        return self.explain(image)[1]

    # The steps ------------------------------------------------------------------------------------

    def classification_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Class-weighted cross-entropy, mean over images (L1 of the paper)."""
        label, smoothing = batch["label"], self.loss.label_smoothing
        losses = F.cross_entropy(logits, label, reduction="none", label_smoothing=smoothing)
        # Dividing by the images and not by their weights keeps the mean over ranks exact.
        return mean_error(losses * self.class_weights[label], batch.get("classified"))

    def losses(self, batch: Batch) -> tuple[dict[str, Tensor], Outputs]:
        """Named losses, of which ``loss`` is optimised, and what they were computed from."""
        outputs = self.unmasked_pass(batch["image"])
        l1 = self.classification_loss(outputs.logits, batch)
        return {"loss": l1, "l1": l1}, outputs

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch; its named parts are averaged over the epoch."""
        losses, outputs = self.losses(batch)
        if self.classifies:
            losses["accuracy"] = accuracy(outputs.logits, batch)
        self.train_means.add(losses, len(batch["label"]))
        several = distributed.is_available() and distributed.is_initialized()
        if several and outputs.lesion_scores is None:
            # DDP waits for a gradient of every weight, also of what makes finer features alone.
            losses["loss"] = losses["loss"] + sum(f[:0].sum() for f in outputs.pyramid[:-1])
        return losses["loss"]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect probabilities and maps of a batch; on several ranks it may be empty."""
        if not len(batch["label"]):
            return
        losses, outputs = self.losses(batch)
        means = {"loss": losses["loss"]}
        if outputs.masked is not None:
            means["masked_accuracy"] = accuracy(outputs.masked, batch)
        self.val_means.add(means, len(batch["label"]))
        raw = self.raw_maps(outputs)
        row = [
            outputs.probability,
            batch["label"],
            batch.get("study", batch["index"]),  # without studies each image is one
            batch.get("body_part", torch.zeros_like(batch["label"])),
            *(raw[name].amax((1, 2, 3)).clamp(min=0) for name in self.map_methods),
        ]
        # Flat: a rank without images offers none, and no number of columns.
        self.rows.update(torch.stack([values.float() for values in row], dim=1).flatten())
        # An empty mask cannot be hit. Without any lesion the metrics still hear of the batch.
        lesion = batch["lesion_mask"] >= 0.5
        judged = (batch["has_lesion"] & lesion.flatten(1).any(dim=1)).nonzero()[:, 0]
        for name in self.judged_maps:
            shown = self.upsample(raw[name][judged].clamp(min=0), lesion.shape[-2:])
            cast(Localisation, self.localisation[name]).update(shown, lesion[judged])

    # The ends of epochs ---------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Take up the running means of an epoch that was cut in two, a share of them each rank."""
        self.train_means.load(self._resumed_means, 1 / self.trainer.world_size)

    def on_validation_epoch_start(self) -> None:
        """Stop a run that diverged before its figures are computed."""
        loss = self.train_means.compute(self.trainer.strategy).get("loss", 0.0)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss became {loss} in epoch {self.current_epoch + 1}. Fix: a lower "
                "optimizer.learning_rate, or trainer.precision=32-true."
            )

    def on_train_epoch_end(self) -> None:
        """Log the epoch's means."""
        means = self.train_means.compute(self.trainer.strategy)
        self.log_dict({f"train/{name}": value for name, value in means.items()})
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        self.train_means = RunningMeans()

    def on_validation_epoch_end(self) -> None:
        """Log agreement and localisation on val; set the map scale."""
        figures: dict[str, Any] = dict(self.val_means.compute(self.trainer.strategy))
        self.val_means = RunningMeans()
        rows = self.rows.compute().view(-1, 4 + len(self.map_methods))
        self.rows.reset()
        if self.classifies:
            probability, label, study, body_part = rows[:, :4].unbind(dim=1)
            figures |= agreement(probability, label, study, body_part, self.body_parts)
        self.map_scale.copy_(rows[:, 4:].quantile(SCALE_QUANTILE, dim=0))
        for name in self.judged_maps:
            metric = cast(Localisation, self.localisation[name])
            figures |= {f"{name}/{figure}": value for figure, value in metric.compute().items()}
            metric.reset()
        self.log_dict({f"val/{name}": value for name, value in figures.items()})

    # Optimisation and state -----------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW; a schedule by step: linear warm-up, then cosine to zero (or constant)."""
        rate, decay = self.optimizer.learning_rate, self.optimizer.weight_decay
        scale = self.optimizer.encoder_scale
        slower = set() if scale == 1 else set(self.encoder.backbone().parameters())
        groups: list[dict[str, Any]] = []
        for own_rate, inside in ((rate, False), (rate * scale, True)):
            own = [p for p in self.parameters() if (p in slower) is inside]
            for kept, plain in ((decay, False), (0.0, True)):  # plain: biases and BatchNorm
                chosen = [p for p in own if (p.ndim <= 1) is plain]
                groups.append({"params": chosen, "weight_decay": kept, "lr": own_rate})
        used = [group for group in groups if group["params"]]
        optimizer = torch.optim.AdamW(used, lr=rate, betas=(0.9, BETA2))
        total = int(self.trainer.estimated_stepping_batches)
        steps_per_epoch = max(1, total // (self.trainer.max_epochs or 1))
        warmup = min(total - 1, round(self.optimizer.warmup_epochs * steps_per_epoch))

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            if self.optimizer.schedule == "constant":
                return 1.0
            return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        schedule: LRSchedulerConfigType = {"scheduler": scheduler, "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the running means, so that a resumed epoch logs the whole epoch's."""
        checkpoint["stage"], checkpoint["precision"] = self.stage, str(self.trainer.precision)
        checkpoint["cells"] = [*self.encoder.offsets, *self.encoder.shifts]
        checkpoint["train_means"] = self.train_means.state(self.trainer.strategy)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember the running means until the number of ranks is known."""
        self._resumed_means = checkpoint["train_means"]


def options(kind: type[Section], given: Section | Mapping[str, Any] | None) -> Section:
    """A section of options, also from its plain values; all defaults for None."""
    if given is not None and not isinstance(given, Mapping):
        return given
    section = kind.__name__.lower()
    known = {k: v for k, v in (given or {}).items() if (f"{section}.{k}", v) not in REMOVED}
    return kind(**known)


def accuracy(logits: Tensor, batch: Batch) -> Tensor:
    """Share of right classes, a scalar of class scores (B, 2)."""
    right = (logits.argmax(1) == batch["label"]).float()
    return mean_error(right, batch.get("classified"))
