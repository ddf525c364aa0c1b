"""Stage deface: a brain mask for every accepted series, and no face left in any of them."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mrmill.config import Deface
from mrmill.decisions import ADMIT, REJECT, Decisions
from mrmill.layout import native_image, native_mask
from mrmill.masks import Masker
from mrmill.masks.quality import largest_component, measure_mask, outside_limits
from mrmill.profile.steps import step
from mrmill.quickshear import face_plane
from mrmill.reasons import ACCEPTED, Rejected
from mrmill.records import Outcome
from mrmill.shards import Study, guarded
from mrmill.volumes import Volume, as_released, read_volume, write_volume

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: A voxel brighter than this share of the brain's median is head, not air: noise and ghosts in
#: air stay below it, and skin, fat and muscle lie above it in all five sequence types.
HEAD_LEVEL = 0.2


def deface_study(
    study: Study, scratch: Path, settings: Deface, masker: Masker, decisions: Decisions
) -> Outcome:
    """Mask and deface every series that curate accepted, and settle which one is the center.

    Parameters
    ----------
    study : Study
        With the record of curate and the folder of convert.
    scratch : Path
        Gets `img/` and `seg/` with three files per series, named as in the release.
    settings : Deface
        Buffer and limits of the masks.
    masker : Masker
        The loaded network.
    decisions : dict
        What a person decided (`mrmill.decisions`).

    Returns
    -------
    outcome : Outcome
        One entry per series: the one of curate with `files`, `quality`, `plane` and `backend`.
        Files of a series in state `needs_review` are there too, for the person who looks.
    """
    decided = decisions.get(study.study_uid, {})
    entries = [dict(entry) for entry in study.upstream["curate"].outcome.accepted_series()]
    reference_mm = None  # how far out the plane of the first good T1w lies
    for entry in sorted(entries, key=_center_first):
        with guarded(entry):
            source = study.folders["convert"] / entry["file"]
            decision = decided.get(entry["series_id"])
            distance_mm = deface_series(
                entry, source, scratch, study.study_uid, settings, masker, decision, reference_mm
            )
            if reference_mm is None and is_t1w(entry):
                reference_mm = distance_mm
    has_center = settle_center(entries)
    for entry in entries:
        del entry["row"]  # stays with curate, so that a cell of it changes no mask
    return Outcome(series=entries) if has_center else Outcome.stopped("no_center", entries)


def deface_series(
    entry: dict[str, Any],
    source: Path,
    scratch: Path,
    study_uid: str,
    settings: Deface,
    masker: Masker,
    decision: str | None,
    reference_mm: float | None,
) -> float:
    """Mask one series, remove its face, write its three files and fill in its entry.

    Voxels of the mask are never removed. An island of the mask beyond the plane is therefore
    kept, and more than a trace of it makes the series wait for a person. So does a plane much
    further from the brain's centroid than `reference_mm`, the distance in another series.

    Returns
    -------
    distance_mm : float
        Of the plane from the centroid of the brain.

    Raises
    ------
    Rejected
        `review_rejected`, `constant_image`, `empty_mask`; `needs_review`, with all files
        written, unless the decision is to admit the series.
    """
    if decision == REJECT:
        raise Rejected("review_rejected")
    with step("read"):
        volume = read_volume(source)
    if volume.data.min() == volume.data.max():
        raise Rejected("constant_image", found="one value", limit="at least two")
    entry["backend"] = {"name": masker.name, "version": masker.version}
    with step("mask"):
        brain = masker(volume).astype(bool)
    if not brain.any():
        raise Rejected("empty_mask", found="0 mL")
    with step("shear"):
        component = largest_component(brain)
        plane = face_plane(component, volume.affine, settings.buffer_mm)
        behind = plane.kept(brain.shape, volume.affine)
        kept = behind | brain
    voxel_ml = float(np.prod(volume.spacing_mm)) / 1000
    entry["plane"] = plane.as_record()
    with step("measure"):
        entry["quality"] = {
            **measure_mask(brain, component, voxel_ml),
            "beyond_plane_ml": round(int(np.count_nonzero(brain & ~behind)) * voxel_ml, 2),
            "removed_share": removed_share(volume.data, brain, kept),
        }
        distance_mm = plane.distance_mm(component, volume.affine)
    if reference_mm is not None:
        entry["quality"]["plane_shift_mm"] = round(distance_mm - reference_mm, 2)
    with step("write"):
        entry["files"] = write_defaced(scratch, study_uid, entry["series_id"], volume, brain, kept)
    problems = outside_limits(entry["quality"], settings.quality)
    if problems and decision != ADMIT:
        found, limit = map("; ".join, zip(*problems, strict=True))
        raise Rejected("needs_review", found, limit)
    return distance_mm


def removed_share(data: "NDArray", brain: "NDArray[np.bool_]", kept: "NDArray[np.bool_]") -> float:
    """Return the share of the head's voxels, air left out, that is removed."""
    head = data > HEAD_LEVEL * np.median(data[brain])
    n_removed = int(np.count_nonzero(head & ~kept))
    return round(n_removed / max(int(np.count_nonzero(head)), 1), 4)


def write_defaced(
    scratch: Path,
    study_uid: str,
    series_id: str,
    volume: Volume,
    brain: "NDArray[np.bool_]",
    kept: "NDArray[np.bool_]",
) -> dict[str, str]:
    """Write the image without its face and both masks, and return their names in the study.

    The image keeps every value outside the removed region; removed voxels are 0. In the
    defacing mask 1 is kept and 0 is removed.
    """
    files = {
        "img": native_image(study_uid, series_id),
        "brain": native_mask(study_uid, series_id, "brain"),
        "defacing": native_mask(study_uid, series_id, "defacing"),
    }
    image = as_released(volume.data)
    voxels = {
        "img": np.where(kept, image, image.dtype.type(0)),
        "brain": brain.astype(np.uint8),
        "defacing": kept.astype(np.uint8),
    }
    for kind, name in files.items():
        write_volume(scratch / name, voxels[kind], volume.affine)
    return files


def settle_center(entries: list[dict[str, Any]]) -> bool:
    """Mark the study's center: the one of curate, else the first accepted T1w by SeriesNumber.

    Returns
    -------
    found : bool
        False if no T1w series is left.
    """
    candidates = [entry for entry in entries if entry["state"] == ACCEPTED and is_t1w(entry)]
    center = min(candidates, key=_center_first, default=None)
    for entry in entries:
        entry["is_center_modality"] = entry is center
    return center is not None


def is_t1w(entry: dict[str, Any]) -> bool:
    """Whether a series could be a center."""
    return entry["row"]["classified_modality"] == "T1w"


def _center_first(entry: dict[str, Any]) -> tuple[bool, bool, float, str]:
    """Order of the center, then T1w series by SeriesNumber, then the others."""
    number = math.inf if entry["SeriesNumber"] is None else float(entry["SeriesNumber"])
    return not entry["is_center_modality"], not is_t1w(entry), number, entry["series_id"]
