"""The ledger: for every series ever seen, what became of it and why.

It is made from the plan and the stages' records alone, holds public ids and reason codes
only, and refuses to be written when anything that was planned is missing from it. Its identified
twin stays in the work tree: the same rows, with who and where each series is in the export.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from mrmill.errors import UserError
from mrmill.layout import SPACES
from mrmill.reasons import ACCEPTED, FAILED, REJECTED, WAITING, reasons
from mrmill.records import Outcome, Record

COLUMNS = (
    "batch",
    "study_uid",
    "series_key",
    "series_id",
    "stage",
    "state",
    "reason",
    "found",
    "limit",
    *SPACES,
)

#: Who a study is, from the plan's table of studies.
IDENTITIES = ("PatientID", "AccessionNumber", "StudyInstanceUID")

#: What the header of a converted series says that is never released.
HEADER_WORDS = ("SeriesNumber", "SeriesDescription", "ProtocolName")

#: What the conversion of a series found.
CONVERSION = ("n_sop", "n_slices", "suffix", "warnings", "exit_code")

#: Columns of the identified twin.
TWIN_COLUMNS = (
    *COLUMNS,
    *IDENTITIES,
    "SeriesInstanceUID",
    *HEADER_WORDS,
    *("folder", "first_file", "n_files"),
    *CONVERSION,
)

#: In a space's column: the series is in that space; otherwise the column holds a reason code.
YES = "yes"

#: Stages that decide about every series, in order, before the spaces part.
COMMON_STAGES = ("convert", "curate", "deface")

#: Stages from the defaced series to the zip, by space.
SPACE_STAGES = {
    "native": ("package-native",),
    "coreg": ("register", "package-coreg"),
    "atlas": ("register", "package-atlas"),
}

#: How many studies an error message names.
NAMED_STUDIES = 10


class LedgerError(UserError):
    """What was planned and what was recorded do not add up."""


def stages_of(spaces: Iterable[str], adopted: bool = False) -> list[str]:
    """Return the stages of a run in their order.

    Parameters
    ----------
    spaces : iterable of str
        Spaces that the run makes.
    adopted : bool
        Input of kind `release`: its adoption stands in the place of the stage `deface`.
    """
    made = [space for space in SPACES if space in set(spaces)]
    common = COMMON_STAGES[-1:] if adopted else COMMON_STAGES
    # a dict keeps the order and drops the second `register`
    later = dict.fromkeys(stage for space in made for stage in SPACE_STAGES[space])
    return [*common, *sorted(later, key=lambda stage: stage != "register")]


def ledger_rows(
    plan_studies: Iterable[Mapping[str, Any]],
    records_by_stage: Mapping[str, Mapping[str, Record]],
) -> list[dict[str, str]]:
    """Say of every series ever seen what became of it.

    Parameters
    ----------
    plan_studies : iterable of mapping
        Entries of the plan, each with its `batch` added.
    records_by_stage : mapping
        Stage -> study_uid -> record. A stage that is a key here is one whose records must exist;
        without `convert` the input was a release, whose native space is taken as it is.

    Returns
    -------
    rows : list of dict
        One row per series with the columns `COLUMNS`, all text, by study_uid and series_key.
        `state` is accepted where the series is in the native space. `stage` is the last stage that
        decided. The column of a space is empty where this run does not make that space. A study
        without any series has one row, whose `series_key` is empty.

    Raises
    ------
    LedgerError
        If a study or series has no record where it should, or a record has no planned study.
    """
    rows: list[dict[str, str]] = []
    holes: list[tuple[str, str]] = []  # study and stage, once per series
    planned = sorted(plan_studies, key=lambda study: study["study_uid"])
    for study in planned:
        uid = study["study_uid"]
        records = {stage: found.get(uid) for stage, found in records_by_stage.items()}
        way = _StudyWay(study, records)
        way.walk()
        rows += sorted(way.rows.values(), key=lambda row: row["series_key"])
        holes += [(uid, stage) for stage in way.holes.values()]
    _refuse_holes(holes, rows, len(planned))
    _refuse_unplanned({study["study_uid"] for study in planned}, records_by_stage)
    return rows


class _StudyWay:
    """The way of one study's series through the stages."""

    def __init__(self, study: Mapping[str, Any], records: Mapping[str, Record | None]) -> None:
        self.study, self.records = study, records
        self.adopted = "convert" not in records
        keys = [series["series_key"] for series in study["series"]] or [""]
        self.rows = {key: self._new_row(key) for key in keys}
        self.holes: dict[str, str] = {}  # series -> the first stage that says nothing about it

    def _new_row(self, key: str) -> dict[str, str]:
        known = {
            "batch": self.study["batch"],
            "study_uid": self.study["study_uid"],
            "series_key": key,
            # a release names its series by their id
            "series_id": key if self.adopted else "",
            "stage": "plan",
            "state": ACCEPTED,
        }
        return dict.fromkeys(COLUMNS, "") | known

    def walk(self) -> None:
        """Fill the rows."""
        if self.study.get("reject"):
            for row in self.rows.values():
                self._decide(row, "plan", of_study(Outcome(REJECTED, self.study["reject"])))
        elif record := self.records.get("convert"):
            for entry in record.outcome.series:  # a series may convert to several images
                key = entry["series_key"]
                self.rows.setdefault(key, self._new_row(key))
        for stage in COMMON_STAGES:
            if stage in self.records:
                self._pass(self._going_on(), stage)
        defaced = self._going_on()
        for space in SPACES:
            self._fill_space(space, defaced)

    def _going_on(self) -> list[dict[str, str]]:
        return [row for row in self.rows.values() if row["state"] == ACCEPTED]

    def _pass(self, rows: Sequence[dict[str, str]], stage: str) -> None:
        for row in rows:
            decision = self._decision(row["series_key"], stage)
            if decision is not None:
                self._decide(row, stage, decision)

    def _fill_space(self, space: str, defaced: Sequence[dict[str, str]]) -> None:
        made = SPACE_STAGES[space][-1] in self.records
        if space == "native" and made:
            self._pass(defaced, SPACE_STAGES[space][-1])
        going_on = {row["series_key"] for row in defaced}
        for key, row in self.rows.items():
            if made and key in going_on and space != "native":
                row[space] = self._word(key, space)
            elif made or (space == "native" and self.adopted):
                row[space] = YES if row["state"] == ACCEPTED else telling_code(row)

    def _word(self, key: str, space: str) -> str:
        """Say whether a defaced series is in a space other than native, or why not."""
        for stage in SPACE_STAGES[space]:
            decision = self._decision(key, stage, space)
            if decision is None:
                return ""
            if decision["state"] != ACCEPTED:
                return telling_code(decision)
        return YES

    def _decision(self, key: str, stage: str, space: str = "native") -> dict[str, Any] | None:
        """Return what a stage says of a series; nothing said is a hole."""
        record = self.records[stage]
        decision = decision_of(record, key, space) if record else None
        if decision is None:
            self.holes.setdefault(key, stage)
        return decision

    def _decide(self, row: dict[str, str], stage: str, decision: Mapping[str, Any]) -> None:
        state, reason = decision["state"], decision.get("reason", "")
        if state not in (ACCEPTED, REJECTED, FAILED) or (state != ACCEPTED) != (
            reason in reasons()
        ):
            uid = self.study["study_uid"]
            raise LedgerError(f"study {uid}: {stage} recorded state {state!r}, reason {reason!r}")
        row.update(stage=stage, state=state, reason=reason)
        row["series_id"] = decision.get("series_id") or row["series_id"]
        row["found"] = decision.get("found") or decision.get("error", "")
        row["limit"] = decision.get("limit", "")


