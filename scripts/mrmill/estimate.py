"""What a whole export will cost, from a pilot: core-hours, GPU-hours, wall time, bytes, inodes.

Every study that the pilot has seen counts, also one that was turned down early and cost little.
What a stage takes of a study has a mean and a spread between studies; the interval of a sum over
N further studies is Student's, 90 %. It holds both what is not known of the mean and the luck of
the draw. A study with many series is dear in every stage, so the intervals of stages add up.
"""

import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from mrmill.config import Config, Plan, load_config
from mrmill.disk import (
    Amount,
    Shard,
    Trees,
    drawn,
    planned_shards,
    shards_at_once,
    size_of,
)
from mrmill.errors import UserError
from mrmill.layout import ReleaseTree, WorkTree
from mrmill.profile import read_attempts
from mrmill.records import Journal, Record
from mrmill.shards import is_accepted
from mrmill.stages import STAGES, stages_in
from mrmill.workflow_files import rule_resources

#: Share of cases in which an interval holds the truth.
COVERED = 0.9
#: With fewer studies than this the pilot is called small: the spread itself is hardly known.
FEW_STUDIES = 20
#: Shards that are read, drawn over the pilot.
PILOT_SHARDS = 100

SHARD_FILE = re.compile(r"shard\d+\.")


class PilotError(UserError):
    """There is nothing to estimate from."""


@dataclass(frozen=True)
class Range:
    """A value and the interval that holds it in nine of ten cases."""

    value: float = 0
    low: float = 0
    high: float = 0

    def __add__(self, other: "Range") -> "Range":
        return Range(self.value + other.value, self.low + other.low, self.high + other.high)

    def __mul__(self, factor: float) -> "Range":
        return Range(self.value * factor, self.low * factor, self.high * factor)


class Cost(NamedTuple):
    """What a stage took of one study; `core_s` are seconds times the cores that were held."""

    core_s: float = 0
    gpu_s: float = 0
    n_bytes: float = 0
    inodes: float = 0


@dataclass(frozen=True)
class Space:
    """What a tree takes."""

    n_bytes: Range
    inodes: Range

    def __add__(self, other: "Space") -> "Space":
        return Space(self.n_bytes + other.n_bytes, self.inodes + other.inodes)


@dataclass(frozen=True)
class StageEstimate(Space):
    """What a stage takes of all studies; its space is what it writes."""

    core_hours: Range
    gpu_hours: Range


