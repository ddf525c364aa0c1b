"""What the files of a DICOM series say about their pictures; the pixels stay unread."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from mrmill.reasons import Rejected

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from pydicom import Dataset

#: Cosine of 0.1 degrees: slices turned further from a volume's are another stack of the series.
PARALLEL_COSINE = 1 - 1.5e-6

#: Words of ImageType -> the kind of picture they tell, plainest first. Siemens, GE and UIH write
#: Dixon images in words, Philips in letters. Dixon words come first: "IN_PHASE" is no phase image,
#: though dcm2niix adds that word to it.
KINDS = {
    "in_phase": {"IN_PHASE", "INPHASE", "IP"},
    "water": {"WATER", "W"},
    "opposed_phase": {"OPP_PHASE", "OUT_PHASE", "OPPOSED_PHASE", "OP"},
    "fat": {"FAT", "F"},
    "fat_fraction": {"FAT_FRACTION", "FF"},
    "phase": {"PHASE", "P"},
    "real": {"REAL", "R"},
    "imaginary": {"IMAGINARY", "I"},
}

#: A magnitude image: all that is none of these.
MAGNITUDE = "magnitude"
PLAINEST_FIRST = (MAGNITUDE, *KINDS)

#: GE's RawDataType_ImageType: its ImageType says the same of all four.
GE_RAW_TYPE = 0x0043102F
GE_RAW_KINDS = {0: MAGNITUDE, 1: "phase", 2: "real", 3: "imaginary"}

#: Philips' ScaleSlope, with the two of the standard the scale of a picture's values.
PHILIPS_SCALE_SLOPE = 0x2005100E

TAGS = [
    "Columns",
    "EchoTime",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "ImagesInAcquisition",
    "ImageType",
    "InstanceNumber",
    "LossyImageCompression",
    "NumberOfFrames",
    "PerFrameFunctionalGroupsSequence",
    "PixelSpacing",
    "RescaleIntercept",
    "RescaleSlope",
    "Rows",
    "SharedFunctionalGroupsSequence",
    GE_RAW_TYPE,
    PHILIPS_SCALE_SLOPE,
]

#: JPEG lossless; of all compressions the only one that dcm2niix reads to where it breaks off.
JPEG_LOSSLESS = {"1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"}
END_OF_IMAGE = b"\xff\xd9"


@dataclass(frozen=True)
class Plane:
    """Where one picture lies.

    Attributes
    ----------
    normal : (3,) ndarray
        Of length 1, RAS+.
    corners : (2, 3) ndarray
        Centers of the picture's first and last pixel, RAS+, in mm.
    """

    normal: "NDArray[np.float64]"
    corners: "NDArray[np.float64]"

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
    kind : str
        One of `PLAINEST_FIRST`.
    echo_time_ms : float
        0 where unknown.
    number, n_acquired : int
        InstanceNumber, ImagesInAcquisition; 0 where unknown.
    scale : tuple of str
        RescaleSlope, RescaleIntercept and Philips' ScaleSlope as they stand in the file.
    is_mosaic : bool
        Its picture shows all slices of a volume as tiles.
    """

    path: Path
    planes: list[Plane | None]
    kind: str = MAGNITUDE
    echo_time_ms: float = 0.0
    number: int = 0
    n_acquired: int = 0
    scale: tuple[str, ...] = ()
    transfer_syntax: str = ""
    is_lossy: bool = False
    is_mosaic: bool = False

    @property
    def encoding(self) -> str:
        """Name of the transfer syntax; of those that the standard does not know, none."""
        from pydicom.uid import UID

        name = UID(self.transfer_syntax).name
        return "unknown" if name == self.transfer_syntax else name

    def lies_across(self, direction: "NDArray[np.float64]") -> bool:
        """Whether its first picture's normal is this direction."""
        return self.planes[0] is not None and self.planes[0].is_across(direction)


def to_ras(vector: "ArrayLike") -> "NDArray[np.float64]":
    """Turn a DICOM (LPS+) vector into RAS+."""
    return np.asarray(vector, dtype=float) * (-1, -1, 1)


def kind_of(image_type: Iterable[str]) -> str:
    """Tell the kind of picture from the words of ImageType.

    Examples
    --------
    >>> kind_of(["DERIVED", "PRIMARY", "DIXON", "WATER"])
    'water'
    >>> kind_of(["ORIGINAL", "PRIMARY", "M_SE", "M", "SE"])
    'magnitude'
    """
    said = {word.upper() for word in image_type}
    return next((kind for kind, words in KINDS.items() if said & words), MAGNITUDE)


def by_kind(instances: Iterable[Instance]) -> dict[str, list[Instance]]:
    """Sort the files of a series by the kind of picture they hold, plainest first."""
    ordered = sorted(instances, key=lambda instance: PLAINEST_FIRST.index(instance.kind))
    return {kind: list(files) for kind, files in groupby(ordered, key=lambda i: i.kind)}


