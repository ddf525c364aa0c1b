"""Files that no later stage needs any more: when they may go, and how they come back.

Left alone, an image would stand in the work tree converted, defaced and registered, and in the
release as well. So files that have been read by every stage that reads them go, if they can be had
again: converted images, which can be made again from the export, and whatever is in a study's zip,
byte for byte. Where one stage reads a file last, it goes as soon as that stage has recorded the
study, else when all have finished the shard. Records stay, and a stage that has to read such a
file after all gets it back first.

What a person has to look at stays: images that wait, which are in no zip, and what they were made
from.
"""

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from zipfile import ZipFile

from mrmill.layout import ReleaseTree, WorkTree, place_in_zip
from mrmill.lease import Lease, LeaseTaken
from mrmill.reasons import FAILED, REJECTED, WAITING
from mrmill.records import Journal, Record, sha256_of

#: Name of a packaging stage, before its space.
PACKAGE = "package-"


class SourceGone(Exception):
    """A file that was removed cannot be had again: what it was made from is gone or another."""


@dataclass(frozen=True)
class ShardFiles:
    """The files of a shard's studies, and where else their content stands.

    Attributes
    ----------
    needs : dict
        Stage -> stages whose files it reads, for every stage of the run.
    made_again : frozenset of str
        Stages whose files can be made again from the input.
    """

    work: WorkTree
    release: ReleaseTree
    batch: str
    shard: str
    needs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    made_again: frozenset[str] = frozenset()
    _records: dict[str, dict[str, Record]] = field(default_factory=dict, compare=False)

    def records(self, stage: str) -> dict[str, Record]:
        """Return the records of a stage, read once."""
        if stage not in self._records:
            journal = Journal(self.work.journal(self.batch, stage, self.shard))
            self._records[stage] = journal.records()
        return self._records[stage]

    def is_whole(self, stage: str, record: Record) -> bool:
        """Whether all that a record speaks of is there with its size, or can be had again."""
        if archive := record.outcome.zip:
            path = self._repository(stage) / archive["path"]
            if not _has_size(path, archive["bytes"]):
                return False
        missing = self.missing(stage, record)
        return not missing or missing <= self.may_lack(stage, record)

    def missing(self, stage: str, record: Record, reader: str = "") -> set[str]:
        """Return the names of a study's files that are not there with their size.

        Parameters
        ----------
        reader : str
            Only those that this stage reads.
        """
        folder = self.work.study(self.batch, stage, record.study_uid)
        read = {name for name in record.files if not reader or is_read_by(reader, name)}
        if not folder.is_dir():
            return read
        return {n for n in read if not _has_size(folder / n, record.files[n]["bytes"])}

    def may_lack(self, stage: str, record: Record) -> set[str]:
        """Return the names of a study's files that need not be there."""
        if stage in self.made_again:
            uid = record.study_uid
            readers = [s for s in self._readers(stage) if uid in self.records(s)]
            waiting = {n for s in readers for n in behind_waiting(self.records(s)[uid])}
            return record.files.keys() - waiting if self._is_settled(stage, uid) else set()
        digests = record.files.items()
        return {n for n, facts in digests if self._is_zipped(record.study_uid, n, facts["sha256"])}

    def unzip(self, record: Record, names: set[str], scratch: Path) -> None:
        """Write those files of a study that stand in its zips below a folder."""
        for name in names:
            space, member = place_in_zip(record.study_uid, name)
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            with ZipFile(self.release.zip(space, self.batch, record.study_uid)) as archive:
                (scratch / name).write_bytes(archive.read(member))

    def remove_read(self, own: str, made: Record, upstream: Mapping[str, Record]) -> None:
        """Remove files of a study that a stage, having just recorded it, was the last to read."""
        if made.outcome.state == FAILED:
            return  # it will be tried again
        members = made.outcome.zip.get("members", {})
        for stage, record in upstream.items():
            if stage in self.made_again:
                names = record.files.keys() - behind_waiting(made)
            else:
                place = partial(place_in_zip, made.study_uid)
                digests = record.files.items()
                names = {n for n, f in digests if members.get(place(n)[1]) == f["sha256"]}
            self._remove(stage, record, {n for n in names if self._is_last(own, stage, n)})

    def remove_spent(self, stage: str, own: str = "") -> None:
        """Remove what nobody needs of a stage, if every stage that reads it has finished.

        Parameters
        ----------
        own : str
            The stage whose lease the caller holds. All others are taken for that long, so
            nobody reads what is being removed; where one is at work this is left to it.
        """
        readers = self._readers(stage)
        if not readers or not all(self._is_newer(reader, stage) for reader in readers):
            return
        with suppress(LeaseTaken), ExitStack() as leases:
            for held in {stage, *readers} - {own}:
                leases.enter_context(Lease(self.work.lease(self.batch, held, self.shard)))
            self._records.clear()
            for record in self.records(stage).values():
                self._remove(stage, record, self.may_lack(stage, record))

    def _remove(self, stage: str, record: Record, names: set[str]) -> None:
        """Remove files of a study and the folders they leave empty."""
        folder = self.work.study(self.batch, stage, record.study_uid)
        if not names or not folder.is_dir():
            return
        for name in names:
            (folder / name).unlink(missing_ok=True)
        emptied = {folder / parent for name in names for parent in Path(name).parents}
        for path in sorted(emptied, reverse=True):  # the deepest first
            with suppress(OSError):  # not empty, or gone: another space's zips are packed as well
                path.rmdir()

    def _is_last(self, own: str, stage: str, name: str) -> bool:
        """Whether every other stage that reads a file has to come before a stage."""
        readers = {reader for reader in self._readers(stage) if is_read_by(reader, name)}
        return readers <= {own, *self.needs.get(own, ())}

    def _readers(self, stage: str) -> set[str]:
        """Return the stages that read a stage's files."""
        return {reader for reader, needed in self.needs.items() if stage in needed}

    def _is_newer(self, reader: str, stage: str) -> bool:
        """Whether a stage has finished the shard after another: it has read what is there."""
        paths = [self.work.manifest(self.batch, s, self.shard) for s in (reader, stage)]
        try:
            after, before = (path.stat().st_mtime_ns for path in paths)
        except FileNotFoundError:
            return False
        return after >= before

    def _is_settled(self, stage: str, study_uid: str) -> bool:
        """Whether every stage that reads a stage's files has decided about a study.

        That one will never see it, because another turned it down, is a decision too.
        """

        def decided(reader: str) -> bool:
            if record := self.records(reader).get(study_uid):
                return record.outcome.state != FAILED
            before = (self.records(s).get(study_uid) for s in self.needs[reader])
            return any(record and record.outcome.state == REJECTED for record in before)

        return all(decided(reader) for reader in self._readers(stage))

    def _is_zipped(self, study_uid: str, name: str, sha256: str) -> bool:
        """Whether a study's zip was packed with a file and is still there."""
        space, member = place_in_zip(study_uid, name)
        packed = PACKAGE + space
        record = self.records(packed).get(study_uid) if packed in self.needs else None
        if record is None or not (archive := record.outcome.zip):
            return False
        path = self._repository(packed) / archive["path"]
        return archive["members"].get(member) == sha256 and _has_size(path, archive["bytes"])

    def _repository(self, stage: str) -> Path:
        return self.release.repository(stage.removeprefix(PACKAGE))


def is_read_by(stage: str, name: str) -> bool:
    """Whether a stage that reads a study's files reads this one: of a space only its zips do."""
    space, _ = place_in_zip("", name)
    return space == "native" or stage == PACKAGE + space


def behind_waiting(record: Record) -> set[str]:
    """Return the files that series were made from which wait for a person."""
    waiting = [entry for entry in record.outcome.series if entry.get("reason") in WAITING]
    return {entry["file"] for entry in waiting if "file" in entry}


def take_over(scratch: Path, folder: Path, record: Record, names: set[str]) -> None:
    """Move files that were had again to their place, if they are what they were.

    Raises
    ------
    SourceGone
        When one is not there or has other bytes.
    """
    for name in sorted(names):
        found = scratch / name
        if not found.exists() or sha256_of(found) != record.files[name]["sha256"]:
            raise SourceGone
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        found.rename(folder / name)


def _has_size(path: Path, n_bytes: int) -> bool:
    try:
        return path.stat().st_size == n_bytes
    except (FileNotFoundError, NotADirectoryError):
        return False
