"""Explain a study or a series: what was read, what was decided at each stage, and why.

Everything is taken from the plan, the records and the tables of rules; no image is opened. Unless
asked for what identifies a patient, values go out by the allow-list of the release alone.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mrmill.columns import Column
from mrmill.config import Config
from mrmill.curate import Tables, load_tables
from mrmill.curate.acceptance import Criterion, judged
from mrmill.curate.classify import Condition, trace
from mrmill.explain.targets import TargetError, find, near_names
from mrmill.headers import dicom_header, with_series_table
from mrmill.layout import SPACES, WorkTree
from mrmill.ledger import COMMON_STAGES, SPACE_STAGES, decision_of, of_study, stages_of
from mrmill.reasons import ACCEPTED, FAILED, REJECTED, Rejected, reasons
from mrmill.records import Journal, Outcome, Record

#: Stands for a value that is not released.
HIDDEN = "(hidden: --identified)"

#: State of a stage that has not decided yet.
OPEN = "open"

#: What a stage's entry holds besides its decision, as far as it is worth telling.
FACTS = {
    "convert": ("n_sop", "n_slices", "shape", "spacing_mm", "suffix", "warnings", "exit_code"),
    "deface": ("is_center_modality", "backend", "plane", "quality"),
    "register": ("is_center_modality", "engine", "fit", "review", "quality"),
}

#: What curation found, from the row of the metadata.
FOUND = (
    *("classified_modality", "classification_rule", "sequence_family", "is_derived"),
    *("is_localizer", "is_subtraction", "acquisition_plane", "body_part", "body_part_evidence"),
    *("contrast_agent", "contrast_agent_evidence"),
)

#: Columns whose value is only fit to be shown as curation wrote it: oldest ages are one value.
ONLY_FROM_ROW = ("Patient'sAge",)

#: Values of criteria that are the header's own text.
HEADER_TEXTS = ("sop_class_uid", "dicom_modality", "burned_in_annotation")


@dataclass(frozen=True)
class StageStory:
    """What one stage decided about a series.

    Attributes
    ----------
    stage : str
    space : str
        Of the stages that register and package, else empty.
    state : {'accepted', 'rejected', 'failed', 'open'}
    facts : dict
        What was measured.
    criteria : list of dict
        Of curate, in their order, up to the first that does not hold: `reason`, `value` (its
        name), `found`, `limit`, `source`, `held`.
    """

    stage: str
    space: str
    state: str
    reason: str = ""
    found: str = ""
    limit: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    criteria: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class SeriesStory:
    """What became of a series.

    Attributes
    ----------
    read : dict
        Column -> value of the header; None where it says nothing.
    rules : list of dict
        Rules of classification in the order in which they were tried: `rule` (with its tier),
        `fired`, `conditions` (all of the one that fired, of others the first that did not hold).
    notes : list of str
        What else to know.
    source : dict
        Only of an identified story: where the series is in the export.
    """

    series_key: str
    series_id: str
    read: dict[str, Any]
    rules: list[dict[str, Any]]
    stages: list[StageStory]
    notes: list[str]
    source: dict[str, Any]

    @property
    def fate(self) -> StageStory:
        """The stage that decided whether the series is in native space."""
        trunk = [stage for stage in self.stages if stage.space in ("", "native")]
        return next((stage for stage in trunk if stage.state != ACCEPTED), trunk[-1])


@dataclass(frozen=True)
class StudyStory:
    """What became of a study.

    Attributes
    ----------
    asked : str
        The series_key that was asked for, empty where it was the study.
    identity : dict
        Only of an identified story: who the study is.
    """

    study_uid: str
    patient_uid: str
    batch: str
    shard: str
    split: str
    asked: str
    identity: dict[str, Any]
    series: list[SeriesStory]

    def as_json(self) -> str:
        """Return the same for scripts: only the series that was asked for, if one was."""
        told = asdict(self)
        told["series"] = [s for s in told["series"] if self.asked in ("", s["series_key"])]
        return json.dumps(told, indent=1)


def explain(config: Config, target: str, identified: bool = False) -> StudyStory:
    """Tell what became of a study or series.

    Parameters
    ----------
    target : str
        A study_uid; or a series as `study_uid/series_id`, `study_uid/series_key`, by the name of a
        released file, or by its series_key.
    identified : bool
        With what identifies the patient: for eyes inside the house only.

    Raises
    ------
    TargetError
        If there is no such study or series.
    """
    work = WorkTree(config.work)
    study, name = find(work, target)
    told = _Teller(config, work, study, identified)
    stories = list(told.stories())
    asked = ""
    if name:
        named = [s for s in stories if name in (s.series_key, s.series_id)]
        if not named:
            known = [n for s in stories for n in (s.series_id, s.series_key) if n]
            raise TargetError(
                f"study {study['study_uid']} has no series {name}{near_names(name, known)}"
            )
        asked = named[0].series_key
    identity = {k: study[k] for k in ("PatientID", "AccessionNumber", "StudyInstanceUID")}
    public = {k: study[k] for k in ("study_uid", "patient_uid", "batch", "shard", "split")}
    return StudyStory(
        **public, asked=asked, identity=identity if identified else {}, series=stories
    )


class _Teller:
    """Tells of the series of one study."""

    def __init__(
        self, config: Config, work: WorkTree, study: Mapping[str, Any], identified: bool
    ) -> None:
        self.config, self.work, self.identified = config, work, identified
        self.uid, self.batch, self.shard = (study[k] for k in ("study_uid", "batch", "shard"))
        path = work.shard_plan(self.batch, self.shard)
        studies = json.loads(path.read_text(encoding="utf-8"))["studies"]
        self.plan = next(entry for entry in studies if entry["study_uid"] == self.uid)
        self.adopted = "rows" in self.plan
        self.records = {
            stage: self._record(stage) for stage in stages_of(config.spaces, self.adopted)
        }

    @cached_property
    def tables(self) -> Tables:
        """Tables of rules, criteria and columns, as they are now."""
        return load_tables(self.config.curate, self.config.convert.header_columns)

    @cached_property
    def columns(self) -> dict[str, Column]:
        """Columns of the header, by name."""
        return {column.name: column for column in self.tables.columns}

    def _record(self, stage: str) -> Record | None:
        return Journal(self.work.journal(self.batch, stage, self.shard)).records().get(self.uid)

    def stories(self) -> Iterator[SeriesStory]:
        """Yield the story of every series: those planned, and further images made of them."""
        planned = {series["series_key"]: series for series in self.plan["series"]}
        record = self.records.get("convert")
        made = {e["series_key"]: e for e in record.outcome.series} if record else {}
        for key in sorted({**planned, **made}):
            converted = made.get(key, {})
            series = planned.get(converted.get("source", key), {})
            yield self._story(key, series, converted)

    def _story(
        self, key: str, series: Mapping[str, Any], converted: Mapping[str, Any]
    ) -> SeriesStory:
        notes: list[str] = []
        stages = list(self._stages(key))
        row = self._row(key)
        header = self._header(series, converted, notes)
        rules = self._rules(header, row, notes) if header else []
        failed = [stage.stage for stage in stages if stage.state == FAILED]
        logs = (self.work.log(self.batch, s, self.shard) for s in failed)
        notes += [f"its trace: {log.relative_to(self.work.root)} in the work tree" for log in logs]
        places = ("SeriesInstanceUID", "folder", "files", "sidecar", "table")
        return SeriesStory(
            series_key=key,
            series_id=self._series_id(key),
            read=self._read(header, row) if header else dict(row),
            rules=rules,
            stages=stages,
            notes=notes,
            source={k: series[k] for k in places if series.get(k)} if self.identified else {},
        )

    def _entry(self, stage: str, key: str) -> dict[str, Any]:
        record = self.records.get(stage)
        entries = record.outcome.series if record else []
        return next((entry for entry in entries if entry["series_key"] == key), {})

    def _row(self, key: str) -> dict[str, Any]:
        """Return what the metadata say, or would say, of a series."""
        return self._entry("deface" if self.adopted else "curate", key).get("row", {})

    def _series_id(self, key: str) -> str:
        return next((i for s in self.records if (i := self._entry(s, key).get("series_id"))), "")

    def _header(
        self, series: Mapping[str, Any], converted: Mapping[str, Any], notes: list[str]
    ) -> dict[str, Any]:
        """Return the header as it was read; of a series that has none yet, as it is now."""
        header = converted.get("header")
        if header is None and series.get("kind") == "dicom":
            path = Path(series["folder"], series["files"][0])
            try:
                header = dicom_header(path, self.tables.columns)
                notes.append("the header is read from the export now: no stage has used it")
            except Rejected:
                notes.append("the header cannot be read from the export")
        if header is None:
            return {}
        return with_series_table(header, series.get("table", {}), self.tables.columns)

    def _read(self, header: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
        """Return what may be shown of a header, in the order of the columns."""
        names = [name for name in self.columns if name in header]
        return {name: self._shown(name, header, row) for name in names}

    def _shown(self, name: str, header: Mapping[str, Any], row: Mapping[str, Any]) -> Any:
        """Return a header value as it may be shown: as it is released, unless identified."""
        value = header.get(name)
        if self.identified or value is None:
            return value
        released = "" if name in ONLY_FROM_ROW else self.columns[name].released(value)
        shown = row.get(name, released)
        return HIDDEN if shown == "" else shown

    def _rules(
        self, header: Mapping[str, Any], row: Mapping[str, Any], notes: list[str]
    ) -> list[dict[str, Any]]:
        """Return the rules that were tried."""
        tried = trace(header, self.tables.rules)
        if not tried:
            notes.append("a person gave the modality in the series table: no rule was tried")
            return []
        fired = f"{tried[-1].tier}:{tried[-1].rule}"
        if row.get("classification_rule", fired) != fired:
            notes.append("the rules have changed since the series was curated: run again")
        return [
            {
                "rule": f"{rule.tier}:{rule.rule}",
                "fired": rule.fired,
                "conditions": [self._condition(c, header, row) for c in rule.conditions],
            }
            for rule in tried
        ]

    def _condition(
        self, condition: Condition, header: Mapping[str, Any], row: Mapping[str, Any]
    ) -> dict[str, Any]:
        value, text = condition.value, self.tables.rules.texts.get(condition.column)
        if value is not None and not self.identified:
            if text is None:
                value = self._shown(condition.column, header, row)
            elif any(self._shown(c, header, row) != header.get(c) for c in text.columns):
                value = HIDDEN
        return {**vars(condition), "value": value}

    def _stages(self, key: str) -> Iterator[StageStory]:
        """Yield what each stage said of a series, until one does not let it pass."""
        if self.plan.get("reject"):
            outcome = Outcome(REJECTED, self.plan["reject"])
            yield self._stage("plan", "", of_study(outcome))
            return
        for stage in [stage for stage in COMMON_STAGES if stage in self.records]:
            yield (story := self._stage(stage, "", self._decision(stage, key)))
            if story.state != ACCEPTED:
                return
        for space in [space for space in SPACES if SPACE_STAGES[space][-1] in self.records]:
            for stage in SPACE_STAGES[space]:
                yield (story := self._stage(stage, space, self._decision(stage, key, space)))
                if story.state != ACCEPTED:
                    break

    def _decision(self, stage: str, key: str, space: str = "native") -> dict[str, Any]:
        record = self.records[stage]
        return (decision_of(record, key, space) if record else None) or {"state": OPEN}

    def _stage(self, stage: str, space: str, decision: Mapping[str, Any]) -> StageStory:
        facts = {name: decision[name] for name in FACTS.get(stage, ()) if name in decision}
        if stage == "curate":
            row = decision.get("row", {})
            facts = {name: row[name] for name in FOUND if row.get(name, "") != ""}
        return StageStory(
            stage=stage,
            space=space,
            state=decision["state"],
            reason=decision.get("reason", ""),
            found=decision.get("found") or decision.get("error", ""),
            limit=decision.get("limit", ""),
            facts=facts,
            criteria=list(self._criteria(decision)) if stage == "curate" else [],
        )

    def _criteria(self, curated: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the criteria that a series was held against."""
        values = curated.get("values")
        if values is None:
            return
        for criterion, held in judged(values, self.tables.criteria):
            yield {
                "reason": criterion.reason,
                "value": criterion.value,
                "found": self._found(criterion, values[criterion.value], held, curated["row"]),
                "limit": criterion.limit,
                "source": criterion.source,
                "held": held,
            }

    def _found(self, criterion: Criterion, value: Any, held: bool, row: Mapping[str, Any]) -> str:
        """Return the value that a criterion looked at, as it may be shown."""
        if value is None or value == "":
            return ""
        if isinstance(value, bool):
            return "yes" if value else "no"
        if self.identified:
            return json.dumps(value) if isinstance(value, list) else str(value)
        if criterion.value in HEADER_TEXTS:
            return criterion.limit if held else "another one"
        if criterion.value == "age_years":  # oldest ages are written as one
            value = row["Patient'sAge"]
        return criterion.shown(value)


def advice_on(stage: StageStory) -> tuple[str, str]:
    """Return what a stage's reason means, and what a user may do about it."""
    reason = stage.found if stage.reason == "study_rejected" else stage.reason
    known = reasons().get(reason, {"meaning": "", "advice": ""})
    return known["meaning"], known["advice"]
