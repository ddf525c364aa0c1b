"""The flow of series through the stages, from the first look to the release.

Counted from the rows of a ledger alone. What enters a step leaves it or is lost in it, with a
reason: a flow that does not add up cannot be made.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrmill.errors import UserError
from mrmill.layout import SPACES, WorkTree
from mrmill.ledger import COMMON_STAGES, SPACE_STAGES, YES, telling_code
from mrmill.reasons import ACCEPTED

if TYPE_CHECKING:
    from rich.table import Table

#: Steps that every series takes one after the other, by the stage that decides.
TRUNK = dict(zip(COMMON_STAGES, ("converted", "accepted", "defaced"), strict=True))

#: Steps of a defaced series, side by side: the zip of each space.
BRANCHES = {
    "native": "packaged, native",
    "coreg": "registered, coreg",
    "atlas": "registered, atlas",
}

#: Every step, and the one it is entered from.
SOURCE = {
    "seen": "",
    "converted": "seen",
    "accepted": "converted",
    "defaced": "accepted",
    **dict.fromkeys(BRANCHES.values(), "defaced"),
}

#: How many steps of the trunk a series has behind it whose last word is a stage's.
BEHIND = {"plan": 0, "convert": 0, "curate": 1, "deface": 2, SPACE_STAGES["native"][-1]: 3}

#: How many reasons a table's line names.
NAMED_REASONS = 3


class FlowError(UserError):
    """What entered a step of the flow is not what left it and was lost."""


@dataclass(frozen=True)
class Step:
    """One step of the flow.

    Attributes
    ----------
    name : str
        One of `SOURCE`.
    series : int
        That passed it.
    studies : int
        With at least one such series.
    lost : dict
        Reason code -> series that entered the step and did not pass it.
    """

    name: str
    series: int
    studies: int
    lost: Mapping[str, int]


@dataclass(frozen=True)
class Flow:
    """Every step of the flow in its order.

    Raises
    ------
    FlowError
        If a step does not add up.
    """

    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        for step in self.steps:
            if step.name == "seen":
                continue
            source = self.source(step)
            n_lost = sum(step.lost.values())
            if source.series != step.series + n_lost or source.studies < step.studies:
                raise FlowError(
                    f"the flow does not close at {step.name}: of {source.series} series in "
                    f"{source.studies} studies {step.series} in {step.studies} passed and "
                    f"{n_lost} were lost"
                )

    def __getitem__(self, name: str) -> Step:
        return next(step for step in self.steps if step.name == name)

    def source(self, step: Step) -> Step:
        """Return the step that a step is entered from."""
        return self[SOURCE[step.name]]

    def as_dict(self) -> dict[str, Any]:
        """Return the same as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Flow":
        """Read plain values back."""
        return cls(tuple(Step(**step) for step in values["steps"]))


def flow(rows: Iterable[Mapping[str, str]]) -> Flow:
    """Count a ledger's series and studies at every step.

    Parameters
    ----------
    rows : iterable of mapping
        Of one ledger: a batch's or the whole. A study's rows may stand anywhere.

    Raises
    ------
    FlowError
        If a row contradicts itself, or says nothing about a space that others are in.
    """
    counts = FlowCounts()
    for row in rows:
        counts.add(row)
    return counts.flow()


def combined(flows: Iterable[Flow]) -> Flow:
    """Add up the flows of batches: no study is in two of them."""
    found = [{step.name: step for step in flow.steps} for flow in flows]
    steps = []
    for name in SOURCE:
        parts = [steps_of[name] for steps_of in found if name in steps_of]
        if parts:
            lost: Counter[str] = Counter()
            for part in parts:
                lost.update(part.lost)
            n_series, n_studies = (sum(p.series for p in parts), sum(p.studies for p in parts))
            steps.append(Step(name, n_series, n_studies, _most_first(lost)))
    return Flow(tuple(steps))


class FlowCounts:
    """Counts that grow row by row; of a study no more is kept than how far it came."""

    def __init__(self) -> None:
        self.series: Counter[str] = Counter()
        self.lost: dict[str, Counter[str]] = {name: Counter() for name in SOURCE}
        self.studies: dict[str, set[str]] = {name: set() for name in SOURCE}
        self.unsaid: dict[str, str] = {}  # space -> a study with a series it says nothing about
        self.made: set[str] = set()  # spaces

    def add(self, row: Mapping[str, str]) -> None:
        """Count one series, or a study without any."""
        uid, counted = row["study_uid"], bool(row["series_key"])
        passed, names = _steps_passed(row), list(TRUNK.values())
        for name in ("seen", *names[:passed]):
            self.series[name] += counted
            self.studies[name].add(uid)
        self.made |= {space for space in SPACES if row[space]}
        if passed < len(names):
            self.lost[names[passed]][telling_code(row)] += counted
            return
        for space, name in BRANCHES.items():
            if row[space] == YES:
                self.series[name] += 1
                self.studies[name].add(uid)
            elif row[space]:
                self.lost[name][row[space]] += 1
            else:
                self.unsaid.setdefault(space, uid)

    def flow(self) -> Flow:
        """Return what was counted."""
        for space in sorted(self.made & self.unsaid.keys()):
            raise FlowError(
                f"study {self.unsaid[space]}: a defaced series is neither in {space} space nor "
                "is there a reason why not"
            )
        left_out = {name for space, name in BRANCHES.items() if space not in self.made}
        return Flow(
            tuple(
                Step(name, self.series[name], len(self.studies[name]), _most_first(self.lost[name]))
                for name in SOURCE
                if name not in left_out
            )
        )


