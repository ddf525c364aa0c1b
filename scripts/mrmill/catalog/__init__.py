"""The tables of a release: series metadata, splits, ledger, checksums and the dataset card.

Everything is made from the plan and the records; no image is opened. Columns go out by
allow-list only.
"""

import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrmill import ledger
from mrmill.columns import Columns, adopted_row
from mrmill.config import Dataset
from mrmill.errors import UserError
from mrmill.layout import SPACES, ZIP_SUFFIX, ReleaseTree, WorkTree
from mrmill.ledger.flow import Flow, FlowCounts, FlowError, flow
from mrmill.reasons import ACCEPTED
from mrmill.records import Journal, Record, sha256_of, write_json
from mrmill.tables import appearing_whole, load_table, read_table, write_checked, write_table

log = logging.getLogger(__name__)

Row = dict[str, Any]


class CatalogError(UserError):
    """The records, the release and its tables do not agree."""


@dataclass(frozen=True)
class Batch:
    """What the work tree knows about one batch.

    Attributes
    ----------
    studies : dict
        study_uid -> entry of the plan, its `batch` added.
    records : dict
        Stage -> study_uid -> record.
    """

    name: str
    studies: dict[str, dict[str, Any]]
    records: dict[str, dict[str, Record]]


def catalog_batch(
    work: WorkTree,
    release: ReleaseTree,
    batch: str,
    shards: Sequence[str],
    spaces: Iterable[str],
    columns: Columns,
) -> dict[str, Any]:
    """Write a batch's metadata CSV, and its part of ledger, splits and checksums.

    Parameters
    ----------
    columns : Columns
        Columns of the metadata CSV in their order; nothing else is ever written.

    Returns
    -------
    manifest : dict
        Counts of the ledger and digests of what was written.

    Raises
    ------
    LedgerError, FlowError
        If a planned series or study is missing from the records, or what entered a step is not
        what left it and was lost.
    CatalogError
        If manifests, journals and zips do not agree.
    CellError
        If a cell holds what its column may not.
    """
    found = read_batch(work, batch, shards, spaces)
    identities = ledger.read_identities(work.studies, batch, found.studies, shards)
    rows = ledger.ledger_rows(found.studies.values(), found.records)
    counted = flow(rows)
    accepted = [row for row in rows if row["state"] == ACCEPTED]
    zips = _zips(found.records)
    for space in zips:
        _check_sizes(release.repository(space), zips[space])
    twin = ledger.twin_rows(rows, found.studies, found.records.get("convert", {}), identities)
    digests = {
        "metadata": write_checked(
            release.metadata(batch), columns, metadata_rows(found, accepted, columns)
        ),
        "splits": write_checked(
            work.part(batch, "splits.csv"),
            load_table("splits"),
            split_rows(found, {r["study_uid"] for r in accepted}),
        ),
    }
    write_table(work.part(batch, "ledger.csv"), ledger.TWIN_COLUMNS, twin, private=True)
    write_json(work.part(batch, "checksums.json"), zips)
    write_json(work.part(batch, "flow.json"), counted.as_dict())
    if set(shards) == {path.stem for path in work.shard_plan(batch, "x").parent.glob("*.json")}:
        released = {row["study_uid"] for row in accepted}
        # a derived space that is no longer made keeps the zips of studies still released
        derived = {
            space: [f"mri/{batch}/{uid}{ZIP_SUFFIX[space]}.zip" for uid in released]
            for space in ("coreg", "atlas")
        }
        for space, known in {**derived, **zips}.items():
            remove_orphans(release, space, batch, known)
    else:
        log.warning("%s is cataloged in part: zips of its other shards stay as they are", batch)
    return {"batch": batch, "counts": ledger.summary(rows), "digests": digests}


def read_batch(work: WorkTree, batch: str, shards: Sequence[str], spaces: Iterable[str]) -> Batch:
    """Read the plan and, for every study a manifest lists, the record behind it."""
    studies: dict[str, dict[str, Any]] = {}
    for shard in shards:
        for study in _json(work.shard_plan(batch, shard))["studies"]:
            studies[study["study_uid"]] = {**study, "batch": batch}
    adopted = any("rows" in study for study in studies.values())
    records: dict[str, dict[str, Record]] = {}
    for stage in ledger.stages_of(spaces, adopted):
        records[stage] = {}
        for shard in shards:
            records[stage] |= _recorded(work, batch, stage, shard)
    return Batch(batch, studies, records)


