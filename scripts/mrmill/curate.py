"""Stage curate: say what each series is, accept or reject it, name it, choose the center.

The first criterion that a series fails gives its reason. They are looked at in this order: an MR
image at all, no burned-in text, not derived, not a localizer, not a subtraction, an accepted
modality, the patient's age, the plane, the voxels, the field of view. Voxels and field of view
are those of the converted image, not those that the header promises.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrmill.classify import Classification, Rules, classify
from mrmill.config import Curate
from mrmill.headers import Columns, age_years, iso_date, with_series_table
from mrmill.reasons import ACCEPTED, REJECTED, Rejected
from mrmill.records import Outcome
from mrmill.shards import Study, guarded

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

Entry = dict[str, Any]

#: MR Image, Enhanced MR Image and Legacy Converted Enhanced MR Image Storage (DICOM PS3.4 B.5).
MR_IMAGES = frozenset(f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("4", "4.1", "4.4"))

#: The plane whose slice normal is the patient's x (left-right), y and z axis.
PLANES = ("SAGITTAL", "CORONAL", "AXIAL")

#: MR-RATE releases acquisitions only, no computed images.
ROLE = "raw"

#: Slices are the axis whose spacing is this much larger than the others', if there is one.
SLICE_SPACING_RATIO = 1.2

#: HIPAA safe harbor, 45 CFR 164.514(b)(2)(i)(C): ages above this are one category.
OLDEST_WRITTEN_YEARS = 89


def curate_study(
    study: Study, scratch: Path, settings: Curate, rules: Rules, columns: Columns
) -> Outcome:
    """Curate every series that convert accepted.

    Parameters
    ----------
    study : Study
        With the record of convert.
    scratch : Path
        Stays empty: this stage writes no files.
    rules, columns
        Tables of classification and of header columns.

    Returns
    -------
    Outcome
        One entry per series with its metadata `row` (all columns but `is_center_modality`);
        accepted ones get `series_id` and `is_center_modality`. Rejected as a whole,
        `no_accepted_series` or `no_center`, where there is nothing to register the study to.
    """
    tables = {planned["series_key"]: planned["table"] for planned in study.plan["series"]}
    entries = [
        _curate_series(
            converted, tables.get(converted["source"], {}), study, settings, rules, columns
        )
        for converted in study.upstream["convert"].outcome.accepted_series()
    ]
    accepted = sorted((e for e in entries if e["state"] == ACCEPTED), key=_series_order)
    center = next((e for e in accepted if e["row"]["classified_modality"] == "T1w"), None)
    if center is None:
        return _without_center(entries, accepted)
    for entry, series_id in zip(accepted, series_ids(accepted), strict=True):
        entry["series_id"] = entry["row"]["series_id"] = series_id
        entry["is_center_modality"] = entry is center
    return Outcome(series=entries)


def _curate_series(
    converted: Entry,
    table: Mapping[str, Any],
    study: Study,
    settings: Curate,
    rules: Rules,
    columns: Columns,
) -> Entry:
    """Classify one series and hold it against the criteria."""
    entry = {name: converted[name] for name in converted if name not in ("header", "state")}
    with guarded(entry):
        header = with_series_table(converted["header"], table, columns)
        found = classify(header, rules)
        plane = acquisition_plane(
            header.get("ImageOrientation(Patient)"),
            converted["affine"],
            settings.oblique_from_degrees,
        )
        modality = rules.released(found.classified_modality)
        years = age_years(header)
        computed = {
            **asdict(found),
            **_written_grid(converted["shape"], converted["affine"]),
            "patient_uid": study.patient_uid,
            "study_uid": study.study_uid,
            "classified_modality": modality,
            "acquisition_plane": plane,
            "anon_study_date": _moved(
                study.plan["StudyDate"] or header.get("StudyDate"), study.plan["date_shift_days"]
            ),
            "Patient'sAge": _written_age(years, settings.max_age_written_years),
        }
        entry["SeriesNumber"] = header.get("SeriesNumber")
        entry["row"] = {
            column.name: computed.get(column.name, column.released(header.get(column.name)))
            for column in columns
            if column.release and column.name != "is_center_modality"
        }
        _check_kind(header, found)
        _check_modality(modality, settings)
        _check_age(years, settings)
        _check_plane(plane, settings)
        _check_grid(converted["shape"], converted["spacing_mm"], settings)
    return entry


def _check_kind(header: Mapping[str, Any], found: Classification) -> None:
    """Refuse what is not an acquired MR image."""
    is_mr = (header.get("SOPClassUID") or "1.2.840.10008.5.1.4.1.1.4") in MR_IMAGES
    if not is_mr or (header.get("Modality") or "MR") != "MR":
        raise Rejected("not_mr", "another kind of DICOM object", "MR images")
    if (header.get("BurnedInAnnotation") or "").upper() == "YES":
        raise Rejected("burned_in_annotation", "YES", "NO")
    for kind in ("derived", "localizer", "subtraction"):
        if getattr(found, f"is_{kind}"):
            raise Rejected(kind)


def _check_modality(modality: str, settings: Curate) -> None:
    if modality == "UNKNOWN":
        raise Rejected("modality_unknown")
    if modality not in settings.modalities:
        raise Rejected("modality_not_accepted", modality, ", ".join(settings.modalities))


def _check_age(years: float | None, settings: Curate) -> None:
    if years is None:
        raise Rejected("age_unknown", "", f">= {settings.age_min_years:g} years")
    if years < settings.age_min_years:
        found = f"{math.floor(years)} years"
        raise Rejected("age_below_minimum", found, f">= {settings.age_min_years:g} years")


def _check_plane(plane: str, settings: Curate) -> None:
    if not plane:
        raise Rejected("plane_unknown", "no slice normal", "a direction")
    if plane not in settings.planes:
        raise Rejected("plane_not_accepted", plane, ", ".join(settings.planes))


def _check_grid(shape: Sequence[int], spacing_mm: Sequence[float], settings: Curate) -> None:
    """Refuse a grid too coarse or a field of view out of range on any axis."""
    if min(shape) < settings.min_voxels:
        found = " x ".join(map(str, shape))
        raise Rejected("too_few_voxels", f"{found} voxels", f">= {settings.min_voxels} voxels")
    shortest, longest = settings.fov_mm
    # spacings come from float32 headers: 320 x 0.4375 mm may read 139.99999
    fov_mm = [round(n * mm, 2) for n, mm in zip(shape, spacing_mm, strict=True)]
    if min(fov_mm) < shortest or max(fov_mm) > longest:
        found = " x ".join(f"{mm:g}" for mm in fov_mm)
        raise Rejected("fov_out_of_range", f"{found} mm", f"{shortest:g} to {longest:g} mm")


def acquisition_plane(
    orientation: Sequence[float] | None, affine: "ArrayLike", oblique_from_degrees: float
) -> str:
    """Return the plane of a series' slices.

    Parameters
    ----------
    orientation : (6,) sequence of float, optional
        DICOM's ImageOrientation(Patient): directions of a row and a column, LPS+.
    affine : (4, 4) array_like
        Voxel index to scanner position, RAS+, in mm; used where there is no orientation. Slices
        then are the axis with clearly the largest spacing, else the third one.
    oblique_from_degrees : float
        A slice normal further than this from every patient axis makes the plane oblique.

    Returns
    -------
    {'AXIAL', 'SAGITTAL', 'CORONAL', 'OBLIQUE', ''}
        Empty when neither tells a direction.

    Examples
    --------
    >>> acquisition_plane([0, 1, 0, 0, 0, -1], None, 30)
    'SAGITTAL'
    """
    import numpy as np

    normal = _slice_normal(orientation, affine)
    length = np.linalg.norm(normal)
    if not (np.isfinite(length) and length > 0):
        return ""
    # LPS+ and RAS+ differ in signs, which do not matter here
    degrees = np.degrees(np.arccos(np.clip(np.abs(normal) / length, 0, 1)))
    nearest = int(np.argmin(degrees))
    return "OBLIQUE" if degrees[nearest] > oblique_from_degrees else PLANES[nearest]


def _slice_normal(orientation: Sequence[float] | None, affine: "ArrayLike") -> "NDArray":
    import numpy as np

    if orientation is not None and len(orientation) == 6:
        normal = np.cross(orientation[:3], orientation[3:])
        if np.linalg.norm(normal) > 0.5:  # unit vectors at a right angle give 1
            return normal
    axes = np.asarray(affine, dtype=float)[:3, :3]
    spacing_mm = np.linalg.norm(axes, axis=0)
    _, second, largest = np.argsort(spacing_mm)
    is_thick = spacing_mm[largest] > SLICE_SPACING_RATIO * spacing_mm[second]
    return axes[:, largest if is_thick else 2]


def series_ids(accepted: Sequence[Entry]) -> list[str]:
    """Return `{modality}-{role}-{plane}[-N]` for the accepted series of a study, in their order.

    Examples
    --------
    >>> row = {"classified_modality": "T1w", "acquisition_plane": "AXIAL"}
    >>> series_ids([{"row": row}, {"row": row}])
    ['t1w-raw-axi', 't1w-raw-axi-2']
    """
    seen: Counter[str] = Counter()
    names = []
    for row in (entry["row"] for entry in accepted):
        stem = f"{row['classified_modality']}-{ROLE}-{row['acquisition_plane'][:3]}".lower()
        seen[stem] += 1
        names.append(stem if seen[stem] == 1 else f"{stem}-{seen[stem]}")
    return names


def _series_order(entry: Entry) -> tuple[float, str]:
    number = entry["SeriesNumber"]
    return math.inf if number is None else number, entry["series_key"]


def _without_center(entries: list[Entry], accepted: list[Entry]) -> Outcome:
    """Reject a study as a whole, with the series that were fine."""
    for entry in accepted:
        entry.update(state=REJECTED, reason="study_rejected")
    return Outcome.stopped("no_center" if accepted else "no_accepted_series", entries)


def _moved(day: str | None, shift_days: int) -> str:
    """Return a study date moved by the patient's offset; empty when it is no date."""
    try:
        return (date.fromisoformat(iso_date(day or "")) + timedelta(days=shift_days)).isoformat()
    except (ValueError, OverflowError):
        return ""


def _written_age(years: float | None, above_89: int | None) -> int | str:
    """Return whole years, ages above 89 as one value where the settings say so."""
    if years is None:
        return ""
    whole = math.floor(years)
    return above_89 if above_89 is not None and whole > OLDEST_WRITTEN_YEARS else whole


def _written_grid(shape: Sequence[int], affine: "ArrayLike") -> dict[str, str]:
    """Return shape, spacing and field of view along the axes nearest to R-L, A-P and S-I."""
    import numpy as np
    from nibabel.orientations import io_orientation

    order = np.argsort(io_orientation(np.asarray(affine, dtype=float))[:, 0])
    spacing_mm = np.linalg.norm(np.asarray(affine, dtype=float)[:3, :3], axis=0)[order]
    voxels = np.asarray(shape)[order]
    return {
        "array_shape": json.dumps(voxels.tolist()),
        "array_spacing_mm": json.dumps(spacing_mm.round(4).tolist()),
        "array_fov_mm": json.dumps((voxels * spacing_mm).round(2).tolist()),
    }
