"""The model card: what a model file is for, what it does well and what not, for people."""

from __future__ import annotations

import textwrap
from typing import Any, NamedTuple

import jinja2

from datamodules import SOURCES
from experiments.prediction.network import Trained
from experiments.prediction.onnx import TOLERANCE
from experiments.prediction.properties import (
    OUTPUTS,
    PAPER,
    USE,
    decided_by,
    preprocessing,
    project_version,
    training_data,
)

CROPS = {
    "none": "none",
    "content": "to the exposed limb, as `content_box` in `datamodules/geometry.py` finds it",
}
CONTRASTS = {
    "none": "left as it is",
    "stretch": "inside the letterbox, the 1 % quantile becomes 0 and the 99.5 % quantile 255",
    "clahe": "inside the letterbox, OpenCV's CLAHE (clipLimit 2, 8 x 8 tiles), then its 1 % "
    "quantile becomes 0 and its 99.5 % quantile 255",
}
# Figures of a summary that the card shows, with what a reader should call them.
OF_IMAGES = {
    "auroc": "AUROC",
    "tuned/accuracy": "accuracy",
    "tuned/sensitivity": "sensitivity",
    "tuned/specificity": "specificity",
    "tuned/kappa": "Cohen's kappa",
    "study_auroc": "AUROC, studies",
    "tuned/study_kappa": "Cohen's kappa, studies",
    "ece": "expected calibration error",
}
OF_MAPS = {
    "hit": "hit rate",
    "pixel_ap": "pixel AP",
    "iou": "mean IoU",
    "shown_normal": "claims a lesion on normal images",
}

TEMPLATE = """\
# {{ name }}

**{{ use[0] | upper }}{{ use[1:] }}.** A ResNet-23 of `decision-basis` {{ version }} for radiographs
of bones: {{ trained.stage }}, trained on {{ trained.data }}.
{% if fitted %}
It gives the probability that an image is abnormal, and maps of where it sees that.
{% else %}
Trained on lesion masks alone, it gives a map of the lesion and no probability.
{% endif %}

## Intended use

- Research on where such networks find evidence, and on whether their maps can be believed.
- Not for diagnosis, triage or any decision on a patient. No map may be shown to a reader as if it
  proved something.
- Not for other images than radiographs like those of the training data.

## Input and output

| name | type | what |
|---|---|---|
| `image` | uint8 (B, 1, {{ size }}, {{ size }}) | grey values of the square, see below |
{% if fitted %}
| `probability` | float32 (B,) | of abnormal, 0 to 1 |
{% endif %}
{% for map in trained.map_methods %}
| `{{ map }}` | float32 (B, 1, {{ size }}, {{ size }}) | {{ outputs[map] }}, 0 to 1 |
{% endfor %}

One scale for all images: maps compare, and a normal image may stay dark. 1 is
{%- for map in trained.map_methods %}
 {{ "%.4g" | format(trained.map_scales[map]) }} of the raw {{ map }}
{{- "." if loop.last else "," }}
{%- endfor %}

Checked against PyTorch by ONNX Runtime: the largest difference was {{ "%.1e" | format(largest) }};
{{ tolerance }} is allowed. SHA-256 of the file: `{{ sha256 }}`.

## Preprocessing

1. Grey: {{ steps.grey }}.
2. Crop: {{ crop }}.
3. Size: {{ steps.letterbox }}, here {{ size }} px; {{ steps.resize }}.
4. Contrast: {{ contrast }}.

Normalisation, {{ steps.normalisation }}: do not repeat it.

## Decision

{% if fitted %}
Abnormal is a probability above {{ "%.4f" | format(fitted.threshold) }}; a study, whose probability
is the mean of its views', above {{ "%.4f" | format(fitted.study_threshold) }}. Calibrated it is
sigmoid(logit(p) / {{ "%.3f" | format(fitted.temperature) }}).
{% endif %}
A lesion is claimed where
{%- for map in trained.map_methods %}
 `{{ map }}` reaches {{ "%.3f" | format(trained.map_thresholds[map]) }}
{{- "." if loop.last else "," }}
{%- endfor %}
 Decided by: {{ decided_by }}
{%- if decided_by == "val" and undecided %}
, but of {{ undecided }} nobody: val held no lesion mask, and 0.5 stands in
{%- endif %}.

## Figures

{% if rows %}
On test of {{ trained.data }}: {{ summary.images }} images of {{ summary.patients }} {{ people }},
{{ summary.lesions }} with a lesion mask. Decisions at the thresholds above; 95 % intervals over
{{ people }}, by bootstrap.

| figure | value | 95 % interval |
|---|---|---|
{% for row in rows %}
| {{ row.words }} | {{ row.value }} | {{ row.interval }} |
{% endfor %}
{% else %}
None: no evaluation of this very checkpoint on test was found. `python -m experiments.evaluate`
makes one; then export it again.
{% endif %}

## Limits

{% if trained.data == "phantom" %}
- The training data are drawings: how it does on patients' radiographs is not known.
{% endif %}
- Other devices, hospitals, body parts and ages than those of {{ trained.data }} were not judged.
{% for map, shown, missed in failures %}
- `{{ map }}` claims a lesion on {{ shown }} of the normal test images, and its peak misses the
  lesion in {{ missed }} of those with a mask.
{% endfor %}
- A map shows where evidence lies for this network; it is no diagnosis and no proof of reasoning.
{% if decided_by != "val" %}
- Its thresholds were not decided on any image.
{% elif undecided %}
- The threshold of {{ undecided }} was not decided on any image.
{% endif %}
{% for note in notes %}
- {{ note[0] | upper }}{{ note[1:] }}.
{% endfor %}

## Training data

{{ trained.data }}, train split (data.seed {{ data.data_seed }}),
{% if data.split == "image" %}
SPLIT BY IMAGE: patients leak into test, figures are too good.
{% else %}
{{ people }} apart.
{% endif %}
{% if data.lesion_masks is defined %}
Lesion masks: {{ data.lesion_masks }}.
{% endif %}
Hash of the index: `{{ data.index_hash }}`
{{- ", of the masks: `" ~ data.mask_hash ~ "`" if data.mask_hash is defined }}.

## Licence and citation

Network and code: MIT. Training data: {{ data.licence }}. Cite {{ paper }}; and this software
(`CITATION.cff`).
"""


