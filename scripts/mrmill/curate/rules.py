"""The table of classification rules: its form, the tests in it, and a site's own rules.

`config/classification.yaml` holds all knowledge about sequences. A rule is compiled once into plain
functions of one value, so classifying a series takes a fraction of a millisecond.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mrmill.columns import load_columns
from mrmill.errors import UserError
from mrmill.yaml_tables import did_you_mean, plain_message, read_yaml

TABLE = Path(__file__).parents[3] / "config" / "classification.yaml"

#: The tier of a site's own rules, which are tried before all others.
SITE_TIER = 0
SITE_CONFIDENCE = 1.0

Evidence = Mapping[str, Any]
Test = Callable[[Any], bool]


class RulesError(UserError):
    """The table of rules cannot be used as it is."""


@dataclass(frozen=True)
class Condition:
    """One condition of a rule, and what a series had there.

    Attributes
    ----------
    column, test : str
        As the table has them; an exception's test is written `not ...`.
    value
        What was found, brought into the form that is tested; None where nothing was.
    held : bool
        Whether the condition was met.
    """

    column: str
    test: str
    value: Any
    held: bool


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
    form: Literal["names", "words", "codes"]
    only_first: bool = False


class Conditions(Block):
    """Tests that must all hold, and exceptions of which none may."""

    when: dict[str, str] = {}
    unless: dict[str, str] = {}
    source: str

    @cached_property
    def tests(self) -> list[tuple[str, Test, bool]]:
        """Column, test, and the answer that it must give."""
        wanted = [(column, compiled(test), True) for column, test in self.when.items()]
        return wanted + [(column, compiled(test), False) for column, test in self.unless.items()]

    @model_validator(mode="after")
    def _check_tests(self) -> "Conditions":
        _compiled = self.tests  # now, so that a mistake is found when the table is read
        return self

    @property
    def columns(self) -> set[str]:
        """Names of the columns and texts that are tested."""
        return {*self.when, *self.unless}

    def hold(self, evidence: Evidence) -> bool:
        """Say whether the conditions fit a series."""
        for column, test, answer in self.tests:  # noqa: SIM110 - half the time of all()
            if test(evidence.get(column)) is not answer:
                return False
        return True

    def conditions(self, evidence: Evidence) -> Iterator[Condition]:
        """Yield every condition with what was found."""
        written = [*self.when.values(), *(f"not {test}" for test in self.unless.values())]
        for text, (column, test, answer) in zip(written, self.tests, strict=True):
            value = evidence.get(column)
            yield Condition(column, text, value, test(value) is answer)


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
    longest: dict[str, float] = {}
    tiers: dict[int, Tier]
    texts: dict[str, Text]
    rules: tuple[Rule, ...]
    flags: Flags

    @model_validator(mode="after")
    def _check_references(self) -> "Rules":
        known = {column.name for column in load_columns()} | set(self.texts)
        for rule in self.rules:
            for word in rule.columns - known:
                raise ValueError(f"rule {rule.name}: no column or text called {_near(word, known)}")
            if rule.modality not in self.modalities:
                word = _near(rule.modality, self.modalities)
                raise ValueError(f"rule {rule.name}: no modality called {word}")
            if rule.tier not in self.tiers:
                raise ValueError(f"rule {rule.name}: tier {rule.tier} is not in tiers")
        names = [rule.name for rule in self.rules]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"rules named twice: {sorted(twice)}")
        if [rule.tier for rule in self.rules] != sorted(rule.tier for rule in self.rules):
            raise ValueError("rules must stand in the order of their tiers")
        *others, last = self.rules
        if last.columns:
            raise ValueError("the last rule must be without conditions: it takes what is left")
        for rule in others:
            if not rule.columns:
                raise ValueError(f"rule {rule.name}: without conditions it would take every series")
        return self

    def evidence(self, header: Mapping[str, Any]) -> dict[str, Any]:
        """Return the header with its code values split and its texts brought into form.

        A time of zero is none: scanners write it where a sequence has no inversion. Where a time
        is longer than any can be, all are in a unit that is a thousand times smaller.
        """
        unit = 1000 if any((header.get(c) or 0) > most for c, most in self.longest.items()) else 1
        values: dict[str, Any] = {}
        for name, value in header.items():
            if isinstance(value, str):
                values[name] = as_codes(value)
            elif name.endswith("_ms") and value is not None:
                values[name] = value / unit or None
            else:
                values[name] = value
        for name, text in self.texts.items():
            found = [str(header[column]) for column in text.columns if header.get(column)]
            parts = found[:1] if text.only_first else found
            values[name] = [form for part in parts for form in FORMS[text.form](part)] or None
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


def load_rules(path: Path = TABLE, site_rules: Path | None = None) -> Rules:
    """Read and check a table of rules, and a site's own rules.

    Parameters
    ----------
    path : Path
        A whole table.
    site_rules : Path, optional
        A file with `rules:` in the table's form but without `tier`. They are tried before all
        others and are certain unless they say otherwise.

    Raises
    ------
    RulesError
        With one line per problem: where it stands and what is wrong.
    """
    table, read = _read(path), path.name
    if site_rules:
        table = _with_site(table, _read(site_rules), site_rules.name)
        read = f"{site_rules.name} with {path.name}"
    try:
        return Rules.model_validate(table)
    except ValidationError as error:
        lines = [f"  {_problem(problem, table)}" for problem in error.errors()]
        raise RulesError(f"{read} cannot be used:\n" + "\n".join(lines)) from None


def _read(path: Path) -> dict[str, Any]:
    table = read_yaml(path, RulesError)
    if not isinstance(table, dict):
        raise RulesError(f"{path.name} cannot be used: it must hold `rules:`")
    return table


def _with_site(table: dict[str, Any], site: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a table with a site's rules before all others, in a tier of their own."""
    rows = site.get("rules")
    if unknown := [key for key in site if key != "rules"]:
        raise RulesError(
            f"{name} cannot be used: no key called {_near(str(unknown[0]), ['rules'])}"
        )
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RulesError(f"{name} cannot be used: `rules` must be a list of rules")
    if tiered := [row.get("name") for row in rows if "tier" in row]:
        raise RulesError(f"{name} cannot be used: rule {tiered[0]}: a site's rule has no tier")
    tiers = {SITE_TIER: {"name": "site", "confidence": SITE_CONFIDENCE}, **table["tiers"]}
    rules = [{"source": "site", **row, "tier": SITE_TIER} for row in rows]
    return {**table, "tiers": tiers, "rules": rules + table["rules"]}


