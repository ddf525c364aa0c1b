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

    A study that comes under another id (hospitals join patients) is still the one that was planned:
    it is held against the table under both, and keeps the id that keeps it out.

    Parameters
    ----------
    known : dict
        StudyInstanceUID -> study, as planned so far.
    warnings : Counter
        Gets `excluded` and `readmitted` (studies), and of the table's rows `opt_out_unmatched` and
        `opt_out_nearly`.

    Returns
    -------
    found, known
        With `reject` where it applies; of `known` only what is not found again.
    """
    planned = {study.key: study for study in as_found(known)}
    found = [
        _as_planned(study, planned[study.key])
        if study.key in planned and not opt_out.covers(study) and opt_out.covers(planned[study.key])
        else study
        for study in found
    ]
    vanished = [planned[key] for key in planned.keys() - {study.key for study in found}]
    out = {study.key for study in (*found, *vanished) if opt_out.covers(study)}
    unmatched = opt_out.unmatched((*found, *vanished))
    warnings[EXCLUDED] = len(out)
    warnings["opt_out_nearly"] = sum(unmatched.values())
    warnings["opt_out_unmatched"] = len(unmatched) - warnings["opt_out_nearly"]
    warnings["readmitted"] = sum(
        study.key in known and known[study.key].reject == EXCLUDED and study.key not in out
        for study in found
    )
    excluded = {
        study.key: replace(known[study.key], reject=EXCLUDED)
        for study in vanished
        if study.key in out
    }
    return _rejected(found, out, EXCLUDED), known | excluded


def _as_planned(study: FoundStudy, before: FoundStudy) -> FoundStudy:
    return replace(
        study,
        patient_id=before.patient_id,
        issuer=before.issuer,
        accession_number=before.accession_number,
    )


def as_found(known: Known) -> list[FoundStudy]:
    """Return planned studies as if they were found now."""
    return [
        FoundStudy(key, study.PatientID, study.IssuerOfPatientID, study.AccessionNumber)
        for key, study in known.items()
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
        *_true_ids(named, [*found, *as_found(known)]),
        *_true_dates(named),
        *_renamed(named, known),
        *_mixed_up(named, known),
    ]
    refuse(f"{MAPPING} {mapping.path}", list(dict.fromkeys(problems)))
    return {study.key: names for study, names in named}


Named = list[tuple[FoundStudy, SiteNames]]


def _true_ids(named: Named, studies: list[FoundStudy]) -> Iterator[str]:
    """Find public names that are numbers of the hospital."""
    true = {name.casefold() for study in studies for name in (study.patient_id, *accessions(study))}
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
        was_named = old and (not old.reject or old.anon_study_date)  # a rejected one for now only
        if was_named and old.patient_uid != names.patient_uid:
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
