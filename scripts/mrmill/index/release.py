"""A native release in the MR-RATE layout, taken as it is: uids, splits and batches stay."""

import re
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from typing import Any

from mrmill.index import FoundStudy, Index, PlanError, Shard, Skip, read_rows
from mrmill.records import digest
from mrmill.tables import load_table

BATCH = re.compile(r"batch\d{2,}")
STUDY = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")


class ReleaseIndex(Index):
    """Studies of a release: `mri/<batch>/<study_uid>.zip`, or unpacked `<study_uid>/`.

    A study needs rows in `metadata/<batch>_metadata.csv` and a split in `splits.csv`.

    Parameters
    ----------
    root : Path
        Folder of the native repository.

    Raises
    ------
    PlanError
        If a table is missing or contradicts itself, or a study's names or split are none that a
        release may have.
    """

    accepted = "mri/batchNN/<study_uid>.zip (or unpacked) with metadata/batchNN_metadata.csv"

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root
        self._skips: list[Skip] = []
        self._splits = {
            row["study_uid"]: row["split"]
            for _, row in read_rows(root / "splits.csv", "the release's", ["study_uid", "split"])
        }
        self._sources: dict[str, Path] = {}
        self._found = [
            study for folder in sorted((root / "mri").glob("*")) for study in self._batch(folder)
        ]

    def _batch(self, folder: Path) -> list[FoundStudy]:
        """Return the studies of a batch that have both an archive and metadata."""
        if not BATCH.fullmatch(folder.name) or not folder.is_dir():
            self._skips.append(Skip(str(folder.parent), folder.name, "not_a_batch"))
            return []
        rows = self._metadata(folder.name)
        sources = self._archives(folder)
        for uid in sorted(sources.keys() - rows.keys()):
            self._skips.append(Skip(str(folder), sources[uid].name, "no_metadata"))
        for uid in sorted(rows.keys() - sources.keys()):
            self._skips.append(Skip(str(folder), uid, "missing_archive"))
        studies = []
        for uid in sorted(rows.keys() & sources.keys()):
            if uid in self._sources:
                raise PlanError(f"study {uid} stands in two batches of {self.root}")
            self._sources[uid] = sources[uid]
            studies.append(self._study(uid, folder.name, rows[uid]))
        return studies

    def _study(self, uid: str, batch: str, rows: list[dict[str, str]]) -> FoundStudy:
        series, (patient, *others) = (
            {row[name] for row in rows} for name in ("series_id", "patient_uid")
        )
        if others or len(series) < len(rows):
            raise PlanError(
                f"study {uid} of {self.root}: {batch}_metadata.csv gives it two patients, or one "
                "series twice"
            )
        split = self._splits.get(uid, "")
        names = [("study_uid", uid), ("patient_uid", patient), ("split", split)]
        self._refuse_names(uid, [*names, *(("series_id", name) for name in series)])
        return FoundStudy(
            uid,
            n_series=len(rows),
            n_files=1,
            study_uid=uid,
            patient_uid=patient,
            split=split,
            batch=batch,
        )

    def _refuse_names(self, uid: str, names: Iterable[tuple[str, str]]) -> None:
        """Stop at a name that no table of a release could hold."""
        columns = {field.name: field for field in (*load_table("ledger"), *load_table("splits"))}
        for column, name in names:
            if not name or not columns[column].accepts(name):
                found = "not accepted" if name else "missing in the release's tables"
                raise PlanError(
                    f"study {uid} of {self.root}: a {column} is {found}.\n"
                    f"  Accepted: {columns[column].accepted}"
                )

    def _archives(self, folder: Path) -> dict[str, Path]:
        """Return zip or folder of each study; a zip, which is whole, goes before a folder."""
        archives: dict[str, Path] = {}
        for path in sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name)):
            self.files += 1
            uid = path.name if path.is_dir() else path.name.removesuffix(".zip")
            if not STUDY.fullmatch(uid) or not (path.is_dir() or path.suffix == ".zip"):
                self._skips.append(Skip(str(folder), path.name, "not_a_study"))
            elif uid in archives:
                self._skips.append(Skip(str(folder), path.name, "unpacked_twin"))
            else:
                archives[uid] = path
        return archives

    def _metadata(self, batch: str) -> dict[str, list[dict[str, str]]]:
        """Return the rows of each study of a batch."""
        studies: dict[str, list[dict[str, str]]] = defaultdict(list)
        path = self.root / "metadata" / f"{batch}_metadata.csv"
        needed = ["patient_uid", "study_uid", "series_id"]
        for _, row in read_rows(path, "the release's", needed):
            studies[row["study_uid"]].append(row)
        return studies

    def skips(self) -> Iterator[Skip]:
        """Yield archives without metadata, metadata without an archive, and other files."""
        yield from self._skips

    def studies(self, known: Container[str] = ()) -> list[FoundStudy]:
        """Return the studies with the uids, splits and batches they have."""
        return self._found

    def entries(
        self, placed: list[tuple[FoundStudy, Shard]], series_key: Callable[[str], str]
    ) -> Iterator[dict[Shard, dict[str, dict]]]:
        """Yield archive, metadata rows and series of each study, batch by batch."""
        shard_of = {study.key: shard for study, shard in placed}
        for batch in sorted({study.batch for study in self._found}):
            shards: dict[Shard, dict[str, dict]] = defaultdict(dict)
            for uid, rows in self._metadata(batch).items():
                if uid in shard_of and shard_of[uid][0] == batch:
                    shards[shard_of[uid]][uid] = self._entry(self._sources[uid], rows)
            yield shards

    def _entry(self, source: Path, rows: list[dict[str, str]]) -> dict[str, Any]:
        below = sorted(path for path in source.rglob("*") if path.is_file())
        files = [source] if source.is_file() else below
        stamps = [
            [str(file.relative_to(source)), file.stat().st_size, file.stat().st_mtime_ns]
            for file in files
        ]
        series = [
            {"series_key": row["series_id"], "kind": "release", "digest": digest([stamps, row])}
            for row in sorted(rows, key=lambda row: row["series_id"])
        ]
        return {"source": str(source), "rows": rows, "series": series}
