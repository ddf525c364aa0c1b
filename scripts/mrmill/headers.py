"""Header records: what a series says of itself, under MR-RATE's column names.

Which values are read, where they stand in DICOM, in a BIDS sidecar or in the series table, and
which of them may be published, is a table: `config/header_columns.yaml`. A record is a plain dict
of JSON values in the table's units (ms, mm, T, degrees); a value that is missing, empty, not a
number or unreadable is None.
"""

import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from mrmill.errors import UserError
from mrmill.reasons import Rejected

if TYPE_CHECKING:
    from pydicom import Dataset

TABLE = Path(__file__).parents[2] / "config" / "header_columns.yaml"

#: Types whose release is guarded by `allowed` or `rewrite`.
TEXTS = ("text", "codes", "tokens")

#: Types whose release is guarded by `minimum` and `maximum`: a large number may be an identifier.
NUMBERS = ("integer", "number", "numbers")

#: Longest text, or code of several, that is released: what DICOM's LO holds (PS3.5, 6.2).
MAX_TEXT = 64

#: What separates the several values of a column; codes are short enough to be split at any sign.
SEPARATORS = {"codes": re.compile(r"[\\/_,\s]+"), "tokens": re.compile(r"[\\/]+")}


class ColumnsError(UserError):
    """The table of columns cannot be used as it is."""


class Column(BaseModel):
    """One value: where it is read and how it is released."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str
    type: Literal["text", "codes", "tokens", "integer", "number", "numbers", "boolean", "date"]
    unit: str = ""
    dicom: tuple[str, ...] = ()
    private: tuple[str, ...] = ()
    bids: tuple[str, ...] = ()
    bids_scale: float = 1
    table: str = ""
    computed: bool = False
    release: bool = False
    required: bool = False
    allowed: tuple[str, ...] = ()
    rewrite: dict[str, str] = {}
    minimum: float = -math.inf
    maximum: float = math.inf

    @model_validator(mode="after")
    def _check_guarded(self) -> "Column":
        open_text = self.type in TEXTS and not (self.computed or self.allowed or self.rewrite)
        if self.release and open_text:
            raise ValueError(f"{self.name}: a released text needs `allowed` or `rewrite`")
        open_number = self.type in NUMBERS and math.inf in (-self.minimum, self.maximum)
        if self.release and open_number and not self.computed:
            raise ValueError(f"{self.name}: a released number needs `minimum` and `maximum`")
        if self.release and self.type == "date" and not self.computed:
            raise ValueError(f"{self.name}: an original date is never released")
        return self

    @cached_property
    def _allowed(self) -> re.Pattern[str]:
        return re.compile("|".join(self.allowed), re.IGNORECASE)

    @cached_property
    def _rewrites(self) -> list[tuple[re.Pattern[str], str]]:
        return [(re.compile(found, re.IGNORECASE), new) for found, new in self.rewrite.items()]

    @cached_property
    def _private(self) -> list[tuple[int, str, int]]:
        places = (place.split(", ") for place in self.private)
        return [(int(group, 16), creator, int(element, 16)) for group, creator, element in places]

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
                return "\\".join(str(value).strip() for value in values)
            case _:
                parts = (SEPARATORS[self.type].split(str(value)) for value in values)
                return "\\".join(p.strip() for part in parts for p in part if p.strip()) or None

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
            if not all(self.minimum <= number <= self.maximum for number in numbers):
                return ""
            written = [_short(number) for number in numbers]
            return json.dumps(written) if self.type == "numbers" else written[0]
        if self.type not in TEXTS:
            return value
        parts = [value] if self.type == "text" else value.split("\\")
        return "\\".join(filter(None, map(self._released_text, parts)))

    def _released_text(self, text: str) -> str:
        if len(text) > MAX_TEXT:
            return ""
        for found, new in self._rewrites:
            if found.fullmatch(text):
                return new
        return text if self.allowed and self._allowed.fullmatch(text) else ""


Columns = tuple[Column, ...]


@cache
def load_columns(path: Path = TABLE) -> Columns:
    """Read and check a table of columns.

    Raises
    ------
    ColumnsError
        With one line per problem.
    """
    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8"))["columns"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ColumnsError(f"{path.name} cannot be read: {error}") from error
    problems, columns = [], []
    for number, row in enumerate(rows, 1):
        try:
            columns.append(Column.model_validate(row))
        except ValidationError as error:
            problems += [
                f"  column {number}: {'.'.join(map(str, e['loc']))} {e['msg']}"
                for e in error.errors()
            ]
    names = [column.name for column in columns]
    problems += [f"  {name}: named twice" for name in sorted({*names}) if names.count(name) > 1]
    if problems:
        raise ColumnsError(f"{path.name} cannot be used:\n" + "\n".join(problems))
    return tuple(columns)


def release_columns(columns: Columns) -> list[str]:
    """Return the columns of the metadata CSV in their order."""
    return [column.name for column in columns if column.release]


def read_sources(columns: Columns) -> dict[str, Any]:
    """Return what a header record depends on: the columns that are read, and from where."""
    shown = {"name", "type", "dicom", "private", "bids", "bids_scale", "table"}
    return {c.name: c.model_dump(include=shown) for c in columns if _is_read(c)}


def dicom_header(path: Path, columns: Columns | None = None) -> dict[str, Any]:
    """Read the header record of a series from one of its DICOM files.

    Parameters
    ----------
    path : Path
        A classic or an enhanced multi-frame object; of the latter the shared functional groups
        and those of the first frame are read.
    columns : Columns, optional
        By default `config/header_columns.yaml`.

    Raises
    ------
    Rejected
        `unreadable_image` when the file is no DICOM.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom quotes the values it warns about
        try:
            dataset = pydicom.dcmread(path, stop_before_pixels=True)
        except (OSError, EOFError, InvalidDicomError, ValueError) as error:
            raise Rejected("unreadable_image", type(error).__name__, "a DICOM file") from error
        groups = _functional_groups(dataset)
        header = {
            column.name: next(_dicom_values(column, [dataset, *groups]), None)
            for column in columns or load_columns()
            if _is_read(column)
        }
    if header.get("ScanningSequence") is None:
        header["ScanningSequence"] = _enhanced_scanning_sequence(header)
    return header


