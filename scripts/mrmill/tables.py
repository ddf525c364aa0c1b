"""The CSV files of a release: what every column is, what its cells may hold; reading and writing.

The columns of the metadata CSV stand in `config/header_columns.yaml` (see `mrmill.headers`), those
of `splits.csv` and `ledger.csv` in `config/tables.yaml`. One schema checks a table before it is
written, checks it again wherever it is found, and writes the pages that describe it.
"""

import csv
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TextIO, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from mrmill.errors import UserError
from mrmill.reasons import reasons
from mrmill.records import sha256_of
from mrmill.yaml_tables import parse_yaml, problem_lines

TABLES = Path(__file__).parents[2] / "config" / "tables.yaml"

TEXTS = ("text", "codes", "tokens")
NUMBERS = ("integer", "number", "numbers")

#: Rows that are checked at a time.
CHUNK_ROWS = 10_000

#: How bytes that are no UTF-8 are read and written: the twin of the ledger names paths as they are.
BYTES = "surrogateescape"

#: What joins the several values of a column of codes or tokens.
JOINT = "\\"

NUMBER = re.compile(r"-?\d+(\.\d+)?(e[-+]?\d+)?")
DATE = re.compile(r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])")

#: How types are called where people read of them.
WORDS = {"codes": "text, joined with `\\`", "tokens": "text, joined with `\\`", "numbers": "list"}


class TablesError(UserError):
    """A schema cannot be used as it is."""


class CellError(UserError):
    """A table was about to be written with a cell that its column does not accept."""


class Field(BaseModel):
    """One column of a CSV.

    Attributes
    ----------
    required : bool
        A row is never without it.
    values, values_of : tuple of str, str
        The words a text may be; `reasons` stands for the codes of `config/reasons.yaml`.
    pattern : str
        Expression that a text must match as a whole, where it is none of the words.
    length : int
        How many numbers a list has; 0 for any.
    minimum, maximum : float
        Of every number.
    source : str
        Where a value comes from that is not read from a header.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str
    type: Literal["text", "codes", "tokens", "integer", "number", "numbers", "boolean", "date"]
    unit: str = ""
    source: str = ""
    required: bool = False
    values: tuple[str, ...] = ()
    values_of: Literal["", "reasons"] = ""
    pattern: str = ""
    length: int = 0
    minimum: float = -math.inf
    maximum: float = math.inf

    def accepts(self, cell: str) -> bool:
        """Say whether a cell of a CSV holds what the column may hold."""
        if not cell:
            return not self.required
        match self.type:
            case "boolean":
                return cell in ("True", "False")
            case "date":
                return DATE.fullmatch(cell) is not None
            case "numbers":
                bare = cell.removeprefix("[").removesuffix("]")
                parts = bare.split(", ")
                wanted = self.length or len(parts)
                whole = len(cell) == len(bare) + 2 and len(parts) == wanted
                return whole and all(map(self._accepts_number, parts))
            case "integer" | "number":
                return self._accepts_number(cell)
            case "text":
                return self._accepts_text(cell)
            case _:
                return all(map(self._accepts_text, cell.split(JOINT)))

    def _accepts_number(self, text: str) -> bool:
        if not NUMBER.fullmatch(text):
            return False
        # pandas writes whole numbers of a column with gaps as 7.0
        whole = self.type != "integer" or float(text).is_integer()
        return whole and self.minimum <= float(text) <= self.maximum

    def _accepts_text(self, text: str) -> bool:
        return text in self._words or (self._pattern.fullmatch(text) is not None)

    @cached_property
    def _words(self) -> frozenset[str]:
        return frozenset({*self.values, *(reasons() if self.values_of else ())})

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(self.pattern or "(?!)")  # without one, no text matches

    @property
    def accepted(self) -> str:
        """Say in words what a cell may hold."""
        match self.type:
            case "boolean":
                return "True or False"
            case "date":
                return "YYYY-MM-DD"
            case "integer" | "number" | "numbers":
                bounds = f"{self.minimum:g} to {self.maximum:g}"
                return f"{self.length} of {bounds}" if self.length else bounds
            case _:
                return self._accepted_text()

    def _accepted_text(self) -> str:
        codes = ["a reason code"] if self.values_of else []
        return ", ".join([*self.values, *codes]) or f"`{self.pattern}`"

    @property
    def read_from(self) -> str:
        """Say in words where the value comes from."""
        return f"computed: {self.source}" if self.source else ""


def described(fields: Iterable[Field], *headings: str) -> str:
    """Return a Markdown table with a row per column.

    Parameters
    ----------
    headings : {'column', 'type', 'unit', 'accepted', 'empty', 'source', 'meaning'}
    """
    told: dict[str, Callable[[Field], str]] = {
        "column": lambda field: f"`{field.name}`",
        "type": lambda field: WORDS.get(field.type, field.type),
        "unit": lambda field: field.unit,
        "accepted": lambda field: field.accepted,
        "empty": lambda field: "never" if field.required else "",
        "source": lambda field: field.read_from,
        "meaning": lambda field: field.description,
    }
    rows = [[told[heading](field).replace("|", "\\|") for heading in headings] for field in fields]
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


T = TypeVar("T")
Model = TypeVar("Model", bound=Field)


def validated(rows: Iterable[Mapping[str, Any]], model: type[Model]) -> tuple[Model, ...]:
    """Return rows of a YAML table as fields.

    Raises
    ------
    TablesError
        With one line per problem.
    """
    problems, fields = [], []
    for number, row in enumerate(rows, 1):
        try:
            fields.append(model.model_validate(row))
        except ValidationError as error:
            problems += problem_lines(error, f"column {number}")
    names = [field.name for field in fields]
    problems += [f"  {name}: named twice" for name in sorted({*names}) if names.count(name) > 1]
    if problems:
        raise TablesError("\n".join(problems))
    return tuple(fields)


@cache
def load_table(name: Literal["splits", "ledger"]) -> tuple[Field, ...]:
    """Return the schema of `splits.csv` or `ledger.csv`."""
    return validated(parse_yaml(TABLES.read_text(encoding="utf-8"))[name], Field)


def chunks(rows: Iterable[T]) -> Iterator[list[T]]:
    """Yield the rows of a table in lists of a size that is good to check."""
    iterator = iter(rows)
    while chunk := list(islice(iterator, CHUNK_ROWS)):
        yield chunk


def bad_cells(
    fields: Sequence[Field], rows: Sequence[Sequence[str]]
) -> Iterator[tuple[int, Field]]:
    """Yield row number and column of every cell that the schema does not accept.

    Parameters
    ----------
    fields : sequence of Field
        One per cell of a row.
    rows : sequence of sequence of str
        A chunk of a table: each distinct value of a column is looked at once.
    """
    for field, cells in zip(fields, zip(*rows, strict=True), strict=bool(rows)):
        bad = {cell for cell in set(cells) if not field.accepts(cell)}
        if bad:
            yield from ((number, field) for number, cell in enumerate(cells) if cell in bad)


def read_table(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a CSV, every value as text."""
    with path.open(encoding="utf-8", newline="", errors=BYTES) as file:
        yield from csv.DictReader(file)


