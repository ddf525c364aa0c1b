"""Hold a release, local or downloaded, against its checksums, its tables and the dataset guide."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from mrmill.columns import Columns, load_columns, published
from mrmill.errors import UserError
from mrmill.layout import SPACES, ReleaseTree
from mrmill.ledger import YES
from mrmill.reasons import ACCEPTED
from mrmill.records import sha256_of
from mrmill.tables import load_table
from mrmill.verify.tables import Rows, read_checked
from mrmill.verify.zips import (
    Problem,
    StudyZip,
    member_problems,
    read_atlas,
    read_zips,
    transform_problems,
    volume_problems,
)

#: What the Hub and its client add to a downloaded repository.
NOT_OURS = (".cache", ".git", ".gitattributes")

#: What of the metadata is held against the other tables and the zips.
KEYS = ("patient_uid", "study_uid", "series_id", "is_center_modality")
TRUE = "True"


class ReleaseError(UserError):
    """There is no release to verify; the message says what to do."""


def verify_release(
    root: Path, name: str | None = None, fast: bool = False, columns: Columns | None = None
) -> list[Problem]:
    """Look for everything that is wrong with a release.

    Parameters
    ----------
    root : Path
        Folder of the repositories `<name>`, `<name>-coreg`, `<name>-atlas`; any may be absent.
    name : str, optional
        Needed only where `root` holds several releases.
    fast : bool
        Leave the voxels alone: checksums, names and tables only.
    columns : Columns, optional
        Schema of the metadata CSVs; by default `config/header_columns.yaml`.

    Returns
    -------
    problems : list of Problem
        Sorted; empty when all is well.

    Raises
    ------
    ReleaseError
        When `root` holds no release, or several and `name` is not given.
    """
    release = ReleaseTree(root, name or name_of_release(root))
    problems: list[Problem] = []
    zips: dict[str, list[StudyZip]] = {space: [] for space in SPACES}
    for space in SPACES:
        if release.repository(space).is_dir():
            problems += _checksum_problems(release, space)
            zips[space], found = read_zips(release, space)
            problems += found
    atlas, found = read_atlas(release)
    problems += found
    for archive in (archive for space in SPACES for archive in zips[space]):
        problems += member_problems(archive)
        problems += transform_problems(archive)
        if not fast:
            problems += volume_problems(archive, atlas)
    if release.repository("native").is_dir():
        problems += _table_problems(release, zips, published(columns or load_columns()))
    return sorted({Problem(_below(root, p.where), p.code, p.text) for p in problems})


def write_checksums(repository: Path, known: Mapping[str, str]) -> Path:
    """Write `SHA256SUMS` of every other file of a repository, as `sha256sum -c` reads it.

    Parameters
    ----------
    known : mapping
        Path below the repository -> digest already known, so that zips are not read again.
    """
    lines = [
        f"{known.get(name) or sha256_of(repository / name)}  {name}\n"
        for name in _files_of(repository)
    ]
    path = repository / "SHA256SUMS"
    part = path.with_name(".SHA256SUMS.part")
    part.write_text("".join(lines), encoding="utf-8")
    part.rename(path)
    return path


def name_of_release(root: Path) -> str:
    """Tell the dataset's name by the repositories below a folder."""
    folders = [f for f in root.iterdir() if f.is_dir()] if root.is_dir() else []
    marked = [f.name for f in folders if (f / "mri").is_dir() or (f / "SHA256SUMS").is_file()]
    names = {name.removesuffix("-coreg").removesuffix("-atlas") for name in marked}
    if not names:
        raise ReleaseError(f"{root} holds no release: give the folder that has <name>/mri in it")
    if len(names) > 1:
        raise ReleaseError(f"{root} holds several releases, name one: {', '.join(sorted(names))}")
    return names.pop()


def _below(root: Path, where: str) -> str:
    return where.removeprefix(f"{root}/")


# Checksums


def _files_of(repository: Path) -> list[str]:
    files = (p.relative_to(repository) for p in repository.rglob("*") if p.is_file())
    own = (f for f in files if f.parts[0] not in NOT_OURS and f.name != ".SHA256SUMS.part")
    return sorted(f.as_posix() for f in own if f.as_posix() != "SHA256SUMS")


def _checksum_problems(release: ReleaseTree, space: str) -> Iterator[Problem]:
    repository, path = release.repository(space), release.checksums(space)
    if not path.is_file():
        yield Problem(str(path), "no_checksums", "the repository has no SHA256SUMS")
        return
    listed = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        listed[name] = digest
    present = set(_files_of(repository))
    for name in sorted(listed.keys() | present):
        where = str(repository / name)
        if name not in present:
            yield Problem(where, "file_missing", "listed in SHA256SUMS, not there")
        elif name not in listed:
            yield Problem(where, "file_unlisted", "not listed in SHA256SUMS")
        elif sha256_of(repository / name) != listed[name]:
            yield Problem(where, "checksum", "is not what SHA256SUMS says: fetch it again")


# Tables


