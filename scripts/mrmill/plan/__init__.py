"""Plan a run: which studies there are, what they are called, and which job works on them.

The plan is only ever added to. `studies.parquet` says where each study is and is written
first, then the files of shards that changed, and last `shards.json`, which the workflow
reads. A plan that was cut short is completed by the next one.
"""

import csv
import gc
import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrmill.config import Config
from mrmill.index import (
    FoundStudy,
    Index,
    Merge,
    Mixed,
    PlanError,
    Progress,
    Shard,
    Skip,
    index_export,
)
from mrmill.layout import WorkTree
from mrmill.plan.identity import Pseudonyms, load_key
from mrmill.plan.identity_tables import SiteMapping, SiteNames, read_site_tables
from mrmill.plan.placement import PlannedStudy, place_studies
from mrmill.plan.site_identities import (
    exclude,
    leave_out,
    missing_from,
    missing_message,
    site_names,
)
from mrmill.plan.touched import settled
from mrmill.records import Journal
from mrmill.shards import DATES
from mrmill.stamps import without_stamps
from mrmill.tables import appearing_whole

FORMAT = 1


@dataclass
class PlanSummary:
    """What a plan found, for people.

    Attributes
    ----------
    read : int
        Files that had to be opened; the others were known from an earlier plan.
    skipped : dict
        Files that are part of no series, by reason; `skipped.csv` lists them.
    duplicates : int
        Further copies of an instance.
    patients, studies, series, batches, shards : int
        Planned by now.
    new_studies, vanished_studies : int
        Planned for the first time; planned, but no longer in the export.
    warnings : dict
        Number of studies, by code of what is unusual about them.
    """

    files: int
    read: int
    skipped: dict[str, int]
    duplicates: int
    patients: int
    studies: int
    series: int
    batches: int
    shards: int
    new_studies: int
    vanished_studies: int
    warnings: dict[str, int] = field(default_factory=dict)


@contextmanager
def _seldom_collecting() -> Iterator[None]:
    """Look for circles among objects less often than Python does.

    A plan makes millions of objects and few circles; looking took a fifth of its time.
    """
    before = gc.get_threshold()
    gc.set_threshold(100_000)
    try:
        yield
    finally:
        gc.set_threshold(*before)


@_seldom_collecting()
def make_plan(
    config: Config, workers: int = 1, progress: Progress = lambda *_: None
) -> PlanSummary:
    """Look at the export and give every study its names and its place.

    Parameters
    ----------
    workers : int
        Processes that read headers.
    progress : callable
        Called with what is counted (`files`, `shards`), how many are done, and of how many.

    Raises
    ------
    PlanError
        If there is nothing to plan, the plan at hand is of another key or kind of input, or
        the site's mapping or opt-out table cannot be used or lacks studies.
    IdentityError
        If there is no usable key.
    """
    tree = WorkTree(config.work)
    release = config.input.kind == "release"
    pseudonyms = None if release else Pseudonyms(load_key(config.identity.key_file))
    mapping, opt_out = read_site_tables(config.input.kind, config.identity)
    origin = {
        "kind": config.input.kind,
        "key_fingerprint": pseudonyms.fingerprint if pseudonyms else "",
        "patients": "mapped" if mapping else "keyed",
    }
    _refuse_other_origin(tree.studies, origin)
    known = read_studies(tree.studies)
    for folder in (config.work, tree.plan):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    index = index_export(config.input, tree.plan / "index", workers, progress)
    skipped = _write_skips(tree.skipped, index)
    found = index.studies(known)
    if not found:
        raise _nothing_found(config, index, skipped)
    found, known = exclude(found, known, opt_out, index.warnings)
    names: dict[str, SiteNames] = {}
    if mapping:
        found = _mapped(found, mapping, config, index.warnings)
        names = site_names(mapping, found, known)
    planned = place_studies(found, known, config, pseudonyms, names, index.warnings)
    _write_studies(tree, planned, origin)
    shards = _write_shards(tree, planned, index, found, pseudonyms, progress)
    _write_merges(tree.plan / "merges.csv", index)
    _write_mixed(tree.plan / "mixed_patients.csv", index)
    _write_overview(tree.shards, shards, origin)
    return PlanSummary(
        files=index.files,
        read=index.read,
        skipped=dict(sorted((skipped + Counter(no_pixels=index.dropped["no_pixels"])).items())),
        duplicates=index.dropped["duplicate"],
        patients=len({study.patient_uid for study in planned.values()}),
        studies=len(planned),
        series=sum(facts["n_series"] for facts in shards.values()),
        batches=len({batch for batch, _ in shards}),
        shards=len(shards),
        new_studies=len(planned) - len(known),
        vanished_studies=len(planned) - len(found),
        warnings=dict(sorted((+index.warnings).items())),
    )


