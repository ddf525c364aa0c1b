"""DICOM exports: every header is read once, and files are grouped by their UIDs.

Made for 10^8 files in 4 GB of memory, so files are never all in memory:

- `index_dicom` goes folder by folder and keeps rows only until a part of the index is full.
  It remembers one digest per folder (about 0.4 kB) and needs no more than that to pass over
  a folder in which nothing changed. Only the largest single folder has to fit (1.5 kB a file).
- `DicomIndex.studies` goes part by part and keeps one row per series (at most 1 kB).
- `DicomIndex.entries` deals all rows out into files on disk, each for some whole shards,
  and then takes one of these at a time (`mrmill.index.buckets`).
"""

import csv
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterator
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from mrmill.config import Input
from mrmill.index import (
    FoundStudy,
    Index,
    Merge,
    Mixed,
    PlanError,
    Progress,
    Shard,
    Skip,
    read_rows,
    study_date,
    walk,
)
from mrmill.index.buckets import Buckets
from mrmill.index.header import OK
from mrmill.index.parts import (
    COLUMNS,
    Parts,
    on_folders,
    read_files,
    stat_files,
    worker_pool,
)
from mrmill.index.series import File, holds_image, series_entry, slices_of_one, without_copies
from mrmill.index.studies import (
    SERIES,
    STUDY,
    in_mixed_folders,
    one_per_accession,
    sharing_instances,
    unreadable_by_series,
)

if TYPE_CHECKING:
    import pyarrow as pa

PATIENT = ("PatientID", "IssuerOfPatientID", "AccessionNumber", "StudyDate")


def index_dicom(input: Input, folder: Path, workers: int, progress: Progress) -> "DicomIndex":
    """Read the headers of all files that are new or changed since the last time.

    Parameters
    ----------
    input : mrmill.config.Input
        Its path is the folder of the export, or a CSV with a `FolderPath` column.
    folder : Path
        Of the index; what a killed run left there is used.
    """
    parts = Parts(folder)
    table = read_series_table(input.series_table) if input.series_table else {}
    index = DicomIndex(parts, table, input)
    path = input.path
    roots = [path] if path.is_dir() else folders_of_table(path, index.walked)

    def changed() -> Iterator[tuple[str, list]]:
        for exported, listing in on_folders(pool, stat_files, walk(roots, index.walked)):
            index.files += len(listing)
            progress("files", index.files, None)
            if not parts.unchanged(exported, listing):
                rows = parts.completed(exported, listing)
                index.read += sum(len(row) < len(COLUMNS) for row in rows)
                yield exported, rows

    with worker_pool(workers) as pool:
        for exported, rows in on_folders(pool, read_files, changed()):
            parts.add(exported, rows)
    parts.flush()
    return index


def read_series_table(path: Path) -> dict[str, dict[str, str]]:
    """Return what a person says about series: SeriesInstanceUID -> what replaces its header.

    Raises
    ------
    PlanError
        If the table cannot be read, names a series twice or has a StudyDate that is none.
    """
    said: dict[str, dict[str, str]] = {}
    for where, row in read_rows(path, "input.series_table", ["SeriesInstanceUID"]):
        uid = row.pop("SeriesInstanceUID").strip()
        if uid in said:
            raise PlanError(f"{where}: the series stands in the table twice")
        if date := study_date(row, where):
            row["StudyDate"] = date
        said[uid] = {column: value.strip() for column, value in row.items() if value.strip()}
    return said


def folders_of_table(path: Path, skips: list[Skip]) -> list[Path]:
    """Return the folders that a CSV names; relative ones start where the CSV is."""
    rows = read_rows(path, "input.path", ["FolderPath"])
    named = {row["FolderPath"] for _, row in rows} - {""}
    folders: list[Path] = []
    for folder in sorted(Path(os.path.normpath(path.parent / name)) for name in named):
        if not folder.is_dir():
            skips.append(Skip(str(folder), "", "missing_folder"))
        elif not folders or not folder.is_relative_to(folders[-1]):
            folders.append(folder)
    return folders