def _problem(problem: Mapping[str, Any], table: Mapping[str, Any]) -> str:
    """Say where in the table a problem is, by the rule's name where it is in one."""
    place = list(problem["loc"])
    text = plain_message(problem)
    if place[:1] == ["rules"] and len(place) > 1:
        row = table["rules"][place[1]]
        place[:2] = [f"rule {row.get('name', place[1] + 1)}"]
    if problem["type"] == "extra_forbidden":
        key = place.pop()
        text = f"no key called {_near(str(key), Rule.model_fields)}"
    where = ": ".join(map(str, place))
    return f"{where}: {text}" if where else text


def _near(word: str, known: Iterable[str]) -> str:
    """Return a word that is not known, with the known one that is nearest."""
    return f"`{word}`{did_you_mean(word, known)}"


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
    if test.endswith(" or unknown"):
        known = compiled(test.removesuffix(" or unknown"))
        return lambda value: value is None or known(value)
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
            search = re.compile(wanted, re.IGNORECASE).search
        except re.error as error:
            raise ValueError(f"not a regular expression: {wanted!r} ({error})") from None
        return lambda value: isinstance(value, list) and any(map(search, value))
    raise ValueError(f"not a test: {test!r}; see the head of {TABLE.name}")


def as_codes(text: str) -> list[str]:
    r"""Split the codes of a DICOM value.

    Examples
    --------
    >>> as_codes("Original\\Primary\\T1 Map")
    ['ORIGINAL', 'PRIMARY', 'T1 MAP']
    """
    return text.upper().split("\\")


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


FORMS: dict[str, Callable[[str], list[str]]] = {
    "codes": as_codes,
    "names": lambda text: [as_name(text)],
    "words": lambda text: [as_words(text)],
}
