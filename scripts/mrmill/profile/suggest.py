"""What each rule should ask for, by what its jobs took."""

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mrmill.config import RuleResources
from mrmill.profile.attempts import DONE

if TYPE_CHECKING:
    import pandas as pd

#: Beyond what 95 of 100 jobs needed at most; the others get more at their second attempt.
SPARE = 1.2
PERCENTILE = 95

#: What Snakemake holds in a cluster job beside the rule's own processes, in MB: two of its
#: processes, each 168 MB at its peak (Snakemake 9.27). Jobs of one machine are measured without.
LAUNCH_MB = 350

#: Memory is asked for in steps of this many MB.
MEMORY_STEP_MB = 100


class Suggestion(NamedTuple):
    """What a rule should ask for, named as in the config, and how that came about.

    Attributes
    ----------
    jobs : int
        Jobs it rests on: those that ended well and had something to do, with the most threads, and
        where there are any, those with at least as many studies.
    measured_with : int
        Threads of those jobs.
    full : bool
        Whether they had at least as many studies as threads; else they needed less than others may.
    above : int
        How many of them would have needed their second attempt.
    """

    rule: str
    threads: int
    mem_mb: int
    runtime_min_per_study: float
    jobs: int
    measured_with: int
    full: bool
    above: int


def suggestions(attempts: "pd.DataFrame") -> list[Suggestion]:
    """Return a suggestion for every rule that the config can speak of and that was measured."""
    useful = attempts[(attempts["state"] == DONE) & (attempts["studies"] > 0)]
    names = [field.alias or name for name, field in RuleResources.model_fields.items()]
    rules = {rule: rows for rule, rows in useful.groupby("rule") if rule in names}
    return [suggestion(rule, rules[rule]) for rule in names if rule in rules]


def suggestion(rule: str, jobs: "pd.DataFrame") -> Suggestion:
    """Return what a rule should ask for: the 95th percentile of its jobs, and a fifth more."""
    threads = int(jobs["threads"].max())
    jobs = jobs[jobs["threads"] == threads]
    full = jobs[jobs["studies"] >= threads]  # with fewer studies, not every thread has work
    measured = full if len(full) else jobs
    minutes = measured["wall_s"] / 60 / measured["studies"]
    peaks_mb = measured["peak_mb"] + LAUNCH_MB * (measured["job_id"] == "")
    mem_mb = MEMORY_STEP_MB * math.ceil(SPARE * percentile(peaks_mb) / MEMORY_STEP_MB)
    busy_cores = percentile(full["cpu_s"] / full["wall_s"]) if len(full) else threads
    return Suggestion(
        rule=rule,
        threads=min(max(math.ceil(SPARE * busy_cores), 1), threads),
        mem_mb=mem_mb,
        runtime_min_per_study=two_digits(SPARE * percentile(minutes)),
        jobs=len(measured),
        measured_with=threads,
        full=len(full) > 0,
        above=int((peaks_mb > mem_mb).sum()),
    )


def percentile(values: "pd.Series", share: float = PERCENTILE) -> float:
    """Return the smallest value that at least this many of 100 do not exceed: one of the values."""
    return float(np.percentile(values, share, method="inverted_cdf"))


def two_digits(value: float) -> float:
    """Round up to two significant digits, at least 0.01."""
    digits = 1 - math.floor(math.log10(max(value, 0.01)))
    return math.ceil(max(value, 0.01) * 10**digits - 1e-9) / 10**digits


def fragment(found: list[Suggestion]) -> str:
    """Return suggestions as a block for the config."""
    lines = [
        f"# what {PERCENTILE} of 100 jobs did not exceed, and {SPARE - 1:.0%} more",
        "resources:",
    ]
    for it in found:
        values = (
            f"threads: {it.threads}, mem_mb: {it.mem_mb}, "
            f"runtime_min_per_study: {it.runtime_min_per_study:g}"
        )
        jobs = f"{it.jobs} job{'s' * (it.jobs > 1)} of {it.measured_with} thread"
        jobs += "s" * (it.measured_with > 1) + (not it.full) * ", with too few studies to fill them"
        lines.append(f"  {it.rule}: {{{values}}}  # {jobs}")
    return "\n".join(lines) + "\n"