def _recorded(work: WorkTree, batch: str, stage: str, shard: str) -> dict[str, Record]:
    """Return the records that a manifest speaks of; any others are of no account."""
    where = f"{batch}/{stage}/{shard}"
    path = work.manifest(batch, stage, shard)
    if not path.exists():
        raise CatalogError(f"{where} is not finished: run the workflow again")
    listed = _json(path)["studies"]
    records = Journal(work.journal(batch, stage, shard)).records()
    for uid, decided in listed.items():
        if uid not in records or records[uid].content != decided["content"]:
            raise CatalogError(
                f"study {uid}: the journal of {where} no longer says what its manifest says; "
                "run the workflow again"
            )
    return {uid: records[uid] for uid in listed}


def metadata_rows(
    batch: Batch, accepted: Iterable[Mapping[str, str]], columns: Columns
) -> list[Row]:
    """Return one row per accepted series, by study_uid, SeriesNumber and series_id."""
    curates = "curate" in batch.records  # an adopted release brings its rows with it
    rows = []
    for series in accepted:
        uid, key = series["study_uid"], series["series_key"]
        defaced = _entry(batch.records["deface"][uid], key)
        curated = _entry(batch.records["curate"][uid], key) if curates else defaced
        row = curated["row"] if curates else adopted_row(curated["row"], columns)
        rows.append({**row, "is_center_modality": defaced["is_center_modality"]})
    return sorted(rows, key=_series_order)


def _entry(record: Record, key: str) -> dict[str, Any]:
    return next(entry for entry in record.outcome.series if entry["series_key"] == key)


def _series_order(row: Row) -> tuple[str, float, str]:
    number = row.get("SeriesNumber")
    place = math.inf if number in (None, "") else float(number)
    return row["study_uid"], place, row["series_id"]


def split_rows(batch: Batch, released: Iterable[str]) -> list[Row]:
    """Return one row per study in the release."""
    rows = [{**batch.studies[uid], "batch_id": batch.name} for uid in released]
    return sorted(rows, key=_split_order)


def _split_order(row: Mapping[str, str]) -> tuple[Any, ...]:
    return *batch_order(row["batch_id"]), row["patient_uid"], row["study_uid"]


def batch_order(name: str) -> tuple[int, str]:
    """Sort key that puts batch100 behind batch99."""
    return len(name), name


