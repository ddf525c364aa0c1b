"""What an export holds: its files, and the studies they form.

One index per kind of export, all with the same face: `index_export` looks at the files, then
`studies` tells which studies there are and `entries` what the plan of each says. Between the
two, planning decides in which shard a study goes.
"""

import csv
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mrmill.config import Input
from mrmill.errors import UserError

#: Told what is counted, how many are done, and of how many (None: not known yet).
Progress = Callable[[str, int, int | None], None]

#: Batch and shard, as they are named.
Shard = tuple[str, str]


class PlanError(UserError):
    """Something has to be changed before the export can be planned."""


class Skip(NamedTuple):
    """A file or folder that is part of no study, and why."""

    folder: str
    name: str
    reason: str


class Merge(NamedTuple):
    """Something that the export tells apart and the plan takes for one.

    Attributes
    ----------
    kind : str
        Code of the rule, also of the warning.
    study : str
        Key of the study that it happened to.
    merged_uid, into_uid : str
        StudyInstanceUID or SeriesInstanceUID that is given up, and what its files go by now.
    n_files : int
        Files that were merged, copies included.
    """

    kind: str
    study: str
    merged_uid: str
    into_uid: str
    n_files: int


class Mixed(NamedTuple):
    """Files of a study that is left out because its patient is in doubt.

    Attributes
    ----------
    n_files : int
        Files of the study that lie in this folder and name this patient.
    """

    folder: str
    StudyInstanceUID: str
    PatientID: str
    n_files: int


@dataclass
class FoundStudy:
    """A study of the export.

    Attributes
    ----------
    key : str
        What tells it from all others: its StudyInstanceUID, or what stands for it.
    patient_id : str
        Empty where unknown: the study is then taken for its patient's only one.
    accession_number : str
        Where files disagree all of them, with a backslash between, as DICOM parts values.
    n_series, n_files : int
        Found, copies and series of a single slice included.
    reject : str
        Reason code if the study cannot be used.
    study_uid, patient_uid, split, batch : str
        As an existing release has them; else empty, for planning to choose.
    """

    key: str
    patient_id: str = ""
    issuer: str = ""
    accession_number: str = ""
    study_date: str = ""
    n_series: int = 0
    n_files: int = 0
    reject: str = ""
    study_uid: str = ""
    patient_uid: str = ""
    split: str = ""
    batch: str = ""


class Index(ABC):
    """Files of an export and how they form studies.

    Attributes
    ----------
    files : int
        Files seen below the export.
    read : int
        Files opened this time; the others were known from an earlier plan.
    dropped : Counter
        Files of studies that are not used, by reason: `duplicate`, `no_pixels`; complete once
        `entries` is used up.
    warnings : Counter
        Number of studies (or patients, series, files, rows) by code of what is unusual about
        them; complete once `entries` is used up.
    """

    accepted: str

    def __init__(self) -> None:
        self.files = 0
        self.read = 0
        self.dropped: Counter[str] = Counter()
        self.warnings: Counter[str] = Counter()

    @abstractmethod
    def studies(self, known: Container[str] = ()) -> list[FoundStudy]:
        """Return the studies, in no particular order.

        Parameters
        ----------
        known : container of str
            Keys of the studies planned so far: they are not given up.
        """

    @abstractmethod
    def entries(
        self, placed: list[tuple[FoundStudy, Shard]], series_key: Callable[[str], str]
    ) -> Iterator[dict[Shard, dict[str, dict]]]:
        """Yield what the plan says about each study's files, some whole shards at a time.

        Parameters
        ----------
        placed : list of (FoundStudy, Shard)
            Every found study with its place.
        series_key : callable
            Pseudonym of a series.

        Yields
        ------
        dict
            Shard -> study key -> `{"series": [...], ...}`.
        """

    @abstractmethod
    def skips(self) -> Iterator[Skip]:
        """Yield whatever is part of no study."""

    def merges(self) -> Iterator[Merge]:
        """Yield everything that was merged; complete once `entries` is used up."""
        return iter(())

    def mixed(self) -> Iterator[Mixed]:
        """Yield where the files lie of studies whose patient is in doubt."""
        return iter(())


