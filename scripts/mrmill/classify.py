"""What a series is: an interpreter for the table of rules in `config/classification.yaml`.

All knowledge about sequences stands in the table; this module only knows how to read it. A rule
is compiled once into plain functions, so classifying a series takes a fraction of a millisecond.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from mrmill.errors import UserError
from mrmill.headers import load_columns

TABLE = Path(__file__).parents[2] / "config" / "classification.yaml"

#: What `classification_rule` says when a person gave the modality in the series table.
SERIES_TABLE = "series_table"

Evidence = Mapping[str, Any]
Test = Callable[[Any], bool]


class RulesError(UserError):
    """The table of rules cannot be used as it is."""


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


class Block(BaseModel):
    """A part of the table; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Tier(Block):
    """A kind of evidence."""

    name: str
    confidence: float = Field(ge=0, le=1)


class Text(Block):
    """Header columns read together, brought into one form."""

    columns: tuple[str, ...]
    form: Literal["names", "words"]
    only_first: bool = False


class Conditions(Block):
    """Tests that must all hold, and exceptions of which none may."""

    when: dict[str, str] = {}
    unless: dict[str, str] = {}
    source: str

    _when: list[tuple[str, Test]] = PrivateAttr()
    _unless: list[tuple[str, Test]] = PrivateAttr()

    def model_post_init(self, _context: Any) -> None:
        """Compile the tests."""
        self._when = [(column, compiled(test)) for column, test in self.when.items()]
        self._unless = [(column, compiled(test)) for column, test in self.unless.items()]

    def hold(self, evidence: Evidence) -> bool:
        """Say whether the conditions fit a series."""
        return all(test(evidence.get(column)) for column, test in self._when) and not any(
            test(evidence.get(column)) for column, test in self._unless
        )


class Rule(Conditions):
    """What a series is when the conditions hold."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    tier: int
    modality: str
    sequence_family: str = ""
    dwi_sub_type: str = ""
    confidence: float | None = Field(None, ge=0, le=1)


class Flags(Block):
    """Tables of the yes-or-no questions."""

    is_derived: tuple[Conditions, ...]
    is_localizer: tuple[Conditions, ...]
    is_subtraction: tuple[Conditions, ...]


class Rules(Block):
    """The whole table."""

    modalities: tuple[str, ...]
    release_names: dict[str, str]
    tiers: dict[int, Tier]
    texts: dict[str, Text]
    rules: tuple[Rule, ...]
    flags: Flags

    @model_validator(mode="after")
    def _check_references(self) -> "Rules":
        known = {column.name for column in load_columns()} | set(self.texts)
        for rule in self.rules:
            if rule.modality not in self.modalities:
                raise ValueError(f"rule {rule.name}: modality {rule.modality} is not in modalities")
            if rule.tier not in self.tiers:
                raise ValueError(f"rule {rule.name}: tier {rule.tier} is not in tiers")
            if unknown := (rule.when.keys() | rule.unless.keys()) - known:
                raise ValueError(f"rule {rule.name}: no column or text called {sorted(unknown)}")
        names = [rule.name for rule in self.rules]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"rules named twice: {sorted(twice)}")
        if [rule.tier for rule in self.rules] != sorted(rule.tier for rule in self.rules):
            raise ValueError("rules must stand in the order of their tiers")
        if self.rules[-1].when or self.rules[-1].unless:
            raise ValueError("the last rule must be without conditions: it takes what is left")
        return self

    def evidence(self, header: Mapping[str, Any]) -> dict[str, Any]:
        """Return the header with its code values split and its texts brought into form."""
        values: dict[str, Any] = {
            name: value.upper().split("\\") if isinstance(value, str) else value
            for name, value in header.items()
        }
        for name, text in self.texts.items():
            normal = FORMS[text.form]
            found = [normal(str(header[c])) for c in text.columns if header.get(c)]
            values[name] = (found[:1] if text.only_first else found) or None
        return values

    def released(self, modality: str) -> str:
        """Return a modality as the release writes it."""
        return self.release_names.get(modality, modality)

    def named(self, modality: str) -> str:
        """Return the table's name of a modality that a person wrote.

        Raises
        ------
        ValueError
            If the table has no such modality.
        """
        names = {name.casefold(): name for name in self.modalities}
        names |= {written.casefold(): name for name, written in self.release_names.items()}
        try:
            return names[modality.strip().casefold()]
        except KeyError:
            known = ", ".join(self.modalities)
            raise ValueError(f"series table: a modality is none of {known}") from None


def load_rules(path: Path = TABLE) -> Rules:
    """Read and check a table of rules.

    Raises
    ------
    RulesError
        With one line per problem: where it stands and what is wrong.
    """
    try:
        return Rules.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise RulesError(f"{path.name} cannot be read: {error}") from error
    except ValidationError as error:
        lines = [
            f"  {'.'.join(map(str, e['loc'])) or 'table'}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors()
        ]
        raise RulesError(f"{path.name} cannot be used:\n" + "\n".join(lines)) from None


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


NUMBER = r"-?\d+(?:\.\d+)?"
COMPARISON = re.compile(rf"(<=|>=|<|>) *({NUMBER})")
RANGE = re.compile(rf"({NUMBER}) *\.\. *({NUMBER})")
COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": float.__lt__,
    "<=": float.__le__,
    ">": float.__gt__,
    ">=": float.__ge__,
}


def compiled(test: str) -> Test:
    """Turn a test of the table into a function of one value.

    Examples
    --------
    >>> compiled("5 .. 12")(7.0), compiled("has GR, RM")(["SE"]), compiled("unknown")(None)
    (True, False, True)
    """
    if test == "known":
        return lambda value: value is not None
    if test == "unknown":
        return lambda value: value is None
    if match := COMPARISON.fullmatch(test):
        compare, limit = COMPARE[match[1]], float(match[2])
        return lambda value: isinstance(value, int | float) and compare(float(value), limit)
    if match := RANGE.fullmatch(test):
        low, high = float(match[1]), float(match[2])
        return lambda value: isinstance(value, int | float) and low <= value <= high
    operator, _, wanted = test.partition(" ")
    if operator in ("has", "=") and wanted:
        codes = {code.strip().upper() for code in wanted.split(",")}
        return lambda value: isinstance(value, list) and not codes.isdisjoint(value)
    if operator == "~" and wanted:
        try:
            search = re.compile(wanted).search
        except re.error as error:
            raise ValueError(f"not a regular expression: {wanted!r} ({error})") from None
        return lambda value: isinstance(value, list) and any(map(search, value))
    raise ValueError(f"not a test: {test!r}; see the head of {TABLE.name}")


def as_name(text: str) -> str:
    r"""Bring a sequence name into the form that rules match.

    Examples
    --------
    >>> as_name("*tfl3d1_16ns"), as_name(r"%SiemensSeq%\tfl"), as_name("_fl3d1r_t70")
    ('tfl3d1_16ns', 'tfl', 'fl3d1r_t70')
    """
    return re.sub(r"^(%?\w+seq%[\\_])?[*_\s]*", "", text.lower())


def as_words(text: str) -> str:
    """Bring a description into the form that rules match.

    Examples
    --------
    >>> as_words("Beyin_Difüzyon-AĞIRLIKLI T2*")
    'beyin difuzyon agirlikli t2star'
    """
    folded = unicodedata.normalize("NFKD", text.lower().replace("ı", "i").replace("*", "star"))
    plain = "".join(sign for sign in folded if not unicodedata.combining(sign))
    return " ".join(re.split(r"[\W_]+", plain)).strip()


FORMS: dict[str, Callable[[str], str]] = {"names": as_name, "words": as_words}
