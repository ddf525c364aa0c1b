"""Tables of a site: its own pseudonyms and dates (`identity.mapping`), and who has opted out.

Both are read and checked as a whole before anything is done with them. What is wrong is named by
its line, and no cell of theirs is ever repeated: they name patients.
"""

import datetime
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from mrmill.config import Identity
from mrmill.index import FoundStudy, PlanError
from mrmill.plan.spreadsheets import is_rounded, plain_id, read_cells

MAPPING, OPT_OUT = "identity.mapping", "identity.opt_out"

#: As in the mapping tables of MR-RATE's scripts.
ACCESSION, PATIENT, DATE = "Accession", "Anon Patient ID", "Anonymized Study Date"

#: Columns of an opt-out table; one of them is enough.
OPT_OUT_COLUMNS = ("PatientID", "AccessionNumber")

#: What is safe in a table, in a shell and in the name of a file.
SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

ROUNDED = "{} is a number that a spreadsheet has rounded: write the column as text"

#: Of many mistakes in a table this many are named.
MAX_NAMED = 20


@dataclass(frozen=True)
class SiteNames:
    """What a site calls a study in public.

    Attributes
    ----------
    line : str
        Where that stands in its table.
    anon_study_date : str
        As 2024-01-31, empty where the table has none.
    """

    line: str
    patient_uid: str
    anon_study_date: str


@dataclass(frozen=True)
class SiteMapping:
    """A site's own names, by accession number."""

    path: Path
    rows: dict[str, SiteNames]

    def of(self, study: FoundStudy) -> SiteNames | None:
        """Return what the site calls a study, if it has one name for it."""
        rows = [self.rows[name] for name in accessions(study) if name in self.rows]
        same = {(row.patient_uid, row.anon_study_date) for row in rows}
        return rows[0] if len(same) == 1 else None


class OptOutRow(NamedTuple):
    """A row of an opt-out table; an empty id says nothing."""

    line: str
    patient_id: str
    accession_number: str


@dataclass(frozen=True)
class OptOut:
    """Who must not be in the dataset."""

    rows: tuple[OptOutRow, ...] = ()

    @cached_property
    def _patients(self) -> frozenset[str]:
        return frozenset(loosely(row.patient_id) for row in self.rows) - {""}

    @cached_property
    def _accessions(self) -> frozenset[str]:
        return frozenset(loosely(row.accession_number) for row in self.rows) - {""}

    def covers(self, study: FoundStudy) -> bool:
        """Tell whether a study has to stay out: its patient or its own number is enough.

        What differs in leading zeros or case alone stays out, too: a spreadsheet drops zeros, and
        a patient who is left in cannot be taken back.
        """
        return loosely(plain_id(study.patient_id)) in self._patients or any(
            loosely(number) in self._accessions for number in accessions(study)
        )

    def unmatched(self, studies: Iterable[FoundStudy]) -> dict[str, bool]:
        """Return the rows whose very id no study has, which may be mistyped.

        Of a row with both ids that is the patient's: by the number alone, the patient's other
        studies would stay in.

        Returns
        -------
        unmatched : dict
            Line of the table -> whether the id of some study, which stays out, differs in leading
            zeros or case alone.
        """
        patients, numbers = set(), set()
        for study in studies:
            patients.add(plain_id(study.patient_id))
            numbers.update(accessions(study))
        alike = {loosely(name) for name in patients | numbers}
        return {
            row.line: loosely(row.patient_id or row.accession_number) in alike
            for row in self.rows
            if (row.patient_id or row.accession_number)
            not in (patients if row.patient_id else numbers)
        }


def accessions(study: FoundStudy) -> tuple[str, ...]:
    """Return what a table may call a study.

    That is its AccessionNumber, or each of several. In a NIfTI export, which has none, it is the
    study's id, behind the patient's where that alone would not tell whose it is (`sub-01/ses-2`).
    """
    if study.accession_number:
        return tuple(map(plain_id, study.accession_number.split("\\")))
    patient, slash, name = study.key.partition(f"{study.patient_id}/")
    if patient or not slash:  # a StudyInstanceUID
        return ()
    return tuple(filter(None, (plain_id(study.key.strip("/")), plain_id(name))))


def loosely(name: str) -> str:
    """Return an id without what is easily lost: leading zeros, case, one form of a letter.

    Examples
    --------
    >>> loosely("00Ab7"), loosely("000")
    ('ab7', '000')
    """
    text = unicodedata.normalize("NFKC", name).casefold()
    return text.lstrip("0") or text


