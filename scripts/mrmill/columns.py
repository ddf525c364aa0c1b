"""The table of header values, `config/header_columns.yaml`: what is read, and what is released.

It is the schema of the metadata CSV as well: its columns are the table's rows with `release`, in
their order.
"""

import ast
import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from pydantic import model_validator

from mrmill.errors import UserError
from mrmill.tables import JOINT, NUMBERS, TEXTS, Field, TablesError, validated
from mrmill.yaml_tables import read_yaml

TABLE = Path(__file__).parents[2] / "config" / "header_columns.yaml"

#: Longest text, or code of several, that is released: what DICOM's LO holds (PS3.5, 6.2).
MAX_TEXT = 64

#: What separates the several values of a column; codes are short enough to be split at any sign.
SEPARATORS = {"codes": re.compile(r"[\\/_,\s]+"), "tokens": re.compile(r"[\\/]+")}

#: Elements that are never released, whatever guards them: they say who, where or when
#: (DICOM PS3.15, Table E.1-1).
IDENTIFYING = re.compile(
    r"\w*(UID|Date|DateTime|Address|Comments|SerialNumber|PatientID)|StudyID|"
    r"Patient(?!(Age|Sex|Position|Size|Weight)$)\w+|\w*(Residence|BirthName|PatientHistory)|"
    r"\w*(Physician|Operator|Institution|Station|Telephone|OtherPatient|Accession)\w*|"
    r"\w*(Birth|Study|Series|Content|Creation|Acquisition|Start|Stop|End)Time|RequestedProcedureID"
)

#: Repetition without a limit, in an expression without its escapes and classes of signs.
UNLIMITED = re.compile(r"[*+]|\{\d*,\}")
ESCAPES_AND_CLASSES = re.compile(r"\\.|\[\^?\]?[^]]*\]")

#: Names, a day and a number: what an expression for known words does not match.
STRANGERS = ("Jane Doe", "DOE^JANE", "Mueller", "1961-03-12", "19610312", "1234567890")

#: Expressions that are words, told one by one; of others the short ones are told as they are.
PLAIN = re.compile(r"[\w |*+-]+")
MAX_SHOWN = 32


class ColumnsError(UserError):
    """The table of columns cannot be used as it is."""


