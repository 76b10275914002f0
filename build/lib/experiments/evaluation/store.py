"""The files of an evaluation: images.csv, maps.npz, reliability.csv, summary.json."""

from __future__ import annotations

import json
from typing import Any

from experiments.evaluation.figures import reliability
from experiments.evaluation.map_figures import save_maps
from experiments.evaluation.run import Evaluation
from experiments.evaluation.statistics import Difference, Estimate
from experiments.runs import RunError

NULL = 'not defined on these images, see docs/evaluation.md, "What is null"'


def write(found: Evaluation) -> None:
    """Write all files of an evaluation into its folder.

    Raises:
        RunError: The folder cannot be written.
    """
    target = found.target
    try:
        target.mkdir(parents=True, exist_ok=True)
        # Last, so that a summary never lies beside older rows.
        summary = target / "summary.json"
        summary.unlink(missing_ok=True)
        _drop_older_audit(found)
        found.table.to_csv(target / "images.csv", index=False)
        save_maps(target / "maps.npz", found.table, found.maps)
        if "probability" in found.table:
            curve = reliability(found.table["probability"], found.table["label"])
            curve.to_csv(target / "reliability.csv", index=False)
        summary.write_text(json.dumps(plain(summarise(found)), indent=2) + "\n")
    except OSError as error:
        raise RunError(
            f"{target} cannot be written ({error.strerror}); make it writable, or copy the run "
            "directory to where you may write"
        ) from error


def _drop_older_audit(found: Evaluation) -> None:
    """Remove an audit, but one of this very network: it is younger than the checkpoint."""
    audit = found.target / "audit.json"
    checkpoint = found.folder / "checkpoints" / str(found.about.get("checkpoint"))
    if not audit.is_file():
        return
    if not checkpoint.is_file() or audit.stat().st_mtime < checkpoint.stat().st_mtime:
        audit.unlink()


def summarise(found: Evaluation) -> dict[str, Any]:
    """The content of ``summary.json``: figures, then their intervals and what val fitted."""
    table, figures = found.table, found.estimates
    fitted: dict[str, Any] = {} if found.fitted is None else found.fitted._asdict()
    fitted["maps"] = {
        name: {"threshold": threshold}
        | ({"scale": found.scales[name]} if name in found.scales else {})
        for name, threshold in found.thresholds.items()
    }
    undefined = {name: result.undefined for name, result in figures.items() if result.undefined}
    return {
        **found.about,
        "notes": found.notes,
        "images": len(table),
        "studies": int(table["study"].nunique()),
        "patients": int(table["patient"].nunique()),
        "lesions": int(table["lesion_area"].notna().sum()),
        **{name: result.value for name, result in figures.items()},
        "intervals": {name: [result.low, result.high] for name, result in figures.items()},
        # The share of resamples in which a figure was not defined, where there were any.
        "undefined": undefined,
        "null": NULL,
        "fitted": fitted,
    }


def plain(value: Any) -> Any:
    """Results as JSON holds them: figures as their fields, NaN, which it does not know, as null.

    Example:
        >>> plain({"a": Estimate(0.5, float("nan"), float("nan"), 1.0)})
        {'a': {'value': 0.5, 'low': None, 'high': None, 'undefined': 1.0}}
    """
    if isinstance(value, (Estimate, Difference)):
        return plain(value._asdict())
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and value != value else value
