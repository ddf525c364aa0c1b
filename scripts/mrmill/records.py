"""What became of a study in a stage: records, the journal they stand in, and the manifest.

A journal is append-only, one JSON object per line: a `start` when a worker takes a study, a
`record` when it is done, an `interrupted` when the job was told to stop, a `reopen` when a
person asks for another try. The last line about a study is the truth about it. Every line carries
its checksum; one that was cut short by a crash, or changed on the disk, counts as not written. A
manifest repeats what the records decided, without times and usage, so equal work gives an equal
file.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mrmill.reasons import ACCEPTED, FAILED, REJECTED


@dataclass
class Outcome:
    """What a stage decided about one study.

    Attributes
    ----------
    state : {'accepted', 'rejected', 'failed'}
        Of the study as a whole.
    reason : str
        Reason code, empty when accepted.
    found, limit : str
        Value found and accepted range, public.
    series : list of dict
        One entry per series; each has at least `series_key`, `state`, `reason`.
    error : str
        Class and code line of an unexpected error; never its text.
    zip : dict
        Of a packaged study: `path` below its repository, `sha256`, `bytes`, `members`.
    """

    state: str = ACCEPTED
    reason: str = ""
    found: str = ""
    limit: str = ""
    series: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""
    zip: dict[str, Any] = field(default_factory=dict)

    @property
    def n_series(self) -> int:
        """Series the stage looked at; one may have several entries, as one for each space."""
        return len({entry["series_key"] for entry in self.series})

    def accepted_series(self) -> list[dict[str, Any]]:
        """Return the entries that go on to the next stage."""
        return [entry for entry in self.series if entry["state"] == ACCEPTED]

    @classmethod
    def stopped(
        cls, reason: str, series: list[dict[str, Any]], found: str = "", limit: str = ""
    ) -> "Outcome":
        """Return the outcome of a study that cannot go on with what is left of its series.

        It is rejected for `reason`; but where a series failed, that series may be what the study
        lacks, so then the study is failed, and a retry opens it again once the cause is mended.
        """
        failed = next((entry for entry in series if entry["state"] == FAILED), None)
        if failed:
            return cls(FAILED, "error", error=failed["error"], series=series)
        return cls(REJECTED, reason, found, limit, series)


@dataclass
class Record:
    """One finished study of one stage.

    Attributes
    ----------
    key : str
        Digest of stage, version, settings and inputs: what the work depended on.
    files : dict
        Name inside the study folder -> `{"sha256": ..., "bytes": ...}`.
    usage : dict
        `wall_s`, `cpu_s`, `peak_rss_mb`, `ended` (unix seconds), `series` (how many) and
        `steps` (`profile.steps`); not part of the content.
    """

    study_uid: str
    key: str
    outcome: Outcome
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    usage: dict[str, Any] = field(default_factory=dict)

    @property
    def content(self) -> str:
        """Digest of all that was decided and written."""
        return digest({"outcome": vars(self.outcome), "files": self.files})

    @property
    def passed_on(self) -> str:
        """Digest of what a later stage depends on: all but what is meant for tables and people."""
        told = ("row", "values")
        series = [{k: v for k, v in e.items() if k not in told} for e in self.outcome.series]
        outcome = {**vars(self.outcome), "series": series}
        return digest({"outcome": outcome, "files": self.files})

    def to_line(self) -> dict[str, Any]:
        """Return the journal line."""
        return {"event": "record", "content": self.content, **asdict(self)}

    @classmethod
    def from_line(cls, line: dict[str, Any]) -> "Record":
        """Read a journal line back."""
        outcome = Outcome(**line["outcome"])
        return cls(line["study_uid"], line["key"], outcome, line["files"], line["usage"])


@dataclass
class StudyHistory:
    """What a journal says about one study."""

    record: Record | None = None
    deaths: int = 0


class Journal:
    """Append-only records of a shard's studies in one stage."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: str, study_uid: str, **values: Any) -> None:
        """Write one line and wait until the disk has it."""
        self._write({"event": event, "study_uid": study_uid, **values})

    def write(self, record: Record) -> None:
        """Write a finished study."""
        self._write(record.to_line())

    def _write(self, line: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            # a crash may have cut the last line short: start a new one after it
            torn = file.tell() > 0 and not _ends_with_newline(self.path)
            file.write(b"\n" * torn + signed(line) + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield every line that is as it was written."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for raw in file:
                if (line := read_signed(raw)) is not None:
                    yield line

    def history(self) -> dict[str, StudyHistory]:
        """Return, per study, its last record and how often a worker died in it since."""
        studies: dict[str, StudyHistory] = {}
        in_flight: set[str] = set()
        for line in self.lines():
            uid = line["study_uid"]
            seen = studies.setdefault(uid, StudyHistory())
            match line["event"]:
                case "start":
                    seen.deaths += uid in in_flight
                    seen.record = None
                    in_flight.add(uid)
                case "record":
                    studies[uid] = StudyHistory(record=Record.from_line(line))
                    in_flight.discard(uid)
                case "interrupted":
                    in_flight.discard(uid)
                case "reopen":
                    studies[uid] = StudyHistory()
                    in_flight.discard(uid)
        for uid in in_flight:
            studies[uid].deaths += 1
        return studies

    def records(self) -> dict[str, Record]:
        """Return the record of every finished study."""
        return {uid: seen.record for uid, seen in self.history().items() if seen.record}


#: Before the checksum of a journal's line, which is its last value.
SIGNED = b', "crc32": "'


def signed(line: Mapping[str, Any]) -> bytes:
    """Return a line of a journal with the CRC-32 of what stands before it."""
    body = json.dumps(line).encode().removesuffix(b"}")
    return body + SIGNED + f'{zlib.crc32(body):08x}"}}'.encode()


def read_signed(raw: bytes) -> dict[str, Any] | None:
    """Return a line of a journal; None if it was cut short or its bytes were changed."""
    body, _, end = raw.rstrip(b"\n").rpartition(SIGNED)
    if end != f'{zlib.crc32(body):08x}"}}'.encode():
        return None
    return json.loads(raw)


def digest(values: Any) -> str:
    """Return a digest of plain values that does not depend on the order of keys."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, values: Any) -> None:
    """Write a file that appears whole or not at all; what a crash left of the last try goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            json.dump(values, file, indent=1, sort_keys=True)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)  # a full disk


def manifest_of(records: Iterable[Record]) -> dict[str, Any]:
    """Return what a manifest says: per study its state, reason, content digest, and failures."""
    studies: dict[str, dict[str, Any]] = {}
    for record in records:
        study = studies[record.study_uid] = {
            "state": record.outcome.state,
            "reason": record.outcome.reason,
            "content": record.content,
        }
        if failures := failures_of(record.outcome):
            study["failures"] = failures
    states = [study["state"] for study in studies.values()]
    counts = {state: states.count(state) for state in ("accepted", "rejected", "failed")}
    return {"counts": counts, "studies": studies}


def failures_of(outcome: Outcome) -> list[dict[str, str]]:
    """Return what failed in a study: its failed series, or itself as a whole.

    Returns
    -------
    failures : list of dict
        `series_key` (empty for the study as a whole), `reason`, `error` (class and code line).
    """
    failed = [entry for entry in outcome.series if entry["state"] == FAILED]
    found = [(entry["series_key"], entry["reason"], entry.get("error", "")) for entry in failed]
    if outcome.state == FAILED and not found:
        found = [("", outcome.reason, outcome.error)]
    # a series that fails in two spaces for one cause fails once
    return [
        {"series_key": key, "reason": reason, "error": error}
        for key, reason, error in dict.fromkeys(found)
    ]


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
