"""The template that centers are registered to."""

import hashlib
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mrmill.errors import UserError
from mrmill.reasons import Rejected
from mrmill.register.scans import Scan
from mrmill.volumes import Volume, read_volume

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mrmill.config import Register

#: The MNI152 T1w that nilearn carries: 2009a nonlinear symmetric, brain only, 1 mm, uint8.
EMBEDDED_FILE = "nilearn/datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
EMBEDDED_NAME = "MNI152 ICBM 2009a Nonlinear Symmetric T1w, brain only, 1 mm"

#: Voxels above zero in a brain-only template; adult heads are above 3,000 mL, brains below 2,000.
MAX_BRAIN_ML = 2500


class AtlasError(UserError):
    """The configured atlas cannot be used; the message says what to do."""


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