@dataclass(frozen=True)
class Estimate:
    """What all studies take.

    Attributes
    ----------
    pilot_studies : int
        Studies that it rests on.
    wall_hours : Range
        With so many cores and GPUs.
    trees : dict
        `work_peak`, with all batches on their way at once, `work_peak_of_a_batch`, with one after
        the other, `work_end`, `release`, and `both_peak`: what they take, bookkeeping and tables
        included.
    notes : list of str
        What is not known, or not known well.
    """

    studies: int
    pilot_studies: int
    cores: int
    gpus: int
    stages: dict[str, StageEstimate]
    core_hours: Range
    gpu_hours: Range
    wall_hours: Range
    trees: dict[str, Space]
    notes: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Return the same as plain values, for scripts."""
        return asdict(self)


@dataclass(frozen=True)
class Other:
    """Files beside images and zips.

    Attributes
    ----------
    n_bytes : float
        Per study.
    per_shard, per_batch, once : float
        Files and folders, by what they come with.
    """

    n_bytes: float = 0
    per_shard: float = 0
    per_batch: float = 0
    once: float = 0

    def __add__(self, other: "Other") -> "Other":
        return Other(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def space(self, studies: float, shards: float, batches: float) -> "Space":
        """Return what they take of a run of such a size; their spread is not known."""
        inodes = self.per_shard * shards + self.per_batch * batches + self.once
        return Space(Range(*[self.n_bytes * studies] * 3), Range(*[inodes] * 3))


@dataclass(frozen=True)
class Pilot:
    """A run that is finished or on its way.

    Attributes
    ----------
    costs : dict
        Stage -> what it took of every study that is decided there: nothing of those that an earlier
        stage turned down.
    threads : dict
        Stage -> cores of one of its jobs.
    studies, open : int
        Studies seen, and those of them that are still on their way.
    shard_studies, batch_studies : float
        Studies of a shard and of a full batch.
    keep : bool
        What was used stays in the work tree.
    bookkeeping, tables : Other
        Of the work tree (journals, manifests, logs, plan) and of the release.
    """

    costs: Mapping[str, Sequence[Cost]]
    threads: Mapping[str, int]
    studies: int
    open: int
    shard_studies: float
    batch_studies: float
    keep: bool
    bookkeeping: Other
    tables: Other


def estimate(pilot: Path, studies: int, cores: int = 1, gpus: int = 1) -> Estimate:
    """Predict what a run over so many studies takes.

    Parameters
    ----------
    pilot : Path
        Its config file, or its work tree (the tables of its release then do not count).

    Raises
    ------
    PilotError
        When the pilot has not seen two studies.
    """
    return predict(read_pilot(pilot), studies, cores, gpus)


def predict(pilot: Pilot, studies: int, cores: int, gpus: int) -> Estimate:
    """Go from what a pilot took to what so many studies take."""
    stages = {
        stage: StageEstimate(
            n_bytes=total_of([c.n_bytes for c in costs], studies),
            inodes=total_of([c.inodes for c in costs], studies),
            core_hours=total_of([c.core_s for c in costs], studies) * (1 / 3600),
            gpu_hours=total_of([c.gpu_s for c in costs], studies) * (1 / 3600),
        )
        for stage, costs in pilot.costs.items()
        if len(costs) > 1
    }
    return Estimate(
        studies=studies,
        pilot_studies=pilot.studies,
        cores=cores,
        gpus=gpus,
        stages=stages,
        core_hours=sum((stage.core_hours for stage in stages.values()), Range()),
        gpu_hours=sum((stage.gpu_hours for stage in stages.values()), Range()),
        wall_hours=wall_hours(pilot, stages, studies, cores, gpus),
        trees=space_of_trees(pilot, stages, studies, cores),
        notes=list(_notes(pilot, stages)),
    )


def total_of(values: Sequence[float], n: int) -> Range:
    """Predict the sum over `n` further studies from those seen.

    Parameters
    ----------
    values : sequence of float
        At least two.

    Notes
    -----
    Prediction interval for the sum of n further draws from a normal distribution, given m draws:
    n mean +- t(m - 1) s sqrt(n + n^2 / m) (Hahn and Meeker, Statistical Intervals, 1991, 4.8).
    A sum of costs does not go below zero.

    Examples
    --------
    >>> total_of([10, 10, 10], 100)
    Range(value=1000.0, low=1000.0, high=1000.0)
    """
    from scipy.special import stdtrit

    m = len(values)
    t = float(stdtrit(m - 1, (1 + COVERED) / 2))
    sum_of_n, half = n * fmean(values), t * stdev(values) * math.sqrt(n + n * n / m)
    return Range(sum_of_n, max(0.0, sum_of_n - half), sum_of_n + half)


def space_of_trees(
    pilot: Pilot, stages: Mapping[str, StageEstimate], studies: int, cores: int
) -> dict[str, Space]:
    """Return what the trees take, at most and in the end."""
    passing = shards_at_once(cores, pilot.threads.get("register", 1)) * pilot.shard_studies
    batch = min(studies, pilot.batch_studies)
    cases = defaultdict(list)
    for case in ("value", "low", "high"):
        per_study = {
            stage: Amount(getattr(s.n_bytes, case), getattr(s.inodes, case)) * (1 / studies)
            for stage, s in stages.items()
        }
        trees = Trees.of(per_study, pilot.keep)
        cases["work_peak"].append(trees.growth("work", (studies, 0, 0, 0, 0), passing))
        cases["work_peak_of_a_batch"].append(trees.growth("work", (batch, 0, 0, 0, 0), passing))
        cases["work_end"].append(trees.work[-1] * studies)
        cases["release"].append(trees.release[-1] * studies)
        cases["both_peak"].append(trees.growth("together", (studies, 0, 0, 0, 0), passing))
    size = studies, *(math.ceil(studies / n) for n in (pilot.shard_studies, pilot.batch_studies))
    bookkeeping, tables = pilot.bookkeeping.space(*size), pilot.tables.space(*size)
    beside = defaultdict(lambda: bookkeeping, release=tables, both_peak=bookkeeping + tables)
    return {
        tree: Space(_range([a.n_bytes for a in of]), _range([a.inodes for a in of])) + beside[tree]
        for tree, of in cases.items()
    }


def _range(cases: Sequence[float]) -> Range:
    return Range(cases[0], min(cases), max(cases))


def wall_hours(
    pilot: Pilot, stages: Mapping[str, StageEstimate], studies: int, cores: int, gpus: int
) -> Range:
    """Return how long a run takes: no less than its load shared out, nor than one shard's way.

    CPU stages share the cores, GPU stages the GPUs, at the same time. At worst the one that is
    waited for stands still for one shard's way.
    """
    on_gpu = {name: stage for name, stage in stages.items() if stage.gpu_hours.value}
    cpu = sum((s.core_hours for name, s in stages.items() if name not in on_gpu), Range())
    gpu = sum((stage.gpu_hours for stage in on_gpu.values()), Range())
    shard = min(studies, pilot.shard_studies) / studies
    ways = (
        stage.gpu_hours if name in on_gpu else stage.core_hours * (1 / pilot.threads[name])
        for name, stage in stages.items()
    )
    way = sum(ways, Range()) * shard
    value, low, high = (
        max(getattr(cpu, case) / cores, getattr(gpu, case) / max(1, gpus))
        for case in ("value", "low", "high")
    )
    return Range(max(value, way.value), max(low, way.low), high + way.high)


def _notes(pilot: Pilot, stages: Mapping[str, StageEstimate]) -> Iterator[str]:
    """Yield what the reader of the numbers has to know."""
    if pilot.studies < FEW_STUDIES:
        yield (
            f"the pilot is small: {pilot.studies} studies; the intervals are wide and rest on "
            f"little, {FEW_STUDIES} studies or more tell better"
        )
    if pilot.open:
        yield f"{pilot.open} of the pilot's studies are still on their way"
    if lacking := [stage for stage in pilot.costs if stage not in stages]:
        yield f"the pilot lacks {', '.join(lacking)}: they are not in these numbers"
    masks = stages.keys() >= {"convert", "deface"}  # without one it took a release
    if masks and not stages["deface"].gpu_hours.value:
        yield "the pilot used no GPU: what one would take is not known"


def read_pilot(path: Path) -> Pilot:
    """Read what a run has taken so far.

    Raises
    ------
    PilotError
        When it has not seen two studies.
    """
    config = None if path.is_dir() else load_config(path)
    work = WorkTree(config.work if config else path)
    stages = (
        stages_in(config) if config else [s for s in STAGES if any(work.root.glob(f"batch*/{s}"))]
    )
    planned = planned_shards(work, stages)
    begun = [s for s in planned if stages and work.journal(s.batch, stages[0], s.name).exists()]
    read = drawn(begun, PILOT_SHARDS)
    decided = [_decided(work, shard, stages) for shard in read]
    seen = sum(len(shard[stages[0]]) for shard in decided)
    if seen < 2:
        raise PilotError(
            f"{work.root} has seen {seen} studies, and an estimate needs two at least, better "
            f"{FEW_STUDIES}\n  Next: run a shard of the export first (docs/planning-a-run.md)"
        )
    attempts = defaultdict(list)
    for row in read_attempts(work):
        attempts[row["batch"], row["shard"], row["stage"]].append(row)
    costs, threads = {}, {}
    for stage in stages:
        records = [record for shard in decided for record in shard[stage]]
        rows = [row for s in read for row in attempts[s.batch, s.name, stage]]
        job = _job(stage, config, [record for record in records if record], rows)
        costs[stage] = [job.cost(record) if record else Cost() for record in records]
        threads[stage] = job.threads
    return Pilot(
        costs=costs,
        threads=threads,
        studies=seen,
        open=seen - min(map(len, costs.values())),
        shard_studies=config.plan.studies_per_shard if config else max(s.studies for s in planned),
        batch_studies=(config.plan if config else Plan()).studies_per_batch,
        keep=bool(config and config.keep_intermediates),
        bookkeeping=_bookkeeping(work, planned, begun),
        tables=_tables(config, begun),
    )


def _decided(work: WorkTree, shard: Shard, stages: Sequence[str]) -> dict[str, list[Record | None]]:
    """Return stage -> the studies that are decided there; None: an earlier stage turned it down."""
    records = {s: Journal(work.journal(shard.batch, s, shard.name)).records() for s in stages}
    decided: dict[str, list[Record | None]] = {stage: [] for stage in stages}
    for uid in records[stages[0]]:
        gone: set[str] = set()  # stages after which the study does not go on
        for stage in stages:
            record = records[stage].get(uid)
            if record is None and not gone.intersection(STAGES[stage].needs):
                continue  # still on its way
            decided[stage].append(record)
            if not is_accepted(record):
                gone.add(stage)
    return decided


@dataclass(frozen=True)
class _Job:
    """What a second of a study's record stands for in the jobs of a stage."""

    threads: int
    core_s: float
    gpu_s: float

    def cost(self, record: Record) -> Cost:
        size, wall_s = size_of(record), record.usage.get("wall_s", 0)
        return Cost(wall_s * self.core_s, wall_s * self.gpu_s, size.n_bytes, size.inodes)