def sidecar_header(
    sidecar: Mapping[str, Any], table: Mapping[str, Any], columns: Columns | None = None
) -> dict[str, Any]:
    """Make the header record of a series from its BIDS sidecar.

    Parameters
    ----------
    sidecar : mapping
        As dcm2niix writes it: times in seconds.
    table : mapping
        The series' row of the series table; what it gives replaces what the sidecar says.
    columns : Columns, optional
        By default `config/header_columns.yaml`.
    """
    columns = columns or load_columns()
    header = {column.name: _bids_value(column, sidecar) for column in columns if _is_read(column)}
    return with_series_table(header, table, columns)


def with_series_table(
    header: Mapping[str, Any], table: Mapping[str, Any], columns: Columns
) -> dict[str, Any]:
    """Return a header in which the values a person gave in the series table win."""
    given = {c.name: c.cleaned(table[c.table]) for c in columns if c.table and c.table in table}
    return {**header, **{name: value for name, value in given.items() if value is not None}}


def iso_date(text: str) -> str:
    """Return a day, written as 20240131 or 2024-01-31, in the second way.

    Raises
    ------
    ValueError
        If it is no day of the calendar.
    """
    return datetime.strptime(text.strip().replace("-", "")[:8], "%Y%m%d").date().isoformat()


def age_years(header: Mapping[str, Any]) -> float | None:
    """Return the patient's age at the study in years, or None where it is not known.

    The age itself counts first (DICOM AS: 045Y, 018M, 006W, 010D; a bare number is years), then
    birth date and study date.

    Examples
    --------
    >>> age_years({"Patient'sAge": "018M"})
    1.5
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([DWMY]?)", (header.get("Patient'sAge") or "").upper())
    if found:
        years = float(found[1]) / {"D": 365.25, "W": 52.18, "M": 12}.get(found[2], 1)
        # scanners write 000Y for an age they were not given
        return years if years > 0 else None
    born, seen = header.get("Patient'sBirthDate"), header.get("StudyDate")
    if not (born and seen):
        return None
    days = (date.fromisoformat(seen) - date.fromisoformat(born)).days
    return days / 365.25 if days >= 0 else None


def _is_read(column: Column) -> bool:
    return bool(column.dicom or column.private or column.bids)


def _dicom_values(column: Column, datasets: Sequence["Dataset"]) -> Iterator[Any]:
    """Yield the usable values of a column, best source first."""
    for keyword in column.dicom:
        for dataset in datasets:
            if (value := column.cleaned(_element(dataset, keyword))) is not None:
                yield value
    for group, creator, element in column._private:
        for dataset in datasets:
            try:
                raw = dataset.private_block(group, creator)[element].value
            except Exception:  # absent, or bytes that pydicom cannot decode
                continue
            if (value := column.cleaned(raw)) is not None:
                yield value


def _element(dataset: "Dataset", keyword: str) -> Any:
    try:
        return dataset.get(keyword)
    except Exception:  # pydicom decodes late: a malformed value raises whatever it raises
        return None


def _functional_groups(dataset: "Dataset") -> list["Dataset"]:
    """Return the items of an enhanced object's shared and first-frame groups, outermost first."""
    found: list[Dataset] = []
    for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        level = list((_element(dataset, keyword) or [])[:1])
        while level:
            found += level
            level = [e.value[0] for item in level for e in item if e.VR == "SQ" and e.value]
    return found


def _enhanced_scanning_sequence(header: Mapping[str, Any]) -> str | None:
    """Say in classic codes what an enhanced object says in three elements."""
    echo = {"SPIN": ["SE"], "GRADIENT": ["GR"], "BOTH": ["SE", "GR"]}
    codes = echo.get(header.get("EchoPulseSequence") or "", [])
    codes += ["IR"] * (header.get("InversionRecovery") == "YES")
    codes += ["EP"] * (header.get("EchoPlanarPulseSequence") == "YES")
    return "\\".join(codes) or None


def _bids_value(column: Column, sidecar: Mapping[str, Any]) -> Any:
    found = (column.cleaned(sidecar.get(key)) for key in column.bids)
    value = next((value for value in found if value is not None), None)
    if value is None or column.bids_scale == 1:
        return value
    return round(value * column.bids_scale, 6)


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
