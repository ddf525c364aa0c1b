"""What tells body part and contrast agent: the table in `config/evidence.yaml`, read and checked.

`mrmill.curate.body_part` and `mrmill.curate.contrast` say what follows from it. A confidence is
not written: the evidence says as much, and a number would be invented.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from mrmill.columns import load_columns
from mrmill.curate.classify import SERIES_TABLE
from mrmill.curate.rules import as_words
from mrmill.errors import UserError
from mrmill.yaml_tables import checked_table

TABLE = Path(__file__).parents[3] / "config" / "evidence.yaml"

UNKNOWN = "unknown"
YES, NO = "yes", "no"

#: Texts whose answers are kept: more than a shard has.
REMEMBERED = 4096

Part = Literal["brain", "spine", "other"]
Plane = Literal["AXIAL", "SAGITTAL", "CORONAL", "OBLIQUE"]

#: Directions of an extent, in the order of RAS.
Direction = Literal["R-L", "A-P", "S-I"]


class EvidenceError(UserError):
    """The table of evidence cannot be used as it is."""


@dataclass(frozen=True)
class Said:
    """An answer and what it rests on.

    Attributes
    ----------
    value : str
        `unknown` where nothing tells, or where what tells contradicts itself.
    evidence : str
        Public codes joined by "+", such as `tag:BodyPartExamined+word:SeriesDescription`; after
        "conflict:" those that contradict each other; `series_table`; `none`. Never header text.
    """

    value: str
    evidence: str

    @classmethod
    def conflict(cls, codes: Iterable[str]) -> "Said":
        """Say nothing, as the evidence contradicts itself."""
        return cls(UNKNOWN, "conflict:" + "+".join(codes))


NOTHING = Said(UNKNOWN, "none")


def given(header: Mapping[str, Any], column: str, values: Iterable[str]) -> Said | None:
    """Return what a person said in the series table.

    Raises
    ------
    ValueError
        If it is none of the values or `unknown`.
    """
    if (text := header.get(column)) is None:
        return None
    known = (*values, UNKNOWN)
    if (value := text.strip().lower()) not in known:
        raise ValueError(f"series table: {column} is none of {', '.join(known)}")
    return Said(value, SERIES_TABLE)


def folded(text: str) -> str:
    """Bring a text into the form that the table's words match.

    Examples
    --------
    >>> folded("T1-tra +C (Kontrastlı)"), folded("T1 KM-")
    ('t1 tra plus c kontrastli', 't1 km minus')
    """
    signs = re.sub(r"(?<=[\w(])-(?=[\s)]|$)", " minus ", text.replace("+", " plus "))
    return as_words(signs)


def _whole_words(expressions: Any) -> re.Pattern[str]:
    """Turn a list of expressions into one that matches whole words."""
    for expression in expressions:
        try:
            re.compile(expression)
        except (re.error, TypeError) as error:
            raise ValueError(f"not a regular expression: {expression!r} ({error})") from None
    return re.compile(rf"\b(?:{'|'.join(expressions)})\b")


Words = Annotated[re.Pattern[str], BeforeValidator(_whole_words)]


def _known_column(name: str) -> str:
    if name not in {column.name for column in load_columns()}:
        raise ValueError(f"no column called {name}")
    return name


HeaderColumn = Annotated[str, BeforeValidator(_known_column)]


class Block(BaseModel):
    """A part of the table; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Exclusion(Block):
    """A field of view that a part cannot have: in this plane, within these limits in mm."""

    part: Part
    plane: Plane
    most_mm: dict[Direction, float] = {}
    least_mm: dict[Direction, float] = {}
    source: str


class BodyPartTable(Block):
    """What tells a body part."""

    series_texts: tuple[HeaderColumn, ...]
    exam_texts: tuple[HeaderColumn, ...]
    default: Part
    codes: dict[Part, tuple[str, ...]]
    words: dict[Part, Words]
    ignored: Words
    exclusions: tuple[Exclusion, ...]

    @cached_property
    def named(self) -> Callable[[str], frozenset[str]]:
        """The parts that a text names; texts repeat, so answers are kept."""
        return lru_cache(REMEMBERED)(self._named)

    def _named(self, text: str) -> frozenset[str]:
        text = self.ignored.sub(" ", folded(text))
        return frozenset(part for part, words in self.words.items() if words.search(text))

    @model_validator(mode="after")
    def _check_parts(self) -> "BodyPartTable":
        for name in ("codes", "words"):
            if missing := {*get_args(Part)} - getattr(self, name).keys():
                raise ValueError(f"{name}: nothing is said of {', '.join(sorted(missing))}")
        return self


class ShortWords(Block):
    """Words that count in some modalities only."""

    modalities: tuple[str, ...]
    native: Words
    enhanced: Words


class ContrastTable(Block):
    """What tells whether there was a contrast agent."""

    series_texts: tuple[HeaderColumn, ...]
    exam_texts: tuple[HeaderColumn, ...]
    tags: tuple[HeaderColumn, ...]
    agents: Words
    other_routes: Words
    native: Words
    enhanced: Words
    short: ShortWords
    ignored: Words

    @cached_property
    def answers(self) -> Callable[[str, str], frozenset[str]]:
        """What a text of a series of some modality says: yes, no, neither or both."""
        return lru_cache(REMEMBERED)(self._answers)

    @cached_property
    def is_agent(self) -> Callable[[str], bool]:
        """Whether the value of a tag names an agent."""
        return lru_cache(REMEMBERED)(self._is_agent)

    def _answers(self, text: str, modality: str) -> frozenset[str]:
        text = self.ignored.sub(" ", folded(text))
        native, enhanced = [self.native], [self.enhanced]
        if modality in self.short.modalities:
            native, enhanced = [*native, self.short.native], [*enhanced, self.short.enhanced]
        rest = text
        for words in native:
            rest = words.sub(" ", rest)
        is_enhanced = any(words.search(rest) for words in enhanced)
        return frozenset([NO] * (rest != text) + [YES] * is_enhanced)

    def _is_agent(self, text: str) -> bool:
        return bool(self.agents.search(self.native.sub(" ", folded(text))))


class Evidence(Block):
    """The whole table."""

    body_part: BodyPartTable
    contrast_agent: ContrastTable


def load_evidence(path: Path = TABLE) -> Evidence:
    """Read and check a table of evidence.

    Raises
    ------
    EvidenceError
        With one line per problem.
    """
    return checked_table(path, Evidence, EvidenceError)