def _job(
    stage: str,
    config: Config | None,
    records: Sequence[Record],
    attempts: Sequence[Mapping[str, Any]],
) -> _Job:
    """Say what the jobs of a stage held while they worked on these records.

    The attempts know: cores that waited, loading and attempts in vain are part of them, what was
    done again since is not. Without them it is the settings: one process with all threads at
    defacing, one process per thread elsewhere.
    """
    masks = stage == "deface" and not (config and config.input.kind == "release")
    on_gpu = bool(masks and config and config.deface.device == "cuda")
    wall_s = sum(record.usage.get("wall_s", 0) for record in records)
    if not attempts or not wall_s:
        rule = stage.partition("-")[0]
        threads = rule_resources(config, rule).threads if config else 1
        return _Job(threads, threads if masks else 1, float(on_gpu))
    done = sum(row["studies"] for row in attempts)
    share = min(1, len(records) / max(1, done)) / wall_s
    core_s = sum(row["wall_s"] * row["threads"] for row in attempts)
    gpu_s = sum(row["gpu"]["held_s"] if row["gpu"] else row["wall_s"] * on_gpu for row in attempts)
    return _Job(max(row["threads"] for row in attempts), core_s * share, gpu_s * share)


def _bookkeeping(work: WorkTree, planned: Sequence[Shard], begun: Sequence[Shard]) -> Other:
    """Measure all of the work tree but the folders of studies.

    What the plan holds goes with all studies planned, the rest with those of shards begun.
    """
    plan, rest = _Files(), _Files()
    for folder, below, names in os.walk(work.root):
        parts = Path(folder).relative_to(work.root).parts
        if len(parts) == 2 and parts[0].startswith("batch"):
            below.clear()  # studies
        (plan if parts[:1] == ("plan",) else rest).add(Path(folder), parts, names)
    return plan.per(planned) + rest.per(begun)