def decision_of(record: Record, key: str, space: str = "native") -> dict[str, Any] | None:
    """Return what a record says of a series: its own entry first, then its study's fate.

    Returns
    -------
    decision : dict or None
        `state`, `reason`, and all else that the entry holds; None where nothing is said.
    """
    entries = record.outcome.series
    mine = (e for e in entries if e["series_key"] == key and e.get("space", space) == space)
    entry = next(mine, None)
    has_own = entry is not None and entry.get("reason", "") not in ("", "study_rejected")
    if record.outcome.state != ACCEPTED and not has_own:
        return (entry or {}) | of_study(record.outcome)
    return entry


def of_study(outcome: Outcome) -> dict[str, Any]:
    """Return what the study's fate means for a series with nothing against it."""
    if outcome.state == REJECTED:
        return {"state": REJECTED, "reason": "study_rejected", "found": outcome.reason}
    found = outcome.found or outcome.error
    return {"state": FAILED, "reason": outcome.reason or "error", "found": found}


def telling_code(decision: Mapping[str, Any]) -> str:
    """Return the code that tells most: the study's own one where its study was rejected."""
    is_study = decision["reason"] == "study_rejected"
    return decision["found"] if is_study else decision["reason"]


def _refuse_holes(holes: list[tuple[str, str]], rows: list[dict[str, str]], n_studies: int) -> None:
    if not holes:
        return
    named = [f"{uid} ({stage})" for uid, stage in dict.fromkeys(holes)]
    n_holed = len({uid for uid, _ in holes})
    raise LedgerError(
        f"the ledger does not close: records are missing for {len(holes)} of {len(rows)} series, "
        f"in {n_holed} of {n_studies} studies: {_some(named)}. Run the workflow again: what has "
        "no record is done again"
    )


def _refuse_unplanned(planned: set[str], records: Mapping[str, Mapping[str, Record]]) -> None:
    strangers = sorted({uid for found in records.values() for uid in found} - planned)
    if strangers:
        raise LedgerError(
            f"{len(strangers)} studies have records and are not in the plan: {_some(strangers)}"
        )


