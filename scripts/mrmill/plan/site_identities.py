"""A site's tables held against its export: who stays out, and who is called what."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from mrmill.index import FoundStudy
from mrmill.plan.identity_tables import (
    DATE,
    MAPPING,
    PATIENT,
    OptOut,
    SiteMapping,
    SiteNames,
    accessions,
    loosely,
    refuse,
)
from mrmill.plan.placement import PlannedStudy

#: Reason codes of studies that a table keeps out.
EXCLUDED, NOT_IN_MAPPING = "excluded", "not_in_mapping"

Known = dict[str, PlannedStudy]


def exclude(
    found: list[FoundStudy], known: Known, opt_out: OptOut, warnings: Counter[str]
) -> tuple[list[FoundStudy], Known]:
    """Reject the studies of an opt-out table, also those that are no longer in the export.

    Parameters
    ----------
    known : dict
        StudyInstanceUID -> study, as planned so far.
    warnings : Counter
        Gets `excluded` (studies) and `opt_out_unmatched` (rows of the table).

    Returns
    -------
    found, known
        With `reject` where it applies; of `known` only what is not found again.
    """
    vanished = as_found(known, {study.key for study in found})
    out = {study.key for study in (*found, *vanished) if opt_out.covers(study)}
    warnings[EXCLUDED] = len(out)
    warnings["opt_out_unmatched"] = len(opt_out.unmatched((*found, *vanished)))
    excluded = {
        study.key: replace(known[study.key], reject=EXCLUDED)
        for study in vanished
        if study.key in out
    }
    return _rejected(found, out, EXCLUDED), known | excluded


def as_found(known: Known, but: set[str] = frozenset()) -> list[FoundStudy]:
    """Return planned studies as if they were found now, without those of some keys."""
    return [
        FoundStudy(key, study.PatientID, study.IssuerOfPatientID, study.AccessionNumber)
        for key, study in known.items()
        if key not in but
    ]


def leave_out(found: list[FoundStudy], missing: list[FoundStudy]) -> list[FoundStudy]:
    """Reject the studies that are missing from the mapping."""
    return _rejected(found, {study.key for study in missing}, NOT_IN_MAPPING)


def _rejected(found: list[FoundStudy], keys: set[str], reason: str) -> list[FoundStudy]:
    return [replace(study, reject=reason) if study.key in keys else study for study in found]


def missing_from(mapping: SiteMapping, found: list[FoundStudy]) -> list[FoundStudy]:
    """Return the studies that could be used but for a row in the mapping."""
    return [study for study in found if not study.reject and mapping.of(study) is None]


def missing_message(
    mapping: SiteMapping, missing: Sequence[FoundStudy], n_studies: int, listed: Path
) -> str:
    """Say how many studies the mapping lacks, why that may be, and what to do."""
    without = sum(not accessions(study) for study in missing)
    alike = {loosely(name) for name in mapping.rows}
    nearly = sum(any(loosely(name) in alike for name in accessions(s)) for s in missing)
    lines = [f"{len(missing)} of {n_studies} studies are missing from {MAPPING} {mapping.path}."]
    if without:
        lines.append(f"{without} of them have no AccessionNumber.")
    if nearly:
        lines.append(
            f"{nearly} of them have a row but for leading zeros or case: spreadsheets drop such "
            "zeros, so write the column as text."
        )
    return "\n  ".join(
        [
            *lines,
            f"{listed} lists them (it names patients). Nothing was planned.",
            "Next: add their rows, or leave them out with identity.unmapped: reject",
        ]
    )


def site_names(mapping: SiteMapping, found: list[FoundStudy], known: Known) -> dict[str, SiteNames]:
    """Return what the site calls its studies, by their key.

    Raises
    ------
    PlanError
        Naming the lines of the mapping: if it gives a patient two names or two patients one,
        passes on a number of the export or a true date, lacks the date of a dated study, or
        renames what is planned.
    """
    named = [(study, names) for study in found if (names := mapping.of(study)) is not None]
    problems = [
        *_true_ids(named, found),
        *_true_dates(named),
        *_renamed(named, known),
        *_mixed_up(named, known),
    ]
    refuse(f"{MAPPING} {mapping.path}", list(dict.fromkeys(problems)))
    return {study.key: names for study, names in named}


Named = list[tuple[FoundStudy, SiteNames]]


def _true_ids(named: Named, found: list[FoundStudy]) -> Iterator[str]:
    """Find public names that are numbers of the hospital."""
    true = {name.casefold() for study in found for name in (study.patient_id, *accessions(study))}
    for _, names in named:
        if names.patient_uid.casefold() in true:
            yield f"{names.line}: {PATIENT} is a PatientID or AccessionNumber of the export"


def _true_dates(named: Named) -> Iterator[str]:
    """Find dates that did not move, and dated studies without one."""
    true = []
    for study, names in named:
        day = re.sub(r"\D", "", study.study_date)[:8]
        if day and not names.anon_study_date:
            yield f"{names.line}: {DATE} is empty, and the study has a date"
        elif day and day == names.anon_study_date.replace("-", ""):
            true.append(names.line)
    if true:
        yield f"{len(true)} rows have the true StudyDate as {DATE}, the first of them {true[0]}"


def _renamed(named: Named, known: Known) -> Iterator[str]:
    """Find studies that are planned, and may be published, under another patient."""
    for study, names in named:
        old = known.get(study.key)
        if old and not old.reject and old.patient_uid != names.patient_uid:
            yield (
                f"{names.line}: the study is planned under another {PATIENT}, and names stay; "
                "put that one back, or plan in a new `work`"
            )


def _mixed_up(named: Named, known: Known) -> Iterator[str]:
    """Find patients with two names, and names with two patients."""
    lines_of: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    owners: dict[str, dict[str, str]] = defaultdict(dict)
    planned = [
        (study.IssuerOfPatientID, study.PatientID, study.patient_uid, "the plan")
        for study in known.values()
        if not study.reject
    ]
    rows = [(s.issuer, s.patient_id, names.patient_uid, names.line) for s, names in named]
    for issuer, patient, uid, line in (*rows, *planned):
        if patient:
            lines_of[issuer, patient].setdefault(uid, line)
            owners[uid].setdefault(patient, line)
    for said, lines in (
        (f"one patient has several {PATIENT}", lines_of),
        (f"several patients have one {PATIENT}", owners),
    ):
        for by_value in lines.values():
            if len(by_value) > 1:
                yield f"{', '.join(dict.fromkeys(by_value.values()))}: {said}"
