"""The profile as files: a table, a fragment for the config, pictures, and a page with all of it."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mrmill.profile.attempts import FAILED, KILLED, RUNNING
from mrmill.profile.pictures import draw_all, span
from mrmill.profile.suggest import fragment
from mrmill.profile.table import Profile

if TYPE_CHECKING:
    import pandas as pd

TABLE, FRAGMENT, PAGE = "profile.csv", "resources.yaml", "profile.html"

#: Title and note of each picture, in the order of `draw_all`.
PICTURES = (
    (
        "Where the time of a series goes",
        "Left: seconds one worker spends on one series. Right: the steps these seconds go into.",
    ),
    (
        "Memory",
        "All processes of a job together; a page that workers share counts once.",
    ),
    (
        "The course of the run",
        "One bar for each attempt of a job. Lanes fill up from the top, so the bars above each "
        "other are the jobs at work at that time. Long times without any job are cut out.",
    ),
)

#: How a number of any size is written: with three digits.
THREE_DIGITS = ""

#: Column of profile.csv -> heading, unit, how a value is written.
TIME = {
    "stage": ("stage", "", "{}"),
    "jobs": ("jobs", "", "{:,.0f}"),
    "attempts": ("attempts", "", "{:,.0f}"),
    "failed": ("failed", "", "{:,.0f}"),
    "killed": ("killed", "", "{:,.0f}"),
    "studies": ("studies", "", "{:,.0f}"),
    "series": ("series", "", "{:,.0f}"),
    "wall_s": ("wall", "h", THREE_DIGITS),
    "cpu_s": ("CPU", "core-h", THREE_DIGITS),
    "cpu_s_per_study": ("CPU / study", "s", "{:,.1f}"),
    "cpu_s_per_series": ("CPU / series", "s", "{:,.1f}"),
    "threads": ("threads", "", "{:.0f}"),
    "cpu_efficiency": ("efficiency", "% of threads", "{:.0%}"),
}
MEMORY = {
    "stage": ("stage", "", "{}"),
    "mem_mb": ("asked for", "MB", "{:,.0f}"),
    "peak_mb_p50": ("peak p50", "MB", "{:,.0f}"),
    "peak_mb_p95": ("peak p95", "MB", "{:,.0f}"),
    "peak_mb_max": ("peak max", "MB", "{:,.0f}"),
    "gpu_s": ("GPU", "h", THREE_DIGITS),
    "gpu_busy_share": ("GPU busy", "% of time", "{:.0%}"),
    "gpu_peak_mb": ("GPU peak", "MB", "{:,.0f}"),
    "read_mb": ("read", "GB", THREE_DIGITS),
    "written_mb": ("written", "GB", THREE_DIGITS),
}
STEPS = {
    "stage": ("stage", "", "{}"),
    "step": ("step", "", "{}"),
    "times": ("times", "", "{:,.0f}"),
    "wall_s": ("wall", "h", THREE_DIGITS),
    "cpu_s": ("CPU", "core-h", THREE_DIGITS),
    "wall_s_per_study": ("wall / study", "s", "{:,.3f}"),
    "wall_s_per_series": ("wall / series", "s", "{:,.3f}"),
    "cpu_s_per_series": ("CPU / series", "s", "{:,.3f}"),
}
#: What a unit of these tables holds of the unit in profile.csv.
UNITS = {"h": 3600, "core-h": 3600, "GB": 1024}


class _Table(NamedTuple):
    title: str
    note: str
    heads: list[tuple[str, str]]
    rows: list[dict[str, Any]]
    texts: int


def write_profile(profile: Profile, name: str, folder: Path) -> Path:
    """Write table, fragment, pictures and page into a folder; return the page's path.

    Parameters
    ----------
    name : str
        Of the dataset.
    """
    folder.mkdir(parents=True, exist_ok=True)
    profile.table.to_csv(folder / TABLE, index=False, float_format="%.10g")
    (folder / FRAGMENT).write_text(fragment(profile.suggestions), encoding="utf-8")
    pictures = draw_all(profile, folder)
    page = folder / PAGE
    page.write_text(page_text(profile, name, pictures), encoding="utf-8")
    return page


def page_text(profile: Profile, name: str, pictures: Sequence[Path]) -> str:
    """Return the page; everything it shows is inside it."""
    from jinja2 import Environment, FileSystemLoader

    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    shown = [
        (title, note, base64.b64encode(picture.read_bytes()).decode())
        for (title, note), picture in zip(PICTURES, pictures, strict=True)
    ]
    return templates.get_template("page.html.jinja").render(
        name=name,
        facts=facts(profile.attempts),
        fragment=fragment(profile.suggestions) if profile.suggestions else "",
        above=above(profile),
        pictures=shown,
        tables=[
            *job_tables(profile),
            step_table(profile),
            slowest_table(profile),
        ],
    )


def facts(attempts: "pd.DataFrame") -> list[tuple[str, str]]:
    """Return the figures at the head of the page, each with what it says."""
    states = attempts["state"].value_counts()
    jobs = len(attempts[["batch", "stage", "shard"]].drop_duplicates())
    first, last = attempts["started"].min(), attempts["ended"].max()
    gpu_h = attempts["gpu_s"].sum() / 3600
    asked_s = (attempts["wall_s"] * attempts["threads"]).sum()
    found = [
        (f"{jobs:,}", "jobs"),
        (f"{len(attempts):,}", "attempts"),
        *((f"{states[s]:,}", s) for s in (FAILED, KILLED, RUNNING) if s in states),
        (span(last - first), "from first to last (h:mm:ss)"),
        (three_digits(attempts["cpu_s"].sum() / 3600), "core-hours of CPU"),
        (three_digits(asked_s / 3600), "core-hours asked for"),
    ]
    return [*found, (three_digits(gpu_h), "GPU-hours held")] if gpu_h else found


def above(profile: Profile) -> list[str]:
    """Return a warning for each rule some of whose jobs needed more than is suggested."""
    return [
        f"{it.rule}: {it.above} of {it.jobs} jobs needed more than {it.mem_mb:,} MB; with retries "
        "they get it at a later attempt."
        for it in profile.suggestions
        if it.above
    ]


def job_tables(profile: Profile) -> list[_Table]:
    """Return the figures of the jobs."""
    rows = profile.table[profile.table["step"] == ""]
    # two rules write tables; the others are told apart by their stage
    rows = rows.assign(stage=rows["stage"].where(rows["stage"] != "catalog", rows["rule"]))
    time = "Sums over all attempts, those that failed or were killed too."
    memory = "Peaks of jobs that ended well, the maximum of all. MB are 2^20 bytes, GB 2^30."
    return [
        _table("Jobs: time", time, TIME, rows, texts=1),
        _table("Jobs: memory, GPU, files", memory, MEMORY, rows, texts=1),
    ]


def step_table(profile: Profile) -> _Table:
    """Return the figures of the steps."""
    rows = profile.table[profile.table["step"] != ""]
    note = "Sums over the studies as they were last worked on, all workers added up."
    return _table("Steps", note, STEPS, rows, texts=2)


def _table(
    title: str, note: str, columns: dict[str, tuple], rows: "pd.DataFrame", texts: int
) -> _Table:
    """Return a table with those columns that hold anything."""
    columns = {name: how for name, how in columns.items() if rows[name].notna().any()}
    cells = [
        {
            "cells": [_cell(row[name], unit, how) for name, (_, unit, how) in columns.items()],
            "bad": bool(row.get("failed", 0) or row.get("killed", 0)) and not row["step"],
        }
        for row in rows.to_dict("records")
    ]
    return _Table(title, note, [head[:2] for head in columns.values()], cells, texts)


def _cell(value: Any, unit: str, how: str) -> str:
    import pandas as pd

    if pd.isna(value):
        return ""
    value = value / UNITS[unit] if unit in UNITS else value
    return how.format(value) if how else three_digits(value)


def three_digits(value: float) -> str:
    """Write a number with three digits, or all of those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def slowest_table(profile: Profile) -> _Table:
    """Return the studies that took longest, with the seconds of each stage."""
    stages = [stage.stage for stage in profile.stages]
    heads = [("study_uid", ""), ("batch", ""), ("series", ""), ("all", "s")]
    rows = [
        {
            "cells": [
                study["study_uid"],
                study["batch"],
                study["series"],
                f"{study['wall_s']:,.1f}",
                *(f"{study['stages'][s]:,.1f}" if s in study["stages"] else "" for s in stages),
            ]
        }
        for study in profile.slowest
    ]
    note = "Seconds of a worker in each stage. study_uid is the one of the release."
    return _Table("Slowest studies", note, [*heads, *((s, "s") for s in stages)], rows, texts=2)
