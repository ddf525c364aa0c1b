"""The status as a table for a terminal, and the closing words of a run."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mrmill.layout import ReleaseTree, WorkTree
from mrmill.reasons import ACCEPTED, FAILED, REJECTED
from mrmill.status import Failure, StageStatus, Status, stage_seconds

if TYPE_CHECKING:
    from rich.console import Group
    from rich.progress_bar import ProgressBar

#: How many failures are shown, the last ones first.
SHOWN_FAILURES = 10

UNKNOWN = "not known yet"

#: Terminals that are narrower get no bars, no lines, and fewer columns.
WIDE = 120


def status_table(status: Status, width: int = WIDE) -> "Group":
    """Return the status as a table and, below it, the time left and what failed last.

    With several batches the sums over all come first, then the batches that are in work.

    Parameters
    ----------
    width : int
        Of the terminal, in characters.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    if not status.stages:
        return Group("nothing is planned yet")
    table = Table(
        box=box.HEAVY_HEAD if width >= WIDE else None,
        pad_edge=width >= WIDE,
    )
    columns = columns_for(status.running, width)
    for name in ("batch", *columns):
        side = "left" if name in ("batch", "stage", "") else "right"
        table.add_column(name, justify=side, no_wrap=True)
    batches = dict.fromkeys(row.batch for row in status.stages)
    sums = status.totals if len(batches) > 1 else ()
    rows = [("all", row) for row in sums]
    rows += [(row.batch, row) for row in status.stages if not sums or in_work(row)]
    previous = ""
    for batch, row in rows:
        if previous not in ("", batch):
            table.add_section()
        cells = (cell(row) for cell in columns.values())
        table.add_row(batch if batch != previous else "", *cells, style=colour(row))
        previous = batch
    return Group(table, Text(how_long(status)), Text(failures_text(status.failures)))


def columns_for(running: bool, width: int) -> dict[str, Callable[[StageStatus], Any]]:
    """Return the heads of the columns and what stands in them."""
    columns: dict[str, Callable[[StageStatus], Any]] = {"stage": lambda row: row.stage}
    if running and width >= WIDE:
        columns[""] = bar
    columns["shards"] = shards_cell
    in_flight = ("running",) if running and width >= 90 else ()
    for name in (ACCEPTED, REJECTED, FAILED, *in_flight, "to_do"):
        columns[name.replace("_", " ")] = lambda row, name=name: f"{getattr(row, name):,}"
    if running and width >= WIDE:
        columns["per hour"] = lambda row: "" if row.per_hour is None else f"{row.per_hour:,.0f}"
    if running:
        columns["time left"] = lambda row: duration(row.left_s) if row.left_s else ""
    return columns


def bar(row: StageStatus) -> "ProgressBar":
    """Return how much of a stage is done, drawn."""
    from rich.progress_bar import ProgressBar

    return ProgressBar(total=max(1, row.decided + row.open), completed=row.decided, width=12)


def shards_cell(row: StageStatus) -> str:
    """Return how many shards are done, how many are in work, and of how many."""
    at_work = f" +{row.shards_running}" if row.shards_running else ""
    return f"{row.shards_done}{at_work}/{row.shards}"


def in_work(row: StageStatus) -> bool:
    """Say whether a batch has begun a stage and not finished it."""
    return row.shards_done < row.shards and bool(row.shards_done or row.decided or row.running)


def colour(row: StageStatus) -> str | None:
    """Return how a row is drawn."""
    return "red" if row.failed else "green" if row.shards_done == row.shards else None


def failures_text(failures: Sequence[Failure]) -> str:
    """Return what failed last, and where its log is."""
    if not failures:
        return "failed: nothing"
    told = ", the last ones" if len(failures) > SHOWN_FAILURES else ""
    lines = [f"failed: {len(failures)}{told}"]
    for failure in failures[:SHOWN_FAILURES]:
        series = f"/{failure.series_key}" if failure.series_key else ""
        again = "; the next run tries again" if failure.reopened else ""
        lines.append(
            f"  {failure.study_uid}{series}  {failure.batch}  {failure.stage}  "
            f"{failure.error or failure.reason}{again}  {failure.log}"
        )
    return "\n".join(lines)


def how_long(status: Status) -> str:
    """Return whether a run is at work, and how long it will be."""
    if not status.running:
        waiting = any(row.open for row in status.totals)
        return "nothing is running" + "; `mrmill run` goes on" * waiting
    if status.left_s is None:
        return f"time left: {UNKNOWN}, too few studies were decided in the last hour"
    if not status.left_s:
        return "every stage is done; tables are being written"
    return f"time left: {duration(status.left_s)}, at the pace of the last hour"


def duration(seconds: float | None) -> str:
    """Return a time in words.

    Examples
    --------
    >>> [duration(s) for s in (40, 754, 8000, 50_000, 200_000)]
    ['1 min', '13 min', '2 h 14 min', '14 h', '2 d 8 h']
    >>> duration(None)
    'not known yet'
    """
    if seconds is None:
        return UNKNOWN
    minutes = math.ceil(seconds / 60)
    hours = round(minutes / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 600:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{hours} h" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def status_line(status: Status) -> str:
    """Return the status in one line, for a log."""
    stages = (f"{row.stage} {row.decided:,}/{row.decided + row.open:,}" for row in status.totals)
    failed = f"; {len(status.failures)} failed" if status.failures else ""
    return f"{', '.join(stages)}; {how_long(status)}{failed}"


def finished_run(work: WorkTree, release: ReleaseTree) -> dict[str, Any]:
    """Sum up a finished run.

    Returns
    -------
    summary : dict
        What `ledger.summary` says, the `release` folder, and `seconds` per stage.
    """
    from mrmill.catalog import read_table
    from mrmill.ledger import summary

    counts = summary(read_table(release.ledger))
    return {**counts, "release": str(release.root), "seconds": stage_seconds(work)}


def summary_text(work: WorkTree, release: ReleaseTree) -> str:
    """Return the closing words of a run: what became of everything, how long, where to look."""
    found = finished_run(work, release)
    lines = ["", _row("", ("seen", "accepted", "rejected", "failed"))]
    for kind in ("studies", "series"):
        numbers = (f"{found[kind][s]:,}" for s in ("seen", ACCEPTED, REJECTED, FAILED))
        lines.append(_row(kind, numbers))
    for state, codes in found["reasons"].items():
        lines += ["", f"{state} series, by reason"] if codes else []
        lines += [f"  {number:6,}  {code}" for code, number in sorted(codes.items(), key=_most)]
    lines += ["", "CPU time of each stage, all jobs added up"]
    lines += [f"  {seconds:8,.1f} s  {stage}" for stage, seconds in found["seconds"].items()]
    lines += ["", f"release  {found['release']}", f"  start at {release.card}"]
    lines.append(f"  why a series is not in it: {release.ledger}")
    lines.append(f"  check it with: mrmill verify {found['release']}")
    if codes := ", ".join(found["waiting"]):
        lines.append(f"  some wait for a person's look ({codes}): docs/first-run.md says how")
    if found["series"][FAILED]:
        lines.append(f"  some failed, see {work.failures}")
        lines.append("  mend the cause, then `mrmill retry` and `mrmill run`")
    return "\n".join(lines)


def _row(name: str, cells: Iterable[str]) -> str:
    return f"{name:8}" + "".join(f"{text:>10}" for text in cells)


def _most(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]
