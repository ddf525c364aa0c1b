"""What the measured rows say together: ratios of CPU time, errors, failures, and tables of them."""

import importlib.metadata
import os
import platform
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import mrmill
from benchmarks.registration.cases import ROWS

Row = dict[str, Any]

FAILED_MM = 2.0  # a mean error above this is a failure

#: Another subject's brain this far, on average, from its best rigid fit lies wrongly: ways to call
#: a rigid fit the best differ by 1 to 3 mm.
MISPLACED_MM = 5.0
PACKAGES = ("antspyx", "numpy", "numba", "scipy", "isal", "nibabel")

WHAT = {row.name: f"{row.fixed} <- {row.moving}" for row in ROWS}

STEP = ("read", "register", "resample", "write")


def summarised(rows: Sequence[Row], engines: Sequence[str]) -> dict[str, Any]:
    """Return the results of a set of cases; the first engine is the one called "ours".

    Rows of the reference alone give the reference's figures alone.
    """
    by_case: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by_case[row["case"]][row["method"]].append(row)
    cases = [_case(name, methods, engines) for name, methods in by_case.items()]
    results: dict[str, Any] = {}
    if engines:
        results |= {"ours": engines[0], **compared(cases, engines[0])}
        results["engines"] = {engine: compared(cases, engine) for engine in engines}
    return results | {"cases": cases}


def _case(name: str, methods: dict[str, list[Row]], engines: Sequence[str]) -> dict[str, Any]:
    """Put together what was measured on one case: every method, its seeds averaged."""
    any_row = next(iter(methods.values()))[0]
    case: Row = {"name": name, "what": WHAT[name]}
    case |= {"kind": any_row["kind"], "rigid": any_row["rigid"], "methods": {}}
    for method in ("reference", *engines):
        if methods[method]:
            case["methods"][method] = _averaged(methods[method])
    return case


def _averaged(rows: Sequence[Row]) -> dict[str, Any]:
    """Average one method's rows of one case over its seeds; the worst seed stays visible."""
    good = [row for row in rows if "tre_mm" in row]
    means = [row["tre_mm"]["mean"] for row in good]
    parts = sorted({part for row in good for part in row["cpu_s"]})
    return {
        "cpu_s": {part: _mean([row["cpu_s"][part] for row in good]) for part in parts},
        "tre_mm": {
            "mean": _mean(means),
            "max": _mean([row["tre_mm"]["max"] for row in good]),
            "worst_seed": max(means) if len(good) == len(rows) else None,
        },
        "failed_seeds": [row["seed"] for row in rows if _failed(row)],
        "rejected": [row["rejected"] for row in rows if "rejected" in row],
        "found_by": sorted({row["found_by"] for row in good if "found_by" in row}),
    }


def _failed(row: Row) -> bool:
    return "tre_mm" not in row or row["tre_mm"]["mean"] > FAILED_MM


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 4) if values else None


def compared(cases: Iterable[Row], engine: str) -> dict[str, Any]:
    """Hold one engine against the reference, over the cases that both have rows of."""
    both = [case for case in cases if {"reference", engine} <= case["methods"].keys()]
    series = [case for case in both if case["kind"] != "template"]
    thick = [case for case in series if case["kind"] == "thick"]
    thin = [case for case in series if case["kind"] == "1mm"]
    onto_atlas = [case for case in both if case["kind"] == "template"]
    rigid = [case for case in both if case["rigid"]]
    others = [case for case in both if not case["rigid"]]
    succeeded = [
        case for case in rigid if not any(_failures(case, name) for name in ("reference", engine))
    ]

    def ratio(chosen: Sequence[Row], parts: Sequence[str]) -> float | None:
        """Reference's CPU seconds over ours, sum over sum."""
        ours_s = _seconds(chosen, engine, parts)
        return round(_seconds(chosen, "reference", parts) / ours_s, 2) if ours_s else None

    def errors(chosen: Sequence[Row]) -> dict[str, float | None]:
        return {
            label: _mean([e for case in chosen if (e := _error(case, method)) is not None])
            for label, method in (("reference", "reference"), ("ours", engine))
        }

    failed = {
        label: [case["name"] for case in rigid if _failures(case, method)]
        for label, method in (("reference", "reference"), ("ours", engine))
    }
    return {
        "cpu_ratio": ratio(series, STEP),
        "cpu_ratio_thick": ratio(thick, STEP),
        "cpu_ratio_1mm_fixed": ratio(thin, STEP),
        "registration_ratio": ratio(series, ["register"]),
        "atlas_ratio": ratio(onto_atlas, STEP),
        "atlas_registration_ratio": ratio(onto_atlas, ["register"]),
        "tre_mm": errors(succeeded),
        "tre_mm_all": errors(rigid),
        "tre_mm_other_subjects": errors(others),
        "failures": {label: len(names) for label, names in failed.items()},
        "failed": failed,
        "failures_by_seed": _failures_by_seed(rigid, engine),
        "misplaced_other_subjects": {
            label: [c["name"] for c in others if _misplaced(c, method)]
            for label, method in (("reference", "reference"), ("ours", engine))
        },
        "worse_than_reference": [c["name"] for c in succeeded if _is_worse(c, engine)],
        "n_rigid": len(rigid),
        "n_other_subjects": len(others),
    }


