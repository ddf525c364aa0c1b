"""The hard cases of grouping files by their UIDs, one rule each.

All of them go through the index part by part. The rows of a folder stand in one part, so what
lies beside what can be told from a part alone.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator
from typing import TYPE_CHECKING

from mrmill.index import FoundStudy, Merge
from mrmill.index.header import OK, UNREADABLE

if TYPE_CHECKING:
    import pyarrow as pa

STUDY, SERIES = "StudyInstanceUID", "SeriesInstanceUID"


def one_per_accession(
    found: Iterable[FoundStudy], known: Container[str]
) -> tuple[list[FoundStudy], list[Merge]]:
    """Make one study of those that share patient, day and AccessionNumber.

    A scanner that is restarted within an examination goes on under a new StudyInstanceUID.
    Studies that miss any of the three are left alone. What stays is the one that is planned
    already, else the smallest UID; several that are planned all stay.

    Parameters
    ----------
    found : iterable of FoundStudy
        One for every StudyInstanceUID.
    known : container of str
        Keys of the studies planned so far.

    Returns
    -------
    studies : list of FoundStudy
    merges : list of Merge
        One for every StudyInstanceUID that is given up.
    """
    examinations: dict[tuple, list[FoundStudy]] = defaultdict(list)
    for study in sorted(found, key=lambda study: study.key):
        needed = study.accession_number, study.patient_id, study.study_date
        examinations[(*needed, study.issuer) if all(needed) else (study.key,)].append(study)
    studies, merges = [], []
    for members in examinations.values():
        stay = [study for study in members if study.key in known] or members[:1]
        studies += stay
        into = stay[0]
        for study in members:
            if study not in stay:
                into.n_series += study.n_series
                into.n_files += study.n_files
                into.reject = into.reject or study.reject
                merge = Merge("merged_accession", into.key, study.key, into.key, study.n_files)
                merges.append(merge)
    return studies, merges


def in_mixed_folders(tables: Iterable["pa.Table"], found: Iterable[FoundStudy]) -> set[str]:
    """Find the studies with a file in a folder that also holds files of another patient.

    A patient is an ID and its issuer. A file without an ID is its study's patient's; where the
    study has none either, it is a patient of its own.

    Parameters
    ----------
    tables : iterable of pyarrow.Table
        With whole folders each, and the columns folder, StudyInstanceUID and PatientID.

    Returns
    -------
    set of str
        StudyInstanceUIDs.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    studies = list(found)
    keys = pa.array([study.key for study in studies], pa.string())
    patients = pa.array([study.patient_id or study.key for study in studies], pa.string())
    issuers = pa.array([study.issuer for study in studies], pa.string())
    mixed: set[str] = set()
    for table in tables:
        known = pc.index_in(table[STUDY], keys)
        patient = pc.coalesce(table["PatientID"], patients.take(known))
        named = pc.binary_join_element_wise(patient, issuers.take(known), "\0")
        files = pa.table({"folder": table["folder"], STUDY: table[STUDY], "patient": named})
        folders = files.group_by("folder").aggregate([("patient", "count_distinct")])
        shared = folders.filter(pc.greater(folders["patient_count_distinct"], 1))["folder"]
        beside = files.filter(pc.is_in(files["folder"], shared.combine_chunks()))
        mixed.update(beside[STUDY].unique().to_pylist())
    return mixed


def sharing_instances(rows: "pa.Table") -> int:
    """Count the studies with a series whose first instance stands in another study, too.

    Parameters
    ----------
    rows : pyarrow.Table
        StudyInstanceUID and SeriesInstanceUID with the smallest SOPInstanceUID of some of its
        files (`SOPInstanceUID_min`); a series may have several rows.
    """
    import pyarrow.compute as pc

    series = rows.group_by([STUDY, SERIES]).aggregate([("SOPInstanceUID_min", "min")])
    series = series.rename_columns([STUDY, SERIES, "first"])
    instances = series.group_by("first").aggregate([(STUDY, "count_distinct")])
    shared = instances.filter(pc.greater(instances[f"{STUDY}_count_distinct"], 1))["first"]
    beside = series.filter(pc.is_in(series["first"], shared.combine_chunks()))
    return len(beside[STUDY].unique())


def unreadable_by_series(tables: Iterable["pa.Table"]) -> tuple[Counter[tuple[str, str]], int]:
    """Say which series lack files that lie among their own and could not be read.

    Parameters
    ----------
    tables : iterable of pyarrow.Table
        With whole folders each, and the columns folder, name, size, status, StudyInstanceUID and
        SeriesInstanceUID.

    Returns
    -------
    lacking : Counter
        (StudyInstanceUID, SeriesInstanceUID) -> unreadable files in folders that hold nothing
        else. Empty files count if they are named like its files, numbers apart: others are
        marks that somebody left.
    unclear : int
        Unreadable files of all other folders.
    """
    lacking: Counter[tuple[str, str]] = Counter()
    unclear = 0
    for broken, readable in _around_unreadable(tables):
        owners = {(row[STUDY], row[SERIES]) for row in readable}
        shapes = {_shape(row["name"]) for row in readable}
        if len(owners) == 1:
            lost = sum(row["size"] != 0 or _shape(row["name"]) in shapes for row in broken)
            lacking[owners.pop()] += lost
        else:
            unclear += len(broken)
    return +lacking, unclear


def _around_unreadable(
    tables: Iterable["pa.Table"],
) -> Iterator[tuple[list[dict], list[dict]]]:
    """Yield the unreadable and the usable files of every folder with unreadable ones."""
    import pyarrow.compute as pc

    for table in tables:
        broken = table.filter(pc.equal(table["status"], UNREADABLE))["folder"].unique()
        beside = table.filter(pc.is_in(table["folder"], broken))
        folders: dict[bytes, dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
        for row in beside.to_pylist():
            folders[row["folder"]][row["status"]].append(row)
        for files in folders.values():
            yield files[UNREADABLE], files[OK]


def _shape(name: bytes) -> bytes:
    return re.sub(rb"\d+", b"0", name)