def read_studies(path: Path) -> dict[str, PlannedStudy]:
    """Return the studies planned so far, by StudyInstanceUID."""
    if not path.exists():
        return {}
    import pyarrow.parquet as pq

    return {row["StudyInstanceUID"]: PlannedStudy(**row) for row in pq.read_table(path).to_pylist()}


def _refuse_other_origin(path: Path, origin: dict[str, str]) -> None:
    """Stop if the studies planned so far have another kind or key."""
    if not path.exists():
        return
    import pyarrow.parquet as pq

    metadata = pq.read_schema(path).metadata
    before = {name: metadata[name.encode()].decode() for name in origin}
    if before["kind"] != origin["kind"]:
        raise PlanError(
            f"{path.parent} was planned with input.kind {before['kind']}, "
            f"and the config says {origin['kind']}.\n"
            "  Next: correct input.kind, or set `work` to a new folder"
        )
    if before["patients"] != origin["patients"]:
        raise PlanError(
            f"{path.parent} was planned with {before['patients']} patients, and with this config "
            f"(identity.mapping) they are {origin['patients']}.\n"
            "  Every patient would get another uid.\n"
            "  Next: put identity.mapping back as it was, or set `work` to a new folder"
        )
    if before != origin:
        raise PlanError(
            f"{path.parent} was planned with another key: fingerprint "
            f"{before['key_fingerprint']}, now {origin['key_fingerprint']}.\n"
            "  With this key every patient and study would get another uid.\n"
            "  Next: set identity.key_file to the first key, or `work` to a new folder"
        )


def _mapped(
    found: list[FoundStudy], mapping: SiteMapping, config: Config, warnings: Counter[str]
) -> list[FoundStudy]:
    """List the studies that the site's mapping lacks, and stop or leave them out."""
    listed = WorkTree(config.work).plan / "not_in_mapping.csv"
    missing = missing_from(mapping, found)
    columns = ("PatientID", "AccessionNumber", "StudyDate", "StudyInstanceUID")
    with _private_csv(listed, columns) as table:
        rows = ((s.patient_id, s.accession_number, s.study_date, s.key) for s in missing)
        table.writerows(sorted(rows))
    if missing and config.identity.unmapped == "stop":
        raise PlanError(missing_message(mapping, missing, len(found), listed))
    warnings["not_in_mapping"] = len(missing)
    return leave_out(found, missing)


