"""The story of a study or series in words for the terminal."""

from collections.abc import Iterator
from typing import Any

from mrmill.explain import OPEN, SeriesStory, StageStory, StudyStory, advice_on
from mrmill.reasons import ACCEPTED

#: Rules told before the one that fired, unless all are asked for.
LAST_RULES = 6

#: Longer tests are cut unless all is asked for, in signs.
LONGEST_TEST = 60

WARNING = "THIS OUTPUT IDENTIFIES A PATIENT: it must not leave the house"


def text_of(study: StudyStory, every_rule: bool = False) -> str:
    """Return a story in words.

    Parameters
    ----------
    every_rule : bool
        Tell all rules that were tried, not only the last ones.
    """
    lines = list(_head(study))
    for series in study.series:
        if study.asked in ("", series.series_key):
            lines += ["", *(_whole(series, every_rule) if study.asked else _brief(series))]
    if not study.asked and study.series:
        key = study.series[0].series_key
        lines += ["", f"all about one of them: mrmill explain {study.study_uid}/{key}"]
    return "\n".join(lines)


def _head(study: StudyStory) -> Iterator[str]:
    yield (
        f"study {study.study_uid} of patient {study.patient_uid}, {len(study.series)} series, "
        f"{study.batch}/{study.shard}, split {study.split}"
    )
    yield from _pairs(study.identity)


def _title(series: SeriesStory) -> str:
    name = f" = {series.series_id}" if series.series_id else ""
    return f"series {series.series_key}{name}: {_verdict(series.fate)}"


def _verdict(stage: StageStory) -> str:
    """Say what a stage decided."""
    if stage.state == OPEN:
        return f"waits for {stage.stage}"
    if stage.state == ACCEPTED:
        return stage.state
    reason = stage.reason
    if reason == "study_rejected":
        return f"rejected in {stage.stage} with its study: {stage.found}"
    return f"{stage.state} in {stage.stage}: {reason}"


def _why(stage: StageStory) -> Iterator[str]:
    """Explain a decision against a series, and say what may be done."""
    if stage.state in (ACCEPTED, OPEN):
        return
    meaning, advice = advice_on(stage)
    yield f"  {meaning}"
    if stage.reason != "study_rejected" and stage.found:
        yield f"  found {stage.found}" + (f", accepted {stage.limit}" if stage.limit else "")
    yield "  nothing to do" if advice == "nothing to do" else f"  to do: {advice}"


def _brief(series: SeriesStory) -> Iterator[str]:
    """Tell of a series in a few lines."""
    yield _title(series)
    yield from _why(series.fate)
    told = {k: v for stage in series.stages for k, v in stage.facts.items()}
    words = [str(told[k]) for k in ("classified_modality", "acquisition_plane") if k in told]
    if words:
        yield f"  {', '.join(words)}, told by {told.get('classification_rule', 'its release')}"
    for stage in series.stages:
        if stage.space in ("coreg", "atlas") and stage.state != ACCEPTED:
            yield f"  {stage.space} space: {_verdict(stage)}"


def _whole(series: SeriesStory, every_rule: bool) -> Iterator[str]:
    """Tell everything of a series."""
    yield _title(series)
    yield from _why(series.fate)
    yield from (f"  note: {note}" for note in series.notes)
    yield from _pairs(series.source)
    if series.read:
        yield from ("", "what was read")
        yield from _pairs({k: v for k, v in series.read.items() if v not in (None, "")})
        unsaid = [name for name, value in series.read.items() if value in (None, "")]
        if unsaid:
            yield f"  not said: {', '.join(unsaid)}"
    if series.rules:
        yield from ("", f"rules of classification, {len(series.rules)} tried")
        yield from _rules(series, every_rule)
    for stage in series.stages:
        space = f", {stage.space} space" if stage.space and stage.stage == "register" else ""
        told = "not decided yet" if stage.state == OPEN else stage.state
        told += f", {stage.reason}" if stage.reason else ""
        yield from ("", f"{stage.stage}{space}: {told}")
        yield from _pairs({k: v for k, v in stage.facts.items() if v not in ("", [])})
        yield from _criteria(stage)
        if stage is not series.fate:
            yield from _why(stage)


def _rules(series: SeriesStory, every_rule: bool) -> Iterator[str]:
    *missed, fired = series.rules
    own = [rule for rule in missed[:-LAST_RULES] if rule["rule"].startswith("site:")]
    shown = missed if every_rule else [*own, *missed[-LAST_RULES:]]
    if len(shown) < len(missed):
        yield f"  ... and {len(missed) - len(shown)} more: --all"
    width = max(len(rule["rule"]) for rule in [*shown, fired])
    for rule in shown:
        (broken,) = rule["conditions"]
        yield f"  no   {rule['rule']:{width}}  {_condition(broken, every_rule)}"
    yield f"  YES  {fired['rule']}"
    for condition in fired["conditions"]:
        yield f"         {_condition(condition, every_rule)}"


def _condition(condition: dict[str, Any], whole: bool) -> str:
    """Say what a rule asked for, and what was found."""
    test = condition["test"]
    if len(test) > LONGEST_TEST and not whole:
        test = f"{test[:LONGEST_TEST]}..."
    return f"{condition['column']} {test}, found {_words(condition['value'])}"


def _criteria(stage: StageStory) -> Iterator[str]:
    if not stage.criteria:
        return
    rows = [
        ("yes" if c["held"] else "NO", c["value"], _words(c["found"]), c["limit"], c["reason"])
        for c in stage.criteria
    ]
    widths = [max(len(row[i]) for row in rows) for i in (1, 2)]
    yield "  criteria"
    for held, value, found, limit, reason in rows:
        tail = f"  -> {reason}" if held == "NO" else ""
        yield (f"    {held:3}  {value:{widths[0]}}  {found:{widths[1]}}  accepted: {limit}{tail}")


def _pairs(values: dict[str, Any]) -> Iterator[str]:
    width = max(map(len, values), default=0)
    for name, value in values.items():
        yield f"  {name:{width}}  {_words(value)}"


def _words(value: Any) -> str:
    """Return a value on one line."""
    if value in (None, ""):
        return "nothing"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(part)}" for name, part in value.items())
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        more = f" and {len(value) - 3} more" if len(value) > 3 else ""
        return ", ".join(value[:3]) + more
    if isinstance(value, list):
        return f"[{', '.join(map(_words, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