def _zips(records: Mapping[str, Mapping[str, Record]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return space -> path below its repository -> sha256 and bytes of the zip."""
    zips: dict[str, dict[str, dict[str, Any]]] = {}
    for space in SPACES:
        packaged = records.get(f"package-{space}")
        if packaged is not None:
            facts = [r.outcome.zip for r in packaged.values() if r.outcome.zip]
            zips[space] = {f["path"]: {k: f[k] for k in ("sha256", "bytes")} for f in facts}
    return zips


def _check_sizes(repository: Path, zips: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse to write the recorded checksum of a zip that is not there as recorded."""
    for name, facts in zips.items():
        path = repository / name
        size = path.stat().st_size if path.is_file() else None
        if size != facts["bytes"]:
            found = "missing" if size is None else f"{size} bytes"
            raise CatalogError(
                f"{repository.name}/{name}: {found}, recorded {facts['bytes']} bytes; `mrmill run` "
                "packages it again"
            )


def remove_orphans(
    release: ReleaseTree, space: str, batch: str, known: Iterable[str]
) -> list[Path]:
    """Remove a batch's zips that no record stands behind (left by a run with other settings).

    Only regular files that are named as this space's zips are ever touched.
    """
    folder = release.repository(space) / "mri" / batch
    kept = {release.repository(space) / name for name in known}
    zips = folder.glob(f"*{ZIP_SUFFIX[space]}.zip")
    zips = [*zips, *folder.glob(".*.part")]  # and what a killed packaging left half written
    orphans = sorted(p for p in zips if p.is_file() and not p.is_symlink() and p not in kept)
    for path in orphans:
        log.warning("removing %s/%s: no record stands behind it", path.parent.name, path.name)
        path.unlink()
    return orphans


def catalog_release(
    work: WorkTree,
    release: ReleaseTree,
    batches: Iterable[str],
    spaces: Iterable[str],
    dataset: Dataset,
    columns: Columns,
    facts: Mapping[str, str],
    atlas: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write splits, ledger, dataset card, atlas.json and every repository's checksums.

    Parameters
    ----------
    columns : Columns
        Columns of the metadata CSVs.
    facts : mapping
        What the card says about how the release was made: versions, atlas name and hash.
    atlas : mapping, optional
        What `Atlas.described` says of the template behind atlas space.

    Returns
    -------
    manifest : dict
        Counts of the ledger, and the digest of every file written.

    Raises
    ------
    CatalogError
        If a patient would be in two splits, or in another one than published.
    FlowError
        If a batch's part of the ledger does not add up to what was counted when it was made.
    """
    from mrmill.catalog.card import count_release, dataset_card
    from mrmill.verify import write_checksums

    order = sorted(batches, key=batch_order)
    splits = merged_splits([read_table(work.part(batch, "splits.csv")) for batch in order])
    refuse_moved_patients(release, splits)
    write_checked(release.splits, load_table("splits"), splits)
    write_checked(release.ledger, load_table("ledger"), _joined_ledger(work, order))
    write_table(work.ledger, ledger.TWIN_COLUMNS, _joined_ledger(work, order), private=True)
    counts = ledger.summary(read_table(release.ledger))
    series = (row for batch in order for row in read_table(release.metadata(batch)))
    with appearing_whole(release.card) as file:
        file.write(dataset_card(dataset, count_release(series, splits, counts), columns, facts))
    written = [release.splits, release.ledger, release.card]
    if atlas is not None:
        write_json(release.atlas, atlas)
        written.append(release.atlas)
    for space in [s for s in SPACES if s == "native" or s in set(spaces)]:
        release.repository(space).mkdir(parents=True, exist_ok=True)
        write_checksums(release.repository(space), _known(work, order, space))
        written.append(release.checksums(space))
    digests = {str(path.relative_to(release.root)): sha256_of(path) for path in written}
    return {"counts": counts, "digests": digests}


def merged_splits(parts: Iterable[Iterable[Row]]) -> list[Row]:
    """Join the batches' parts: `batch_id` becomes the batch of the patient's first appearance.

    Parameters
    ----------
    parts : iterable of iterable of dict
        One part per batch, in the order of the batches.
    """
    rows = [row for part in parts for row in part]
    first: dict[str, Row] = {}
    for row in rows:
        seen = first.setdefault(row["patient_uid"], row)
        _refuse_other_split(row["patient_uid"], seen["split"], row["split"])
    batch_of = {patient: row["batch_id"] for patient, row in first.items()}
    return sorted(({**r, "batch_id": batch_of[r["patient_uid"]]} for r in rows), key=_split_order)


def refuse_moved_patients(release: ReleaseTree, splits: Iterable[Row]) -> None:
    """A published split never changes: models have been trained on it."""
    if release.splits.exists():
        published = {row["patient_uid"]: row["split"] for row in read_table(release.splits)}
        for row in splits:
            patient = row["patient_uid"]
            _refuse_other_split(patient, published.get(patient, row["split"]), row["split"])


def _refuse_other_split(patient: str, before: str, now: str) -> None:
    if now != before:
        raise CatalogError(
            f"patient {patient} is in split {before} and would be in {now}: a split never changes. "
            "Plan with the fractions and the key that the release was made with"
        )


def _known(work: WorkTree, batches: Iterable[str], space: str) -> dict[str, str]:
    """Return path below the repository -> sha256 of every zip, as recorded."""
    parts = (_json(work.part(batch, "checksums.json")).get(space, {}) for batch in batches)
    return {name: facts["sha256"] for part in parts for name, facts in part.items()}


def _joined_ledger(work: WorkTree, batches: Iterable[str]) -> Iterator[Row]:
    """Yield the identified rows of all batches; each has to add up to what was counted before."""
    for batch in batches:
        counts = FlowCounts()
        for row in read_table(work.part(batch, "ledger.csv")):
            counts.add(row)
            yield row
        if counts.flow() != Flow.from_dict(_json(work.part(batch, "flow.json"))):
            raise FlowError(
                f"{batch}/catalog/ledger.csv no longer adds up to what was counted when it was "
                f"made: remove {batch}/catalog.json from the work tree and run the workflow again"
            )


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
