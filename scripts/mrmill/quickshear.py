"""Quickshear in physical space: one plane that parts the face from the brain.

The idea is that of Schimke & Hale, "Quickshear defacing for neuroimages" (HealthSec 2011):
look at the brain mask from the side, take the convex hull of what is seen, and cut along a
line that touches the hull below the forehead, moved away from the brain by a buffer. Here all of it
happens in the patient's own coordinates (RAS+, mm), so neither the order and direction of the
voxel axes nor the slice thickness nor the cropping of the field changes the plane.

The original takes the line through one edge of the hull, next to the frontal pole. Which edge
that is changes with a few voxels of the mask, and on some heads it runs too flat or too steep
and leaves the mouth or the nose. Here every line that touches the hull between nearly coronal
and nearly axial is tried, and what counts is how much it removes of the *face window*: the
front lower quarter of the brain's bounding box as seen from the side, extended ahead (nose) and
down (chin). The plane takes the mean direction of the lines that are as good as the best: the
best one alone jumps between neighbouring edges when slices are thick, their mean does not
(2.3 mm at the nose between 1 mm voxels and 5.5 mm slices in any plane; 4.3 mm without it). On
real heads it lies along the edge that bridges orbit and skull base, with a normal 42 to 60
degrees below straight ahead.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Normals that are tried, in degrees below straight ahead: 0 is coronal, 90 axial. A quarter of
#: a degree moves the plane by 0.7 mm at the chin, 150 mm from where it touches.
PITCH_DEG = np.arange(15, 80.25, 0.25)

#: How far the face window reaches beyond the brain's bounding box. On a full-face T1w the tip of
#: the nose is 40 mm ahead of the frontal pole and the mouth ends 50 mm below the brain stem.
AHEAD_MM, BELOW_MM = 30.0, 60.0

#: Lines that remove this share less than the best one count as no good; in between, linearly.
TOLERANCE = 0.02

#: Columns of the face window in which the removed height is summed up.
WINDOW_COLUMNS = 64


@dataclass(frozen=True)
class Plane:
    """A plane that parts what is kept from what is removed.

    Attributes
    ----------
    normal : (3,) ndarray of float64
        Unit vector, RAS+, from the brain towards the face.
    offset_mm : float
        Points p with `normal @ p <= offset_mm` are kept.
    """

    normal: "NDArray[np.float64]"
    offset_mm: float

    def kept(self, shape: Sequence[int], affine: "NDArray[np.float64]") -> "NDArray[np.bool_]":
        """Tell for each voxel of a grid whether its center is on the brain's side.

        Parameters
        ----------
        shape : (3,) sequence of int
            Number of voxels along i, j, k.
        affine : (4, 4) ndarray
            Voxel index to scanner position, RAS+, in mm.

        Returns
        -------
        kept : (I, J, K) ndarray of bool
        """
        steps = self.normal @ affine[:3, :3]
        start = self.normal @ affine[:3, 3]
        i, j, k = np.ogrid[: shape[0], : shape[1], : shape[2]]
        return steps[0] * i + steps[1] * j + steps[2] * k <= self.offset_mm - start

    def distance_mm(self, mask: "NDArray[np.bool_]", affine: "NDArray[np.float64]") -> float:
        """How far the plane is from the centroid of a mask.

        It says how far out a plane lies whatever the head's place in the scanner, and is much
        the same for all series of a head.

        Parameters
        ----------
        mask : (I, J, K) ndarray of bool
            At least one voxel.
        affine : (4, 4) ndarray
            Voxel index to scanner position, RAS+, in mm.
        """
        centroid = affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + affine[:3, 3]
        return float(self.offset_mm - self.normal @ centroid)

    def as_record(self) -> dict[str, list[float] | float]:
        """Return plain values."""
        return {"normal": self.normal.tolist(), "offset_mm": self.offset_mm}


def face_plane(
    brain: "NDArray[np.bool_]", affine: "NDArray[np.float64]", buffer_mm: float
) -> Plane:
    """Find the plane that removes most of the face and stays clear of the brain.

    Parameters
    ----------
    brain : (I, J, K) ndarray of bool
        At least one voxel. One component: an island in the face would push the plane away.
    affine : (4, 4) ndarray
        Voxel index to scanner position, RAS+, in mm; may be oblique.
    buffer_mm : float
        Distance from the center of the nearest brain voxel to the plane, in mm.

    Returns
    -------
    plane : Plane
        Its normal lies in the patient's sagittal plane and points forward and down.
    """
    outline = sagittal_outline(brain, affine)
    normals = np.stack([forward_down(pitch) for pitch in PITCH_DEG])
    offsets = np.array([(outline @ normal).max() for normal in normals]) + buffer_mm
    removed = removed_from_window(normals, offsets, outline)
    merit = np.clip(removed - removed.max() + TOLERANCE, 0, None)
    normal = forward_down(np.average(PITCH_DEG, weights=merit))
    offset_mm = float((outline @ normal).max()) + buffer_mm
    return Plane(np.array([0.0, *normal]), offset_mm)


def forward_down(pitch_deg: float) -> "NDArray[np.float64]":
    """Return the unit vector (anterior, superior) this far below straight ahead."""
    pitch = np.radians(pitch_deg)
    return np.array([np.cos(pitch), -np.sin(pitch)])


def sagittal_outline(
    brain: "NDArray[np.bool_]", affine: "NDArray[np.float64]"
) -> "NDArray[np.float64]":
    """Return points whose convex hull, seen from the side, is that of the whole mask.

    The first and the last voxel of each column along k are enough: every other voxel of the
    column lies between them.

    Returns
    -------
    outline : (N, 2) ndarray of float64
        Anterior and superior coordinate of voxel centers, in mm.
    """
    columns = np.nonzero(brain.any(axis=2))
    first = brain.argmax(axis=2)[columns]
    last = brain.shape[2] - 1 - brain[:, :, ::-1].argmax(axis=2)[columns]
    ends = np.concatenate([np.stack([*columns, first], 1), np.stack([*columns, last], 1)])
    return ends @ affine[1:3, :3].T + affine[1:3, 3]


def removed_from_window(
    normals: "NDArray[np.float64]",
    offsets: "NDArray[np.float64]",
    outline: "NDArray[np.float64]",
) -> "NDArray[np.float64]":
    """Return the share of the face window's area that each of N lines removes.

    Parameters
    ----------
    normals : (N, 2) ndarray
        Unit vectors, anterior and superior, pointing forward and down.
    offsets : (N,) ndarray
        What `normal @ point` is on each line, in mm.
    outline : (M, 2) ndarray
        Points around the brain, anterior and superior, in mm.

    Returns
    -------
    share : (N,) ndarray of float64
    """
    (back, bottom), (front, top) = outline.min(axis=0), outline.max(axis=0)
    columns = np.linspace((back + front) / 2, front + AHEAD_MM, WINDOW_COLUMNS)
    floor, ceiling = bottom - BELOW_MM, (bottom + top) / 2
    line_height = (offsets[:, None] - normals[:, :1] * columns) / normals[:, 1:]
    return (np.clip(line_height, floor, ceiling) - floor).mean(axis=1) / (ceiling - floor)