def read_mapping(path: Path, kind: str) -> SiteMapping:
    """Read a table of accession numbers with the site's own patients and dates.

    Parameters
    ----------
    kind : str
        Of the input.

    Raises
    ------
    PlanError
        If the input is a release, the table cannot be read, or (naming the lines) a row has no
        day for a date, an id that is not safe or an accession number, or contradicts another.
    """
    _refuse_release(kind, MAPPING)
    problems = []
    rows: dict[str, SiteNames] = {}
    for line, row in read_cells(path, MAPPING, (ACCESSION, PATIENT, DATE)):
        accession, patient = plain_id(row[ACCESSION]), plain_id(row[PATIENT])
        if not accession:
            continue
        try:
            names = SiteNames(line, patient, iso_day(row[DATE]) if row[DATE] else "")
        except ValueError:
            problems.append(f"{line}: {DATE} is no day, written as 2024-01-31 or 20240131")
            continue
        if is_rounded(accession):
            problems.append(f"{line}: {ROUNDED.format(ACCESSION)}")
        if not SAFE_ID.fullmatch(patient):
            problems.append(
                f"{line}: {PATIENT} is not 1 to 64 of A-Z, a-z, 0-9, _ and -, "
                "the first a letter or digit"
            )
        before = rows.setdefault(accession, names)
        if (before.patient_uid, before.anon_study_date) != (patient, names.anon_study_date):
            problems.append(f"{line}: {before.line} says something else of the same {ACCESSION}")
    spoken_of = {accession.casefold() for accession in rows}
    problems += [
        f"{names.line}: {PATIENT} is the {ACCESSION} of a row"
        for names in rows.values()
        if names.patient_uid.casefold() in spoken_of
    ]
    refuse(f"{MAPPING} {path}", problems)
    return SiteMapping(path, rows)


def read_opt_out(path: Path, kind: str) -> OptOut:
    """Read a table of patients and accession numbers that have to stay out.

    Parameters
    ----------
    kind : str
        Of the input.

    Raises
    ------
    PlanError
        If the input is a release, the table cannot be read or has neither column, or (naming
        the lines) ids are damaged or a row that says something has none.
    """
    _refuse_release(kind, OPT_OUT)
    problems = []
    rows = []
    for line, row in read_cells(path, OPT_OUT, ()):
        if row.keys().isdisjoint(OPT_OUT_COLUMNS):
            raise PlanError(
                f"{OPT_OUT} {path} has neither a column {' nor '.join(OPT_OUT_COLUMNS)}.\n"
                "  Accepted: a CSV (commas, UTF-8) or XLSX with one of them, or both"
            )
        ids = {column: plain_id(row.get(column, "")) for column in OPT_OUT_COLUMNS}
        problems += [
            f"{line}: {ROUNDED.format(column)}" for column, id in ids.items() if is_rounded(id)
        ]
        if any(ids.values()):
            rows.append(OptOutRow(line, *ids.values()))
        else:  # its id may stand in a column of another name
            problems.append(f"{line}: neither {' nor '.join(OPT_OUT_COLUMNS)}")
    refuse(f"{OPT_OUT} {path}", problems)
    return OptOut(tuple(rows))


def read_site_tables(kind: str, settings: Identity) -> tuple[SiteMapping | None, OptOut]:
    """Read the tables that are configured.

    Raises
    ------
    PlanError
        If one of them cannot be used.
    """
    mapping = read_mapping(settings.mapping, kind) if settings.mapping else None
    return mapping, read_opt_out(settings.opt_out, kind) if settings.opt_out else OptOut()


def _refuse_release(kind: str, name: str) -> None:
    if kind == "release":
        raise PlanError(
            f"{name} speaks of accession numbers and patients, and input.kind: release has "
            f"neither.\n  Next: take {name} out of the config"
        )


def refuse(where: str, problems: list[str]) -> None:
    """Stop if there are problems, and name the first ones."""
    if problems:
        raise PlanError("\n  ".join([f"{where} cannot be used:", *first_few(problems)]))


def first_few(texts: list[str]) -> list[str]:
    """Return the first texts and how many there are more."""
    more = len(texts) - MAX_NAMED
    return [*texts[:MAX_NAMED], f"and {more} more"] if more > 0 else texts


def iso_day(text: str) -> str:
    """Return a day, with or without a time behind it, as 2024-01-31.

    Raises
    ------
    ValueError
        If it is no day of the calendar, or written in another way (01/02/2024 may be two).
    """
    found = re.fullmatch(r"(\d{4})(-?)(\d\d)\2(\d\d)([ T].*)?", text)
    if found is None:
        raise ValueError("no day")
    return datetime.date(int(found[1]), int(found[3]), int(found[4])).isoformat()