def _table_problems(
    release: ReleaseTree, zips: dict[str, list[StudyZip]], columns: Columns
) -> Iterator[Problem]:
    """Hold every table against its schema, and tables and zips against each other."""
    # a dataset of others may have columns and words of its own; it has no checksums of ours
    is_ours = release.checksums("native").is_file()
    metadata: Rows = []
    for path in sorted(release.metadata("batch00").parent.glob("*.csv")):
        rows, problems = read_checked(path, columns, KEYS, is_ours)
        yield from problems
        batch = path.name.removesuffix("_metadata.csv")
        for row in rows or ():
            metadata.append({**row, "batch": batch, "where": f"{path}:{row['study_uid']}"})
    yield from _metadata_problems(metadata)
    yield from _zip_problems(release, metadata, zips)
    for path, name, check in (
        (release.splits, "splits", lambda rows: _split_problems(release, metadata, rows)),
        (release.ledger, "ledger", lambda rows: _ledger_problems(release, rows, zips)),
    ):
        fields = load_table(name)
        rows, problems = read_checked(path, fields, [f.name for f in fields], is_ours)
        yield from problems
        if rows is not None:
            yield from check(rows)


def _has_zips(release: ReleaseTree, space: str) -> bool:
    return (release.repository(space) / "mri").is_dir()


def _metadata_problems(metadata: Rows) -> Iterator[Problem]:
    centers: Counter[str] = Counter()
    seen: Counter[tuple[str, str]] = Counter()
    for row in metadata:
        seen[row["study_uid"], row["series_id"]] += 1
        centers[row["where"]] += row["is_center_modality"] == TRUE
    for row in metadata:
        if seen[row["study_uid"], row["series_id"]] > 1:
            text = f"{row['series_id']} stands in more than one row"
            yield Problem(row["where"], "row_twice", text)
    for where, count in centers.items():
        if count != 1:
            yield Problem(where, "center_count", f"has {count} center series, must have 1")


def _split_problems(release: ReleaseTree, metadata: Rows, splits: Rows) -> Iterator[Problem]:
    where = f"{release.splits}:"
    patients_of: dict[str, set[str]] = defaultdict(set)
    for row in metadata:
        patients_of[row["study_uid"]].add(row["patient_uid"])
    splits_of: dict[str, set[str]] = defaultdict(set)
    count = Counter(row["study_uid"] for row in splits)
    for row in splits:
        uid = row["study_uid"]
        splits_of[row["patient_uid"]].add(row["split"])
        if patients_of.get(uid, {row["patient_uid"]}) != {row["patient_uid"]}:
            yield Problem(where + uid, "patient_differs", "patient_uid is not that of the metadata")
    for uid in patients_of.keys() | count.keys():
        if count[uid] != 1:
            yield Problem(where + uid, "split_count", f"stands in {count[uid]} rows, must be 1")
        if uid not in patients_of:
            yield Problem(where + uid, "split_unused", "is in no metadata table")
    for patient, found in splits_of.items():
        if len(found) > 1:
            yield Problem(where + patient, "patient_split", f"patient is in {len(found)} splits")


def _zip_problems(
    release: ReleaseTree, metadata: Rows, zips: dict[str, list[StudyZip]]
) -> Iterator[Problem]:
    rows: dict[tuple[str, str], set[str]] = defaultdict(set)
    centers: dict[str, set[str]] = defaultdict(set)
    for row in metadata:
        rows[row["batch"], row["study_uid"]].add(row["series_id"])
        if row["is_center_modality"] == TRUE:
            centers[row["study_uid"]].add(row["series_id"])
    present = {(archive.batch, archive.study_uid) for archive in zips["native"]}
    for batch, uid in rows.keys() - present if _has_zips(release, "native") else ():
        path = release.zip("native", batch, uid)
        yield Problem(str(path), "zip_missing", "the metadata has the study, the zip is not there")
    for archive in (archive for space in SPACES for archive in zips[space]):
        known = rows.get((archive.batch, archive.study_uid), set())
        inside = archive.all_series
        for series_id in inside - known:
            text = f"{series_id} has no row in the metadata of {archive.batch}"
            yield Problem(str(archive.path), "row_missing", text)
        if archive.space == "native":
            for series_id in known - inside:
                text = f"{series_id} has a row in the metadata and no image"
                yield Problem(str(archive.path), "image_missing", text)
        elif archive.centers != centers[archive.study_uid]:
            text = "its center is not that of the metadata"
            yield Problem(str(archive.path), "center_differs", text)


def _ledger_problems(
    release: ReleaseTree, ledger: Rows, zips: dict[str, list[StudyZip]]
) -> Iterator[Problem]:
    where = f"{release.ledger}:"
    seen = Counter((row["study_uid"], row["series_key"]) for row in ledger)
    for (uid, key), count in seen.items():
        if count > 1:
            yield Problem(f"{where}{uid}/{key}", "row_twice", f"stands in {count} rows")
    for row in ledger:
        at = f"{where}{row['study_uid']}/{row['series_key']}"
        if row["state"] != ACCEPTED and not row["reason"]:
            yield Problem(at, "reason_missing", f"is {row['state']} without a reason")
    for space in SPACES:
        if not _has_zips(release, space):
            continue  # not downloaded, or the native release stays where it was registered from
        told = {(r["study_uid"], r["series_id"]) for r in ledger if r[space] == YES}
        there = {(a.study_uid, s) for a in zips[space] for s in a.all_series}
        for uid, series_id in told ^ there:
            which = "only the ledger" if (uid, series_id) in told else "only the zip"
            yield Problem(f"{where}{uid}/{series_id}", f"{space}_differs", f"{which} has it")
