"""The figures of a run: per rule and stage from the attempts, per step from the studies."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import nlargest
from typing import TYPE_CHECKING, Any

from mrmill.errors import UserError
from mrmill.layout import WorkTree
from mrmill.profile.attempts import DONE, FAILED, KILLED, read_attempts
from mrmill.profile.suggest import Suggestion, percentile, suggestions
from mrmill.profile.usage import StudyUsage, read_usage
from mrmill.stages import STAGES

if TYPE_CHECKING:
    import pandas as pd

#: Columns of profile.csv: name -> what it holds. Sums are over all attempts, whatever became of
#: them; a row with a step sums over the studies' records instead, and leaves the job's columns out.
COLUMNS = {
    "rule": "rule of the workflow",
    "stage": "stage, named as its folder in the work tree",
    "step": "part of the stage's work on a study; empty: the jobs as a whole",
    "jobs": "shard jobs",
    "attempts": "attempts of these jobs, reruns included",
    "done": "attempts that ended well",
    "failed": "attempts that ended with an error",
    "killed": "attempts that were stopped: by a limit, a signal or a dead machine",
    "studies": "studies worked on",
    "series": "series of these studies that the stage looked at",
    "times": "how often the step ran",
    "wall_s": "seconds: of jobs, from start to end; of steps, of the workers",
    "cpu_s": "CPU seconds, of all processes",
    "wall_s_per_study": "wall_s / studies",
    "wall_s_per_series": "wall_s / series",
    "cpu_s_per_study": "cpu_s / studies",
    "cpu_s_per_series": "cpu_s / series",
    "threads": "threads asked for, the most of any attempt",
    "cpu_efficiency": "cpu_s / (wall_s x threads), 0 to 1",
    "mem_mb": "memory asked for at the first attempt, MB of 2^20 bytes",
    "peak_mb_p50": "highest memory of a job that ended well: the median job, MB",
    "peak_mb_p95": "what 95 of 100 such jobs did not exceed, MB",
    "peak_mb_max": "the highest of all attempts, MB",
    "gpu_s": "seconds in which a GPU was held, times GPUs",
    "gpu_s_per_series": "gpu_s / series",
    "gpu_busy_share": "share of gpu_s in which the GPU computed, 0 to 1",
    "gpu_peak_mb": "highest GPU memory, MB",
    "read_mb": "read from files, from the page cache too, MB",
    "written_mb": "written to files, MB",
}

#: What a stage did outside any step.
OTHER = "other"

#: Slowest studies that are kept.
N_SLOWEST = 20


class NothingMeasured(UserError):
    """No shard job has left a row yet."""


@dataclass
class StageTotals:
    """Sums over the studies of one stage.

    Attributes
    ----------
    steps : dict
        Step -> `wall_s`, `cpu_s`, `n`; the rest under `other`.
    """

    stage: str
    studies: int = 0
    series: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    steps: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, study: StudyUsage) -> None:
        """Count one study in."""
        wall_s, cpu_s = study.usage.get("wall_s", 0.0), study.usage.get("cpu_s", 0.0)
        self.studies += 1
        self.series += study.series
        self.wall_s += wall_s
        self.cpu_s += cpu_s
        for name, taken in study.usage.get("steps", {}).items():
            total = self.steps.setdefault(name, dict.fromkeys(taken, 0.0))
            for key in total:
                total[key] += taken[key]

    def all_steps(self) -> dict[str, dict[str, float]]:
        """Return the steps and, where there are any, what the stage did beside them."""
        if not self.steps:
            return {}
        rest = {
            key: max(0.0, getattr(self, key) - sum(step[key] for step in self.steps.values()))
            for key in ("wall_s", "cpu_s")
        }
        return {**self.steps, OTHER: {**rest, "n": self.studies}}


@dataclass
class Profile:
    """All that is known about what a run took.

    Attributes
    ----------
    attempts : DataFrame
        `read_attempts`, with the columns `gpu_s`, `gpu_busy_share` and `gpu_peak_mb` for `gpu`.
    stages : list of StageTotals
        Of the studies, in the order of the work.
    table : DataFrame
        With `COLUMNS`.
    slowest : list of dict
        Studies by their seconds over all stages.
    """

    attempts: "pd.DataFrame"
    stages: list[StageTotals]
    table: "pd.DataFrame"
    slowest: list[dict[str, Any]]
    suggestions: list[Suggestion]


def read_profile(work: WorkTree) -> Profile:
    """Read and sum up all that was measured in a work tree.

    Raises
    ------
    NothingMeasured
        When no job has left a row.
    """
    rows = read_attempts(work)
    if not rows:
        raise NothingMeasured(
            f"nothing has been measured yet: {work.usage} is empty\n  Every job of `mrmill run` "
            "leaves a row there; run a shard with this version first."
        )
    attempts = attempts_frame(rows)
    seconds: dict[str, dict[str, Any]] = {}
    stages = [_stage_totals(work, stage, seconds) for stage in order(attempts["stage"].unique())]
    slowest = nlargest(N_SLOWEST, seconds.values(), key=lambda study: study["wall_s"])
    table = profile_table(attempts, stages)
    return Profile(attempts, stages, table, slowest, suggestions(attempts))


def order(stages: list[str]) -> list[str]:
    """Sort stages by the way of the data."""
    known = list(STAGES)
    return sorted(stages, key=lambda s: (known.index(s) if s in known else len(known), s))


def attempts_frame(rows: list[dict[str, Any]]) -> "pd.DataFrame":
    """Return attempts as a table, what is told about GPUs in columns of its own."""
    import pandas as pd

    frame = pd.DataFrame(rows)
    told = [row["gpu"] or {} for row in rows]
    names = {"gpu_s": "held_s", "gpu_busy_share": "busy_share", "gpu_peak_mb": "peak_mb"}
    for column, name in names.items():
        frame[column] = pd.array([gpu.get(name) for gpu in told], dtype="Float64")
    return frame.drop(columns="gpu")


def _stage_totals(work: WorkTree, stage: str, seconds: dict[str, dict[str, Any]]) -> StageTotals:
    """Sum up a stage's studies; note in `seconds`, per study, where its time went."""
    totals = StageTotals(stage)
    for study in read_usage(work, stage):
        totals.add(study)
        empty = {"study_uid": study.study_uid, "batch": study.batch, "wall_s": 0.0, "cpu_s": 0.0}
        seen = seconds.setdefault(study.study_uid, {**empty, "series": 0, "stages": {}})
        seen["wall_s"] += study.usage.get("wall_s", 0.0)
        seen["cpu_s"] += study.usage.get("cpu_s", 0.0)
        seen["series"] = max(seen["series"], study.series)
        seen["stages"][stage] = study.usage.get("wall_s", 0.0)
    return totals