def _steps_passed(row: Mapping[str, str]) -> int:
    """Return how many steps of the trunk a series passed.

    Raises
    ------
    FlowError
        If its stage, state and spaces do not go together.
    """
    accepted = row["state"] == ACCEPTED
    inside = {space for space in SPACES if row[space] == YES}
    passed = BEHIND.get(row["stage"], -1)
    # accepted at defacing is the last word where this run does not make the native space
    passed += accepted and row["stage"] == COMMON_STAGES[-1]
    whole = passed == len(TRUNK)
    native_differs = row["native"] != "" and ("native" in inside) != accepted
    if passed < 0 or native_differs or ((accepted or inside) and not whole):
        told = ", ".join(f"{name} {row[name]!r}" for name in ("stage", "state", *SPACES))
        raise FlowError(f"study {row['study_uid']}: a series' row contradicts itself: {told}")
    return passed


def _most_first(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(((c, n) for c, n in counts.items() if n), key=lambda item: (-item[1], item)))


@dataclass(frozen=True)
class Flows:
    """Flows of the batches whose tables are written.

    Attributes
    ----------
    batches : dict
        Batch -> its flow.
    n_planned : int
        Batches, finished or not.
    left_out : dict
        Reason -> files of the export that are part of no study; empty for a single batch.
    """

    batches: Mapping[str, Flow]
    n_planned: int
    left_out: Mapping[str, int]

    @property
    def total(self) -> Flow:
        """All batches together."""
        return combined(self.batches.values())

    @property
    def title(self) -> str:
        """Say what is counted."""
        if not self.batches:
            return "no batch is finished"
        one = self.n_planned == 1
        told = (
            next(iter(self.batches)) if one else f"{len(self.batches)} of {self.n_planned} batches"
        )
        return f"flow of {told}"

    def as_dict(self) -> dict[str, Any]:
        """Return the same as plain values, for scripts."""
        return {
            "files_left_out": self.left_out,
            "flow": self.total.as_dict(),
            "flow_by_batch": {name: found.as_dict() for name, found in self.batches.items()},
        }


def read_flows(work: WorkTree, batch: str = "") -> Flows:
    """Read the flow of every finished batch, or of one.

    Raises
    ------
    FlowError
        If there is no such batch.
    """
    planned = []
    if work.shards.exists():
        planned = list(json.loads(work.shards.read_text(encoding="utf-8"))["batches"])
    if batch and batch not in planned:
        raise FlowError(f"there is no {batch}; planned: {', '.join(planned) or 'nothing yet'}")
    asked = [batch] if batch else planned
    paths = {b: work.part(b, "flow.json") for b in asked if work.catalog(b).exists()}
    flows = {
        b: Flow.from_dict(json.loads(path.read_text(encoding="utf-8")))
        for b, path in paths.items()
        if path.exists()
    }
    return Flows(flows, len(asked), {} if batch else files_left_out(work.skipped))


def files_left_out(skipped: Path) -> dict[str, int]:
    """Count the files of an export that are part of no study, by reason.

    Parameters
    ----------
    skipped : Path
        The plan's `skipped.csv`.
    """
    if not skipped.exists():
        return {}
    with skipped.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return _most_first(Counter(row["reason"] for row in csv.DictReader(file)))


def flow_table(flows: Flows) -> "Table":
    """Return flows, added up, as a table for the terminal."""
    from rich.table import Table

    table = Table(title=flows.title)
    table.add_column("step")
    for name in ("series", "studies", "lost"):
        table.add_column(name, justify="right")
    table.add_column("main reasons")
    if flows.left_out:
        n_files = sum(flows.left_out.values())
        table.add_row("files of no study", "", "", f"{n_files:,}", _told(flows.left_out))
    for step in flows.total.steps:
        n_lost = f"{sum(step.lost.values()):,}" if SOURCE[step.name] else ""
        table.add_row(step.name, f"{step.series:,}", f"{step.studies:,}", n_lost, _told(step.lost))
    return table


def _told(lost: Mapping[str, int]) -> str:
    """Name the main reasons and sum up the others."""
    reasons = list(lost.items())
    told = [f"{code} {number:,}" for code, number in reasons[:NAMED_REASONS]]
    others = sum(number for _, number in reasons[NAMED_REASONS:])
    return ", ".join([*told, f"others {others:,}"] if others else told)
