"""Stage curate: say what each series is, accept or reject it, name it, choose the center.

The first criterion of `config/acceptance.yaml` that a series does not meet gives its reason.
Voxels and field of view are those of the converted image, not those that the header promises.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from mrmill.columns import Columns, iso_date, load_columns
from mrmill.config import Curate
from mrmill.curate.acceptance import VALUES, Criteria, accept, load_criteria
from mrmill.curate.body_part import body_part
from mrmill.curate.classify import Classification, Rules, classify, load_rules
from mrmill.curate.contrast import contrast_agents
from mrmill.curate.evidence import UNKNOWN, Evidence, Part, Said, load_evidence
from mrmill.headers import age_years, with_series_table
from mrmill.profile.steps import step
from mrmill.reasons import ACCEPTED, REJECTED
from mrmill.records import Outcome
from mrmill.shards import Study, guarded

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

Entry = dict[str, Any]

#: What only the conversion of a series needs to have said.
OF_CONVERT = ("header", "state", "source_sha256")

#: The plane whose slice normal is the patient's x (left-right), y and z axis.
PLANES = ("SAGITTAL", "CORONAL", "AXIAL")
OBLIQUE = "OBLIQUE"

#: MR-RATE releases acquisitions only, no computed images.
ROLE = "raw"

#: Slices are the axis whose spacing is this much larger than the others', if there is one.
SLICE_SPACING_RATIO = 1.2

#: HIPAA safe harbor, 45 CFR 164.514(b)(2)(i)(C): ages above this are one category.
OLDEST_WRITTEN_YEARS = 89


@dataclass(frozen=True)
class Tables:
    """What is known about MRI series, as data: the tables that curation reads."""

    rules: Rules
    evidence: Evidence
    criteria: Criteria
    columns: Columns


def load_tables(settings: Curate, header_columns: Path) -> Tables:
    """Read every table that a run's settings name.

    Raises
    ------
    UserError
        If one of them cannot be used.
    """
    rules = load_rules(settings.classification, settings.site_rules)
    words = {
        "classified_modality": [rules.released(modality) for modality in rules.modalities],
        "acquisition_plane": [*PLANES, OBLIQUE],
        "body_part": [*get_args(Part), UNKNOWN],
    }
    return Tables(
        rules=rules,
        evidence=load_evidence(settings.evidence),
        criteria=load_criteria(settings.acceptance, settings.limits).of_known(words),
        columns=load_columns(header_columns),
    )


@dataclass(frozen=True)
class _Series:
    """A converted series and what its header says of it."""

    entry: Entry  # grows into its part of the record
    header: dict[str, Any]
    found: Classification
    modality: str  # as the release writes it
    plane: str
    obliquity_degrees: float | None
    grid: dict[str, list[float]]  # voxels, spacing and field of view along R-L, A-P and S-I


def curate_study(study: Study, scratch: Path, settings: Curate, tables: Tables) -> Outcome:
    """Curate every series that convert accepted.

    Parameters
    ----------
    study : Study
        With the record of convert.
    scratch : Path
        Stays empty: this stage writes no files.

    Returns
    -------
    Outcome
        One entry per series with its metadata `row` (all columns but `is_center_modality`);
        accepted ones get `series_id` and `is_center_modality`. Rejected as a whole,
        `no_accepted_series` or `no_center`, where there is nothing to register the study to.
    """
    given = {planned["series_key"]: planned["table"] for planned in study.plan["series"]}
    entries: list[Entry] = []
    seen: list[_Series] = []
    for converted in study.upstream["convert"].outcome.accepted_series():
        entry = {name: converted[name] for name in converted if name not in OF_CONVERT}
        entries.append(entry)
        with guarded(entry):
            table = given.get(converted["source"], {})
            with step("classify"):
                seen.append(_look(converted, entry, table, settings, tables))
    agents = contrast_agents([_for_contrast(series) for series in seen], tables.evidence)
    for series, agent in zip(seen, agents, strict=True):
        with guarded(series.entry), step("decide"):
            _decide(series, agent, study, settings, tables)
    accepted = sorted((e for e in entries if e["state"] == ACCEPTED), key=_series_order)
    center = next((e for e in accepted if _may_be_center(e["values"])), None)
    if center is None:
        return _without_center(entries, accepted)
    for entry, series_id in zip(accepted, series_ids(accepted), strict=True):
        entry["series_id"] = entry["row"]["series_id"] = series_id
        entry["is_center_modality"] = entry is center
    return Outcome(series=entries)


def _look(
    converted: Entry, entry: Entry, table: Mapping[str, Any], settings: Curate, tables: Tables
) -> _Series:
    """Tell from a series' header what it is."""
    header = with_series_table(converted["header"], table, tables.columns)
    entry["SeriesNumber"] = header.get("SeriesNumber")
    found = classify(header, tables.rules)
    plane, obliquity_degrees = acquisition_plane(
        header.get("ImageOrientation(Patient)"),
        converted["affine"],
        settings.oblique_from_degrees,
    )
    modality = tables.rules.released(found.classified_modality)
    grid = patient_grid(converted["shape"], converted["affine"])
    return _Series(entry, header, found, modality, plane, obliquity_degrees, grid)


def _for_contrast(series: _Series) -> dict[str, Any]:
    """Return what is looked at to tell the series of a study before and after injection."""
    return {
        "header": series.header,
        "classified_modality": series.modality,
        "SeriesNumber": series.entry["SeriesNumber"],
        "acquisition_plane": series.plane,
        "shape": series.grid["array_shape"],
        "spacing_mm": series.grid["array_spacing_mm"],
    }


