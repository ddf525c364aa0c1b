"""What a person decided about series that wait for a look: `{deface,register}.decisions`."""

import csv
from pathlib import Path

from mrmill.config import ConfigError

ADMIT, REJECT = "admit", "reject"

COLUMNS = ("study_uid", "series_id", "decision")

Decisions = dict[str, dict[str, str]]


def read_decisions(table: Path | None, setting: str) -> Decisions:
    """Return what a person decided: study_uid -> series_id -> `admit` or `reject`.

    Parameters
    ----------
    table : Path or None
        CSV with the columns `COLUMNS`; None decides nothing.
    setting : str
        The key of the configuration that names it, for messages.

    Raises
    ------
    ConfigError
        For a table without its columns, a row that does not say which series, or what, or two
        rows that decide otherwise about one series.
    """
    decisions: Decisions = {}
    if table is None:
        return decisions
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = [(reader.line_num, row) for row in reader]
    except UnicodeDecodeError as error:
        raise ConfigError(f"{setting}: {table.name} is not UTF-8") from error
    for line, row in rows:
        study_uid, series_id, decision = ((row.get(c) or "").strip() for c in COLUMNS)
        where = f"{setting}: {table.name}, line {line}"
        if not (study_uid and series_id and decision.lower() in (ADMIT, REJECT)):
            raise ConfigError(
                f"{where}: needs {', '.join(COLUMNS)}; a decision is {ADMIT} or {REJECT}"
            )
        said = decisions.setdefault(study_uid, {})
        if said.setdefault(series_id, decision.lower()) != decision.lower():
            raise ConfigError(f"{where}: another line decides otherwise about this series")
    return decisions
