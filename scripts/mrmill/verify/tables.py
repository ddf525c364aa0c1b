"""Hold the CSV files of a release against their schemas."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from mrmill.tables import Field, bad_cells, chunks
from mrmill.verify.zips import Problem

Rows = list[dict[str, str]]

#: What names a row, as far as a table has it.
ROW_KEYS = ("study_uid", "series_id", "series_key")


def read_checked(
    path: Path, fields: Sequence[Field], wanted: Sequence[str], is_ours: bool
) -> tuple[Rows | None, list[Problem]]:
    """Return the wanted columns of a CSV, and what its schema has against it.

    Parameters
    ----------
    fields : sequence of Field
        Columns that the table may have, in their order.
    wanted : sequence of str
        Columns without which there is nothing to return.
    is_ours : bool
        Whether mrmill made the table: then it has no other columns, and all cells are looked at.
        In a table of others that are the cells that no row can do without.

    Returns
    -------
    rows : list of dict, or None
        None when the table is missing or lacks a wanted column.
    problems : list of Problem
        They name no cell: one that is wrong may identify someone.
    """
    if not path.is_file():
        return None, [Problem(str(path), "table_missing", "is not there")]
    # bytes that are no text fail the check of their cell
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.reader(file)
        names = next(reader, [])
        problems = list(_head_problems(path, names, fields, wanted, is_ours))
        if not set(wanted) <= set(names):
            return None, problems
        known = [f for f in fields if f.name in names and (is_ours or f.required)]
        rows: Rows = []
        for chunk in chunks(reader):
            whole = [cells for cells in chunk if len(cells) == len(names)]
            if len(whole) < len(chunk):
                text = f"{len(chunk) - len(whole)} rows do not have one cell per column"
                problems.append(Problem(str(path), "row_length", text))
            problems += _cell_problems(path, names, known, whole)
            places = {name: names.index(name) for name in wanted}
            rows += [{name: cells[i] for name, i in places.items()} for cells in whole]
    return rows, problems


def _head_problems(
    path: Path, names: Sequence[str], fields: Sequence[Field], wanted: Sequence[str], is_ours: bool
) -> Iterator[Problem]:
    needed = {*wanted, *(f.name for f in fields if f.required and is_ours)}
    if missing := needed - set(names):
        yield Problem(str(path), "column_missing", f"lacks {', '.join(sorted(missing))}")
    if not is_ours:
        return
    schema = [field.name for field in fields]
    if unknown := set(names) - set(schema):
        text = f"has columns that are not in the schema: {', '.join(sorted(unknown))}"
        yield Problem(str(path), "column_unknown", text)
    elif list(names) != [name for name in schema if name in names]:
        yield Problem(str(path), "column_order", "has its columns in another order, or twice")


def _cell_problems(
    path: Path, names: Sequence[str], fields: Sequence[Field], rows: Sequence[Sequence[str]]
) -> Iterator[Problem]:
    places = [names.index(field.name) for field in fields]
    known = [[cells[i] for i in places] for cells in rows]
    keys = [(i, field) for i, field in enumerate(fields) if field.name in ROW_KEYS]
    for number, field in bad_cells(fields, known):
        row = known[number]
        # a key that is not as it should be may be the true one: it is not repeated
        named = [row[i] if key.accepts(row[i]) else "?" for i, key in keys]
        text = f"{field.name} must be {field.accepted}{'' if field.required else ', or empty'}"
        yield Problem(f"{path}:{'/'.join(filter(None, named))}", "cell", text)
