"""Pictures of what a run took: time by step, memory against what was asked for, its course."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mrmill.profile.attempts import DONE
from mrmill.profile.table import OTHER, Profile

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, PALE = "#1f2d36", "#6b7a83", "#e3e8ea"

#: Colours that people with any kind of colour vision tell apart: Okabe and Ito, "Color universal
#: design", 2008.
ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, RED, PURPLE, BLACK = "#0072B2", "#D55E00", "#CC79A7", "#000000"
GREY, BROWN = "#b9c2c7", "#8a6d00"

RULES = {
    **{"convert": SKY, "curate": YELLOW, "deface": RED, "adopt": PURPLE},
    **{"register": BLUE, "package": GREEN, "catalog_batch": ORANGE, "catalog": BROWN},
}

#: One colour for what a step is for, whatever its stage.
STEPS = {
    **dict.fromkeys(("dcm2niix", "classify", "mask", "search", "zip", "copy"), BLUE),
    **dict.fromkeys(("decide", "shear", "resample"), GREEN),
    **{"measure": RED, "load": PURPLE, "bring_back": PURPLE, "headers": YELLOW, "read": SKY},
    **{"write": ORANGE, "digest": BROWN, "checksum": BROWN, OTHER: GREY},
}
LIGHT = {YELLOW, GREY, SKY, ORANGE, PURPLE}

#: Width of the pictures, height of a row, and the room for titles and axes, in inches.
WIDTH_IN, ROW_IN, FRAME_IN = 10.0, 0.42, 1.35
DPI = 150

#: Seconds between two marks of a time axis.
MARKS_S = (1, 5, 10, 30, 60, 300, 600, 1800, 3600, 2 * 3600, 6 * 3600, 12 * 3600, 24 * 3600)

#: Jobs side by side that are drawn one by one at most.
MAX_LANES = 24

#: Dots drawn for a rule at most.
MAX_DOTS = 1500


def draw_all(profile: Profile, folder: Path) -> list[Path]:
    """Draw the three pictures into a folder; return their paths."""
    return [
        draw(profile, folder / name)
        for name, draw in (
            ("steps.png", _saved(draw_steps)),
            ("memory.png", _saved(draw_memory)),
            ("course.png", _saved(draw_course)),
        )
    ]


def _saved(draw: Callable[[Profile], "Figure"]) -> Callable[[Profile, Path], Path]:
    def save(profile: Profile, path: Path) -> Path:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot as plt

        style = {"font.size": 9, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": FAINT}
        with mpl.rc_context({**style, "xtick.color": FAINT, "ytick.color": INK}):
            figure = draw(profile)
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=DPI, metadata={"Software": None})
            plt.close(figure)
        return path

    return save


def _canvas(rows: float, columns: int, **options) -> tuple["Figure", np.ndarray]:
    from matplotlib import pyplot as plt

    size = (WIDTH_IN, FRAME_IN + ROW_IN * rows)
    figure, axes = plt.subplots(
        1, columns, figsize=size, layout="constrained", squeeze=False, **options
    )
    for ax in axes.flat:
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.tick_params(axis="y", length=0)
    return figure, axes[0]


def draw_steps(profile: Profile) -> "Figure":
    """Seconds of a worker for one series in each stage, and the steps they went into."""
    stages = [stage for stage in profile.stages if stage.studies]
    figure, (left, right) = _canvas(len(stages) + 0.8, 2, sharey=True, width_ratios=(1, 2.2))
    seconds = [stage.wall_s / max(stage.series, 1) for stage in stages]
    rows = range(len(stages))
    left.barh(rows, seconds, color=FAINT, height=0.62)
    for row, value in zip(rows, seconds, strict=True):
        left.text(value, row, f" {value:.{2 + (value >= 1)}g} s", va="center")
    left.set_xlim(0, 1.3 * max(seconds, default=1) or 1)
    left.set_xlabel("worker seconds per series")
    left.set_yticks(rows, [stage.stage for stage in stages])
    left.invert_yaxis()
    for row, stage in zip(rows, stages, strict=True):
        _stack(right, row, {name: step["wall_s"] for name, step in stage.all_steps().items()})
    right.set_xlim(0, 100)
    right.set_xlabel("share of that time, %")
    alike: dict[str, list[str]] = {}
    for name in STEPS:
        if any(name in stage.all_steps() for stage in stages):
            alike.setdefault(STEPS[name], []).append(name)
    handles = [_patch(colour, ", ".join(names)) for colour, names in alike.items()]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False)
    figure.suptitle("Where the time of a series goes", x=0.01, ha="left", weight="bold")
    return figure


def _stack(axes: "Axes", row: int, seconds: dict[str, float]) -> None:
    """Draw the shares of a stage's steps one after the other, the wide ones with their name."""
    total, left = sum(seconds.values()), 0.0
    for name, value in seconds.items():
        width = 100 * value / total if total else 0
        colour = STEPS.get(name, BLACK)
        axes.barh(row, width, left=left, color=colour, height=0.62, edgecolor="white", lw=0.5)
        if width > 1 + 1.2 * len(name):
            ink = BLACK if colour in LIGHT else "white"
            axes.text(left + width / 2, row, name, ha="center", va="center", color=ink, fontsize=8)
        left += width


