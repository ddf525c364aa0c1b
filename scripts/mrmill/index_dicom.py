"""DICOM exports: every header is read once, and files are grouped by their UIDs.

Made for 10^8 files in 4 GB of memory, so files are never all in memory:

- `index_dicom` goes folder by folder and keeps rows only until a part of the index is full.
  It remembers one digest per folder (about 0.4 kB) and needs no more than that to pass over
  a folder in which nothing changed. Only the largest single folder has to fit (1.5 kB a file).
- `DicomIndex.studies` goes part by part and keeps one row per series (about 0.3 kB).
- `DicomIndex.entries` deals all rows out into files on disk, each for some whole shards
  (`BUCKET_ROWS`), and then takes one of these at a time.
"""

import hashlib
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mrmill.config import Input
from mrmill.index import FoundStudy, Index, PlanError, Progress, Shard, Skip, read_rows, walk
from mrmill.index_parts import (
    COLUMNS,
    OK,
    Parts,
    on_folders,
    read_files,
    stat_files,
    worker_pool,
)

if TYPE_CHECKING:
    import pyarrow as pa

#: Rows grouped at a time (about 0.4 GB); 10^8 rows make 400 buckets, each an open file.
BUCKET_ROWS = 250_000

#: No image, though its name has the word: Siemens CSA Non-Image Storage (phoenix reports).
CSA_NON_IMAGE = "1.3.12.2.1107.5.9.1"

PATIENT = ("PatientID", "IssuerOfPatientID", "AccessionNumber", "StudyDate")


