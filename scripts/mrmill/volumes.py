"""Read and write NIfTI volumes so that the same voxels always give the same bytes.

Everything is kept in NIfTI's own frame: RAS+, mm. What is written carries nothing but voxels
and geometry: no description, no auxiliary name, no time, no file name in the gzip header.
"""

import math
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mrmill.reasons import Rejected

if TYPE_CHECKING:
    from typing import BinaryIO

    import nibabel as nib
    from numpy.typing import NDArray

#: Largest cosine between two voxel axes that still counts as a right angle; ITK refuses
#: direction matrices further from orthonormal than about this.
MAX_AXIS_COSINE = 1e-4

#: Float32 holds every whole number up to this one.
LARGEST_EXACT = 2**24

#: isal level; 1 is within 4 % of the size of zlib's level 6 on MRI at a twentieth of its time
#: (benchmarks/io).
GZIP_LEVEL = 1

#: No byte of a gzip file stands for more bytes than this: two bits can repeat 258 bytes.
MAX_DEFLATE_RATIO = 1032

#: What is decompressed at a time; a piece that stays in a core's cache takes a fifth less time.
CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class Volume:
    """One 3D image.

    Attributes
    ----------
    data : (I, J, K) ndarray
        Voxel values, scaled as stored in the header.
    affine : (4, 4) ndarray of float64
        Voxel index to scanner position, RAS+, in mm.
    """

    data: "NDArray"
    affine: "NDArray[np.float64]"

    @property
    def spacing_mm(self) -> "NDArray[np.float64]":
        """Edge lengths of a voxel along i, j, k."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def fov_mm(self) -> "NDArray[np.float64]":
        """Edge lengths of the box that holds the volume."""
        return self.spacing_mm * self.data.shape

    @property
    def center_of_mass_mm(self) -> "NDArray[np.float64]":
        """Mean position of the voxels, weighted by their values; the middle of an empty image."""
        shape = self.data.shape
        sums = [self.data.sum(axis=tuple({0, 1, 2} - {k}), dtype=float) for k in range(3)]
        total = sums[0].sum()
        voxel = [
            (np.arange(n) @ by_axis) / total if total else (n - 1) / 2
            for n, by_axis in zip(shape, sums, strict=True)
        ]
        return self.affine[:3, :3] @ voxel + self.affine[:3, 3]


def read_volume(path: Path) -> Volume:
    """Read one 3D NIfTI image to its end and check that it can be processed at all.

    Parameters
    ----------
    path : Path
        NIfTI-1 or NIfTI-2 in a single file, compressed when its name ends in `.gz`.

    Returns
    -------
    volume : Volume
        In Fortran order, as in the file; in the file's dtype, but in this machine's byte order;
        float64 where the header scales.

    Raises
    ------
    Rejected
        `unreadable_image`, `not_3d`, `not_scalar`, `bad_geometry` or `sheared_affine`,
        `non_finite_voxels`.
    OSError
        When the file is out of reach, which says nothing about the image.
    """
    from isal import igzip, isal_zlib
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    broken = (OSError, EOFError, ValueError, isal_zlib.error, ImageFileError, HeaderDataError)
    packed = path.suffix.lower() == ".gz"
    most_bytes = path.stat().st_size * (MAX_DEFLATE_RATIO if packed else 1)
    path.open("rb").close()
    try:
        with (igzip.open if packed else Path.open)(path, "rb") as file:
            image, data = _read(file, most_bytes)
    except broken as error:
        raise Rejected("unreadable_image", found=type(error).__name__) from error
    if data.dtype.kind == "f" and not np.isfinite((data.min(), data.max())).all():
        raise Rejected("non_finite_voxels", found=f"{int((~np.isfinite(data)).sum())} voxels")
    return Volume(data, checked_affine(image))


def _read(file: "BinaryIO", most_bytes: int) -> "tuple[nib.Nifti1Image, NDArray]":
    """Return the header, as nibabel reads it, and the scaled voxels of one 3D image."""
    from nibabel.volumeutils import apply_read_scaling

    image = _read_header(file)
    stored, shape = image.dataobj, image.shape
    if stored.dtype.fields is not None or stored.dtype.kind == "c":
        raise Rejected("not_scalar", found="colour or complex voxels", limit="one real value")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or 0 in shape:
        raise Rejected("not_3d", found=" x ".join(map(str, shape)), limit="3 axes")
    n_bytes = math.prod(shape) * stored.dtype.itemsize
    if n_bytes > most_bytes:  # before anything that large is asked for
        raise EOFError
    file.seek(stored.offset)
    voxels = _read_bytes(file, n_bytes).view(stored.dtype).reshape(shape, order="F")
    voxels = voxels.astype(stored.dtype.newbyteorder("="), copy=False)
    return image, apply_read_scaling(voxels, np.asarray(stored.slope), np.asarray(stored.inter))


def _read_header(file: "BinaryIO") -> "nib.Nifti1Image":
    import nibabel as nib

    start = file.read(nib.Nifti2Header.sizeof_hdr)
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        if kind.header_class.may_contain_header(start):
            file.seek(0)
            return kind.from_stream(file)
    raise nib.filebasedimages.ImageFileError("no NIfTI")


def _read_bytes(file: "BinaryIO", n_bytes: int) -> "NDArray[np.uint8]":
    """Read that many bytes, and on to the end of the file: gzip's checksum stands there."""
    buffer = np.empty(n_bytes, np.uint8)
    rest = memoryview(buffer)
    while rest:
        n_read = file.readinto(rest[:CHUNK_BYTES])
        if not n_read:
            raise EOFError
        rest = rest[n_read:]
    while file.read(CHUNK_BYTES):
        pass
    return buffer


