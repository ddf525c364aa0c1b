"""Rigid registration behind a small interface: engine, transforms, resampling, atlas, measures.

An engine is a function (fixed volume, moving volume, settings) -> `RigidTransform`; everything
else here works with the transform alone, whichever engine found it. All points are in mm in
NIfTI's frame (RAS+); only the `.mat` files and the engine itself speak ITK's (LPS+).
"""

import hashlib
import importlib.metadata
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TYPE_CHECKING, Literal

import numpy as np

from mrmill.errors import UserError
from mrmill.reasons import Rejected
from mrmill.volumes import Volume, read_volume

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from mrmill.config import Register

log = logging.getLogger(__name__)

#: Turns RAS+ into LPS+ coordinates and back.
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])

#: The MNI152 T1w that nilearn carries: 2009a nonlinear symmetric, brain only, 1 mm, uint8.
EMBEDDED_FILE = "nilearn/datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
EMBEDDED_NAME = "MNI152 ICBM 2009a Nonlinear Symmetric T1w, brain only, 1 mm"

#: Voxels above zero in a brain-only template; adult heads are above 3,000 mL, brains below 2,000.
MAX_BRAIN_ML = 2500

BINS = 32  # of Mattes' metric in the published recipe


class AtlasError(UserError):
    """The configured atlas cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Scan:
    """A volume and where its brain is.

    Attributes
    ----------
    volume : Volume
        The image.
    brain : (I, J, K) ndarray of bool
        Brain mask on the grid of the image.
    """

    volume: Volume
    brain: "NDArray[np.bool_]"

    def brain_only(self) -> Volume:
        """Return the image with everything outside the brain set to 0."""
        return Volume(self.volume.data * self.brain, self.volume.affine)


@dataclass(frozen=True)
class Atlas(Scan):
    """The template that centers are registered to.

    Attributes
    ----------
    name : str
        What it is, for the dataset card.
    sha256 : str
        Digest of the template's file.
    """

    name: str
    sha256: str


@dataclass(frozen=True)
class RigidTransform:
    """A rotation and a translation from the fixed to the moving image.

    Attributes
    ----------
    matrix : (4, 4) ndarray of float64
        Takes a point of the fixed image (RAS+, mm) to the point of the same anatomy in the
        moving image. This is the direction resampling needs, and what ANTs calls the forward
        transform: "moving to fixed" as images move, fixed to moving as points do.
    """

    matrix: "NDArray[np.float64]" = field(default_factory=lambda: np.eye(4))

    def __call__(self, points_mm: "ArrayLike") -> "NDArray[np.float64]":
        """Map points, (n, 3) in mm, from the fixed to the moving image."""
        return np.asarray(points_mm) @ self.matrix[:3, :3].T + self.matrix[:3, 3]

    def inverse(self) -> "RigidTransform":
        """Return the transform from the moving to the fixed image."""
        return RigidTransform(np.linalg.inv(self.matrix))

    def then(self, further: "RigidTransform") -> "RigidTransform":
        """Return this transform followed by one that starts where this one ends."""
        return RigidTransform(further.matrix @ self.matrix)

    @property
    def rotation_degrees(self) -> float:
        """Angle of the rotation around its one axis."""
        from scipy.spatial.transform import Rotation

        return float(np.degrees(Rotation.from_matrix(self.matrix[:3, :3]).magnitude()))


def register(fixed: Volume, moving: Volume, settings: "Register") -> RigidTransform:
    """Find the rigid transform that lays a moving image over a fixed one.

    Raises
    ------
    Rejected
        `reg_failed` when the engine gives up.
    """
    return ENGINES[settings.engine](fixed, moving, settings)


def ants_rigid(fixed: Volume, moving: Volume, settings: "Register") -> RigidTransform:
    """Register as MR-RATE does: antspyx, Rigid, Mattes mutual information, its own defaults.

    The start is the translation between the centers of mass; four levels follow (shrink 6, 4,
    2, 1; smoothing 3, 2, 1, 0 voxels; 2100, 1200, 1200, 10 iterations at most).
    """
    ants = import_ants()
    # `registration(random_seed=...)` is accepted and ignored; on=True would refuse "Rigid"
    ants.config.set_ants_deterministic(on=False, seed_value=settings.seed)
    with TemporaryDirectory(prefix="mrmill-") as folder:
        try:
            found = ants.registration(
                fixed=_to_ants(fixed),
                moving=_to_ants(moving),
                type_of_transform="Rigid",
                aff_metric="mattes",
                aff_sampling=BINS,
                aff_random_sampling_rate=settings.sampling_fraction,
                outprefix=f"{folder}/",
            )
        except RuntimeError as error:
            log.info("the registration engine gave up: %s", error)
            raise Rejected("reg_failed", found="the engine gave up", limit="an optimum") from error
        return read_transform(Path(found["fwdtransforms"][0]))


ENGINES = {"ants": ants_rigid}


def import_ants() -> ModuleType:
    """Import antspyx with one ITK thread: more would alter results and oversubscribe cores."""
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"  # ITK reads it at its first use
    import ants

    return ants


def _to_ants(volume: Volume):
    spacing = volume.spacing_mm
    affine = FLIP @ volume.affine
    return import_ants().from_numpy(
        np.ascontiguousarray(volume.data, dtype=np.float32),
        origin=affine[:3, 3].tolist(),
        spacing=spacing.tolist(),
        direction=affine[:3, :3] / spacing,
    )


def write_transform(path: Path, transform: RigidTransform) -> None:
    """Write a transform as ITK's `.mat`, with the meaning of ANTs' `0GenericAffine.mat`.

    The file is a MATLAB 4 file, which carries no time: `AffineTransform_double_3_3` is the
    LPS+ rotation row by row and the translation, `fixed` the center of rotation (the origin).
    """
    from scipy.io import savemat

    matrix = FLIP @ transform.matrix @ FLIP
    parameters = np.concatenate([matrix[:3, :3].ravel(), matrix[:3, 3]])
    content = {"AffineTransform_double_3_3": parameters[:, None], "fixed": np.zeros((3, 1))}
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, content, format="4")


def read_transform(path: Path) -> RigidTransform:
    """Read a linear transform from ITK's `.mat`, as written here or by ANTs."""
    from scipy.io import loadmat

    content = loadmat(path)
    name = next(name for name in content if name.startswith("AffineTransform"))
    parameters, center = content[name].ravel().astype(float), content["fixed"].ravel()
    matrix = np.eye(4)
    matrix[:3, :3] = parameters[:9].reshape(3, 3)
    matrix[:3, 3] = parameters[9:] + center - matrix[:3, :3] @ center
    return RigidTransform(FLIP @ matrix @ FLIP)


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