class Column(Field):
    """One value: where it is read and how it is released.

    Attributes
    ----------
    dicom, private, bids, bids_scale, table
        Where it is read: see the head of `config/header_columns.yaml`.
    computed : bool
        Filled in by curate. What is not computed stems from a header.
    release, extra : bool
        It is a column of the metadata CSV; it is one of those that MR-RATE does not have.
    allowed, rewrite
        Expressions of the texts that are released as they are, or as another word.
    """

    dicom: tuple[str, ...] = ()
    private: tuple[str, ...] = ()
    bids: tuple[str, ...] = ()
    bids_scale: float = 1
    table: str = ""
    computed: bool = False
    release: bool = False
    extra: bool = False
    allowed: tuple[str, ...] = ()
    rewrite: dict[str, str] = {}  # noqa: RUF012 (pydantic copies defaults)

    @model_validator(mode="after")
    def _check_guarded(self) -> "Column":
        if self.release and (problem := self._unguarded()):
            raise ValueError(f"{self.name}: {problem}")
        return self

    def _unguarded(self) -> str:
        """Say why the column cannot be released."""
        if any(IDENTIFYING.fullmatch(key) for key in (*self.dicom, *self.bids)):
            return "who, where and when are never released"
        if self.type == "date" and not self.computed:
            return "an original date is never released"
        if self.type in NUMBERS and math.inf in (-self.minimum, self.maximum):
            return "a released number needs `minimum` and `maximum`"
        if self.computed and not self.source:
            return "a computed column needs `source`"
        if self.type in TEXTS and self.computed and not (self.values or self.pattern):
            return "a released text that is computed needs `values` or `pattern`"
        if self.type in TEXTS and not (self.computed or self.allowed or self.rewrite):
            return "a released text needs `allowed` or `rewrite`"
        for expression in self.allowed:
            if _lets_anything_through(expression):
                return f"`{expression}` is too wide: it would release names, dates or identifiers"
        return ""

    @cached_property
    def _allowed(self) -> re.Pattern[str]:
        return re.compile("|".join(self.allowed), re.IGNORECASE)

    @cached_property
    def _rewrites(self) -> list[tuple[re.Pattern[str], str]]:
        return [(re.compile(found, re.IGNORECASE), new) for found, new in self.rewrite.items()]

    @cached_property
    def private_elements(self) -> list[tuple[int, str, int]]:
        """The vendors' own elements as group, creator and element."""
        places = (place.split(", ") for place in self.private)
        return [(int(group, 16), creator, int(element, 16)) for group, creator, element in places]

    @property
    def is_read(self) -> bool:
        """Whether headers are asked for it."""
        return bool(self.dicom or self.private or self.bids)

    def cleaned(self, raw: Any) -> Any:
        """Return a raw value as this column's type, or None where it holds nothing usable."""
        values = [v for v in (raw if _is_list(raw) else [raw]) if not _is_empty(v)]
        try:
            return self._convert(values) if values else None
        except (ValueError, TypeError, OverflowError):
            return None

    def _convert(self, values: list[Any]) -> Any:
        match self.type:
            case "integer":
                return int(float(values[0]))
            case "number":
                return _finite(values[0])
            case "numbers":
                return [_finite(value) for value in values]
            case "boolean":
                return {"true": True, "false": False}[str(values[0]).strip().lower()]
            case "date":
                return iso_date(str(values[0]))
            case "text":
                return JOINT.join(str(value).strip() for value in values)
            case _:
                parts = (SEPARATORS[self.type].split(str(value)) for value in values)
                return JOINT.join(p.strip() for part in parts for p in part if p.strip()) or None

    def released(self, value: Any) -> Any:
        r"""Return a header value as it may be published; an empty cell where it may not.

        Examples
        --------
        >>> column = Column(name="x", description="", type="codes", release=True, allowed=["SE|IR"])
        >>> column.released("SE\\Mr Smith\\IR")
        'SE\\IR'
        """
        if not self.release or value is None:
            return ""
        if self.type in NUMBERS:
            numbers = value if self.type == "numbers" else [value]
            in_bounds = all(self.minimum <= number <= self.maximum for number in numbers)
            if not in_bounds or self.length not in (0, len(numbers)):
                return ""
            written = [_short(number) for number in numbers]
            return json.dumps(written) if self.type == "numbers" else written[0]
        if self.type not in TEXTS:
            return value
        parts = [value] if self.type == "text" else value.split(JOINT)
        return JOINT.join(filter(None, map(self._released_text, parts)))

    def _released_text(self, text: str) -> str:
        if len(text) > MAX_TEXT:
            return ""
        for found, new in self._rewrites:
            if found.fullmatch(text):
                return new
        return text if self.allowed and self._allowed.fullmatch(text) else ""

    def _accepts_text(self, text: str) -> bool:
        # what is released is released once more without a change
        return super()._accepts_text(text) if self.computed else self._released_text(text) == text

    @property
    def read_from(self) -> str:
        """Say in words where the value comes from."""
        from pydicom.datadict import tag_for_keyword

        tags = [(tag_for_keyword(keyword), keyword) for keyword in self.dicom]
        return "; ".join(
            [
                *(f"({tag >> 16:04x},{tag & 0xFFFF:04x}) {keyword}" for tag, keyword in tags),
                *(f"({g:04x},xx{e:02x}) {creator}" for g, creator, e in self.private_elements),
                *([f"BIDS {', '.join(self.bids)}"] if self.bids else []),
                *([f"series table {self.table}"] if self.table and not self.computed else []),
                *([super().read_from] if self.source else []),
            ]
        )

    def _accepted_text(self) -> str:
        if self.computed:
            return super()._accepted_text()
        plain = [words for words in self.allowed if PLAIN.fullmatch(words)]
        short = [f"`{e}`" for e in self.allowed if e not in plain and len(e) <= MAX_SHOWN]
        more = ["known forms"] * (len(plain) + len(short) < len(self.allowed))
        return ", ".join([*dict.fromkeys(self.rewrite.values()), *_words(plain), *short, *more])