def index_export(input: Input, folder: Path, workers: int, progress: Progress) -> Index:
    """Look at every file of an export.

    Parameters
    ----------
    input : mrmill.config.Input
        Kind and path of the export.
    folder : Path
        Where an index is kept from plan to plan (DICOM only).
    workers : int
        Processes that read headers.
    progress : callable
        Called with `("files", done, None)` now and then.

    Raises
    ------
    PlanError
        If there is no such export.
    """
    if not input.path.exists():
        raise PlanError(
            f"input.path {input.path} does not exist.\n"
            "  Accepted: a folder, or (input.kind: dicom) a CSV with a FolderPath column.\n"
            "  Next: correct input.path in the config; is the disk mounted?"
        )
    if input.kind == "dicom":
        from mrmill.index.dicom import index_dicom

        return index_dicom(input, folder, workers, progress)
    if not input.path.is_dir():
        raise PlanError(
            f"input.path {input.path} is a file, and an export of kind {input.kind} is a folder.\n"
            "  Next: correct input.path or input.kind in the config"
        )
    if input.kind == "nifti":
        from mrmill.index.nifti import NiftiIndex

        return NiftiIndex(input.path, input.series_table)
    from mrmill.index.release import ReleaseIndex

    return ReleaseIndex(input.path)


def walk(roots: list[Path], skips: list[Skip]) -> Iterator[tuple[str, list[str]]]:
    """Yield every folder that holds files, in the order of their names.

    Linked folders are not entered (they may lead in circles), linked files are taken.

    Parameters
    ----------
    roots : list of Path
        None of them inside another.
    skips : list of Skip
        Gets what cannot be entered or is no file.

    Yields
    ------
    folder : str
    names : list of str
        Its files, sorted.
    """
    waiting = [str(root) for root in reversed(roots)]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError:
            skips.append(Skip(folder, "", "unreadable_folder"))
            continue
        names, below = [], []
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                below.append(entry.path)
            elif entry.is_file():
                names.append(entry.name)
            else:
                reason = "linked_folder" if entry.is_dir() else "not_a_file"
                skips.append(Skip(folder, entry.name, reason))
        waiting += reversed(below)
        if names:
            yield folder, names


def read_rows(path: Path, name: str, needed: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the rows of a CSV, each with where it stands.

    Parameters
    ----------
    name : str
        What the table is called in messages; these tell lines, never what they say.
    needed : sequence of str
        Columns it must have.

    Raises
    ------
    PlanError
        If it cannot be read, is empty or lacks a column, or a row has more cells than there are
        columns.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            missing = [column for column in needed if column not in columns]
            if missing:
                raise PlanError(
                    f"{name} {path} has no column {', '.join(missing)}.\n"
                    f"  Accepted: a CSV (commas, UTF-8) with {', '.join(needed)}"
                )
            if not columns:  # a copy that failed
                raise PlanError(f"{name} {path} is empty, without so much as names of columns")
            for row in reader:
                where = f"{name} {path}, line {reader.line_num}"
                if None in row:
                    raise PlanError(f"{where}: more cells than columns; quote cells with commas")
                yield where, {column: row[column] or "" for column in columns}
    except OSError as error:
        raise PlanError(f"{name} {path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error):
        raise PlanError(f"{name} {path} is not a CSV in UTF-8: save it as such") from None


def study_date(row: Mapping[str, str], where: str) -> str:
    """Return the StudyDate of a table's row as DICOM writes it (20240131), empty if there is none.

    Raises
    ------
    PlanError
        If it is no day.
    """
    from mrmill.columns import iso_date

    text = row.get("StudyDate", "").strip()
    try:
        return iso_date(text).replace("-", "") if text else ""
    except ValueError:
        raise PlanError(
            f"{where}: StudyDate is no day, written as 20240131 or 2024-01-31"
        ) from None