def profile_table(attempts: "pd.DataFrame", stages: list[StageTotals]) -> "pd.DataFrame":
    """Return the figures of every rule and stage, and under each those of its steps."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for totals in stages:
        jobs = attempts[attempts["stage"] == totals.stage]
        for rule in jobs.sort_values("started")["rule"].unique():
            rows.append(_job_row(rule, totals.stage, jobs[jobs["rule"] == rule]))
        rows += _step_rows(rows[-1]["rule"], totals)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _job_row(rule: str, stage: str, jobs: "pd.DataFrame") -> dict[str, Any]:
    """Return the figures of all attempts of a rule's jobs."""
    useful = jobs[(jobs["state"] == DONE) & (jobs["studies"] > 0)]
    peaks = (useful if len(useful) else jobs)["peak_mb"]
    row = {
        "rule": rule,
        "stage": stage,
        "step": "",
        "jobs": len(jobs[["batch", "shard"]].drop_duplicates()),
        "attempts": len(jobs),
        **{state: int((jobs["state"] == state).sum()) for state in (DONE, FAILED, KILLED)},
        **{name: int(jobs[name].sum()) for name in ("studies", "series")},
        **{name: round(jobs[name].sum(), 2) for name in ("wall_s", "cpu_s")},
        "threads": int(jobs["threads"].max()),
        "cpu_efficiency": round(jobs["cpu_s"].sum() / (jobs["wall_s"] * jobs["threads"]).sum(), 3),
        "mem_mb": jobs["mem_mb"].min(),
        "peak_mb_p50": percentile(peaks, 50),
        "peak_mb_p95": percentile(peaks),
        "peak_mb_max": jobs["peak_mb"].max(),
        **{name: round(jobs[name].sum(), 1) for name in ("read_mb", "written_mb")},
    }
    return {**row, **_shares(row), **_gpu(jobs, row["series"])}


def _gpu(jobs: "pd.DataFrame", n_series: int) -> dict[str, Any]:
    """Return a rule's columns about GPUs; none where it held none."""
    held_s = jobs["gpu_s"].sum()
    if not held_s:
        return {}
    told = jobs[jobs["gpu_busy_share"].notna()]
    busy_s = (told["gpu_s"] * told["gpu_busy_share"]).sum()
    return {
        "gpu_s": round(held_s, 1),
        "gpu_s_per_series": round(held_s / n_series, 3) if n_series else None,
        "gpu_busy_share": round(busy_s / told["gpu_s"].sum(), 3) if len(told) else None,
        "gpu_peak_mb": jobs["gpu_peak_mb"].max(),
    }


def _step_rows(rule: str, totals: StageTotals) -> Iterator[dict[str, Any]]:
    for name, taken in totals.all_steps().items():
        row = {
            "rule": rule,
            "stage": totals.stage,
            "step": name,
            "studies": totals.studies,
            "series": totals.series,
            "times": int(taken["n"]),
            "wall_s": round(taken["wall_s"], 3),
            "cpu_s": round(taken["cpu_s"], 3),
        }
        yield {**row, **_shares(row)}


def _shares(row: dict[str, Any]) -> dict[str, float]:
    """Return seconds per study and per series."""
    return {
        f"{name}_per_{unit}": round(row[name] / row[units], 4)
        for name in ("wall_s", "cpu_s")
        for unit, units in (("study", "studies"), ("series", "series"))
        if row[units]
    }