def _decide(series: _Series, agent: Said, study: Study, settings: Curate, tables: Tables) -> None:
    """Write a series' row of the metadata and hold it against the criteria."""
    header, entry = series.header, series.entry
    part = body_part(header, series.plane, series.grid["array_fov_mm"], tables.evidence)
    years = age_years(header)
    whole_years = None if years is None else math.floor(years)
    facts = {
        **asdict(series.found),
        "classified_modality": series.modality,
        "acquisition_plane": series.plane,
        "body_part": part.value,
        "body_part_evidence": part.evidence,
        "contrast_agent": agent.value,
        "contrast_agent_evidence": agent.evidence,
    }
    computed = {
        **facts,
        **{name: json.dumps(values) for name, values in series.grid.items()},
        "patient_uid": study.patient_uid,
        "study_uid": study.study_uid,
        "anon_study_date": _anonymous_date(study.plan, header),
        "Patient'sAge": _written_age(whole_years, settings.max_age_written_years),
    }
    entry["row"] = {
        column.name: computed.get(column.name, column.released(header.get(column.name)))
        for column in tables.columns
        if column.release and column.name != "is_center_modality"
    }
    entry["values"] = {
        **{name: facts[name] for name in VALUES if name in facts},
        "sop_class_uid": header.get("SOPClassUID"),
        "dicom_modality": header.get("Modality"),
        "kind": entry.get("kind"),  # a NIfTI image says nothing of it
        "burned_in_annotation": (header.get("BurnedInAnnotation") or "").upper(),
        "age_years": whole_years,
        "obliquity_degrees": series.obliquity_degrees,
        "field_strength_t": header.get("FieldStrength_T"),
        "shape": entry["shape"],
        "spacing_mm": entry["spacing_mm"],
        # spacings come from float32 headers: 320 x 0.4375 mm may read 139.99999
        "fov_mm": [
            round(n * mm, 2) for n, mm in zip(entry["shape"], entry["spacing_mm"], strict=True)
        ],
    }
    accept(entry["values"], tables.criteria)


def _may_be_center(values: Mapping[str, Any]) -> bool:
    """Tell whether the others of a study can be registered to a series: a head's T1w."""
    return values["classified_modality"] == "T1w" and values["body_part"] in ("brain", "unknown")


def acquisition_plane(
    orientation: Sequence[float] | None, affine: "ArrayLike", oblique_from_degrees: float
) -> tuple[str, float | None]:
    """Return the plane of a series' slices, and how far they are turned out of it.

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
    plane : {'AXIAL', 'SAGITTAL', 'CORONAL', 'OBLIQUE', ''}
        Empty when neither tells a direction.
    obliquity_degrees : float or None
        Angle between the slice normal and the nearest patient axis, 0 to 54.7.

    Examples
    --------
    >>> acquisition_plane([0, 1, 0, 0, 0, -1], None, 30)
    ('SAGITTAL', 0.0)
    """
    import numpy as np

    normal = _slice_normal(orientation, affine)
    length = np.linalg.norm(normal)
    if not (np.isfinite(length) and length > 0):
        return "", None
    # LPS+ and RAS+ differ in signs, which do not matter here
    degrees = np.degrees(np.arccos(np.clip(np.abs(normal) / length, 0, 1)))
    nearest = int(np.argmin(degrees))
    obliquity_degrees = round(float(degrees[nearest]), 1)
    is_oblique = degrees[nearest] > oblique_from_degrees
    return OBLIQUE if is_oblique else PLANES[nearest], obliquity_degrees


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


def _anonymous_date(plan: Mapping[str, Any], header: Mapping[str, Any]) -> str:
    """Return the study's date as a site gave it, or moved by the patient's offset, or nothing.

    A site's date that is the true one is nothing: of a NIfTI image only the sidecar tells.
    """
    true = header.get("StudyDate") or ""
    if given := plan.get("anon_study_date"):
        return given if given != true else ""
    try:
        day = date.fromisoformat(iso_date(plan["StudyDate"] or true))
        return (day + timedelta(days=plan["date_shift_days"])).isoformat()
    except (ValueError, OverflowError):
        return ""


def _written_age(years: int | None, above_89: int | None) -> int | str:
    """Return an age as it is written: ages above 89 as one value where the settings say so."""
    if years is None:
        return ""
    return above_89 if above_89 is not None and years > OLDEST_WRITTEN_YEARS else years


def patient_grid(shape: Sequence[int], affine: "ArrayLike") -> dict[str, list[float]]:
    """Return shape, spacing and field of view along the axes nearest to R-L, A-P and S-I.

    Parameters
    ----------
    shape : (3,) sequence of int
        Voxels along i, j, k.
    affine : (4, 4) array_like
        Voxel index to scanner position, RAS+, in mm.
    """
    import numpy as np
    from nibabel.orientations import io_orientation

    order = np.argsort(io_orientation(np.asarray(affine, dtype=float))[:, 0])
    spacing_mm = np.linalg.norm(np.asarray(affine, dtype=float)[:3, :3], axis=0)[order]
    voxels = np.asarray(shape)[order]
    return {
        "array_shape": voxels.tolist(),
        "array_spacing_mm": spacing_mm.round(4).tolist(),
        "array_fov_mm": (voxels * spacing_mm).round(2).tolist(),
    }
