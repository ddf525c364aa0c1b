"""Registration of phantoms whose truth is known: error, failures and CPU time, against MR-RATE.

Every pair is registered by MR-RATE's own step, re-stated in `reference`, and by mrmill's, from the
same files, one after the other in one process with one thread. What is measured goes into a file
of rows beside the results as it comes, so that a run which was cut off goes on (`--resume`).
"""

import argparse
import json
import tempfile
import typing
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.registration import summary
from benchmarks.registration.bench import REFERENCE, SEEDS, Bench
from benchmarks.registration.cases import QUICK, ROWS, get_case
from mrmill.config import Register

ENGINES = [
    name
    for name in typing.get_args(Register.model_fields["engine"].annotation)
    if find_spec(f"mrmill.register.engines.{name}")
]

Row = dict[str, Any]


def main() -> None:
    """Measure, print the tables and write JSON."""
    arguments = parsed()
    results: dict[str, Any] = {}
    if arguments.cases != ["none"]:
        rows = Rows(arguments.json.with_suffix(".jsonl"), arguments.resume)
        if arguments.reference:
            rows.add_from(arguments.reference, REFERENCE)
            results["reference_rows"] = "from an earlier run: its times are of another hour"
        measure_phantoms(arguments, rows)
        measured = rows.of(arguments.seed, arguments.cases)
        results |= summary.summarised(measured, our_engines(arguments.engine))
        print(summary.table(results))
    if arguments.real:
        from benchmarks.registration import real

        folder = arguments.cache / "real"
        results["real"] = real.measured(arguments.engine, folder, arguments.pictures)
        print(real.table(results["real"]))
    for engine in arguments.engine if arguments.scaling else ():
        from benchmarks.registration import scaling

        found = scaling.measured(engine, arguments.cache)
        results.setdefault("scaling", {})[engine] = found
        print(scaling.table(found))
    results |= {"set": arguments.seed, **summary.machine()}
    arguments.json.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


def parsed() -> argparse.Namespace:
    """Read the command line."""
    best = [name for name in ENGINES if name != "ants"] or ENGINES
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="write the results here")
    parser.add_argument("--quick", action="store_true", help="six cases, one seed: 3 minutes")
    parser.add_argument(
        "--engine",
        action="append",
        choices=[*ENGINES, "none"],
        help=f"engine of mrmill, more than once if wanted (default: {', '.join(best)})",
    )
    parser.add_argument(
        "--cases", type=lambda text: text.split(","), help="such as C01,A03; none for no phantoms"
    )
    parser.add_argument("--seed", type=int, default=0, help="which set of cases (default: 0)")
    parser.add_argument("--resume", action="store_true", help="keep what OUT's .jsonl has")
    parser.add_argument(
        "--reference", type=Path, help="take the reference from an earlier run's .jsonl"
    )
    parser.add_argument("--real", action="store_true", help="also pairs below MRMILL_TEST_DATA")
    parser.add_argument(
        "--pictures", type=Path, help="with --real: draw heads on the template here"
    )
    parser.add_argument("--scaling", action="store_true", help="also throughput and memory")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(tempfile.gettempdir()) / "mrmill-registration",
        help="folder that keeps the phantoms and masks (default: %(default)s)",
    )
    arguments = parser.parse_args()
    arguments.engine = [name for name in arguments.engine or best if name != "none"]
    names = [row.name for row in ROWS]
    arguments.cases = arguments.cases or (QUICK if arguments.quick else names)
    if unknown := {*arguments.cases} - {*names, "none"}:
        parser.error(f"there is no case {', '.join(sorted(unknown))}")
    return arguments


def our_engines(names: Sequence[str]) -> list[str]:
    """Put the engine that stands for "ours" first: the configured default, or the last given."""
    first = Register().engine if Register().engine in names else names[-1] if names else None
    return sorted(names, key=lambda name: name != first)


class Rows:
    """What was measured, one JSON object a line, on disk as soon as it is known."""

    def __init__(self, path: Path, keep: bool) -> None:
        self.path = path
        if not keep:
            path.unlink(missing_ok=True)
        self._rows: dict[tuple[Any, ...], Row] = {}
        if path.exists():
            self.add_from(path)

    def add_from(self, path: Path, method: str | None = None) -> None:
        """Take over the rows of a file; of one method, if one is named."""
        for line in path.read_text("utf-8").splitlines():
            row = json.loads(line)
            if method in (None, row["method"]):
                self._rows[_key(row)] = row

    def __contains__(self, row: Row) -> bool:
        return _key(row) in self._rows

    def add(self, row: Row) -> None:
        """Keep a row, and write it."""
        self._rows[_key(row)] = row
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def of(self, seed: int, names: Sequence[str]) -> list[Row]:
        """Return the rows of the named cases of one set, in the order of the cases."""
        order = [row.name for row in ROWS if row.name in names]
        rows = [r for r in self._rows.values() if r["set"] == seed and r["case"] in order]
        return sorted(rows, key=lambda row: order.index(row["case"]))


def _key(row: Row) -> tuple[Any, ...]:
    return row["set"], row["case"], row["method"], row["seed"]


def measure_phantoms(arguments: argparse.Namespace, rows: Rows) -> None:
    """Register every case in every way that has no row yet."""
    bench = Bench()
    for name in arguments.cases:
        planned = [
            {"set": arguments.seed, "case": name, "method": method, "seed": seed}
            for method, seed in methods(arguments.engine, arguments.quick)
        ]
        planned = [row for row in planned if row not in rows]
        if not planned:
            continue
        case = get_case(name, arguments.cache, arguments.seed)
        for row in planned:
            row = row | bench.measured(case, row["method"], row["seed"])
            rows.add(row)
            print(summary.line(row), flush=True)


def methods(engines: Sequence[str], quick: bool) -> Iterator[tuple[str, int]]:
    """Give the reference and each engine with each of its seeds."""
    yield REFERENCE, SEEDS[0]
    for engine in engines:
        for seed in SEEDS[:1] if quick else SEEDS:
            yield engine, seed


if __name__ == "__main__":
    main()