def _seconds(cases: Iterable[Row], method: str, parts: Sequence[str]) -> float:
    return sum(case["methods"][method]["cpu_s"].get(part, 0) for case in cases for part in parts)


def _error(case: Row, method: str) -> float | None:
    return case["methods"][method]["tre_mm"]["mean"]


def _failures(case: Row, method: str) -> list[int]:
    return case["methods"][method]["failed_seeds"]


def _misplaced(case: Row, method: str) -> bool:
    worst = case["methods"][method]["tre_mm"]["worst_seed"]
    return worst is None or worst > MISPLACED_MM


def _failures_by_seed(cases: Iterable[Row], engine: str) -> dict[int, int]:
    counts: dict[int, int] = defaultdict(int)
    for case in cases:
        for seed in _failures(case, engine):
            counts[seed] += 1
    return dict(counts)


def _is_worse(case: Row, engine: str) -> bool:
    """Whether the worst seed is further from the truth than the reference, by 0.1 mm or more."""
    return case["methods"][engine]["tre_mm"]["worst_seed"] > _error(case, "reference") + 0.1


def line(row: Row) -> str:
    """Say what one registration gave."""
    what = f"{row['case']} {row['method']} seed {row['seed']}"
    if "rejected" in row:
        return f"{what}: {row['rejected']}"
    seconds = sum(row["cpu_s"].get(part, 0) for part in STEP)
    error = row["tre_mm"]
    return f"{what}: {seconds:.2f} s, {error['mean']:.2f} mm (at most {error['max']:.2f})"


def table(results: dict[str, Any]) -> str:
    """Return the results as Markdown: one row for each case, then the figures of each engine."""
    engines = list(results.get("engines", {}))
    head = ["case", "fixed <- moving", "MR-RATE: CPU s", "error, mm: mean / max"]
    for engine in engines:
        head += [f"{engine}: CPU s", "error, mm: mean / max / worst seed"]
    lines = [head, ["---"] * 2 + ["---:"] * (len(head) - 2)]
    for case in results["cases"]:
        cells = [case["name"], case["what"] + ("" if case["rigid"] else ", another subject")]
        for method in ("reference", *engines):
            cells += _cells(case["methods"].get(method), method != "reference")
        lines.append(cells)
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return "\n\n".join([text, *(_figures(e, r) for e, r in results.get("engines", {}).items())])


def _cells(found: dict[str, Any] | None, seeds: bool) -> list[str]:
    if found is None:
        return ["", ""]
    error = [found["tre_mm"][name] for name in ("mean", "max", "worst_seed")[: 2 + seeds]]
    seconds = sum(found["cpu_s"].get(part, 0) for part in STEP)
    return [f"{seconds:.2f}", " / ".join("none" if e is None else f"{e:.2f}" for e in error)]


def _figures(engine: str, found: dict[str, Any]) -> str:
    """Return one engine's figures as a table."""

    def pair(name: str, digits: int) -> str:
        values = found[name]["reference"], found[name]["ours"]
        return " | ".join("none" if v is None else f"{v:.{digits}f}" for v in values)

    def names(key: str) -> str:
        return " | ".join(", ".join(found[key][label]) or "none" for label in ("reference", "ours"))

    return "\n".join(
        [
            f"| {engine} against MR-RATE's step | MR-RATE | {engine} |",
            "| --- | ---: | ---: |",
            f"| mean error, {found['n_rigid']} rigid cases, where both succeed | "
            f"{pair('tre_mm', 3)} |",
            f"| the same, all of them | {pair('tre_mm_all', 3)} |",
            f"| distance from the best rigid fit, {found['n_other_subjects']} other subjects | "
            f"{pair('tre_mm_other_subjects', 2)} |",
            f"| rigid cases more than {FAILED_MM:g} mm off | {pair('failures', 0)} |",
            f"| which, of any seed | {names('failed')} |",
            f"| other subjects more than {MISPLACED_MM:g} mm off | "
            f"{names('misplaced_other_subjects')} |",
            f"| CPU time of a series, times less | | {found['cpu_ratio']} |",
            f"| center with thick slices | | {found['cpu_ratio_thick']} |",
            f"| center of 1 mm | | {found['cpu_ratio_1mm_fixed']} |",
            f"| registration alone | | {found['registration_ratio']} |",
            f"| center onto the atlas | | {found['atlas_ratio']} |",
        ]
    )


def machine() -> dict[str, Any]:
    """Return what it ran on and with."""
    found = {"mrmill": mrmill.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    return {"versions": found, "machine": _cpu()}


def _cpu() -> str:
    """Return the name of the processor, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"