def _some(names: list[str]) -> str:
    more = len(names) - NAMED_STUDIES
    return ", ".join(names[:NAMED_STUDIES]) + (f" and {more} more" if more > 0 else "")


def read_identities(
    table: Path, batch: str, plan_studies: Mapping[str, Mapping[str, Any]], shards: Iterable[str]
) -> dict[str, dict[str, str]]:
    """Return who the studies of some shards are.

    Parameters
    ----------
    table : Path
        The plan's `studies.parquet`.
    plan_studies : mapping
        study_uid -> entry in the plan of its shard.

    Returns
    -------
    identities : dict
        study_uid -> the columns `IDENTITIES`.

    Raises
    ------
    LedgerError
        If the table and the shards' plans do not name the same studies.
    """
    import pyarrow.parquet as pq

    where = [("batch", "==", batch), ("shard", "in", list(shards))]
    rows = pq.read_table(table, columns=["study_uid", *IDENTITIES], filters=where).to_pylist()
    identities = {row.pop("study_uid"): row for row in rows}
    if odd := sorted(identities.keys() ^ plan_studies.keys()):
        raise LedgerError(
            f"the plan of {batch} does not close: {len(odd)} studies are only in one of "
            f"{table.name} and the shards' files: {_some(odd)}. `mrmill plan` mends it"
        )
    return identities


def twin_rows(
    rows: Iterable[Mapping[str, str]],
    plan_studies: Mapping[str, Mapping[str, Any]],
    converted: Mapping[str, Record],
    identities: Mapping[str, Mapping[str, str]],
) -> Iterator[dict[str, Any]]:
    """Yield each row of a ledger with who and where the series is: never to be released.

    Parameters
    ----------
    plan_studies, converted, identities : mapping
        study_uid -> entry of the plan, record of convert (none for a release), identity.
    """
    for uid, own_rows in groupby(rows, key=itemgetter("study_uid")):
        planned = {series["series_key"]: series for series in plan_studies[uid]["series"]}
        record = converted.get(uid)
        entries = {e["series_key"]: e for e in record.outcome.series} if record else {}
        headers = {e["source"]: e["header"] for e in entries.values() if "header" in e}
        for row in own_rows:
            entry = entries.get(row["series_key"], {})
            source = entry.get("source", row["series_key"])
            series, header = planned.get(source, {}), headers.get(source, {})
            files = series.get("files", [])
            yield {
                **row,
                **identities[uid],
                "SeriesInstanceUID": series.get("SeriesInstanceUID", ""),
                **{name: header.get(name) for name in HEADER_WORDS},
                "folder": series.get("folder") or plan_studies[uid].get("source", ""),
                "first_file": files[0] if files else "",
                "n_files": len(files),
                **{name: entry.get(name) for name in CONVERSION},
                "warnings": " ".join(
                    sorted({*series.get("warnings", []), *entry.get("warnings", [])})
                ),
            }


def summary(rows: Iterable[Mapping[str, str]]) -> dict[str, Any]:
    """Count a ledger.

    Returns
    -------
    counts : dict
        `series` and `studies`: seen, accepted, rejected, failed. A study is accepted with any of
        its series; without one it is failed if a series failed (mending it may bring the study
        back), else rejected. `reasons`: rejected and failed -> code, of the study
        where it was rejected as a whole -> series. `waiting`: code -> series that a person's look
        may bring into a space. `spaces`: space -> series and studies in it.
    """
    series: Counter[str] = Counter()
    states: dict[str, set[str]] = {}
    codes: dict[str, Counter[str]] = {REJECTED: Counter(), FAILED: Counter()}
    waiting: Counter[str] = Counter()
    inside: dict[str, Counter[str]] = {space: Counter() for space in SPACES}
    for row in rows:
        state, uid = row["state"], row["study_uid"]
        states.setdefault(uid, set()).add(state)
        if not row["series_key"]:  # a study without any series
            continue
        series[state] += 1
        if state in codes:
            codes[state][telling_code(row)] += 1
        waiting.update({row["reason"], *(row[space] for space in SPACES)} & WAITING)
        for space, studies in inside.items():
            studies[uid] += row[space] == YES
    best_first = (ACCEPTED, FAILED, REJECTED)
    studies = Counter(next(s for s in best_first if s in seen) for seen in states.values())
    return {
        "series": _seen(series),
        "studies": _seen(studies),
        "reasons": {state: dict(sorted(count.items())) for state, count in codes.items()},
        "waiting": dict(sorted(waiting.items())),
        "spaces": {
            space: {"series": count.total(), "studies": sum(n > 0 for n in count.values())}
            for space, count in inside.items()
        },
    }


def _seen(states: Counter[str]) -> dict[str, int]:
    return {"seen": states.total(), **{s: states[s] for s in (ACCEPTED, REJECTED, FAILED)}}
