"""A picture of the flow: bands as high as the series they carry, losses branching off downwards.

Everything stands in inches, x to the right and y upwards. The top of the trunk is at y = 0 and
straight; a loss leaves it at its lower edge and goes down to a place of its own, where its label
is. Losses of an earlier step lie lower, so that no band crosses a label. At the right the spaces of
the release rise above each other.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mrmill.ledger.flow import BRANCHES, TRUNK, Flow, FlowError, Flows, Step

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Losses drawn at a step, the sum of the smallest ones among them.
DRAWN_REASONS = 8
OTHERS = "other reasons"

#: Distance of two steps, width of a step's bar, height of all series seen.
STEP_IN, BAR_IN, SEEN_IN = 2.5, 0.08, 2.4

#: Height of a line of text, and room between bands of one step, of two steps, and of two spaces.
LINE_IN, NEAR_IN, FAR_IN, SPACES_IN = 0.24, 0.06, 0.3, 0.4

#: Room at the left, right, bottom and top, the last for step names and title.
LEFT_IN, RIGHT_IN, BOTTOM_IN, NAMES_IN, TITLE_IN = 1.3, 2.8, 0.3, 0.75, 0.9

#: Thinnest band that can still be seen.
THIN_IN = 0.015

INK, FAINT = "#1f2d36", "#6b7a83"
TRUNK_COLOUR = "#2a7886"
LOSS_COLOURS = dict(zip(TRUNK.values(), ("#c9a13b", "#cf7a3d", "#b4474f"), strict=True))
SPACE_COLOURS = {"native": TRUNK_COLOUR, "coreg": "#4b6fb3", "atlas": "#7b5aa6"}


class Side(NamedTuple):
    """An end of a band: where it is, and its lower and upper edge."""

    x: float
    low: float
    high: float


def draw_flow(flows: Flows, path: Path) -> None:
    """Draw the flow of all finished batches.

    Parameters
    ----------
    path : Path
        A PNG or SVG; it carries no date.

    Raises
    ------
    FlowError
        If no batch is finished, or the name ends otherwise.
    """
    suffix = path.suffix.lower()
    if suffix not in (".png", ".svg"):
        raise FlowError(f"{path.name}: a picture of the flow is a .png or a .svg")
    if not (flows.batches and flows.total["seen"].series):
        raise FlowError(f"there is no flow to draw yet: {flows.title}")
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    sketch = _Sketch(flows.total)
    width_in, low_in, high_in = sketch.frame()
    with mpl.rc_context({"svg.hashsalt": "flow", "font.size": 10, "text.color": INK}):
        figure = plt.figure(figsize=(width_in, high_in - low_in), facecolor="white")
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width_in), ylim=(low_in, high_in))
        axes.axis("off")
        sketch.draw(axes)
        write_title(axes, flows, high_in)
        path.parent.mkdir(parents=True, exist_ok=True)
        no_date = {"Date": None} if suffix == ".svg" else {"Software": None}
        figure.savefig(path, dpi=150, metadata=no_date)
        plt.close(figure)


def drawn_losses(lost: Mapping[str, int]) -> dict[str, int]:
    """Return the losses that get a band of their own, largest first, and the sum of the others.

    Examples
    --------
    >>> drawn_losses({f"reason_{n}": n for n in range(1, 11)})["other reasons"]
    6
    """
    ordered = sorted(lost.items(), key=lambda item: (-item[1], item[0]))
    if len(ordered) <= DRAWN_REASONS:
        return dict(ordered)
    own, others = ordered[: DRAWN_REASONS - 1], ordered[DRAWN_REASONS - 1 :]
    return {**dict(own), OTHERS: sum(number for _, number in others)}


class _Sketch:
    """Where the bands of a flow go."""

    def __init__(self, flow: Flow) -> None:
        named = {step.name: step for step in flow.steps}
        self.trunk = [named[name] for name in ("seen", *TRUNK.values())]
        self.spaces = {space: named[name] for space, name in BRANCHES.items() if name in named}

    def frame(self) -> tuple[float, float, float]:
        """Return the picture's width, its lower and its upper edge."""
        ends = [side.high for _, side in self._space_ends()]
        lows = [side.low for _, _, _, side in self._loss_ends()]
        width_in = self._x(len(self.trunk)) + RIGHT_IN
        lowest = min([-SEEN_IN, *lows]) - BOTTOM_IN
        return width_in, lowest, max([NAMES_IN, *ends]) + TITLE_IN

    def _x(self, number: int) -> float:
        return LEFT_IN + STEP_IN * number

    def _high(self, n_series: int) -> float:
        return max(SEEN_IN * n_series / self.trunk[0].series, THIN_IN if n_series else 0)

    def _space_ends(self) -> Iterator[tuple[str, Side]]:
        """Yield where the band of each space ends."""
        high = 0.0
        for space, step in self.spaces.items():
            low = high - self._high(step.series) if space == "native" else high
            side = Side(self._x(len(self.trunk)), low, low + self._high(step.series))
            yield space, side
            high = max(side.high, side.low + 2 * LINE_IN) + SPACES_IN

    def _loss_ends(self) -> Iterator[tuple[int, str, int, Side]]:
        """Yield of each loss its step, reason, number of series, and where its band ends."""
        high = -SEEN_IN - FAR_IN
        for number in range(len(self.trunk) - 1, 0, -1):
            losses = drawn_losses(self.trunk[number].lost)
            for reason, n_series in losses.items():
                low = high - self._high(n_series)
                yield number, reason, n_series, Side(self._x(number), low, high)
                high = min(low, high - LINE_IN) - NEAR_IN
            high -= FAR_IN * bool(losses)

    def draw(self, axes: "Axes") -> None:
        """Draw all bands with their labels."""
        for number, step in enumerate(self.trunk):
            here = Side(self._x(number), -self._high(step.series), 0)
            bar(axes, here, TRUNK_COLOUR)
            label_step(axes, here, step)
            if number + 1 < len(self.trunk):
                high = self._high(self.trunk[number + 1].series)
                start, end = Side(here.x + BAR_IN, -high, 0), Side(self._x(number + 1), -high, 0)
                band(axes, start, end, TRUNK_COLOUR)
        self._draw_losses(axes)
        self._draw_spaces(axes)

    def _draw_losses(self, axes: "Axes") -> None:
        """Draw the losses; the first of a step leaves the trunk highest."""
        edge = 0.0
        before = 0
        for number, reason, n_series, end in self._loss_ends():
            if number != before:
                edge, before = -self._high(self.trunk[number].series), number
            colour = LOSS_COLOURS[self.trunk[number].name]
            low = edge - self._high(n_series)
            band(axes, Side(self._x(number - 1) + BAR_IN, low, edge), end, colour, alpha=0.45)
            edge = low
            bar(axes, end, colour)
            middle = (end.low + end.high) / 2
            axes.text(end.x + BAR_IN + 0.1, middle, words(reason, n_series), va="center")

    def _draw_spaces(self, axes: "Axes") -> None:
        """Draw the spaces of the release, each with what did not come into it."""
        for space, end in self._space_ends():
            step = self.spaces[space]
            high = self._high(step.series)
            start = Side(self._x(len(self.trunk) - 1) + BAR_IN, -high, 0)
            band(axes, start, end, SPACE_COLOURS[space], alpha=0.25)
            bar(axes, end, SPACE_COLOURS[space])
            x, y = end.x + BAR_IN + 0.12, (end.low + end.high) / 2
            told = [f"{step.series:,} series, {step.studies:,} studies"]
            lost = drawn_losses(step.lost).items()
            told += [f"not in it: {words(reason, n_series)}" for reason, n_series in lost]
            axes.text(x, y + 0.02, step.name, va="bottom", weight="bold")
            axes.text(x, y - 0.02, "\n".join(told), va="top", color=FAINT)


