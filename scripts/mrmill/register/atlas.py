"""The template that centers are registered to."""

import hashlib
import importlib.metadata
import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, StringConstraints

from mrmill.errors import UserError
from mrmill.reasons import Rejected
from mrmill.register.scans import Scan
from mrmill.volumes import Volume, read_volume
from mrmill.yaml_tables import checked_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mrmill.config import Register

log = logging.getLogger(__name__)

TABLE = Path(__file__).parents[3] / "config" / "atlases.yaml"

#: The MNI152 T1w that nilearn carries: 2009a nonlinear symmetric, brain only, 1 mm, uint8.
EMBEDDED_FILE = "nilearn/datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"

#: Voxels above zero in a brain-only template; adult heads are above 3,000 mL, brains below 2,000.
MAX_BRAIN_ML = 2500

#: Decimals of an affine that count in a digest of content; a header holds float32, in mm.
AFFINE_DECIMALS = 4

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class AtlasError(UserError):
    """The configured atlas cannot be used; the message says what to do."""


class Template(BaseModel):
    """A template that is known by its content: one row of `config/atlases.yaml`, which explains it.

    A row with neither `sha256` nor `content` knows no more than names.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    files: tuple[str, ...]
    mask: str = ""
    sha256: tuple[Sha256, ...] = ()
    content: tuple[Sha256, ...] = ()
    source: str
    licence: str
    get: str


class Templates(BaseModel):
    """All templates that are known."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    templates: tuple[Template, ...]


@cache
def known_templates() -> tuple[Template, ...]:
    """Return the rows of `config/atlases.yaml`."""
    return checked_table(TABLE, Templates, AtlasError).templates


@dataclass(frozen=True)
class Atlas(Scan):
    """The template that centers are registered to.

    Attributes
    ----------
    name : str
        What it is: of a known template its own name, else the file's.
    sha256, mask_sha256 : str
        Digests of the files of template and brain mask; the latter empty without such a file.
    doubt : str
        Why the name may not be right; empty for a template that is known by its content.
    """

    name: str
    sha256: str
    mask_sha256: str = ""
    doubt: str = ""

    def described(self) -> dict[str, Any]:
        """Return what a release tells of its atlas, as plain values: name, digests and grid."""
        mask = {"mask_sha256": self.mask_sha256} if self.mask_sha256 else {}
        return {
            "atlas": self.name,
            "sha256": self.sha256,
            **mask,
            "shape": list(self.volume.data.shape),
            "affine": _rounded(self.volume.affine).tolist(),
        }


def load_atlas(settings: "Register") -> Atlas:
    """Read the template, find its brain, and tell which template it is.

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
    path = _embedded() if settings.atlas == "embedded" else Path(settings.atlas)
    volume = _template(path)
    name, doubt = identify(path, volume)
    if doubt:
        log.warning("register.atlas: %s", doubt)
    return Atlas(
        volume,
        _template_brain(volume, settings.atlas_mask),
        name,
        _sha256(path.read_bytes()),
        _sha256(settings.atlas_mask.read_bytes()) if settings.atlas_mask else "",
        doubt,
    )


def identify(path: Path, volume: Volume) -> tuple[str, str]:
    """Return the name of a template and, unless its content is known, what is in doubt."""
    from isal import igzip

    whole = path.read_bytes()
    found = {_sha256(whole), content_digest(volume)}
    if path.suffix == ".gz":
        found.add(_sha256(igzip.decompress(whole)))
    for known in known_templates():
        if found & {*known.sha256, *known.content}:
            return known.name, ""
    name = path.name.removesuffix(".gz").removesuffix(".nii")
    namesake = next((t for t in known_templates() if _is_name_of(path, t)), None)
    if namesake is None:
        return name, f"unknown template: name taken from the file {path.name}"
    if not (namesake.sha256 or namesake.content):
        return name, f"no checksum of {namesake.name} is known: name taken from the file"
    return name, (
        f"{path.name} is named as {namesake.name} and IS NOT any copy of it that is known: "
        "fetch it again, or rename it after what it is"
    )


def content_digest(volume: Volume) -> str:
    """Return the SHA-256 of shape, voxels (float32, little-endian, C order) and rounded affine."""
    parts = (
        np.array(volume.data.shape, "<i4"),
        np.ascontiguousarray(volume.data, "<f4"),
        _rounded(volume.affine).astype("<f8"),
    )
    return _sha256(b"".join(part.tobytes() for part in parts))


def _is_name_of(path: Path, template: Template) -> bool:
    return path.name.removesuffix(".gz") in {f.removesuffix(".gz") for f in template.files}


def _rounded(affine: "NDArray[np.float64]") -> "NDArray[np.float64]":
    return np.round(affine, AFFINE_DECIMALS) + 0.0  # + 0.0: no negative zeros


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


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
