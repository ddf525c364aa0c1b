"""Where the pictures of a DICOM series lie, and whether a volume has each of them in its place.

dcm2niix stacks pictures by their first positions; a stack with a gap, a doubled slice or a shear
comes out as a volume that looks right and is not. The positions in the headers decide.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mrmill.reasons import Rejected
from mrmill.volumes import Volume

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from pydicom import Dataset

#: Farthest a slice may lie from its place in the volume. Positions are written with three or more
#: decimals; a quarter of a millimetre is half the smallest voxel of clinical series.
MAX_MISPLACED_MM = 0.25

#: Slices nearer to each other than this are one slice (of another echo); none are as thin.
SAME_SLICE_MM = 0.1

#: Cosine of 0.1 degrees: slices turned further from a volume's are another stack of the series.
PARALLEL_COSINE = 1 - 1.5e-6

TAGS = [
    "EchoTime",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "ImageType",
    "PerFrameFunctionalGroupsSequence",
    "SharedFunctionalGroupsSequence",
    "NumberOfFrames",
]


@dataclass(frozen=True)
class Plane:
    """Where one picture lies.

    Attributes
    ----------
    normal : (3,) ndarray
        Of length 1, RAS+.
    position : (3,) ndarray
        Center of the picture's first pixel, RAS+, in mm.
    """

    normal: "NDArray[np.float64]"
    position: "NDArray[np.float64]"

    def is_across(self, direction: "NDArray[np.float64]") -> bool:
        """Whether a direction (RAS+, any length) is the picture's normal."""
        return abs(self.normal @ direction) > PARALLEL_COSINE * np.linalg.norm(direction)


@dataclass(frozen=True)
class Instance:
    """What one DICOM file says about its pictures.

    Attributes
    ----------
    planes : list of Plane or None
        One per frame; None where the header does not say.
    echo_time_ms : float
        0 where unknown.
    """

    path: Path
    planes: list[Plane | None]
    echo_time_ms: float
    image_type: tuple[str, ...]

    def lies_across(self, direction: "NDArray[np.float64]") -> bool:
        """Whether its first picture's normal is this direction."""
        return self.planes[0] is not None and self.planes[0].is_across(direction)


def to_ras(vector: "ArrayLike") -> "NDArray[np.float64]":
    """Turn a DICOM (LPS+) vector into RAS+."""
    return np.asarray(vector, dtype=float) * (-1, -1, 1)


def read_instance(path: Path) -> Instance:
    """Read where the pictures of a DICOM file lie; its pixels stay unread.

    Raises
    ------
    Rejected
        `unreadable_image` when the header breaks off or holds what it must not.
    """
    from pydicom import dcmread

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom quotes the values it warns about
        try:
            header = dcmread(path, stop_before_pixels=True, force=True, specific_tags=TAGS)
            return Instance(
                path,
                planes=_frame_planes(header),
                echo_time_ms=next(iter(_numbers([header.get("EchoTime")])), 0.0),
                image_type=tuple(header.get("ImageType") or ()),
            )
        except (EOFError, ValueError) as error:
            raise Rejected("unreadable_image", found=type(error).__name__) from error


def _frame_planes(header: "Dataset") -> list[Plane | None]:
    """Return the plane of every frame, of which a classic file has one."""
    frames = header.get("PerFrameFunctionalGroupsSequence")
    if not frames:
        return [_plane(header, header)] * int(header.get("NumberOfFrames") or 1)
    shared = header.get("SharedFunctionalGroupsSequence") or [{}]

    def group(frame: "Dataset", name: str) -> "Dataset | dict":
        items = frame.get(name) or shared[0].get(name)
        return items[0] if items else {}

    return [
        _plane(group(frame, "PlaneOrientationSequence"), group(frame, "PlanePositionSequence"))
        for frame in frames
    ]


def _plane(orientation: "Dataset | dict", position: "Dataset | dict") -> Plane | None:
    axes = _numbers(orientation.get("ImageOrientationPatient"))
    origin = _numbers(position.get("ImagePositionPatient"))
    if len(axes) != 6 or len(origin) != 3:
        return None
    normal = np.cross(axes[:3], axes[3:])
    length = np.linalg.norm(normal)
    return Plane(to_ras(normal / length), to_ras(origin)) if length > 0 else None


def _numbers(values: object) -> list[float]:
    """Return a header's values as finite numbers, or nothing when one of them is not."""
    try:
        numbers = [float(value) for value in values]  # type: ignore[union-attr]
    except (TypeError, ValueError):
        return []
    return numbers if np.isfinite(numbers).all() else []


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
        `bad_geometry` when a position is unknown or a slice lies elsewhere; `incomplete` when
        slices are missing between the first and the last, or doubled.
    """
    planes = [plane for instance in instances for plane in instance.planes]
    if None in planes:
        n_unknown = planes.count(None)
        raise Rejected("bad_geometry", f"{n_unknown} slices without position", "position known")
    normal = volume.affine[:3, slice_axis]
    positions = np.array([plane.position for plane in planes if plane.is_across(normal)])
    if not len(positions):
        raise Rejected("bad_geometry", "no slice parallel to the volume's", "parallel slices")
    _check_count(positions @ normal / np.linalg.norm(normal), volume.data.shape[slice_axis])
    _check_places(positions, slice_axis, volume)


def _check_count(depths_mm: "NDArray[np.float64]", n_slices: int) -> None:
    """Check that slices at these depths fill a stack of `n_slices` even steps."""
    steps = np.diff(np.sort(depths_mm))
    steps = steps[steps > SAME_SLICE_MM]
    n_even = round(steps.sum() / np.median(steps)) + 1 if len(steps) else 1
    if not n_slices == n_even == len(steps) + 1:
        raise Rejected("incomplete", f"{n_slices} slices", f"{n_even} slices at even distances")


def _check_places(positions: "NDArray[np.float64]", slice_axis: int, volume: Volume) -> None:
    """Check that each picture's first pixel is a corner of one of the volume's slices."""
    last = np.array(volume.data.shape) - 1
    to_index = np.linalg.inv(volume.affine)
    index = positions @ to_index[:3, :3].T + to_index[:3, 3]
    place = np.where(index > last / 2, last, 0).astype(float)
    place[:, slice_axis] = np.clip(np.rint(index[:, slice_axis]), 0, last[slice_axis])
    beside_mm = float((np.abs(index - place) * volume.spacing_mm).max())
    if beside_mm > MAX_MISPLACED_MM:
        raise Rejected(
            "bad_geometry", f"a slice {beside_mm:.1f} mm from its place", f"{MAX_MISPLACED_MM} mm"
        )
