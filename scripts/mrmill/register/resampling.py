"""Sampling an image on another grid, through a rigid transform, in one interpolation."""

from typing import TYPE_CHECKING, Literal

import numpy as np

from mrmill.register.transforms import RigidTransform
from mrmill.volumes import Volume

if TYPE_CHECKING:
    from numpy.typing import NDArray


def resample(
    moving: Volume, grid: Volume, transform: RigidTransform, order: Literal[0, 1] = 1
) -> "NDArray":
    """Sample a moving image on the grid of a fixed one, in one interpolation.

    Parameters
    ----------
    moving, grid : Volume
        What is sampled, and the image whose shape and affine the result gets.
    transform : RigidTransform
        From points of `grid` to points of `moving`.
    order : {0, 1}
        1: linear, float32 (images). 0: nearest, in the dtype of `moving` (masks).

    Returns
    -------
    sampled : ndarray
        0 outside the field of `moving`, which reaches to the outer faces of its border voxels
        as in ITK. A mask is thus 0 there too: outside the defacing mask's field nothing was
        kept, and outside the brain mask's field no brain is known.
    """
    from scipy.ndimage import affine_transform

    to_voxel = np.linalg.inv(moving.affine) @ transform.matrix @ grid.affine
    # one repeated voxel around the field lets scipy's fast constant mode reach the outer faces
    padded = np.pad(moving.data, 1, mode="edge")
    sampled = affine_transform(
        padded,
        to_voxel[:3, :3],
        to_voxel[:3, 3] + 1,
        output_shape=grid.data.shape,
        output=np.float32 if order else moving.data.dtype,
        order=order,
        mode="constant",
    )
    axes = np.ogrid[tuple(slice(n) for n in grid.data.shape)]
    for row, n in zip(to_voxel[:3], moving.data.shape, strict=True):
        position = sum(step * axis for step, axis in zip(row, axes, strict=False)) + row[3]
        sampled[(position < -0.5) | (position > n - 0.5)] = 0
    return sampled
