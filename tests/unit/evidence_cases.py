"""The labelled headers of `evidence_cases.yaml`, and how answers are scored against them."""

from collections import Counter
from pathlib import Path

import yaml

CASES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))

COLUMNS = {
    "description": "SeriesDescription",
    "protocol": "ProtocolName",
    "study": "StudyDescription",
    "order": "RequestedProcedureDescription",
    "body": "BodyPartExamined",
    "coil": "ReceiveCoilName",
    "agent": "ContrastBolusAgent",
    "volume": "ContrastBolusVolume",
    "route": "ContrastBolusRoute",
    "administered": "ContrastBolusAgentAdministered",
    "image_type": "ImageType",
    "time": "AcquisitionTime",
}


def header(row, *leave_out):
    """Return the header of a row under the columns' names."""
    return {COLUMNS[k]: v for k, v in row.items() if k in COLUMNS and k not in leave_out}


def label(row):
    """Return a row's label; YAML reads yes and no as true and false."""
    return {True: "yes", False: "no"}.get(row["is"], row["is"])


def assert_all_right(pairs, classes, fewest):
    """Hold (row, answer) pairs against their labels: no definite answer wrong, no class missed."""
    counts = Counter((label(row), said.value) for row, said in pairs)
    lines = [f"{is_:>8} {[counts[is_, told] for told in classes]}" for is_ in classes]
    wrong = [f"{row} -> {said}" for row, said in pairs if label(row) != said.value]
    shown = "\n".join(["is, told as " + " ".join(classes), *lines, *wrong])
    assert sum(counts.values()) >= fewest
    assert not wrong, shown
    assert all(counts[one, one] for one in classes), shown
