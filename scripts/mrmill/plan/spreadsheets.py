"""Tables that people keep in a spreadsheet, as CSV or XLSX, and what that does to their ids."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mrmill.index import PlanError, read_rows

#: Spreadsheets keep this many digits of a number: a longer one is another number afterwards.
KEPT_DIGITS = 15


def plain_id(text: str) -> str:
    """Return an id without the traces of a spreadsheet, in which `4711` becomes `4711.0`.

    Leading zeros, which spreadsheets drop, are not guessed.
    """
    text = text.strip()
    return text[:-2] if re.fullmatch(r"\d+\.0", text) else text


def is_rounded(text: str) -> bool:
    """Tell whether an id has become a number with an exponent, its last digits lost.

    Examples
    --------
    >>> is_rounded("1.23457E+15")
    True
    >>> is_rounded("E12")
    False
    """
    return bool(re.fullmatch(r"\d([.,]\d+)?E\+\d+", text, re.IGNORECASE))


def read_cells(
    path: Path, name: str, needed: tuple[str, ...]
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the rows of a CSV or XLSX that are not empty.

    Parameters
    ----------
    name : str
        What the table is called in messages.
    needed : tuple of str
        Columns it must have.

    Yields
    ------
    line : str
        Such as `line 2`.
    row : dict
        Column -> text, stripped.

    Raises
    ------
    PlanError
        If it cannot be read or lacks a column.
    """
    if path.suffix.lower() == ".xlsx":
        rows = _xlsx_rows(path, name, needed)
    else:
        rows = ((where.rpartition(", ")[2], row) for where, row in read_rows(path, name, needed))
    for line, row in rows:
        cells = {column.strip(): text.strip() for column, text in row.items()}
        if any(cells.values()):
            yield line, cells


def _xlsx_rows(
    path: Path, name: str, needed: tuple[str, ...]
) -> Iterator[tuple[str, dict[str, str]]]:
    import openpyxl

    try:
        with path.open("rb") as file:
            book = openpyxl.load_workbook(file, read_only=True, data_only=True)
            sheets = [list(_filled(sheet)) for sheet in book.worksheets]
    except OSError as error:
        raise PlanError(f"{name} {path}: {error.strerror}") from None
    except Exception:  # broken files raise whatever the parser stumbles over
        raise PlanError(f"{name} {path} is no XLSX that can be read, or has a password") from None
    filled = [sheet for sheet in sheets if sheet]
    if len(filled) > 1:
        raise PlanError(
            f"{name} {path} has {len(filled)} sheets with cells, and only one would be read.\n"
            "  Next: leave a single one"
        )
    (_, header), *rows = filled[0] if filled else [(0, ())]
    columns = [text.strip() for text in header]
    missing = [column for column in needed if column not in columns]
    if missing:
        raise PlanError(
            f"{name} {path} has no column {', '.join(missing)}.\n"
            f"  Accepted: an XLSX whose first row names {', '.join(needed)}"
        )
    if not columns:
        raise PlanError(f"{name} {path} is empty, without so much as names of columns")
    for line, cells in rows:
        yield f"line {line}", dict(zip(columns, cells, strict=False))


def _filled(sheet: Any) -> Iterator[tuple[int, list[str]]]:
    """Yield number and texts of every row of a sheet that is not empty."""
    sheet.reset_dimensions()  # what other programs write there is often wrong
    for number, values in enumerate(sheet.iter_rows(values_only=True), 1):
        cells = [cell_text(value) for value in values]
        if any(cells):
            yield number, cells


def cell_text(value: Any) -> str:
    """Return what a cell of a spreadsheet says.

    Examples
    --------
    >>> from datetime import datetime
    >>> cell_text(4711.0), cell_text(None), cell_text(datetime(2024, 1, 31))
    ('4711', '', '2024-01-31 00:00:00')
    >>> cell_text(12345678901234567)  # of which the spreadsheet has kept 15 digits
    '1.23456789012346E+16'
    """
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if abs(value) >= 10**KEPT_DIGITS:
            return f"{value:.{KEPT_DIGITS - 1}E}"
        return str(int(value)) if value == int(value) else str(value)
    return str(value).strip()