def _tables(config: Config | None, begun: Sequence[Shard]) -> Other:
    """Measure all of the release but its zips."""
    files = _Files()
    for space in config.spaces if config else ():
        root = ReleaseTree(config.release, config.dataset.name).repository(space)
        for folder, _, names in os.walk(root):
            parts = Path(folder).relative_to(root).parts
            files.add(Path(folder), parts, [name for name in names if not name.endswith(".zip")])
    return files.per(begun)


class _Files:
    """Files and folders counted up, by what they come with."""

    def __init__(self) -> None:
        self.n_bytes = 0
        self.counts = Counter()

    def add(self, folder: Path, parts: tuple[str, ...], names: Sequence[str]) -> None:
        """Count a folder and its files; `parts` is where it is below its tree."""
        of_jobs = parts[:2] == (".snakemake", "metadata")
        of_batch = any(part.startswith("batch") for part in parts)
        self.counts["batch" if of_batch else "once"] += 1
        for name in names:
            is_shard = of_jobs or bool(SHARD_FILE.match(name))
            is_batch = of_batch or name.startswith("batch")
            self.counts["shard" if is_shard else "batch" if is_batch else "once"] += 1
            self.n_bytes += _bytes_of(folder / name)

    def per(self, shards: Sequence[Shard]) -> Other:
        """Share out among shards, their studies and batches."""
        studies = sum(shard.studies for shard in shards)
        batches = len({shard.batch for shard in shards})
        return Other(
            self.n_bytes / max(1, studies),
            self.counts["shard"] / max(1, len(shards)),
            self.counts["batch"] / max(1, batches),
            self.counts["once"],
        )


