"""What every study took in every stage, from the journals."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from mrmill.layout import JOURNAL, WorkTree
from mrmill.records import SIGNED, Record

#: A record's line holds rows and files before its usage; only its two ends are parsed.
RECORD = b'{"event": "record"'
STUDY_UID = re.compile(rb'"study_uid": "([^"]*)"')
USAGE = b'"usage": '


class StudyUsage(NamedTuple):
    """One study of one stage.

    Attributes
    ----------
    series : int
        How many the stage looked at.
    usage : dict
        Of its record: `wall_s`, `cpu_s`, `peak_rss_mb`; `ended` and `steps`, unless the journal is
        from before they were kept.
    """

    batch: str
    stage: str
    study_uid: str
    series: int
    usage: dict[str, Any]


def read_usage(work: WorkTree, stage: str) -> Iterator[StudyUsage]:
    """Yield what every study took in a stage when it was last worked on."""
    journals = JOURNAL.format(batch="batch*", stage=stage, shard="shard*")
    for journal in sorted(work.root.glob(journals)):
        for uid, line in _last_records(journal).items():
            with suppress(ValueError):  # cut short by a crash
                usage = _usage(line)
                yield StudyUsage(journal.parts[-3], stage, uid, usage["series"], usage)


def _last_records(journal: Path) -> dict[str, bytes]:
    """Return the line of the last record of every study."""
    found = {}
    with journal.open("rb") as file:
        for line in file:
            if line.startswith(RECORD) and (uid := STUDY_UID.search(line)):
                found[uid[1].decode()] = line
    return found


def _usage(line: bytes) -> dict[str, Any]:
    """Return the usage of a record, the last part of its line."""
    body = line.rpartition(SIGNED)[0]
    usage = json.loads(body[body.rindex(USAGE) + len(USAGE) :])
    if "series" not in usage:  # its worker was killed: nobody was left to measure
        usage["series"] = Record.from_line(json.loads(line)).outcome.n_series
    return usage