def label_step(axes: "Axes", side: Side, step: Step) -> None:
    """Write a step's name and numbers above its bar, away from the bands that rise behind it."""
    x = side.x + BAR_IN
    told = f"{step.series:,} series\n{step.studies:,} studies"
    axes.text(x, 0.46, step.name, ha="right", va="bottom", weight="bold", fontsize=11)
    axes.text(x, 0.09, told, ha="right", va="bottom", color=FAINT)


def words(reason: str, number: int) -> str:
    """Say how many were lost for a reason."""
    return f"{reason.replace('_', ' ')} {number:,}"


def write_title(axes: "Axes", flows: Flows, high_in: float) -> None:
    """Write what is drawn, and how many files never came so far."""
    seen = flows.total["seen"]
    title = f"What became of {seen.series:,} series"
    axes.text(0.35, high_in - 0.3, title, fontsize=15, weight="bold", va="top")
    told = flows.title
    if flows.left_out:
        told += "; files of no study: " + ", ".join(words(*item) for item in flows.left_out.items())
    axes.text(0.35, high_in - 0.62, told, color=FAINT, va="top")


def bar(axes: "Axes", side: Side, colour: str) -> None:
    """Draw the end of a band as an upright bar."""
    axes.fill_between([side.x, side.x + BAR_IN], side.low, side.high, color=colour, lw=0)


def band(axes: "Axes", start: Side, end: Side, colour: str, alpha: float = 0.32) -> None:
    """Draw a band that leaves and arrives level."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    middle = (start.x + end.x) / 2
    corners = [
        (start.x, start.high),
        *((middle, start.high), (middle, end.high), (end.x, end.high)),
        (end.x, end.low),
        *((middle, end.low), (middle, start.low), (start.x, start.low)),
        (start.x, start.high),
    ]
    curve = [Curve.CURVE4] * 3
    codes = [Curve.MOVETO, *curve, Curve.LINETO, *curve, Curve.CLOSEPOLY]
    axes.add_patch(PathPatch(Curve(corners, codes), facecolor=colour, alpha=alpha, lw=0))
