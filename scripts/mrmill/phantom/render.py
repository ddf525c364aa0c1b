"""Pictures of a head's surface, to see whether a face can be recognised."""

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

REACH_MM = 140.0  # half the side of the picture, and half the depth that is searched
LIGHT = np.array([-0.45, -0.7, 0.55])  # from the viewer's left, from the viewer, from above


def render_face(
    volume: ArrayLike,
    affine: ArrayLike,
    path: str | Path,
    views_deg: tuple[float, ...] = (0.0, 35.0, 80.0),
    step_mm: float = 1.0,
) -> None:
    """Draw the surface of a head, shaded, seen from the front and from the side.

    Parameters
    ----------
    volume : (ni, nj, nk) array_like
        Image of a head; air must be darker than skin.
    affine : (4, 4) array_like
        Voxel index to RAS+ mm.
    path : path
        PNG file to write.
    views_deg : tuple of float
        Turn of the viewer around the head, 0 in front, towards the patient's left.
    step_mm : float
        Size of a pixel.
    """
    from matplotlib.figure import Figure

    pictures = [shade_surface(volume, affine, view_deg, step_mm) for view_deg in views_deg]
    figure = Figure(figsize=(4 * len(pictures), 4), dpi=150, facecolor="black")
    for place, picture in enumerate(pictures):
        axes = figure.add_axes((place / len(pictures), 0, 1 / len(pictures), 1))
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="bilinear")
        axes.set_axis_off()
    figure.savefig(path, metadata={"Software": None})


def shade_surface(
    volume: ArrayLike, affine: ArrayLike, view_deg: float, step_mm: float = 1.0
) -> NDArray[np.float32]:
    """Brightness (0 to 1) of the surface, rows from top to bottom, in pixels of `step_mm`."""
    block = _toward_viewer(
        np.asarray(volume, np.float32), np.asarray(affine, float), view_deg, step_mm
    )
    level = 0.15 * np.percentile(block, 98)  # between the noise of air and the darkest skin
    solid = block > level
    seen = solid.any(axis=1)
    depth = _smooth_where(step_mm * _first_crossing(block, solid, level), seen)
    across, up = np.gradient(depth, step_mm)
    normal = np.stack([across, -np.ones_like(depth), up])
    light = np.einsum("i,iuv->uv", LIGHT / np.linalg.norm(LIGHT), normal)
    light = np.clip(light / np.linalg.norm(normal, axis=0), 0, 1)
    return np.where(seen, 0.1 + 0.9 * light, 0).T[::-1].astype(np.float32)


def _toward_viewer(
    volume: NDArray, affine: NDArray, view_deg: float, step_mm: float
) -> NDArray[np.float32]:
    """Resample to axes (viewer's right, away from the viewer, up), slightly smoothed."""
    from scipy.ndimage import affine_transform, gaussian_filter

    turn = np.radians(view_deg)
    toward = np.array([-np.sin(turn), np.cos(turn), 0])
    up = np.array([0, 0, 1.0])
    axes = np.stack([np.cross(-toward, up), -toward, up], axis=1)
    n = int(2 * REACH_MM / step_mm)
    centre = affine[:3, :3] @ ((np.array(volume.shape) - 1) / 2) + affine[:3, 3]
    to_voxel = np.linalg.inv(affine)
    matrix = to_voxel[:3, :3] @ axes * step_mm
    start = to_voxel[:3, :3] @ (centre - REACH_MM * axes.sum(axis=1)) + to_voxel[:3, 3]
    block = affine_transform(volume, matrix, start, output_shape=(n, n, n), order=1)
    return gaussian_filter(block, 0.7)


def _first_crossing(block: NDArray, solid: NDArray, level: float) -> NDArray[np.float64]:
    """Depth at which each ray first rises through `level`, in samples and parts of one."""
    first = np.argmax(solid, axis=1)
    at = np.take_along_axis(block, first[:, None], axis=1)[:, 0]
    before = np.take_along_axis(block, np.maximum(first - 1, 0)[:, None], axis=1)[:, 0]
    share = (at - level) / np.maximum(at - before, 1e-6)
    return first - np.clip(share, 0, 1)


def _smooth_where(depth: NDArray, seen: NDArray) -> NDArray[np.float64]:
    """Smooth the depth over a pixel without letting the background in."""
    from scipy.ndimage import gaussian_filter

    weight = gaussian_filter(seen.astype(float), 1.0)
    smooth = gaussian_filter(np.where(seen, depth, 0.0), 1.0)
    return np.where(seen, smooth / np.maximum(weight, 1e-6), 2 * REACH_MM)
