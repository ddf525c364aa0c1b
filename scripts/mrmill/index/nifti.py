"""NIfTI exports: one file is one series; folders or a table tell whose it is."""

import re
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from mrmill.index import (
    FoundStudy,
    Index,
    PlanError,
    Shard,
    Skip,
    read_rows,
    study_date,
    walk,
)
from mrmill.records import digest

#: BIDS entities of a folder or file name.
SUBJECT = re.compile(r"(?:^|[/_])(sub-[A-Za-z0-9]+)(?=[/_])")
SESSION = re.compile(r"(?:^|[/_])(ses-[A-Za-z0-9]+)(?=[/_])")

#: Columns of the series table that say where a file belongs; the others say what it is.
PLACE = ("path", "patient_id", "study_id")


class NiftiIndex(Index):
    """Images below a folder, each with the JSON sidecar of the same name if there is one.

    With a series table, its rows are the series, and patients and studies are as it says.
    Without, they are BIDS's `sub-` and `ses-`; a folder outside of BIDS is one study of a
    patient of its own.

    Parameters
    ----------
    root : Path
        Folder of the export.
    series_table : Path, optional
        CSV, see `mrmill.config.Input`.
    """

    accepted = "NIfTI images (*.nii, *.nii.gz)"

    def __init__(self, root: Path, series_table: Path | None = None) -> None:
        super().__init__()
        self.root = root
        self._skips: list[Skip] = []
        images, others = self._listing()
        rows = read_series_table(series_table) if series_table else None
        named = {path: default_place(path) for path in images} if rows is None else rows
        if rows is not None:
            self.warnings["study_id_of_two_patients"] = shared_study_ids(rows.values())
        self._studies: dict[str, FoundStudy] = {}
        self._paths: dict[str, list[str]] = defaultdict(list)
        self._rows: dict[str, dict[str, str]] = {}
        for path in sorted(named.keys() & images):
            self._add(path, named[path])
        sidecars = {sidecar_of(path) for path in images}
        self._skip(named.keys() - images - others, "missing_file")
        self._skip(images - named.keys(), "not_in_table")
        self._skip(others - sidecars, "not_nifti")

    def _listing(self) -> tuple[set[str], set[str]]:
        """Return the paths of images and of all other files, relative and with slashes."""
        paths = {
            (Path(folder) / name).relative_to(self.root).as_posix()
            for folder, names in walk([self.root], self._skips)
            for name in names
        }
        self.files = len(paths)
        images = {path for path in paths if path.lower().endswith((".nii", ".nii.gz"))}
        return images, paths - images

    def _skip(self, paths: set[str], reason: str) -> None:
        for path in sorted(paths):
            file = self.root / path
            self._skips.append(Skip(str(file.parent), file.name, reason))

    def _add(self, path: str, row: dict[str, str]) -> None:
        patient, study = row.get("patient_id", ""), row["study_id"]
        key = f"{patient}/{study}"  # `baseline` is another study for each patient
        found = self._studies.setdefault(key, FoundStudy(key, patient))
        if found.patient_id != patient:
            raise PlanError(
                "input.series_table: studies of two patients are alike once patient_id and "
                "study_id are joined by a slash (a/b and c, a and b/c): take the slashes out"
            )
        found.study_date = found.study_date or row.get("StudyDate", "")
        found.n_series += 1
        found.n_files += 1
        self._paths[key].append(path)
        self._rows[path] = row

    def skips(self) -> Iterator[Skip]:
        """Yield files that are no series, and rows of the table without a file."""
        yield from self._skips

    def studies(self, known: Container[str] = ()) -> list[FoundStudy]:
        """Return one study per patient and study id."""
        unknown = sum(not study.patient_id for study in self._studies.values())
        if unknown:
            self.warnings["missing_patient_id"] = unknown
        return list(self._studies.values())

    def entries(
        self, placed: list[tuple[FoundStudy, Shard]], series_key: Callable[[str], str]
    ) -> Iterator[dict[Shard, dict[str, dict]]]:
        """Yield the series of all studies at once."""
        shards: dict[Shard, dict[str, dict]] = defaultdict(dict)
        for study, shard in placed:
            series = [self._entry(path, series_key(path)) for path in self._paths[study.key]]
            if len({entry["series_key"] for entry in series}) < len(series):
                raise PlanError("two series of one study have the same pseudonym; use another key")
            shards[shard][study.key] = {
                "series": sorted(series, key=lambda entry: entry["series_key"])
            }
        yield shards

    def _entry(self, path: str, series_key: str) -> dict[str, Any]:
        image, sidecar = self.root / path, self.root / sidecar_of(path)
        table = {
            column: int(value) if column == "SeriesNumber" and value.isdecimal() else value
            for column, value in self._rows[path].items()
            if column not in PLACE and value
        }
        files = [image, sidecar] if sidecar.is_file() else [image]
        stamps = [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files]
        return {
            "series_key": series_key,
            "kind": "nifti",
            "folder": str(image.parent),
            "files": [image.name],
            "n_sop": 0,
            "sop_class": "",
            "sidecar": str(sidecar) if sidecar.is_file() else "",
            "table": table,
            "digest": digest([stamps, table]),
        }


def sidecar_of(path: str) -> str:
    """Return where the JSON sidecar of an image would be."""
    return re.sub(r"\.nii(\.gz)?$", "", path, flags=re.IGNORECASE) + ".json"


def default_place(path: str) -> dict[str, str]:
    """Tell patient and study of an image by its path alone.

    Examples
    --------
    >>> default_place("sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz")
    {'patient_id': 'sub-01', 'study_id': 'ses-2'}
    >>> default_place("case7/t1.nii.gz")
    {'study_id': 'case7'}
    """
    path = path.encode(errors="backslashreplace").decode()  # bytes that are no UTF-8
    subject, session = SUBJECT.search(path), SESSION.search(path)
    if subject is None:
        return {"study_id": PurePosixPath(path).parent.as_posix()}
    return {"patient_id": subject[1], "study_id": session[1] if session else ""}


def read_series_table(path: Path) -> dict[str, dict[str, str]]:
    """Read the series table.

    Returns
    -------
    rows : dict
        Path below the export -> its row.

    Raises
    ------
    PlanError
        If a column is missing, or a row lacks its study, repeats a path, leads out of the
        export or has another StudyDate than the rows of its study before it; rows are named by
        their line, never by what they say.
    """
    rows: dict[str, dict[str, str]] = {}
    dates: dict[tuple[str, str], str] = {}
    for where, row in read_rows(path, "input.series_table", PLACE):
        values = {column: value.strip() for column, value in row.items()}
        if not values["study_id"]:
            raise PlanError(f"{where}: study_id is empty")
        inside = _path_inside(values["path"], where)
        if inside in rows:
            raise PlanError(f"{where}: the path stands in the table twice")
        date, study = study_date(values, where), (values["patient_id"], values["study_id"])
        if date and dates.setdefault(study, date) != date:
            raise PlanError(f"{where}: not the StudyDate that the study has in the rows before")
        rows[inside] = values
    return rows


def shared_study_ids(rows: Iterable[Mapping[str, str]]) -> int:
    """Count the study ids under which a series table has several patients: each has his own."""
    patients = defaultdict(set)
    for row in rows:
        patients[row["study_id"]].add(row["patient_id"])
    return sum(len(names) > 1 for names in patients.values())


def _path_inside(path: str, where: str) -> str:
    inside = PurePosixPath(path)
    if not path or inside.is_absolute() or ".." in inside.parts:
        raise PlanError(f"{where}: path must be relative to input.path and stay below it")
    return inside.as_posix()
