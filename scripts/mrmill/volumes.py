"""Read and write NIfTI volumes so that the same voxels always give the same bytes.

Everything is kept in NIfTI's own frame: RAS+, mm. What is written carries nothing but voxels
and geometry: no description, no auxiliary name, no time, no file name in the gzip header.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mrmill.reasons import Rejected

if TYPE_CHECKING:
    import nibabel as nib
    from numpy.typing import NDArray

#: Largest cosine between two voxel axes that still counts as a right angle; ITK refuses
#: direction matrices further from orthonormal than about this.
MAX_AXIS_COSINE = 1e-4

#: Float32 holds every whole number up to this one.
LARGEST_EXACT = 2**24

#: isal level; 1 is within 2 % of the size of zlib's level 6 on MRI at a tenth of its time.
GZIP_LEVEL = 1


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
    """Read one 3D NIfTI image and check that it can be processed at all.

    Raises
    ------
    Rejected
        `unreadable_image`, `not_3d`, `not_scalar`, `bad_geometry` or `sheared_affine`,
        `non_finite_voxels`.
    OSError
        When the file is out of reach, which says nothing about the image.
    """
    import nibabel as nib

    path.open("rb").close()
    try:
        image = nib.load(path)
        data = np.asanyarray(image.dataobj)
    except (OSError, EOFError, ValueError, zlib.error, nib.filebasedimages.ImageFileError) as error:
        raise Rejected("unreadable_image", found=type(error).__name__) from error
    if data.dtype.fields is not None or np.iscomplexobj(data):
        raise Rejected("not_scalar", found="colour or complex voxels", limit="one real value")
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim != 3 or 0 in data.shape:
        raise Rejected("not_3d", found=" x ".join(map(str, data.shape)), limit="3 axes")
    if not np.isfinite(data).all():
        raise Rejected("non_finite_voxels", found=f"{int((~np.isfinite(data)).sum())} voxels")
    return Volume(data, checked_affine(image))


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
    from isal import igzip

    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code=1)
    # the quaternion rounds in float32: the sform repeats what the qform says
    image.set_sform(image.get_qform(), code=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(igzip.compress(image.to_bytes(), GZIP_LEVEL, mtime=0))