def write_table(
    path: Path,
    columns: Sequence[str],
    rows: Iterable[Mapping[str, Any]],
    private: bool = False,
) -> str:
    """Write a CSV that appears whole or not at all; keys that are no column are left out.

    Parameters
    ----------
    private : bool
        For the owner's eyes only (mode 0600).

    Returns
    -------
    digest : str
        SHA-256 of the file.
    """
    with appearing_whole(path, private) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([cell(row.get(column)) for column in columns] for row in rows)
    return sha256_of(path)


def write_checked(path: Path, fields: Sequence[Field], rows: Iterable[Mapping[str, Any]]) -> str:
    """Write a CSV of a release, each cell of which its schema accepts; else there is none.

    Returns
    -------
    digest : str
        SHA-256 of the file.

    Raises
    ------
    CellError
        Naming row, column and what is accepted, never the cell: it may identify someone.
    """
    return write_table(path, [field.name for field in fields], _checked(fields, rows))


def _checked(fields: Sequence[Field], rows: Iterable[Mapping[str, Any]]) -> Iterator[Any]:
    for chunk in chunks(rows):
        cells = [[cell(row.get(field.name)) for field in fields] for row in chunk]
        for number, field in bad_cells(fields, cells):
            row = chunk[number]
            series = row.get("series_id") or row.get("series_key") or ""
            raise CellError(
                f"study {row['study_uid']} {series}: its {field.name} holds what the column may "
                f"not; accepted: {field.accepted}{'' if field.required else ', or nothing'}. "
                "Nothing was written"
            )
        yield from chunk


def cell(value: Any) -> str:
    """Return a value as it stands in a table; what is missing is empty."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return json.dumps(list(value)) if isinstance(value, list | tuple) else str(value)


@contextmanager
def appearing_whole(path: Path, private: bool = False) -> Iterator[TextIO]:
    """Give a text file that stands under its name only if the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # one name only: what a killed run left in a release is taken away by the next
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("w", encoding="utf-8", newline="", errors=BYTES) as file:
            if private:
                part.chmod(0o600)
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)
