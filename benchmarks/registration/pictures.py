"""Pictures of real heads on the template, to see with one's own eyes which transform is right."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mrmill.register.resampling import resample
from mrmill.register.scans import Scan
from mrmill.register.transforms import RigidTransform

#: Edge of the brain, and of its white matter, in the embedded template (0 to 255).
LEVELS, COLOURS = (60, 130), ("red", "yellow")


def draw_on_template(
    path: Path, template: Scan, center: Scan, found: dict[str, RigidTransform]
) -> None:
    """Draw the three middle slices of a center, one row per method, with the template's edges.

    Parameters
    ----------
    path : Path
        PNG to write.
    found : dict
        Method -> transform from the template to the center.
    """
    from matplotlib.figure import Figure

    middle = np.argwhere(template.brain).mean(axis=0).astype(int)
    figure = Figure(figsize=(12, 4 * len(found)), layout="tight")
    grid = figure.subplots(len(found), 3, squeeze=False)
    for row, (method, transform) in zip(grid, found.items(), strict=True):
        image = resample(center.volume, template.volume, transform)
        for axis, axes in enumerate(row):
            _draw_slice(axes, image, template.volume.data, axis, middle[axis])
        row[0].set_title(method, loc="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80, metadata={"Software": None})


def _draw_slice(axes: object, image: Sequence, template: Sequence, axis: int, at: int) -> None:
    axes.imshow(np.take(image, at, axis).T, cmap="gray", origin="lower")
    edges = np.take(template, at, axis).T
    axes.contour(edges, LEVELS, colors=COLOURS, linewidths=0.6)
    axes.set_axis_off()