Columns = tuple[Column, ...]


@cache
def load_columns(path: Path = TABLE) -> Columns:
    """Read and check a table of columns.

    Raises
    ------
    ColumnsError
        With one line per problem.
    """
    table = read_yaml(path, ColumnsError)
    if not (isinstance(table, dict) and isinstance(table.get("columns"), list)):
        raise ColumnsError(f"{path.name} cannot be used: it must hold a list `columns:`")
    try:
        return validated(table["columns"], Column)
    except TablesError as error:
        raise ColumnsError(f"{path.name} cannot be used:\n{error}") from None


def published(columns: Columns, extra: bool = True) -> Columns:
    """Return the columns that the metadata CSV has, in their order.

    Parameters
    ----------
    columns : Columns
    extra : bool
        With those that MR-RATE does not have.
    """
    return tuple(c for c in columns if c.release and (extra or not c.extra))


def release_columns(columns: Columns, extra: bool = True) -> list[str]:
    """Return the names of the columns of the metadata CSV in their order."""
    return [column.name for column in published(columns, extra)]


def adopted_row(row: Mapping[str, str], columns: Columns) -> dict[str, Any]:
    """Return a row of somebody's metadata CSV with what stems from headers as we release it.

    What is not recognized becomes an empty cell, as it does when a header says it; what every row
    needs stays as it is.

    Examples
    --------
    >>> adopted_row({"Manufacturer": "Philips Medical Systems"}, load_columns())
    {'Manufacturer': 'Philips'}
    """
    return {c.name: _adopted(c, row[c.name]) for c in columns if row.get(c.name)}


def _adopted(column: Column, cell: str) -> Any:
    if not column.computed:
        return column.released(column.cleaned(_listed(cell)))
    return cell if column.required or column.accepts(cell) else ""


def _listed(cell: str) -> Any:
    """Return the values of a cell that holds a list, else the cell."""
    if cell.startswith("["):
        with suppress(ValueError, SyntaxError):
            return ast.literal_eval(cell)
    return cell


def read_sources(columns: Columns) -> dict[str, Any]:
    """Return what a header record depends on: the columns that are read, and from where."""
    shown = {"name", "type", "dicom", "private", "bids", "bids_scale", "table"}
    return {c.name: c.model_dump(include=shown) for c in columns if c.is_read}


def iso_date(text: str) -> str:
    """Return a day, written as 20240131 or 2024-01-31, in the second way.

    Raises
    ------
    ValueError
        If it is no day of the calendar.
    """
    return datetime.strptime(text.strip().replace("-", "")[:8], "%Y%m%d").date().isoformat()


def _lets_anything_through(expression: str) -> bool:
    if UNLIMITED.search(ESCAPES_AND_CLASSES.sub("", expression)):
        return True
    allowed = re.compile(expression, re.IGNORECASE)
    return any(map(allowed.fullmatch, STRANGERS))


def _words(expressions: Sequence[str]) -> list[str]:
    return [word for expression in expressions for word in expression.split("|")]


def _is_list(raw: Any) -> bool:
    return isinstance(raw, Sequence) and not isinstance(raw, str | bytes)


def _is_empty(value: Any) -> bool:
    missing = value is None or isinstance(value, bytes | Mapping)
    return missing or str(value).strip().lower() in ("", "nan", "n/a")


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("not a finite number")
    return number


def _short(number: Any) -> Any:
    """Drop digits that only stem from float32, and a fraction of zero."""
    if not isinstance(number, float):
        return number
    return int(number) if number.is_integer() else round(number, 6)
