"""The options of the network, its losses and its optimiser; what is allowed stands in the type.

``Annotated[float, "(0, inf)"]`` is an interval, ``Annotated[str, "own | image"]`` a choice:
``experiments.config`` checks both and prints all options as a table. Nothing heavy is imported
here: a typing mistake is answered before torch is there.
"""

from dataclasses import dataclass
from typing import Annotated

# Encoders, and what the image's side must be a multiple of. All of timm have features at stride 32.
STRIDES = {"resnet23": 16, "timm": 32}
# Options that are gone, as they stand in runs that did not use them.
REMOVED = ("loss.lambda_attention", 0.0), ("attention.target", "fcn"), ("lesions.proposals", None)


@dataclass
class Model:
    """The network."""

    # the paper's, or a convolutional backbone of timm, such as timm:resnet50
    encoder: Annotated[str, "resnet23 | timm:<name>"] = "resnet23"
    # pretrained weights of timm's encoder: imagenet (timm's own), or a file of them; null: none
    weights: str | None = None
    weights_origin: str | None = None  # source, licence and SHA-256 of them; the run writes it
    init_from: str | None = None  # run directory or checkpoint to start from; null: from scratch
    width: Annotated[float, "(0, inf)"] = 1.0  # factor on the number of filters
    dropout: Annotated[float, "[0, 1)"] = 0.0  # probability, before the last layer
    # outside training, probability and maps are the mean over the image and its mirror image
    mirror: bool = False
    # likewise the mean over three sizes: as is, smaller, larger by this factor; 1: off
    zoom: Annotated[float, "[1, 2]"] = 1.0


@dataclass
class Loss:
    """The terms of the loss."""

    class_weights: Annotated[str, "balanced | none"] = "balanced"
    label_smoothing: Annotated[float, "[0, 1)"] = 0.0  # half of it goes to the other class
    # confidence in the attention: e^P / e of this P on val, epoch by epoch, or a fixed number
    alpha: Annotated[float | int | str, "accuracy | balanced_accuracy | [0, 1]"] = "accuracy"
    lambda_lesion: Annotated[float, "[0, inf)"] = 1.0  # weight of the lesion term L3
    # lesion term, mean over pixels: squared error (paper), cross-entropy, or that plus 1 - Dice
    lesion: Annotated[str, "mse | bce | bce_dice"] = "mse"
    classification: bool = True  # false: the lesion masks alone train (stage 3)
    normal_masks: bool = False  # normal images join L3 with an empty mask (stage 3; ours)
    normal_weight: Annotated[float, "(0, inf)"] = 1.0  # of such an image beside one with a lesion


@dataclass
class Attention:
    """The soft mask T(A) = sigmoid(omega (A - sigma)) of the second pass."""

    omega: Annotated[float, "(0, inf)"] = 10.0  # steepness
    sigma: Annotated[float, "[0, 1]"] = 0.5  # threshold on the map, which runs from 0 to 1
    # whose map: "true" leaks the label through the mask's shape
    source: Annotated[str, "abnormal | predicted | true"] = "abnormal"
    # BatchNorm in the masked pass: its own running statistics, or the whole images'
    statistics: Annotated[str, "own | image"] = "own"
    # lesion: the classifier's mean over positions is weighted by the FCN's map (stage 3; ours)
    pooling: Annotated[str, "mean | lesion"] = "mean"
    # what a position without lesion weighs beside one with it
    floor: Annotated[float, "(0, 1]"] = 0.01
    # what is masked out becomes; model input: -1 black, 0 dark grey, 4 white
    fill: Annotated[float, "[-1, 4]"] = 0.0


@dataclass
class Optimizer:
    """How the weights move: AdamW."""

    learning_rate: Annotated[float, "(0, inf)"] = 1e-3  # highest, after the warm-up
    # a step takes learning_rate * weight_decay of each weight
    weight_decay: Annotated[float, "[0, inf)"] = 0.3
    # factor on the encoder's learning rate (timm: on the backbone, not on our added layers)
    encoder_scale: Annotated[float, "(0, inf)"] = 1.0
    warmup_epochs: Annotated[float, "[0, inf)"] = 1.0  # epochs, fractions allowed
    schedule: Annotated[str, "cosine | constant"] = "cosine"  # after the warm-up
    gradient_clip: Annotated[float, "[0, inf)"] = 0.0  # highest gradient norm; 0: off
    # weights are judged and kept as an average over so many epochs; 0: off
    average_epochs: Annotated[float, "[0, inf)"] = 1.0
