"""Index DICOM files, and read the same headers with plain pydicom: files per second.

The files are read once before anything is measured, so that they come from the cache: the disk is
not measured. One process each, in turn, several times; the fastest round counts.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pydicom

from benchmarks.indexing.exported import write_export
from mrmill.config import Input
from mrmill.index import index_export
from mrmill.index.header import TAGS, read_header

ROUNDS = 3


def main() -> None:
    """Measure a synthetic export or a given folder, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=2000, help="synthetic files")
    parser.add_argument("--folder", type=Path, help="measure the DICOM files in it instead")
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mrmill-indexing-") as name:
        folder = arguments.folder
        if folder is None:
            folder = Path(name) / "export"
            write_export(folder, arguments.files)
        results = measured(folder, Path(name))
    print(table(results))
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


def measured(folder: Path, scratch: Path) -> dict[str, Any]:
    """Return what each way to read the headers of a folder costs."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    n_bytes = sum(len(path.read_bytes()) for path in paths)  # and the cache is warm
    headers = [path for path in paths if read_header(str(path))[0] == "ok"]
    ways: dict[str, Callable[[int], None]] = {
        "mrmill, whole index": lambda n: _index(folder, scratch / f"index{n}"),
        "mrmill, headers": lambda _: [read_header(str(path)) for path in headers],
        "pydicom": lambda _: [_plain(path) for path in headers],
    }
    rounds = [{way: _cost(do, n) for way, do in ways.items()} for n in range(ROUNDS)]
    fastest = {way: min((r[way] for r in rounds), key=lambda cost: cost["cpu_s"]) for way in ways}
    for cost in fastest.values():
        cost["files_per_cpu_s"] = len(headers) / cost["cpu_s"]
    plain = fastest["pydicom"]["cpu_s"]
    return {
        "files": len(headers),
        "other_files": len(paths) - len(headers),
        "bytes": n_bytes,
        "elements": len(pydicom.dcmread(headers[0], stop_before_pixels=True)),
        "ways": fastest,
        "times_faster_than_pydicom": plain / fastest["mrmill, whole index"]["cpu_s"],
        "python": platform.python_version(),
        "pydicom": pydicom.__version__,
        "pyarrow": pyarrow.__version__,
        "cpu": _cpu(),
    }


def _index(folder: Path, scratch: Path) -> None:
    """Walk, stat, read and write the index, in this process."""
    settings = Input(kind="dicom", path=folder)
    index = index_export(settings, scratch, 1, lambda *_: None)
    if not index.read:
        raise RuntimeError("nothing was read: an index was there before")


def _plain(path: Path) -> list[Any]:
    """Read the same values the usual way."""
    dataset = pydicom.dcmread(path, stop_before_pixels=True)
    return [dataset.get(keyword) for keyword in TAGS]


def _cost(do: Callable[[int], Any], n: int) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    do(n)
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def _cpu() -> str:
    """Return the name of the processor, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def table(results: dict[str, Any]) -> str:
    """Return the results as a Markdown table."""
    lines = ["| way | files/s of CPU | CPU s | wall s |", "| --- | ---: | ---: | ---: |"]
    for way, cost in results["ways"].items():
        numbers = f"{cost['files_per_cpu_s']:,.0f} | {cost['cpu_s']:.2f} | {cost['wall_s']:.2f}"
        lines.append(f"| {way} | {numbers} |")
    lines += [
        "",
        f"{results['files']:,} files, {results['bytes'] / 1e6:,.0f} MB, {results['elements']} "
        f"elements in the first; whole index {results['times_faster_than_pydicom']:.1f} times as "
        f"fast as pydicom. Python {results['python']}, pydicom {results['pydicom']}, pyarrow "
        f"{results['pyarrow']}; {results['cpu']}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
