"""How far a brain mask can be trusted, measured from its shape alone."""

import math
from typing import TYPE_CHECKING

import numpy as np

from mrmill.config import MaskQuality

if TYPE_CHECKING:
    from numpy.typing import NDArray


def largest_component(mask: "NDArray[np.bool_]") -> "NDArray[np.bool_]":
    """Return the largest connected part of a mask; voxels connect by faces, edges and corners.

    Parameters
    ----------
    mask : (I, J, K) ndarray of bool
        At least one voxel.
    """
    from scipy.ndimage import label

    parts, n_parts = label(mask, structure=np.ones((3, 3, 3)))
    if n_parts == 1:
        return mask
    sizes = np.bincount(parts.ravel())
    return parts == sizes[1:].argmax() + 1


def measure_mask(
    mask: "NDArray[np.bool_]", component: "NDArray[np.bool_]", voxel_ml: float
) -> dict[str, float]:
    """Measure a mask.

    Parameters
    ----------
    mask, component : (I, J, K) ndarray of bool
        The mask, not empty, and its largest component.
    voxel_ml : float
        Volume of a voxel, in mL.

    Returns
    -------
    quality : dict
        `brain_ml`: volume in mL. `largest_component`: share of the mask in its largest
        component. `border_share`: share of the field's border voxels that the mask covers.
        `centroid_offset`: distance of the mask's centroid from the field's center along the
        axis where it is largest, as a share of the field on that axis (0 to 0.5).
    """
    n_voxels = int(np.count_nonzero(mask))
    inner = (slice(1, -1),) * 3
    n_border = mask.size - mask[inner].size
    on_border = n_voxels - int(np.count_nonzero(mask[inner]))
    return {
        "brain_ml": round(n_voxels * voxel_ml, 2),
        "largest_component": round(int(np.count_nonzero(component)) / n_voxels, 4),
        "border_share": round(on_border / n_border, 4),
        "centroid_offset": round(max(_offset_shares(mask)), 4),
    }


def _offset_shares(mask: "NDArray[np.bool_]") -> list[float]:
    """Per axis, distance of the centroid from the center as a share of the field."""
    shares = []
    for axis, length in enumerate(mask.shape):
        profile = mask.sum(axis=tuple({0, 1, 2} - {axis}))
        centroid = profile @ np.arange(length) / profile.sum()
        shares.append(abs(float(centroid) - (length - 1) / 2) / length)
    return shares


def outside_limits(quality: dict[str, float], limits: MaskQuality) -> list[tuple[str, str]]:
    """Return what is outside the limits: pairs of what was found and what is accepted."""
    ranges = {
        "brain_ml": limits.volume_ml,
        "largest_component": (limits.min_largest_component, 1),
        "border_share": (0, limits.max_border_share),
        "centroid_offset": (0, limits.max_centroid_offset),
        "beyond_plane_ml": (0, limits.max_beyond_plane_ml),
        "plane_shift_mm": (-math.inf, limits.max_plane_shift_mm),
    }
    return [
        (f"{name} {quality[name]:g}", f"{name} {low:g} to {high:g}".replace("-inf to ", "<= "))
        for name, (low, high) in ranges.items()
        if name in quality and not low <= quality[name] <= high
    ]