class Row(NamedTuple):
    """A figure as the card shows it."""

    words: str
    value: str
    interval: str


def model_card(trained: Trained, name: str, sha256: str, largest: float) -> str:
    """The card of a model file, Markdown.

    Args:
        trained: What the file was made of.
        name: Of the file.
        sha256: Of its content.
        largest: Difference from PyTorch.
    """
    summary = trained.run.summary("test") or {}
    recipe = trained.recipe
    rules = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    text = rules.from_string(TEMPLATE).render(
        name=name,
        use=USE,
        version=project_version(),
        trained=trained,
        fitted=trained.fitted,
        size=recipe.image_size,
        outputs=OUTPUTS,
        largest=largest,
        tolerance=f"{TOLERANCE:g}",
        sha256=sha256,
        steps=preprocessing(recipe),
        crop=CROPS[recipe.crop],
        contrast=CONTRASTS[recipe.contrast],
        decided_by=decided_by(trained),
        undecided=", ".join(f"`{name}`" for name in trained.undecided_maps),
        summary=summary,
        people=SOURCES[trained.data].patients_are,
        rows=figures(summary, trained.map_methods),
        failures=failures(summary, trained.map_methods),
        # Without the path that a note may name: it is of the machine that judged.
        notes=[note.replace(summary["run"], "the run") for note in summary.get("notes", [])],
        data=training_data(trained),
        paper=PAPER,
    )
    return "\n\n".join(_filled(block) for block in text.strip().split("\n\n")) + "\n"


def figures(summary: dict[str, Any], methods: tuple[str, ...]) -> list[Row]:
    """The figures of a summary that are shown, those that are defined."""
    wanted = dict(OF_IMAGES)
    for method in methods:
        wanted |= {f"{method}/{name}": f"`{method}`: {words}" for name, words in OF_MAPS.items()}
    rows = []
    for name, words in wanted.items():
        if summary.get(name) is None:
            continue
        low, high = summary["intervals"].get(name) or (None, None)
        interval = "-" if low is None or high is None else f"{low:.3f} to {high:.3f}"
        rows.append(Row(words, f"{summary[name]:.3f}", interval))
    return rows


def failures(summary: dict[str, Any], methods: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """Of each map, on how many normal images it claims a lesion, and how many lesions it misses."""
    found = []
    for method in methods:
        shown, hit = summary.get(f"{method}/shown_normal"), summary.get(f"{method}/hit")
        if shown is not None and hit is not None:
            found.append((method, f"{100 * shown:.0f} %", f"{100 * (1 - hit):.0f} %"))
    return found


def _filled(block: str) -> str:
    """A paragraph with its lines filled; headings, lists and tables as they are."""
    if block.startswith(("#", "|", "- ", "1. ")):
        return block
    return textwrap.fill(block, 100, break_long_words=False, break_on_hyphens=False)