class File(NamedTuple):
    """What grouping needs to know of a file; the names are those of the index."""

    StudyInstanceUID: str
    SeriesInstanceUID: str
    folder: bytes
    name: bytes
    SOPInstanceUID: str
    SOPClassUID: str | None
    size: int
    mtime_ns: int


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
    index = DicomIndex(parts, table)
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
        If the table cannot be read or names a series twice.
    """
    said: dict[str, dict[str, str]] = {}
    for where, row in read_rows(path, "input.series_table", ["SeriesInstanceUID"]):
        uid = row.pop("SeriesInstanceUID").strip()
        if uid in said:
            raise PlanError(f"{where}: the series stands in the table twice")
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
    """Files of a DICOM export, grouped by StudyInstanceUID and SeriesInstanceUID."""

    accepted = "DICOM files (PS3.10), in any folders and under any names"

    def __init__(self, parts: Parts, table: dict[str, dict[str, str]]) -> None:
        super().__init__()
        self.parts = parts
        self.table = table
        self.walked: list[Skip] = []

    def skips(self) -> Iterator[Skip]:
        """Yield what is no usable DICOM file, and what could not be entered."""
        import pyarrow.compute as pc

        for table in self.parts.tables(["name", "status"]):
            for row in table.filter(pc.not_equal(table["status"], OK)).to_pylist():
                yield Skip(os.fsdecode(row["folder"]), os.fsdecode(row["name"]), row["status"])
        yield from self.walked

    def _tables(self, columns: list[str]) -> Iterator["pa.Table"]:
        """Yield the rows of usable files, part by part."""
        import pyarrow.compute as pc

        for table in self.parts.tables(["status", *columns]):
            yield table.filter(pc.equal(table["status"], OK)).select(columns)

    def studies(self) -> list[FoundStudy]:
        """Return one study per StudyInstanceUID, over all folders."""
        import pyarrow as pa

        study, series = "StudyInstanceUID", "SeriesInstanceUID"
        groups = [
            table.group_by([study, series, *PATIENT]).aggregate([([], "count_all")])
            for table in self._tables([study, series, *PATIENT])
        ]
        if not groups:
            return []
        rows = pa.concat_tables(groups)
        sizes = rows.group_by(study).aggregate([(series, "count_distinct"), ("count_all", "sum")])
        identities = defaultdict(list)
        for row in rows.group_by([study, *PATIENT]).aggregate([]).to_pylist():
            identities[row[study]].append(row)
        found = [
            self._study(
                identities[size[study]], size[f"{series}_count_distinct"], size["count_all_sum"]
            )
            for size in sizes.to_pylist()
        ]
        self._warn_of_unclear_issuers(found)
        return found

    def _study(self, identities: list[dict], n_series: int, n_files: int) -> FoundStudy:
        """Make one study of what its files say, first in alphabet where they disagree."""
        values = {column: {row[column] for row in identities} - {None} for column in PATIENT}
        study = FoundStudy(
            identities[0]["StudyInstanceUID"],
            *(min(values[column], default="") for column in PATIENT),
            n_series=n_series,
            n_files=n_files,
        )
        if len(values["PatientID"]) > 1:
            self.warnings["mixed_patients"] += 1
            study.reject, study.patient_id = "mixed_patients", ""
        elif not study.patient_id:
            self.warnings["missing_patient_id"] += 1
        return study

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
        with _Buckets(self.parts.folder / ".buckets") as buckets:
            buckets.deal(placed, self._tables(list(File._fields)))
            for files in buckets:
                shards: dict[Shard, dict[str, dict]] = defaultdict(dict)
                for uid, rows in groupby(files, key=attrgetter("StudyInstanceUID")):
                    kept = self._without_copies(list(rows))
                    shards[shard_of[uid]][uid] = {"series": self._series(kept, series_key)}
                yield shards

    def _without_copies(self, files: list[File]) -> list[File]:
        """Keep one file per instance of a series: the largest, as a broken copy is smaller."""
        best: dict[tuple[str, str], File] = {}
        for file in files:
            # the series counts too: some software gives two series the same instance UIDs
            instance = file.SeriesInstanceUID, file.SOPInstanceUID
            known = best.setdefault(instance, file)
            if file.size > known.size:
                best[instance] = file
        self.dropped["duplicate"] += len(files) - len(best)
        return files if len(best) == len(files) else sorted(best.values())

    def _series(self, files: list[File], series_key: Callable[[str], str]) -> list[dict]:
        entries = []
        for uid, rows in groupby(files, key=attrgetter("SeriesInstanceUID")):
            series = list(rows)
            images = [file for file in series if holds_image(file.SOPClassUID or "")]
            if images:
                self.dropped["no_pixels"] += len(series) - len(images)
            facts = _series_entry(images or series, self.table.get(uid, {}))
            entry = {"series_key": series_key(uid), **facts}
            entries.append(entry if images else {**entry, "reject": "no_images"})
        if len({entry["series_key"] for entry in entries}) < len(entries):
            raise PlanError("two series of one study have the same pseudonym; use another key")
        return sorted(entries, key=lambda entry: entry["series_key"])


def _series_entry(files: list[File], table: dict[str, str]) -> dict[str, Any]:
    """Return what the plan says about a series; paths are relative to its folder."""
    base = files[0].folder
    if all(file.folder == base for file in files):
        names = [os.fsdecode(file.name) for file in files]
    else:
        base = os.path.commonpath([file.folder for file in files])
        paths = (os.path.join(file.folder, file.name) for file in files)  # noqa: PTH118 (bytes)
        names = [os.fsdecode(os.path.relpath(path, base)) for path in paths]
    stamps = "".join(
        f"{name} {file.size} {file.mtime_ns}\n" for name, file in zip(names, files, strict=True)
    )
    return {
        "kind": "dicom",
        "folder": os.fsdecode(base),
        "files": names,
        "n_sop": len(files),
        "sop_class": files[0].SOPClassUID or "",
        "sidecar": "",
        "table": table,
        "digest": hashlib.sha256(os.fsencode(stamps)).hexdigest(),
    }


@cache
def holds_image(sop_class: str) -> bool:
    """Tell whether instances of a SOP class may hold an image; unknown classes may.

    Examples
    --------
    >>> holds_image("1.2.840.10008.5.1.4.1.1.4")  # MR Image Storage
    True
    >>> holds_image("1.2.840.10008.5.1.4.1.1.88.22")  # Enhanced SR Storage
    False
    """
    from pydicom.uid import UID

    name = UID(sop_class).name
    return sop_class != CSA_NON_IMAGE and (name == sop_class or "Image" in name)


class _Buckets:
    """Rows of all files, dealt out into files on disk that hold whole shards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> "_Buckets":
        shutil.rmtree(self.folder, ignore_errors=True)  # a killed plan may have left some
        self.folder.mkdir(mode=0o700)
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder)

    def deal(self, placed: list[tuple[FoundStudy, Shard]], tables: Iterator["pa.Table"]) -> None:
        """Write each row to the bucket of its study's shard."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        studies = sorted(placed, key=lambda place: place[1])
        bucket_of_study, n_rows = [], 0
        for _, group in groupby(studies, key=lambda place: place[1]):
            shard = [study for study, _ in group]
            bucket_of_study += [n_rows // BUCKET_ROWS] * len(shard)
            n_rows += sum(study.n_files for study in shard)
        keys, buckets = pa.array([s.key for s, _ in studies]), np.array(bucket_of_study)
        writers: dict[int, pa.RecordBatchStreamWriter] = {}
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        for table in tables:
            bucket = buckets[pc.index_in(table["StudyInstanceUID"], keys).to_numpy()]
            table = table.take(np.argsort(bucket, kind="stable"))
            numbers, sizes = np.unique(bucket, return_counts=True)
            for number, end, size in zip(numbers, np.cumsum(sizes), sizes, strict=True):
                if number not in writers:
                    path = self.folder / f"{number:05d}.arrow"
                    writers[number] = pa.ipc.new_stream(path, table.schema, options=options)
                writers[number].write_table(table.slice(end - size, size))
        for writer in writers.values():
            writer.close()

    def __iter__(self) -> Iterator[Iterator[File]]:
        """Yield the files of one bucket after the other, by study, series, folder and name."""
        import pyarrow as pa

        for path in sorted(self.folder.iterdir()):
            with pa.ipc.open_stream(path) as stream:
                table = stream.read_all()
            table = table.sort_by([(name, "ascending") for name in File._fields[:4]])
            columns = [table[name].to_pylist() for name in File._fields]
            yield map(File._make, zip(*columns, strict=True))