def load_atlas(settings: "Register") -> Atlas:
    """Read the template and find its brain.

    Parameters
    ----------
    settings : Register
        `atlas` is `embedded` or the path of a T1w template. A template with a skull needs
        `atlas_mask`; one of the brain alone is its own mask.

    Raises
    ------
    AtlasError
        When the file is missing, is no 3D image or shows a head and has no mask.
    """
    embedded = settings.atlas == "embedded"
    path = _embedded() if embedded else Path(settings.atlas)
    volume = _template(path)
    return Atlas(
        volume,
        _template_brain(volume, settings.atlas_mask),
        name=EMBEDDED_NAME if embedded else path.name.removesuffix(".gz").removesuffix(".nii"),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def _embedded() -> Path:
    """Find nilearn's file without importing nilearn, which takes two seconds."""
    try:
        return Path(importlib.metadata.distribution("nilearn").locate_file(EMBEDDED_FILE))
    except importlib.metadata.PackageNotFoundError as error:
        raise AtlasError(
            "register.atlas: embedded needs nilearn: install it, or give a file"
        ) from error


def _template(path: Path) -> Volume:
    if not path.is_file():
        raise AtlasError(
            f"register.atlas: there is no file {path}\n"
            "  give the path of a T1w template (.nii or .nii.gz), or `embedded`"
        )
    try:
        return read_volume(path)
    except Rejected as rejected:
        raise AtlasError(
            f"register.atlas: {path} is no 3D image ({rejected})\n"
            "  give the path of a T1w template (.nii or .nii.gz), or `embedded`"
        ) from rejected


def _template_brain(volume: Volume, mask_path: Path | None) -> "NDArray[np.bool_]":
    if mask_path:
        mask = _template(mask_path)
        if mask.data.shape != volume.data.shape or not np.allclose(mask.affine, volume.affine):
            raise AtlasError("register.atlas_mask is not on the grid of register.atlas")
        return mask.data > 0
    brain = volume.data > 0
    volume_ml = brain.sum() * np.prod(volume.spacing_mm) / 1000
    if not 0 < volume_ml <= MAX_BRAIN_ML:
        raise AtlasError(
            f"register.atlas has {volume_ml:.0f} mL above zero, so it is not a brain alone\n"
            "  give its brain mask as register.atlas_mask"
        )
    return brain