def read_instance(path: Path) -> Instance:
    """Read what a DICOM file says about its pictures.

    Raises
    ------
    Rejected
        `unreadable_image` when the header breaks off or holds what it must not, or when a picture
        in JPEG lossless breaks off (dcm2niix leaves the rest of it black without a word).
    OSError
        When the file is out of reach, which says nothing about it.
    """
    from pydicom import dcmread

    with warnings.catch_warnings(), path.open("rb") as file:
        warnings.simplefilter("ignore")  # pydicom quotes the values it warns about
        try:
            header = dcmread(file, stop_before_pixels=True, force=True, specific_tags=TAGS)
            instance = _instance(path, header)
            if instance.transfer_syntax in JPEG_LOSSLESS:
                _check_end(file)
        except OSError:
            raise
        except Exception as error:  # broken files raise whatever the parser stumbles over
            raise Rejected("unreadable_image", found=type(error).__name__) from error
    return instance


def _instance(path: Path, header: "Dataset") -> Instance:
    image_type = header.get("ImageType") or ()
    if isinstance(image_type, str):  # a single value, against the standard
        image_type = (image_type,)
    slopes = ("RescaleSlope", "RescaleIntercept", PHILIPS_SCALE_SLOPE)
    return Instance(
        path,
        planes=_frame_planes(header),
        kind=GE_RAW_KINDS.get(whole(value_of(header, GE_RAW_TYPE))) or kind_of(image_type),
        echo_time_ms=next(iter(_numbers([header.get("EchoTime")])), 0.0),
        number=whole(header.get("InstanceNumber")) or 0,
        n_acquired=whole(header.get("ImagesInAcquisition")) or 0,
        scale=tuple(str(value_of(header, tag)) for tag in slopes),
        transfer_syntax=str(header.file_meta.get("TransferSyntaxUID", "")),
        is_lossy=header.get("LossyImageCompression") == "01",
        is_mosaic="MOSAIC" in image_type,
    )


def _frame_planes(header: "Dataset") -> list[Plane | None]:
    """Return the plane of every frame, of which a classic file has one."""
    size = (header.get("Rows"), header.get("Columns"))
    frames = header.get("PerFrameFunctionalGroupsSequence")
    if not frames:
        return [_plane(header, header, header, size)] * int(header.get("NumberOfFrames") or 1)
    shared = header.get("SharedFunctionalGroupsSequence") or [{}]

    def group(frame: "Dataset", name: str) -> "Dataset | dict":
        items = frame.get(name) or shared[0].get(name)
        return items[0] if items else {}

    names = ("PlaneOrientationSequence", "PlanePositionSequence", "PixelMeasuresSequence")
    return [_plane(*(group(frame, name) for name in names), size) for frame in frames]


def _plane(
    orientation: "Dataset | dict",
    position: "Dataset | dict",
    measures: "Dataset | dict",
    size: tuple[int | None, int | None],
) -> Plane | None:
    """Place a picture by DICOM's formula (PS3.3, C.7.6.2.1.1)."""
    axes = _numbers(orientation.get("ImageOrientationPatient"))
    first = _numbers(position.get("ImagePositionPatient"))
    spacing = _numbers(measures.get("PixelSpacing"))
    if not (len(axes) == 6 and len(first) == 3 and len(spacing) == 2 and all(size)):
        return None
    along_row, along_column = np.array(axes[:3]), np.array(axes[3:])
    normal = np.cross(along_row, along_column)
    length = np.linalg.norm(normal)
    if length == 0:
        return None
    (n_rows, n_columns), (row_mm, column_mm) = size, spacing
    across = along_row * (n_columns - 1) * column_mm + along_column * (n_rows - 1) * row_mm
    return Plane(to_ras(normal / length), to_ras([first, first + across]))


def _check_end(file: BinaryIO) -> None:
    """Check that a JPEG picture ends as it should; the file stands before its pixels.

    Raises
    ------
    ValueError
        When it breaks off.
    """
    from pydicom.encaps import generate_fragments

    file.seek(12, 1)  # tag, VR and length of PixelData
    *_, last = (b"", *generate_fragments(file))
    if not last.rstrip(b"\0").endswith(END_OF_IMAGE):
        raise ValueError("the picture breaks off")


def value_of(header: "Dataset", tag: str | int) -> Any:
    """Return a value whatever it is, None where there is none that can be read."""
    try:
        return header[tag].value
    except Exception:  # absent, or bytes that pydicom cannot decode, for which it has many errors
        return None


def whole(value: Any) -> int | None:
    """Return a header's value as a whole number, None where it is none."""
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def _numbers(values: Any) -> list[float]:
    """Return a header's values as finite numbers, or nothing when one of them is not."""
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        return []
    return numbers if np.isfinite(numbers).all() else []
