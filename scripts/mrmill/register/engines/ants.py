"""Engine `ants`: the published recipe of MR-RATE, the reference for the others."""

import logging
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from mrmill.reasons import Rejected
from mrmill.register.engines import Found
from mrmill.register.scans import Scan
from mrmill.register.transforms import FLIP, RigidTransform, read_transform, write_transform
from mrmill.volumes import Volume

if TYPE_CHECKING:
    from mrmill.config import Register

log = logging.getLogger(__name__)

BINS = 32  # of Mattes' metric in the published recipe


def find(
    fixed: Scan,
    moving: Scan,
    settings: "Register",
    same_head: bool = True,
    start: RigidTransform | None = None,
) -> Found:
    """Register as MR-RATE does: antspyx, Rigid, Mattes mutual information, its own defaults.

    The start is the translation between the centers of mass unless another is given; four
    levels follow (shrink 6, 4, 2, 1; smoothing 3, 2, 1, 0 voxels; 2100, 1200, 1200, 10
    iterations at most).
    """
    ants = import_ants()
    # `registration(random_seed=...)` is accepted and ignored; on=True would refuse "Rigid"
    ants.config.set_ants_deterministic(on=False, seed_value=settings.seed)
    with TemporaryDirectory(prefix="mrmill-") as folder:
        initial = None
        if start is not None:
            initial = f"{folder}/start.mat"
            write_transform(Path(initial), start)
        try:
            found = ants.registration(
                fixed=to_ants(fixed.volume),
                moving=to_ants(moving.volume),
                type_of_transform="Rigid",
                initial_transform=initial,
                aff_metric="mattes",
                aff_sampling=BINS,
                aff_random_sampling_rate=settings.sampling_fraction,
                outprefix=f"{folder}/",
            )
        except RuntimeError as error:
            log.info("the registration engine gave up: %s", error)
            raise Rejected("reg_failed", found="the engine gave up", limit="an optimum") from error
        transform = read_transform(Path(found["fwdtransforms"][0]))
    return Found(transform, "ants", start or _between_centers_of_mass(fixed.volume, moving.volume))


def _between_centers_of_mass(fixed: Volume, moving: Volume) -> RigidTransform:
    matrix = np.eye(4)
    matrix[:3, 3] = moving.center_of_mass_mm - fixed.center_of_mass_mm
    return RigidTransform(matrix)


def import_ants() -> ModuleType:
    """Import antspyx with one ITK thread: more would alter results and oversubscribe cores."""
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"  # ITK reads it at its first use
    import ants

    return ants


def to_ants(volume: Volume):
    """Return a volume as ANTs' image, float32, without a file between."""
    spacing = volume.spacing_mm
    affine = FLIP @ volume.affine
    return import_ants().from_numpy(
        np.ascontiguousarray(volume.data, dtype=np.float32),
        origin=affine[:3, 3].tolist(),
        spacing=spacing.tolist(),
        direction=affine[:3, :3] / spacing,
    )
