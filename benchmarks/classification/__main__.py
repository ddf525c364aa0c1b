"""Score the classification rules, and the published ones, on labelled series headers.

Scores are taken over six classes: the modalities that a release accepts, and `reject` for all
others. Balanced accuracy is the mean of the classes' recalls, so that rare ones count as much.
"""

import argparse
import json
import platform
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mrmill
from mrmill.curate.classify import classify
from mrmill.curate.rules import TABLE, Rules, load_rules
from mrmill.headers import sidecar_header

PUBLISHED = Path(__file__).with_name("mr_rate_rules.yaml")

ACCEPTED = ("T1w", "T2w", "T2-FLAIR", "SWI", "MRA")
CLASSES = (*ACCEPTED, "reject")

#: Labels of the data that the table has under another name.
RENAMED = {"OTHER": "other"}

NAMES = ("SequenceName", "ProtocolName", "SeriesDescription")

#: Which keys of a sidecar are seen.
CONDITIONS = {
    "all": lambda key: True,
    "physics only": lambda key: key not in NAMES,
    "names only": lambda key: key in NAMES,
}


@dataclass(frozen=True)
class Series:
    """A labelled header."""

    label: str
    vendor: str
    sidecar: Mapping[str, Any]


def main() -> None:
    """Print the scores of both tables of rules, and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--headers", type=Path, required=True, help="labelled headers, JSON lines")
    parser.add_argument("--json", type=Path, help="write the results here")
    arguments = parser.parse_args()
    series = read_series(arguments.headers)
    results: dict[str, Any] = {"versions": versions(), "series": len(series)}
    for name, table in (("mrmill", TABLE), ("published", PUBLISHED)):
        results[name] = measured(series, load_rules(table))
        print(report(name, results[name]))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def read_series(path: Path) -> list[Series]:
    """Read labelled headers: lines with `label` and `sidecar`."""
    records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [
        Series(
            RENAMED.get(record["label"], record["label"]),
            (record["sidecar"].get("Manufacturer") or "not-given").split()[0].strip(",").upper(),
            record["sidecar"],
        )
        for record in records
    ]


def measured(series: list[Series], rules: Rules) -> dict[str, Any]:
    """Score a table of rules under every condition, and take its time."""
    found: dict[str, list[str]] = {}
    for condition, seen in CONDITIONS.items():
        headers = [
            sidecar_header({key: value for key, value in one.sidecar.items() if seen(key)}, {})
            for one in series
        ]
        start = time.process_time()
        found[condition] = [classify(header, rules).classified_modality for header in headers]
        if condition == "all":
            seconds = time.process_time() - start
    pairs = {name: list(zip(series, answers, strict=True)) for name, answers in found.items()}
    everything = pairs["all"]
    return {
        "scores": {name: scores(pair) for name, pair in pairs.items()},
        "vendors": {
            vendor: scores([pair for pair in everything if pair[0].vendor == vendor])
            for vendor in sorted({one.vendor for one in series})
        },
        "classes": confusion(everything, six),
        "modalities": confusion(everything, str),
        "series_per_second": round(len(series) / seconds),
    }


def six(modality: str) -> str:
    """Return the class that is scored."""
    return modality if modality in ACCEPTED else "reject"


def scores(pairs: Iterable[tuple[Series, str]]) -> dict[str, Any]:
    """Return raw and balanced accuracy over the six classes, and every class's recall."""
    seen: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for one, answer in pairs:
        seen[six(one.label)] += 1
        right[six(one.label)] += six(one.label) == six(answer)
    recalls = {name: right[name] / seen[name] for name in CLASSES if seen[name]}
    return {
        "raw": round(right.total() / seen.total(), 4),
        "balanced": round(sum(recalls.values()) / len(recalls), 4),
        "recalls": {name: round(recall, 4) for name, recall in recalls.items()},
        "series": seen.total(),
    }


def confusion(pairs: Iterable[tuple[Series, str]], grouped: Any) -> dict[str, dict[str, int]]:
    """Count how often each label (outer) was called what (inner)."""
    counts: dict[str, Counter[str]] = {}
    for one, answer in pairs:
        counts.setdefault(grouped(one.label), Counter())[grouped(answer)] += 1
    return {label: dict(sorted(counts[label].items())) for label in sorted(counts)}


def report(name: str, results: Mapping[str, Any]) -> str:
    """Write the results of one table of rules for people."""
    parts = [f"== {name}: {results['series_per_second']} series/s"]
    for title, rows in (("fields seen", results["scores"]), ("vendor", results["vendors"])):
        lines = [[row, *score_cells(found)] for row, found in rows.items()]
        parts.append(as_table([title, "series", "raw", "balanced", *CLASSES], lines))
    for title in ("classes", "modalities"):
        counts = results[title]
        answers = sorted({answer for row in counts.values() for answer in row})
        parts.append(
            as_table(
                ["label, then what it was called", *answers],
                [[label, *(row.get(a, "") for a in answers)] for label, row in counts.items()],
            )
        )
    return "\n\n".join(parts) + "\n"


def score_cells(found: Mapping[str, Any]) -> list[str]:
    """Write a row of scores; a class of which there is none stays empty."""
    recalls = [found["recalls"].get(name) for name in CLASSES]
    shown = ["" if recall is None else f"{recall:.2f}" for recall in recalls]
    return [str(found["series"]), f"{found['raw']:.3f}", f"{found['balanced']:.3f}", *shown]


def as_table(head: list[str], rows: list[list[Any]]) -> str:
    """Write a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def versions() -> dict[str, str]:
    """Say what was measured, on what."""
    return {"mrmill": mrmill.__version__, "python": platform.python_version()}


if __name__ == "__main__":
    main()
