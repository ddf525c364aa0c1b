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
from unittest import mock

from mrmill import plan as planning
from mrmill.config import Config, checked
from mrmill.index import dicom as index_dicom
from mrmill.index.parts import COLUMNS, Row
from mrmill.plan.identity import new_key

#: MR-RATE: 98,334 studies and 705,254 series of 83,425 patients; exports hold more series than
#: are released.
STUDIES, SERIES_PER_STUDY, FILES_PER_SERIES = 100_000, 12, 3
STUDIES_PER_PATIENT = 1.2

#: Parts of a plan: where the time of each is taken.
PARTS = {
    "index": (planning, "index_export"),
    "tables": (planning, "read_site_tables"),
    "studies": (index_dicom.DicomIndex, "studies"),
    "skips": (planning, "_write_skips"),
    "names and places": (planning, "place_studies"),
    "re-identification table": (planning, "_write_studies"),
    "shards": (planning, "_write_shards"),
}

MADE_UP = "of it, making up headers"


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
        """Stand in for `mrmill.index.parts.stat_files`."""
        return [(name, 300_000, 1_700_000_000_000_000_000) for name in names]

    @staticmethod
    def read_files(folder: str, rows: list[Row]) -> list[Row]:
        """Stand in for `mrmill.index.parts.read_files`."""
        study, series = map(int, folder.split("/")[2:])
        root = f"1.3.12.2.1107.5.2.19.45400.{study:012d}"
        header = {
            "status": "ok",
            "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4",
            "StudyDate": f"20{study % 24:02d}{1 + study % 12:02d}{1 + study % 28:02d}",
            "AccessionNumber": accession(study),
            "Modality": "MR",
            "PatientID": f"P{patient(study):08d}",
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


def patient(study: int) -> int:
    """Return the number of a study's patient."""
    return int(study / STUDIES_PER_PATIENT)


@contextlib.contextmanager
def timed(export: Export) -> Iterator[dict[str, float]]:
    """Let planning see a synthetic export, and take the time of its parts."""
    seconds: dict[str, float] = {}

    def clocked(part: str, function: Callable) -> Callable:
        def call(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            result = function(*arguments, **named)
            seconds[part] = seconds.get(part, 0) + time.perf_counter() - started
            return result

        return call

    with contextlib.ExitStack() as patches:
        for part, (where, name) in PARTS.items():
            function = clocked(part, getattr(where, name))
            patches.enter_context(mock.patch.object(where, name, function))
        for name in ("walk", "stat_files"):
            patches.enter_context(mock.patch.object(index_dicom, name, getattr(export, name)))
        made_up = clocked(MADE_UP, export.read_files)
        patches.enter_context(mock.patch.object(index_dicom, "read_files", made_up))
        yield seconds


def plan_once(folder: Path, studies: int, tables: bool) -> dict[str, Any]:
    """Plan a synthetic export in this process and return what that took."""
    config = settings(folder, studies if tables else 0)
    with timed(Export(range(studies))) as seconds:
        started = time.perf_counter()
        summary = planning.make_plan(config)
        seconds["all"] = time.perf_counter() - started
        seconds["all, CPU"] = time.process_time()
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


def settings(folder: Path, rows: int) -> Config:
    """Return the settings of a project, with a mapping and opt-outs if they are to have rows."""
    (folder / "export").mkdir(exist_ok=True)
    if not (folder / "pseudonym.key").exists():
        new_key(folder / "pseudonym.key")
    identity = write_tables(folder, rows) if rows else {}
    return checked(
        {"deface": {"backend": "deepbet", "device": "cpu"}, "identity": identity}, folder
    )


def write_tables(folder: Path, rows: int) -> dict[str, str]:
    """Write a mapping of all studies, and opt-outs of some, and return how to configure them."""
    header = "Accession,Anon Patient ID,Anonymized Study Date\n"
    with (folder / "mapping.csv").open("w", encoding="ascii") as file:
        file.write(header)
        file.writelines(f"{accession(n)},ANON-{patient(n)},1999-01-01\n" for n in range(rows))
    opt_outs = "".join(f"P{n:08d}\n" for n in range(0, rows, 1000))
    (folder / "opt_out.csv").write_text(f"PatientID\n{opt_outs}", encoding="ascii")
    return {"mapping": "mapping.csv", "opt_out": "opt_out.csv"}


def main() -> None:
    """Run each plan in a process of its own and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=STUDIES)
    parser.add_argument("--folder", type=Path, help="plan once here, and print JSON")
    parser.add_argument("--tables", action="store_true", help="with mapping and opt-outs")
    arguments = parser.parse_args()
    if arguments.folder:
        print(json.dumps(plan_once(arguments.folder, arguments.studies, arguments.tables)))
        return
    more = arguments.studies + arguments.studies // 100
    with tempfile.TemporaryDirectory(prefix="mrmill-planning-") as name:
        one, other = Path(name) / "one", Path(name) / "other"
        results = {
            "first plan": in_a_process(one, arguments.studies),
            "again, unchanged": in_a_process(one, arguments.studies),
            "again, 1 % more": in_a_process(one, more),
            "first plan, with tables": in_a_process(other, arguments.studies, "--tables"),
        }
    print(table(results))


def in_a_process(folder: Path, studies: int, *options: str) -> dict[str, Any]:
    """Plan in a fresh process, so that its peak memory is that of the plan alone."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.planning", *options]
    command += ["--folder", str(folder), "--studies", str(studies)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the results as a Markdown table."""
    lines = [f"| | {' | '.join(results)} |", "| --- |" + " ---: |" * len(results)]
    for what in ("files", "read", "studies", "series", "shards"):
        lines.append(f"| {what} | {' | '.join(f'{r[what]:,}' for r in results.values())} |")
    for part in ("index", MADE_UP, *list(PARTS)[1:], "all", "all, CPU"):
        cells = " | ".join(f"{r['seconds'].get(part, 0):.1f}" for r in results.values())
        lines.append(f"| {part}, in s | {cells} |")
    peaks = " | ".join(f"{r['peak_gb']:.2f}" for r in results.values())
    lines.append(f"| peak memory, in GB | {peaks} |")
    return "\n".join([*lines, "", f"Python {platform.python_version()}, {platform.machine()}"])


if __name__ == "__main__":
    main()
