"""Files that were touched and not changed keep the digest they were planned with.

A copy back from a tape, or `touch`, changes the time of a file and none of its bytes. Where a
series has been converted, its record has a digest of what was read; if the files still have it,
nothing has to be done again.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mrmill.records import Journal
from mrmill.stamps import digest_of_content

Entry = dict[str, Any]


def settled(
    studies: Sequence[Entry], before: Mapping[str, Entry], converted: Journal
) -> list[Entry]:
    """Return the entries of a shard's studies, with the digests that still hold.

    Where a series has an older digest than its files, `stamps` of its study says what they look
    like now.

    Parameters
    ----------
    before : mapping
        study_uid -> entry of the last plan.
    converted : Journal
        Of the shard's conversions.
    """
    read = sources(converted)
    with ThreadPoolExecutor() as pool:  # digests of content: many, and mostly waiting for a disk
        return list(
            pool.map(lambda study: _settled(study, before.get(study["study_uid"]), read), studies)
        )


def sources(converted: Journal) -> dict[tuple[str, str], str]:
    """Return study_uid and series_key -> digest of the files that were converted."""
    return {
        (uid, entry["source"]): entry["source_sha256"]
        for uid, record in converted.records().items()
        for entry in record.outcome.series
        if "source_sha256" in entry
    }


def _settled(new: Entry, old: Entry | None, read: Mapping[tuple[str, str], str]) -> Entry:
    """Return a study's entry in which touched series have the digest they had."""
    if old is None:
        return new
    known = {series["series_key"]: series for series in old["series"]}
    series, stamps = [], {}
    for now in new["series"]:
        key = now["series_key"]
        kept = known.get(key, now)
        if kept["digest"] != now["digest"] and kept == {**now, "digest": kept["digest"]}:
            looked_like = old.get("stamps", {}).get(key)
            unread = new["reject"] or now.get("reject")
            source = read.get((new["study_uid"], key))
            if looked_like == now["digest"] or unread or _holds(now, source):
                stamps[key] = now["digest"]
                now = kept
        series.append(now)
    return {**new, "series": series, **({"stamps": stamps} if stamps else {})}


def _holds(series: Entry, source_sha256: str | None) -> bool:
    """Say whether the files of a series are, byte for byte, those that were converted."""
    try:
        return source_sha256 is not None and digest_of_content(series) == source_sha256
    except OSError:  # gone again: the next plan will see
        return False
