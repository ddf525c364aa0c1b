"""Classification: what a series is, by the rules of `config/classification.yaml`."""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrmill.columns import load_columns
from mrmill.curate.rules import TABLE as TABLE
from mrmill.curate.rules import Condition, Flags, Rules
from mrmill.curate.rules import RulesError as RulesError
from mrmill.curate.rules import as_words as as_words
from mrmill.curate.rules import load_rules as load_rules
from mrmill.errors import UserError
from mrmill.headers import sidecar_header

#: What `classification_rule` says when a person gave the modality in the series table.
SERIES_TABLE = "series_table"

#: What is written of every series of a file of headers.
WRITTEN = (
    "classified_modality",
    "classification_rule",
    "sequence_family",
    "is_derived",
    "is_localizer",
    "is_subtraction",
    "confidence",
)


@dataclass(frozen=True)
class Classification:
    """What a header says a series is.

    Attributes
    ----------
    classified_modality : str
        One of the table's `modalities`.
    classification_rule : str
        `tier:rule`, or `series_table`.
    sequence_family, dwi_sub_type : str
        Empty when the rule does not say.
    confidence : float
        0 (nothing known) to 1.
    """

    classified_modality: str
    classification_rule: str
    sequence_family: str = ""
    dwi_sub_type: str = ""
    is_derived: bool = False
    is_localizer: bool = False
    is_subtraction: bool = False
    confidence: float = 0.0


@dataclass(frozen=True)
class Tried:
    """A rule that was tried on a series.

    Attributes
    ----------
    rule, tier : str
    fired : bool
        Only the last one did.
    conditions : tuple of Condition
        All of the rule that fired; of any other the first that was not met.
    """

    rule: str
    tier: str
    fired: bool
    conditions: tuple[Condition, ...]


def classify(header: Mapping[str, Any], rules: Rules) -> Classification:
    """Say what a series is.

    Parameters
    ----------
    header : mapping
        Column -> value, as `mrmill.headers` makes it. Its `modality` and its flags (`is_derived`,
        `is_localizer`, `is_subtraction`), which only a series table gives, win over the rules.
    rules : Rules

    Returns
    -------
    Classification
    """
    evidence = rules.evidence(header)
    flags = {}
    for name in Flags.model_fields:
        given = header.get(name)
        rows = getattr(rules.flags, name)
        flags[name] = any(row.hold(evidence) for row in rows) if given is None else given
    if header.get("modality"):
        return Classification(
            rules.named(header["modality"]), SERIES_TABLE, confidence=1.0, **flags
        )
    rule = next(rule for rule in rules.rules if rule.hold(evidence))
    tier = rules.tiers[rule.tier]
    return Classification(
        rule.modality,
        f"{tier.name}:{rule.name}",
        rule.sequence_family,
        rule.dwi_sub_type,
        confidence=tier.confidence if rule.confidence is None else rule.confidence,
        **flags,
    )


def trace(header: Mapping[str, Any], rules: Rules) -> list[Tried]:
    """Say which rules were tried on a series, and what decided each.

    Parameters
    ----------
    header : mapping
        As for `classify`.
    rules : Rules

    Returns
    -------
    list of Tried
        In the order of the table, up to and including the rule that fired. Empty when a person
        gave the modality in the series table. A condition's value may be free text.
    """
    if header.get("modality"):
        return []
    evidence = rules.evidence(header)
    tried = []
    for rule in rules.rules:
        tier = rules.tiers[rule.tier].name
        conditions = tuple(rule.conditions(evidence))
        broken = next((condition for condition in conditions if not condition.held), None)
        if broken is None:
            return [*tried, Tried(rule.name, tier, True, conditions)]
        tried.append(Tried(rule.name, tier, False, (broken,)))
    raise AssertionError("the last rule of a table takes what is left")


def classify_file(headers: Path, out: Path, rules: Rules) -> int:
    """Classify a file of headers and return how many there were.

    Parameters
    ----------
    headers : Path
        JSON lines, each with `id` and `sidecar`: a BIDS sidecar, times in seconds.
    out : Path
        CSV: `id`, then `WRITTEN`; complete or not there.
    rules : Rules

    Raises
    ------
    UserError
        Naming the first line that is no such record; nothing is written then.
    """
    scratch = out.with_name(f".{out.name}.part")
    count = 0
    try:
        with scratch.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("id", *WRITTEN))
            for identifier, header in read_headers(headers):
                found = classify(header, rules)
                writer.writerow((identifier, *(getattr(found, name) for name in WRITTEN)))
                count += 1
        scratch.replace(out)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from error
    finally:
        scratch.unlink(missing_ok=True)
    return count


def read_headers(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield identifier and header record of every line of a file of sidecars.

    A sidecar of null is one that says nothing.

    Raises
    ------
    UserError
        If the file cannot be read, or a line is no object with `id` and `sidecar`.
    """
    columns = load_columns()
    try:
        with path.open(encoding="utf-8-sig") as file:  # Windows tools write a mark
            for number, line in enumerate(file, 1):
                if line.strip():
                    identifier, sidecar = _record(line, f"{path}, line {number}")
                    yield identifier, sidecar_header(sidecar, {}, columns)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _record(line: str, where: str) -> tuple[str, Mapping[str, Any]]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: no JSON ({error})") from None
    match record:
        case {"id": str() | int() as identifier, "sidecar": dict() | None as sidecar}:
            return str(identifier), sidecar or {}
    raise UserError(f"{where}: expected an object with `id` and `sidecar`")