def _bytes_of(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:  # a run is going on
        return 0


def text_of(found: Estimate) -> str:
    """Return an estimate as people read it."""
    lines = [
        f"{found.studies:,} studies, from a pilot of {found.pilot_studies:,}; in brackets the "
        f"interval of {COVERED:.0%}",
        "",
        _row("", "core-hours", "GPU-hours", "writes", "inodes"),
    ]
    for name, stage in found.stages.items():
        hours = _text(stage.core_hours), _text(stage.gpu_hours)
        lines.append(_row(name, *hours, _text_of_bytes(stage.n_bytes), _text(stage.inodes)))
    lines.append(_row("all", _text(found.core_hours), _text(found.gpu_hours)))
    lines.append("")
    for name, tree in found.trees.items():
        title = name.replace("_", " ")
        lines.append(_row(title, "", "", _text_of_bytes(tree.n_bytes), _text(tree.inodes)))
    gpus = f" and {found.gpus} GPUs" if found.gpu_hours.value else ""
    lines += ["", f"wall time with {found.cores} cores{gpus}: {_text(found.wall_hours)} h"]
    return "\n".join([*lines, *(f"note: {note}" for note in found.notes)])


def _row(name: str, *cells: str) -> str:
    return (f"{name:20}" + "".join(f"{cell:>23}" for cell in cells)).rstrip()


def _text(found: Range, unit: str = "") -> str:
    """Return a range as 1.2k (0.9k-1.5k); nothing at all as a dash."""
    if not found.high:
        return "-"
    return f"{_number(found.value)}{unit} ({_number(found.low)}-{_number(found.high)})"


def _text_of_bytes(found: Range) -> str:
    size, unit = (1e12, " TB") if found.high >= 1e12 else (1e9, " GB")
    return _text(found * (1 / size), unit)


def _number(value: float) -> str:
    size, unit = (1e6, "M") if value >= 999_500 else (1e3, "k") if value >= 999.5 else (1, "")
    if value < 0.995:
        return f"{value:.2g}"
    value /= size
    return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f}{unit}"
