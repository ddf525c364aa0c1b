"""Header records: what a series says of itself, under MR-RATE's column names.

Which values are read, where they stand in DICOM, in a BIDS sidecar or in the series table, and
which of them may be published, is a table: `config/header_columns.yaml`. A record is a plain dict
of JSON values in the table's units (ms, mm, T, degrees); a value that is missing, empty, not a
number or unreadable is None.
"""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrmill.columns import Column, Columns, load_columns
from mrmill.reasons import Rejected
from mrmill.tables import JOINT

if TYPE_CHECKING:
    from pydicom import Dataset


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
            if column.is_read
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
    header = {column.name: _bids_value(column, sidecar) for column in columns if column.is_read}
    return with_series_table(header, table, columns)


def with_series_table(
    header: Mapping[str, Any], table: Mapping[str, Any], columns: Columns
) -> dict[str, Any]:
    """Return a header in which the values a person gave in the series table win."""
    given = {c.name: c.cleaned(table[c.table]) for c in columns if c.table and c.table in table}
    return {**header, **{name: value for name, value in given.items() if value is not None}}


def age_years(header: Mapping[str, Any]) -> float | None:
    """Return the patient's age at the study in years, or None where it is not known.

    The age itself counts first (DICOM AS: 045Y, 018M, 006W, 010D; a bare number is years), then
    birth date and study date, which give completed years.

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
    day, birthday = date.fromisoformat(seen), date.fromisoformat(born)
    before_birthday = (day.month, day.day) < (birthday.month, birthday.day)
    years = day.year - birthday.year - before_birthday
    return years if years >= 0 else None


def _dicom_values(column: Column, datasets: Sequence["Dataset"]) -> Iterator[Any]:
    """Yield the usable values of a column, best source first."""
    for keyword in column.dicom:
        for dataset in datasets:
            if (value := column.cleaned(_element(dataset, keyword))) is not None:
                yield value
    for group, creator, element in column.private_elements:
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
    return JOINT.join(codes) or None


def _bids_value(column: Column, sidecar: Mapping[str, Any]) -> Any:
    found = (column.cleaned(sidecar.get(key)) for key in column.bids)
    value = next((value for value in found if value is not None), None)
    if value is None or column.bids_scale == 1:
        return value
    return round(value * column.bids_scale, 6)
