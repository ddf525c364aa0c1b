"""Plan a synthetic export twice, and again after it grew: seconds by part, and peak memory.

The export exists in memory only: what walking, `stat` and reading headers would give is made up,
so disks and DICOM parsing are not measured (`benchmarks.indexing` does that). All else is the
real thing: the index with its folder digests and Parquet parts, grouping, names, places, mapping
and opt-out tables, and the files of the plan, each synced to disk.
"""

import argparse
import contextlib
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mrmill import index_dicom, planning
from mrmill.config import Config, checked
from mrmill.identity import new_key
from mrmill.index_parts import COLUMNS, Row

#: MR-RATE: 98,334 studies and 705,254 series of 83,425 patients; exports hold more series than
#: are released.
STUDIES, SERIES_PER_STUDY, FILES_PER_SERIES = 100_000, 12, 3
STUDIES_PER_PATIENT = 1.2

#: Parts of a plan: where the time of each is taken.
CLOCK = time.process_time
PARTS = {
    "index": (planning, "index_export"),
    "tables": (planning, "read_site_tables"),
    "studies": (index_dicom.DicomIndex, "studies"),
    "skips": (planning, "_write_skips"),
    "names and places": (planning, "place_studies"),
    "re-identification table": (planning, "_write_studies"),
    "shards": (planning, "_write_shards"),
}


class Export:
    """An export that is computed on demand: one folder per series.

    Parameters
    ----------
    studies : range
        Their numbers; a number always gives the same study.
    """

    def __init__(self, studies: range) -> None:
        self.studies = studies

    def walk(self, *_: object) -> Iterator[tuple[str, list[str]]]:
        """Stand in for `mrmill.index.walk`."""
        names = [f"IM{i:05d}.dcm" for i in range(FILES_PER_SERIES)]
        for study in self.studies:
            for series in range(SERIES_PER_STUDY):
                yield f"/export/{study:07d}/{series:04d}", names

    @staticmethod
    def stat_files(_: str, names: list[str]) -> list[Row]:
        """Stand in for `mrmill.index_parts.stat_files`."""
        return [(name, 300_000, 1_700_000_000_000_000_000) for name in names]

    @staticmethod
    def read_files(folder: str, rows: list[Row]) -> list[Row]:
        """Stand in for `mrmill.index_parts.read_files`."""
        study, series = map(int, folder.split("/")[2:])
        patient = int(study / STUDIES_PER_PATIENT)
        root = f"1.3.12.2.1107.5.2.19.45400.{study:012d}"
        header = {
            "status": "ok",
            "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4",
            "StudyDate": f"20{study % 24:02d}{1 + study % 12:02d}{1 + study % 28:02d}",
            "AccessionNumber": accession(study),
            "Modality": "MR",
            "PatientID": f"P{patient:08d}",
            "StudyInstanceUID": root,
            "SeriesInstanceUID": f"{root}.{series}",
            "SeriesNumber": str(series),
        }
        known = [
            header | dict(zip(COLUMNS, row, strict=False)) | {"SOPInstanceUID": f"{root}.{i}"}
            for i, row in enumerate(rows, series * FILES_PER_SERIES)
        ]
        return [tuple(row.get(column) for column in COLUMNS) for row in known]


def accession(study: int) -> str:
    """Return the accession number of a study."""
    return f"{7_000_000 + study}"


@contextlib.contextmanager
def timed(export: Export) -> Iterator[dict[str, float]]:
    """Let planning see a synthetic export, and take the time of its parts."""
    seconds: dict[str, float] = {}

    def clocked(part: str, function: Callable) -> Callable:
        def call(*arguments: Any, **named: Any) -> Any:
            started = CLOCK()
            result = function(*arguments, **named)
            seconds[part] = CLOCK() - started
            return result

        return call

    before = [(where, name, getattr(where, name)) for where, name in PARTS.values()]
    before += [(index_dicom, name, getattr(index_dicom, name)) for name in export_functions()]
    for part, (where, name) in PARTS.items():
        setattr(where, name, clocked(part, getattr(where, name)))
    for name in export_functions():
        setattr(index_dicom, name, getattr(export, name))
    try:
        yield seconds
    finally:
        for where, name, function in before:
            setattr(where, name, function)


def export_functions() -> tuple[str, ...]:
    """Return the functions of the index that look at files."""
    return "walk", "stat_files", "read_files"


def plan_once(folder: Path, studies: int) -> dict[str, Any]:
    """Plan a synthetic export in this process and return what that took."""
    config = settings(folder)
    with timed(Export(range(studies))) as seconds:
        started = CLOCK()
        summary = planning.make_plan(config)
        seconds["all"] = CLOCK() - started
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "files": summary.files,
        "read": summary.read,
        "studies": summary.studies,
        "series": summary.series,
        "shards": summary.shards,
        "peak_gb": peak_kib * 1024 / 1e9,
        "seconds": seconds,
    }


def settings(folder: Path) -> Config:
    """Return the settings of a project in a folder."""
    (folder / "export").mkdir(exist_ok=True)
    if not (folder / "pseudonym.key").exists():
        new_key(folder / "pseudonym.key")
    return checked({"deface": {"backend": "deepbet", "device": "cpu"}}, folder)


def main() -> None:
    """Run each plan in a process of its own and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=STUDIES)
    parser.add_argument("--folder", type=Path, help="plan once here, and print JSON")
    arguments = parser.parse_args()
    if arguments.folder:
        print(json.dumps(plan_once(arguments.folder, arguments.studies)))
        return
    more = arguments.studies + arguments.studies // 100
    with tempfile.TemporaryDirectory(prefix="mrmill-planning-") as name:
        results = {
            "first plan": in_a_process(Path(name), arguments.studies),
            "again, unchanged": in_a_process(Path(name), arguments.studies),
            "again, 1 % more": in_a_process(Path(name), more),
        }
    print(table(results))


def in_a_process(folder: Path, studies: int) -> dict[str, Any]:
    """Plan in a fresh process, so that its peak memory is that of the plan alone."""
    command = [sys.executable, "-m", "benchmarks.planning"]
    command += ["--folder", str(folder), "--studies", str(studies)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the results as a Markdown table."""
    lines = [f"| | {' | '.join(results)} |", "| --- |" + " ---: |" * len(results)]
    for what in ("files", "read", "studies", "series", "shards"):
        lines.append(f"| {what} | {' | '.join(f'{r[what]:,}' for r in results.values())} |")
    for part in (*PARTS, "all"):
        cells = " | ".join(f"{r['seconds'].get(part, 0):.1f}" for r in results.values())
        lines.append(f"| {part}, in s | {cells} |")
    peaks = " | ".join(f"{r['peak_gb']:.2f}" for r in results.values())
    lines.append(f"| peak memory, in GB | {peaks} |")
    return "\n".join([*lines, "", f"Python {platform.python_version()}, {platform.machine()}"])


if __name__ == "__main__":
    main()