class DicomIndex(Index):
    """Files of a DICOM export, grouped by StudyInstanceUID and SeriesInstanceUID.

    Parameters
    ----------
    parts : Parts
        What is known of every file.
    table : dict
        SeriesInstanceUID -> what a person says about the series.
    settings : mrmill.config.Input
        Which of the rules for hard cases hold.
    """

    accepted = "DICOM files (PS3.10), in any folders and under any names"

    def __init__(self, parts: Parts, table: dict[str, dict[str, str]], settings: Input) -> None:
        super().__init__()
        self.parts = parts
        self.table = table
        self.settings = settings
        self.walked: list[Skip] = []
        self._dates: dict[str, str] = {}  # study -> its StudyDate in the table
        self._doubted: set[str] = set()  # studies whose patient is in doubt
        self._lacking: Counter[tuple[str, str]] = Counter()  # series -> unreadable files
        self._merged_studies: list[Merge] = []
        self._merged_series = TemporaryFile(  # noqa: SIM115 (lives as long as the index)
            "w+", newline="", encoding="utf-8", dir=parts.folder
        )

    def skips(self) -> Iterator[Skip]:
        """Yield what is no usable DICOM file, and what could not be entered."""
        import pyarrow.compute as pc

        for table in self.parts.tables(["name", "status"]):
            for row in table.filter(pc.not_equal(table["status"], OK)).to_pylist():
                yield Skip(os.fsdecode(row["folder"]), os.fsdecode(row["name"]), row["status"])
        yield from self.walked

    def merges(self) -> Iterator[Merge]:
        """Yield the studies, then the series that were merged."""
        yield from self._merged_studies
        self._merged_series.seek(0)
        for *texts, n_files in csv.reader(self._merged_series):
            yield Merge(*texts, int(n_files))

    def mixed(self) -> Iterator[Mixed]:
        """Yield the files of studies of several patients, and of those beside other patients."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if not self._doubted:  # as a rule: spare a pass over the whole index
            return
        columns = ["folder", STUDY, "PatientID"]
        doubted = pa.array(sorted(self._doubted), pa.string())
        for table in self._tables(columns):
            rows = table.filter(pc.is_in(table[STUDY], doubted))
            groups = rows.group_by(columns).aggregate([([], "count_all")]).to_pylist()
            yield from sorted(
                Mixed(os.fsdecode(g["folder"]), g[STUDY], g["PatientID"] or "", g["count_all"])
                for g in groups
            )

    def _tables(self, columns: list[str]) -> Iterator["pa.Table"]:
        """Yield the rows of usable files, part by part."""
        import pyarrow.compute as pc

        for table in self.parts.tables(["status", *columns]):
            yield table.filter(pc.equal(table["status"], OK)).select(columns)

    def studies(self, known: Container[str] = ()) -> list[FoundStudy]:
        """Return the studies, over all folders: one per StudyInstanceUID or examination."""
        rows = self._rows_of_series()
        if rows is None:
            return []
        self._dates = self._dates_of_table(rows)
        found = self._per_uid(rows)
        self.warnings["shared_instances"] = sharing_instances(rows)
        if self.settings.mixed_folders == "quarantine":
            mixed = in_mixed_folders(self._tables(["folder", STUDY, "PatientID"]), found)
            for study in found:
                study.reject = study.reject or ("quarantined" if study.key in mixed else "")
        self._doubted = {study.key for study in found if study.reject}
        if self.settings.one_study_per_accession:
            found, self._merged_studies = one_per_accession(found, known)
        self.warnings["quarantined"] = sum(study.reject == "quarantined" for study in found)
        self.warnings["merged_accession"] = len({merge.into_uid for merge in self._merged_studies})
        self._lacking, self.warnings["unreadable_files"] = unreadable_by_series(
            self.parts.tables(["name", "size", "status", STUDY, SERIES])
        )
        self._warn_of_unclear_issuers(found)
        return found

    def _rows_of_series(self) -> "pa.Table | None":
        """Return at least one row for every series, with all that its files say of the patient.

        Also how many files say so (`count_all`) and their smallest SOPInstanceUID.
        """
        import pyarrow as pa

        columns = [STUDY, SERIES, *PATIENT]
        groups = [
            table.group_by(columns).aggregate([([], "count_all"), ("SOPInstanceUID", "min")])
            for table in self._tables([*columns, "SOPInstanceUID"])
        ]
        return pa.concat_tables(groups) if groups else None

    def _per_uid(self, rows: "pa.Table") -> list[FoundStudy]:
        """Return one study per StudyInstanceUID."""
        sizes = rows.group_by(STUDY).aggregate([(SERIES, "count_distinct"), ("count_all", "sum")])
        identities = defaultdict(list)
        for row in rows.group_by([STUDY, *PATIENT]).aggregate([]).to_pylist():
            identities[row[STUDY]].append(row)
        return [
            self._study(
                identities[size[STUDY]], size[f"{SERIES}_count_distinct"], size["count_all_sum"]
            )
            for size in sizes.to_pylist()
        ]

    def _study(self, identities: list[dict], n_series: int, n_files: int) -> FoundStudy:
        """Make one study of what its files say, first in alphabet where they disagree."""
        values = {column: {row[column] for row in identities} - {None} for column in PATIENT}
        key = identities[0][STUDY]
        study = FoundStudy(
            key,
            *(min(values[column], default="") for column in PATIENT),
            n_series=n_series,
            n_files=n_files,
        )
        study.accession_number = "\\".join(sorted(values["AccessionNumber"]))
        study.study_date = self._dates.get(key, study.study_date)
        if len(values["PatientID"]) > 1:
            self.warnings["mixed_patients"] += 1
            study.reject, study.patient_id = "mixed_patients", ""
        elif not study.patient_id:
            self.warnings["missing_patient_id"] += 1
        return study

    def _dates_of_table(self, rows: "pa.Table") -> dict[str, str]:
        """Return what the table says of the dates of studies: StudyInstanceUID -> StudyDate.

        Raises
        ------
        PlanError
            If it gives two series of a study different ones.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        said = rows.filter(pc.is_in(rows[SERIES], pa.array(list(self.table), pa.string())))
        said = said.group_by([STUDY, SERIES]).aggregate([]).to_pylist()
        self.warnings["unmatched_table_rows"] = len(self.table) - len({r[SERIES] for r in said})
        dated = [row for row in said if "StudyDate" in self.table[row[SERIES]]]
        dates: dict[str, str] = {}
        for row in dated:
            date = self.table[row[SERIES]]["StudyDate"]
            if dates.setdefault(row[STUDY], date) != date:
                order = list(self.table)
                lines = sorted(order.index(r[SERIES]) + 1 for r in dated if r[STUDY] == row[STUDY])
                raise PlanError(
                    f"input.series_table gives series of one study different StudyDates: rows "
                    f"{', '.join(map(str, lines))}, the header not counted"
                )
        return dates

    def _warn_of_unclear_issuers(self, found: list[FoundStudy]) -> None:
        """Count patients known with an issuer here and without one there: they become two."""
        issuers = defaultdict(set)
        for study in found:
            issuers[study.patient_id].add(study.issuer)
        unclear = [
            patient
            for patient, names in issuers.items()
            if patient and "" in names and names != {""}
        ]
        self.warnings["patient_id_with_and_without_issuer"] = len(unclear)

    def entries(
        self, placed: list[tuple[FoundStudy, Shard]], series_key: Callable[[str], str]
    ) -> Iterator[dict[Shard, dict[str, dict]]]:
        """Yield the series of each study, for some whole shards at a time."""
        shard_of = {study.key: shard for study, shard in placed}
        self._merged_series.seek(0)
        self._merged_series.truncate()
        with Buckets(self.parts.folder / ".buckets") as buckets:
            buckets.deal(placed, self._files())
            for files in buckets:
                shards: dict[Shard, dict[str, dict]] = defaultdict(dict)
                for key, rows in groupby(files, key=attrgetter("study")):
                    series = {uid: list(g) for uid, g in groupby(rows, key=attrgetter(SERIES))}
                    shards[shard_of[key]][key] = {"series": self._entries(series, series_key)}
                yield shards

    def _files(self) -> Iterator["pa.Table"]:
        """Yield the rows of usable files with the columns of `File`."""
        import pyarrow as pa
        import pyarrow.compute as pc

        uids = pa.array([merge.merged_uid for merge in self._merged_studies], pa.string())
        keys = pa.array([merge.into_uid for merge in self._merged_studies], pa.string())
        for table in self._tables(list(File._fields[1:])):
            into = keys.take(pc.index_in(table[STUDY], uids))
            table = table.append_column("study", pc.coalesce(into, table[STUDY]))
            yield table.select(File._fields)

    def _entries(
        self, series: dict[str, list[File]], series_key: Callable[[str], str]
    ) -> list[dict]:
        """Return what the plan says about the series of one study."""
        members = {uid: [uid] for uid in series}
        slices = slices_of_one(series)
        log = csv.writer(self._merged_series)
        for into, *others in slices:
            for uid in others:
                members[into] += members.pop(uid)
                key = series[uid][0].study
                log.writerow(Merge("merged_series_uids", key, uid, into, len(series[uid])))
        self.warnings["merged_series_uids"] += bool(slices)
        entries = [
            self._entry(uids, [file for uid in uids for file in series[uid]], series_key)
            for uids in members.values()
        ]
        if len({entry["series_key"] for entry in entries}) < len(entries):
            raise PlanError("two series of one study have the same pseudonym; use another key")
        return sorted(entries, key=lambda entry: entry["series_key"])

    def _entry(
        self, uids: list[str], files: list[File], series_key: Callable[[str], str]
    ) -> dict[str, Any]:
        """Return what the plan says about one series, which may have several UIDs."""
        kept = without_copies(files)
        self.dropped["duplicate"] += len(files) - len(kept)
        images = [file for file in kept if holds_image(file.SOPClassUID or "")]
        if images:
            self.dropped["no_pixels"] += len(kept) - len(images)
        said = next((self.table[uid] for uid in uids if uid in self.table), {})
        if date := self._dates.get(files[0].StudyInstanceUID):  # one study has one date
            said = {**said, "StudyDate": date}
        entry = {"series_key": series_key(uids[0]), **series_entry(images or kept, said)}
        if not images:
            entry["reject"] = "no_images"
        if len(uids) > 1:
            entry["warnings"] = ["merged_series_uids"]
        if self._lacking:
            owners = {(file.StudyInstanceUID, file.SeriesInstanceUID) for file in files}
            if n_unreadable := sum(self._lacking[owner] for owner in owners):
                entry["n_unreadable"] = n_unreadable
        return entry
