"""Sampling an image on another grid, through a rigid transform, in one interpolation."""

from typing import TYPE_CHECKING, Literal

import numpy as np

from mrmill.register.transforms import RigidTransform
from mrmill.volumes import Volume

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Positions further out than this cannot be held; no voxel of a head is.
MAX_POSITION_VOXELS = 2**22


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
        In Fortran order, as files hold it. 0 outside the field of `moving`, which reaches to the
        outer faces of its border voxels as in ITK. A mask is thus 0 there too: outside the
        defacing mask's field nothing was kept, and outside the brain mask's field no brain is
        known.
    """
    from mrmill.register.interpolation import VOXEL, linear, nearest

    source = np.asarray(moving.data, moving.data.dtype.newbyteorder("="))
    sampled = np.zeros(grid.data.shape, np.float32 if order else source.dtype, order="F")
    to_voxel = (np.linalg.inv(moving.affine) @ transform.matrix @ grid.affine)[:3]
    if (np.abs(to_voxel) @ (*grid.data.shape, 1)).max() < MAX_POSITION_VOXELS:
        if not source.flags.c_contiguous:
            source, to_voxel = np.ascontiguousarray(source.T), to_voxel[::-1]
        steps = np.rint(to_voxel * VOXEL).astype(np.int64)
        (linear if order else nearest)(source, steps, sampled.T)
    return sampled