def checked_affine(image: "nib.Nifti1Image") -> "NDArray[np.float64]":
    """Return the affine of an image whose voxel axes are finite and at right angles.

    Raises
    ------
    Rejected
        `bad_geometry` without a known position, with a zero or infinite voxel;
        `sheared_affine` when two voxel axes are not at a right angle.
    """
    header = image.header
    if not (header["sform_code"] or header["qform_code"]):
        raise Rejected("bad_geometry", found="sform and qform unset", limit="one code > 0")
    affine = np.asarray(image.affine, dtype=float)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not (np.isfinite(affine).all() and (lengths > 0).all()):
        raise Rejected("bad_geometry", found=f"voxel of {lengths} mm", limit="> 0 mm")
    axes = affine[:3, :3] / lengths
    cosine = float(np.abs(np.triu(axes.T @ axes, 1)).max())
    if cosine > MAX_AXIS_COSINE:
        raise Rejected(
            "sheared_affine", found=f"axis cosine {cosine:.1e}", limit=f"{MAX_AXIS_COSINE:.0e}"
        )
    return affine


def as_released(data: "NDArray") -> "NDArray":
    """Return voxels as uint16 when that loses nothing, else as float32.

    Raises
    ------
    Rejected
        `values_out_of_range` when float32 cannot hold them: whole numbers beyond 2^24, which it
        would round, or values that would become infinite or all zero.
    """
    if data.dtype == np.uint16:
        return data
    low, high = data.min(), data.max()
    in_range = low >= 0 and high <= np.iinfo(np.uint16).max
    if in_range and (data.dtype.kind in "iu" or (data == np.rint(data)).all()):
        return data.astype(np.uint16)
    largest = max(abs(float(low)), abs(float(high)))
    float32 = np.finfo(np.float32)
    least, most = float(float32.tiny), float(float32.max)
    if data.dtype.kind in "iu":
        least, most = 0, LARGEST_EXACT
    if not least <= largest <= most:
        raise Rejected("values_out_of_range", f"{largest:.3g}", f"{least:.3g} to {most:.3g}")
    return data.astype(np.float32)


def write_volume(path: Path, data: "NDArray", affine: "NDArray[np.float64]") -> None:
    """Write a volume as `.nii.gz` with sform = qform, both codes 1, and nothing else in it.

    Parameters
    ----------
    path : Path
        Its folder is made when missing.
    data : (I, J, K) ndarray
        Written in its own dtype: uint8, uint16 or float32 in a release.
    affine : (4, 4) ndarray
        Voxel index to scanner position, RAS+, in mm, with axes at right angles.
    """
    import nibabel as nib
    from isal import igzip_lib

    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code=1)
    # the quaternion rounds in float32: the sform repeats what the qform says
    image.set_sform(image.get_qform(), code=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(igzip_lib.compress(_file_bytes(image), GZIP_LEVEL, igzip_lib.COMP_GZIP))


def _file_bytes(image: "nib.Nifti1Image") -> "NDArray[np.uint8]":
    """Return what nibabel's `to_bytes` does, with one copy of the voxels instead of three.

    One piece, because igzip's bytes depend on the pieces it gets.
    """
    image.header.set_slope_inter(1, 0)
    start = BytesIO()
    image.header.write_to(start)
    n_start, data = start.tell(), image.dataobj
    whole = np.empty(n_start + data.nbytes, np.uint8)
    whole[:n_start] = np.frombuffer(start.getbuffer(), np.uint8)
    dtype = image.get_data_dtype()
    np.ndarray(data.shape, dtype, buffer=whole, offset=n_start, order="F")[...] = data
    return whole