def draw_memory(profile: Profile) -> "Figure":
    """Highest memory of every attempt beside what its rule had asked for."""
    jobs = profile.attempts
    rules = [rule for rule in RULES if (jobs["rule"] == rule).any()]
    suggested = {it.rule: it.mem_mb for it in profile.suggestions}
    figure, (axes,) = _canvas(1.2 * len(rules) + 0.4, 1)
    generator = np.random.default_rng(0)
    widest_mb = 0.0
    for row, rule in enumerate(rules):
        of_rule = jobs[jobs["rule"] == rule].tail(MAX_DOTS)
        asked_mb, peaks_mb = of_rule["mem_mb"].dropna().min(), of_rule["peak_mb"]
        axes.barh(row, asked_mb, color=PALE, height=0.7)
        heights = row + generator.uniform(-0.2, 0.2, len(of_rule)) * (len(of_rule) > 1)
        good = (of_rule["state"] == DONE).to_numpy()
        size = 26 if len(of_rule) < 200 else 6
        axes.scatter(peaks_mb[good], heights[good], s=size / 2, color=BLUE, alpha=0.6, lw=0)
        axes.scatter(peaks_mb[~good], heights[~good], s=size, color=RED, marker="x", lw=1)
        if rule in suggested:
            axes.plot([suggested[rule]] * 2, [row - 0.38, row + 0.38], color=BLACK, lw=1.6)
        text, end_mb = f"  highest {peaks_mb.max():,.0f} MB", peaks_mb.max()
        if asked_mb > 0:  # nothing is known of jobs that no scheduler started
            text += f", {100 * peaks_mb.max() / asked_mb:.0f} % of {asked_mb:,.0f} MB"
            end_mb = max(end_mb, asked_mb)
        axes.text(end_mb, row, text, va="center", color=FAINT)
        widest_mb = max(widest_mb, end_mb)
    axes.set_xlim(0, 1.45 * widest_mb)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_yticks(range(len(rules)), rules)
    axes.set_ylim(len(rules) - 0.4, -0.6)
    axes.set_xlabel("MB")
    marks = [_patch(PALE, "asked for"), _dot(BLUE, "o", "a job's peak")]
    marks += [_dot(RED, "x", "of a failed or killed one"), _dot(BLACK, "|", "suggested")]
    figure.legend(handles=marks, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle("Memory, asked for and used", x=0.01, ha="left", weight="bold")
    return figure


def draw_course(profile: Profile) -> "Figure":
    """Every attempt as a bar over the time, or, where they are many, how many were at work."""
    from matplotlib import pyplot as plt

    jobs = profile.attempts.sort_values("started")
    on_gpu = jobs["gpu_s"].notna().to_numpy()
    clock = Clock(jobs["started"].to_numpy(), jobs["ended"].to_numpy())
    groups = {"GPU": jobs[on_gpu], "CPU": jobs[~on_gpu]}
    lanes = {name: lanes_of(group) for name, group in groups.items() if len(group)}
    rows = [min(max(found.max() + 1, 2), 8) for found in lanes.values()]
    figure, stack = plt.subplots(
        len(lanes),
        figsize=(WIDTH_IN, FRAME_IN + 0.8 * ROW_IN * sum(rows)),
        **{"layout": "constrained", "squeeze": False, "sharex": True, "height_ratios": rows},
    )
    for axes, (name, found) in zip(stack[:, 0], lanes.items(), strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylabel(f"{name} jobs")
        if found.max() < MAX_LANES:
            _bars(axes, groups[name], found, clock)
        else:
            _crowd(axes, groups[name], clock)
        for at, _ in clock.cuts:
            axes.axvline(at, color=FAINT, lw=1, ls=":")
    for at, idle_s in clock.cuts:
        text = f"idle {span(idle_s)} "
        stack[0, 0].text(
            at,
            1.02,
            text,
            ha="center",
            color=FAINT,
            fontsize=7,
            transform=stack[0, 0].get_xaxis_transform(),
        )
    axes.set_xlim(0, clock.length)
    axes.set_xticks(*clock.marks())
    axes.set_xlabel("time since the first job began (h:mm:ss)")
    rules = [rule for rule in RULES if (jobs["rule"] == rule).any()]
    marks = [_patch(RULES[rule], rule) for rule in rules]
    if (jobs["state"] != DONE).any():
        marks.append(_dot(BLACK, "x", "failed, killed or running"))
    figure.legend(handles=marks, loc="outside lower center", ncols=7, frameon=False)
    title = "The course of the run" + ("" if on_gpu.any() else " (no job held a GPU)")
    figure.suptitle(title, x=0.01, ha="left", weight="bold")
    return figure


def _bars(axes: "Axes", jobs: "pd.DataFrame", lanes: np.ndarray, clock: "Clock") -> None:
    """Draw attempts into their lanes; those that did not end well get a cross at their end."""
    from matplotlib.collections import PolyCollection

    left, right = clock(jobs["started"].to_numpy()), clock(jobs["ended"].to_numpy())
    low, high = lanes - 0.4, lanes + 0.4
    corners = np.stack([[left, right, right, left], [low, low, high, high]], axis=-1)
    colours = [RULES.get(rule, GREY) for rule in jobs["rule"]]
    edge = 0.6 if len(jobs) < 500 else 0
    axes.add_collection(
        PolyCollection(corners.swapaxes(0, 1), facecolors=colours, edgecolors="white", lw=edge)
    )
    bad = (jobs["state"] != DONE).to_numpy()
    size = 22 if bad.sum() < 50 else 3
    axes.scatter(right[bad], lanes[bad], color=BLACK, marker="x", s=size, lw=1, zorder=3)
    axes.set_ylim(lanes.max() + 0.6, -0.6)
    axes.set_yticks([])


def _crowd(axes: "Axes", jobs: "pd.DataFrame", clock: "Clock") -> None:
    """Draw how many jobs of each rule were at work, on top of each other."""
    edges = np.linspace(0, clock.length, 400)
    below = np.zeros(len(edges) - 1)
    for rule, colour in RULES.items():
        of_rule = jobs[jobs["rule"] == rule]
        above = below + at_work(of_rule, clock, edges)
        axes.stairs(above, edges, baseline=below, fill=True, color=colour, lw=0)
        below = above
    axes.set_ylim(0, 1.05 * below.max())


def at_work(jobs: "pd.DataFrame", clock: "Clock", edges: np.ndarray) -> np.ndarray:
    """Return how many jobs were at work between each two edges, on average."""

    def seconds_since(times: np.ndarray) -> np.ndarray:
        """Sum, at each edge, over the times before it how long ago they are."""
        times = np.sort(clock(times))
        passed = np.searchsorted(times, edges)
        return passed * edges - np.concatenate([[0], np.cumsum(times)])[passed]

    worked = seconds_since(jobs["started"].to_numpy()) - seconds_since(jobs["ended"].to_numpy())
    return np.diff(worked) / np.diff(edges)


def lanes_of(jobs: "pd.DataFrame") -> np.ndarray:
    """Return a lane for every job, sorted by start, such that no two in one overlap."""
    free_at: list[float] = []
    lanes = []
    for started, ended in zip(jobs["started"], jobs["ended"], strict=True):
        lane = next((n for n, free in enumerate(free_at) if free <= started), len(free_at))
        free_at[lane : lane + 1] = [ended]
        lanes.append(lane)
    return np.array(lanes)


class Clock:
    """Seconds along the axis for unix seconds, with long times in which nothing ran cut out.

    Attributes
    ----------
    length : float
        Of the axis.
    cuts : list of (float, float)
        Where something was cut out, and how many seconds.
    """

    #: A time without a job is cut out if it is longer than this share of the time with jobs.
    IDLE_SHARE = 0.1

    def __init__(self, started: np.ndarray, ended: np.ndarray) -> None:
        spells = _spells(started, ended)
        busy_s = sum(end - begin for begin, end in spells)
        self.first = spells[0][0]
        self.cuts: list[tuple[float, float]] = []
        self._knots = [(self.first, 0.0)]
        at, before = 0.0, self.first
        for begin, end in spells:
            idle_s = begin - before
            if idle_s > self.IDLE_SHARE * busy_s:
                shown_s = 0.02 * busy_s
                self.cuts.append((at + shown_s / 2, idle_s))
                at += shown_s
            else:
                at += idle_s
            self._knots.append((begin, at))
            at, before = at + end - begin, end
            self._knots.append((end, at))
        self.length = at or 1.0

    def __call__(self, times: np.ndarray) -> np.ndarray:
        """Return places on the axis."""
        known, places = zip(*self._knots, strict=True)
        return np.interp(times, known, places)

    def marks(self) -> tuple[list[float], list[str]]:
        """Return places of marks and what stands at them."""
        step_s = next((s for s in MARKS_S if self.length / s <= 10), MARKS_S[-1])
        last_s = self._knots[-1][0] - self.first
        seconds = np.arange(0, last_s + 1e-6, step_s)
        places = self(self.first + seconds)
        kept = [0]
        for number in range(1, len(places)):
            if places[number] - places[kept[-1]] > 0.6 * step_s:
                kept.append(number)
        return [places[n] for n in kept], [span(seconds[n]) for n in kept]


def _spells(started: np.ndarray, ended: np.ndarray) -> list[list[float]]:
    """Return the times in which at least one job ran, `started` in order."""
    spells: list[list[float]] = []
    for begin, end in zip(started, ended, strict=True):
        if spells and begin <= spells[-1][1]:
            spells[-1][1] = max(spells[-1][1], end)
        else:
            spells.append([begin, end])
    return spells


def span(seconds: float) -> str:
    """Write a time as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _patch(colour: str, label: str):
    from matplotlib.patches import Patch

    return Patch(color=colour, label=label)


def _dot(colour: str, marker: str, label: str):
    from matplotlib.lines import Line2D

    size = {"markersize": 12, "markeredgewidth": 1.6} if marker == "|" else {}
    return Line2D([], [], color=colour, marker=marker, ls="", label=label, **size)
