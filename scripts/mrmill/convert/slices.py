"""Whether a volume has each picture of a DICOM series in its place.

dcm2niix stacks pictures by their first positions; a stack with a gap, a doubled slice or a shear
comes out as a volume that looks right and is not. The positions in the headers decide.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mrmill.convert.instances import Instance
from mrmill.reasons import Rejected
from mrmill.volumes import Volume

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Farthest a slice may lie from its place in the volume. Positions are written with three or more
#: decimals; a quarter of a millimetre is half the smallest voxel of clinical series.
MAX_MISPLACED_MM = 0.25

#: Slices nearer to each other than this are one slice (of another echo); none are as thin.
SAME_SLICE_MM = 0.1


def check_stack(volume: Volume, slice_axis: int, instances: Sequence[Instance]) -> None:
    """Check that a volume has exactly the slices that lie across its slice axis, each in place.

    Parameters
    ----------
    slice_axis : {0, 1, 2}
        Voxel axis across the slices.
    instances : sequence of Instance
        All files of the series, those of other stacks and echoes too.

    Raises
    ------
    Rejected
        `bad_geometry` when a position or pixel size is unknown or a slice lies elsewhere;
        `incomplete` when slices are missing between the first and the last, or doubled.
    """
    planes = [plane for instance in instances for plane in instance.planes]
    if None in planes:
        n_unknown = planes.count(None)
        raise Rejected("bad_geometry", f"{n_unknown} slices without position", "position known")
    normal = volume.affine[:3, slice_axis]
    corners = np.array([plane.corners for plane in planes if plane.is_across(normal)])
    if not len(corners):
        raise Rejected("bad_geometry", "no slice parallel to the volume's", "parallel slices")
    depths_mm = corners[:, 0] @ normal / np.linalg.norm(normal)
    _check_count(depths_mm, volume.data.shape[slice_axis])
    _check_places(corners, slice_axis, volume)


def _check_count(depths_mm: "NDArray[np.float64]", n_slices: int) -> None:
    """Check that slices at these depths fill a stack of `n_slices` even steps."""
    steps = np.diff(np.sort(depths_mm))
    steps = steps[steps > SAME_SLICE_MM]
    n_even = round(steps.sum() / np.median(steps)) + 1 if len(steps) else 1
    if not n_slices == n_even == len(steps) + 1:
        raise Rejected("incomplete", f"{n_slices} slices", f"{n_even} slices at even distances")


def _check_places(corners: "NDArray[np.float64]", slice_axis: int, volume: Volume) -> None:
    """Check that first and last pixel of each picture are corners of a slice.

    Parameters
    ----------
    corners : (N, 2, 3) ndarray
        RAS+, in mm.
    """
    last = np.array(volume.data.shape) - 1
    to_index = np.linalg.inv(volume.affine)
    index = corners @ to_index[:3, :3].T + to_index[:3, 3]
    place = np.where(index > last / 2, last, 0).astype(float)
    place[..., slice_axis] = np.clip(np.rint(index[..., slice_axis]), 0, last[slice_axis])
    beside_mm = float((np.abs(index - place) * volume.spacing_mm).max())
    if beside_mm > MAX_MISPLACED_MM:
        raise Rejected(
            "bad_geometry", f"a slice {beside_mm:.1f} mm from its place", f"{MAX_MISPLACED_MM} mm"
        )