def _write_studies(
    tree: WorkTree, planned: dict[str, PlannedStudy], origin: dict[str, str]
) -> None:
    """Write who and what each study is: for the next plan, and as a CSV for people."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    rows = sorted(planned.values(), key=lambda study: (study.place, study.study_uid))
    table = pa.Table.from_pylist([vars(study) for study in rows])
    parquet, text = pa.BufferOutputStream(), pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(origin), parquet)
    pa.csv.write_csv(table, text)
    _write_if_changed(tree.studies, parquet.getvalue().to_pybytes())
    _write_if_changed(tree.studies.with_suffix(".csv"), text.getvalue().to_pybytes())


def _write_skips(path: Path, index: Index) -> Counter[str]:
    """List what was passed over and count it by reason."""
    counts: Counter[str] = Counter()
    with _private_csv(path, Skip._fields) as table:
        for skip in index.skips():
            table.writerow(skip)
            counts[skip.reason] += 1
    return counts


def _write_merges(path: Path, index: Index) -> None:
    """List what the plan takes for one and the export tells apart."""
    with _private_csv(path, Merge._fields) as table:
        table.writerows(index.merges())


def _write_mixed(path: Path, index: Index) -> None:
    """List where the files lie of studies whose patient is in doubt."""
    with _private_csv(path, Mixed._fields) as table:
        table.writerows(index.mixed())


@contextmanager
def _private_csv(path: Path, columns: Sequence[str]) -> Iterator[Any]:
    """Give the writer of a table for its owner only that appears when it is complete."""
    with appearing_whole(path, private=True) as file:
        table = csv.writer(file)
        table.writerow(columns)
        yield table


def _nothing_found(config: Config, index: Index, skipped: Counter[str]) -> PlanError:
    reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(skipped.items()))
    return PlanError(
        f"nothing to plan in {config.input.path} (input.kind: {config.input.kind}).\n"
        f"  Found: {index.files} files ({reasons or 'the folder is empty'}).\n"
        f"  Accepted: {index.accepted}.\n"
        "  Next: check input.path and input.kind; "
        f"{WorkTree(config.work).skipped} lists what was passed over and why"
    )


def _write_shards(
    tree: WorkTree,
    planned: dict[str, PlannedStudy],
    index: Index,
    found: list[FoundStudy],
    pseudonyms: Pseudonyms | None,
    progress: Progress,
) -> dict[Shard, dict[str, Any]]:
    """Write every shard's file and return what `shards.json` says about it."""
    members: dict[Shard, list[PlannedStudy]] = defaultdict(list)
    for study in planned.values():
        members[study.place].append(study)
    series_key = pseudonyms.series_key if pseudonyms else str
    placed = [(study, planned[study.key].place) for study in found]
    shards: dict[Shard, dict[str, Any]] = {}
    for entries in index.entries(placed, series_key):
        for place, parts in entries.items():
            shards[place] = _write_shard(tree, place, members[place], parts)
            progress("shards", len(shards), len(members))
    for place in members.keys() - shards.keys():  # all of its studies vanished
        shards[place] = _write_shard(tree, place, members[place], {})
    return shards


def _write_shard(
    tree: WorkTree, place: Shard, studies: list[PlannedStudy], parts: dict[str, dict]
) -> dict[str, Any]:
    """Write the entries of a shard's studies; one that vanished keeps the entry it had."""
    path = tree.shard_plan(*place)
    vanished = [study for study in studies if study.StudyInstanceUID not in parts]
    before = _read_entries(path) if vanished else {}
    entries = []
    for study in sorted(studies, key=lambda study: study.study_uid):
        part = parts.get(study.StudyInstanceUID, before.get(study.study_uid, {"series": []}))
        entries.append({**part, **_entry_head(study)})
    content = _shard_content(entries)
    if path.exists() and path.read_bytes() != content:
        batch, shard = place
        converted = Journal(tree.journal(batch, "convert", shard))
        entries = settled(entries, before or _read_entries(path), converted)
        _write_if_changed(path, _shard_content(entries))
        content = _shard_content([without_stamps(entry) for entry in entries])
    else:
        _write_if_changed(path, content)
    return {
        "n_studies": len(entries),
        "n_series": sum(len(entry["series"]) for entry in entries),
        "digest": hashlib.sha256(content).hexdigest(),
    }


def _shard_content(entries: list[dict[str, Any]]) -> bytes:
    lines = ",\n".join(json.dumps(entry, sort_keys=True) for entry in entries)
    return f'{{"studies": [\n{lines}\n]}}\n'.encode()


def _entry_head(study: PlannedStudy) -> dict[str, Any]:
    names = ("study_uid", "patient_uid", "split", "reject", *DATES)
    return {name: getattr(study, name) for name in names}


def _read_entries(path: Path) -> dict[str, dict]:
    if not path.exists():
        return {}
    studies = json.loads(path.read_text(encoding="utf-8"))["studies"]
    return {entry["study_uid"]: entry for entry in studies}


def _write_overview(
    path: Path, shards: dict[Shard, dict[str, Any]], origin: dict[str, str]
) -> None:
    batches: dict[str, dict[str, Any]] = defaultdict(dict)
    for (batch, shard), facts in sorted(shards.items()):
        batches[batch][shard] = facts
    content = {"format": FORMAT, **origin, "batches": batches}
    _write_if_changed(path, f"{json.dumps(content, indent=1)}\n".encode())


def _write_if_changed(path: Path, content: bytes) -> None:
    """Write a file for its owner only, whole or not at all; leave an equal one alone."""
    if path.exists() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    scratch = path.with_name(f".{path.name}.writing")
    with scratch.open("wb") as file:
        scratch.chmod(0o600)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    scratch.rename(path)
