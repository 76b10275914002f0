"""How well one classifies (``agreement``) and how well a map finds the lesion, an image or a split.

``localisation`` (hit rate, pixel average precision) is logged in training; ``overlap`` (regions,
thresholds, boxes) serves the evaluation.
"""
