"""What mrmill does with one series and with one center, on the same files as the reference.

The pieces and their order are those of `mrmill.register.register_study`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.registration.clock import Clock
from mrmill.config import Register
from mrmill.register.engines import Found, find
from mrmill.register.resampling import resample
from mrmill.register.scans import Scan
from mrmill.register.transforms import RigidTransform, write_transform
from mrmill.volumes import Volume, read_volume, write_volume


def read_scan(image_file: Path, brain_file: Path) -> Scan:
    """Read an image and its brain mask."""
    return Scan(read_volume(image_file), read_volume(brain_file).data > 0)


def between_brains(fixed: Scan, moving: Scan) -> RigidTransform:
    """Return the translation that lays the middles of two brains over each other."""
    middles = [Volume(scan.brain, scan.volume.affine).center_of_mass_mm for scan in (fixed, moving)]
    matrix = np.eye(4)
    matrix[:3, 3] = middles[1] - middles[0]
    return RigidTransform(matrix)


def register_series(
    center_files: tuple[Path, Path],
    moving_files: tuple[Path, Path],
    atlas: Scan,
    atlas_to_center: RigidTransform,
    settings: Register,
    out: Path,
) -> tuple[Found, Clock]:
    """Register a series to its center, and write it in both spaces.

    Parameters
    ----------
    center_files, moving_files : (image, brain mask)
        The center is read here too, though production reads it once for all series of a study.

    Returns
    -------
    found : Found
    clock : Clock
        CPU seconds of `read`, `register`, `resample` and `write`. The quality of the transform,
        which the reference does not measure, counts as `register`.

    Raises
    ------
    Rejected
        When the engine gives up.
    """
    clock = Clock()
    with clock.part("read"):
        center, moving = read_scan(*center_files), read_scan(*moving_files)
    with clock.part("register"):
        found = find(center, moving, settings)
    with clock.part("resample"):
        to_moving = found.transform
        in_coreg = resample(moving.volume, center.volume, to_moving)
        in_atlas = resample(moving.volume, atlas.volume, atlas_to_center.then(to_moving))
    with clock.part("write"):
        write_transform(out / "transform.mat", found.transform)
        write_volume(out / "coreg.nii.gz", in_coreg, center.volume.affine)
        write_volume(out / "atlas.nii.gz", in_atlas, atlas.volume.affine)
    return found, clock


def register_center(
    center_files: tuple[Path, Path],
    mask_files: Sequence[Path],
    atlas: Scan,
    settings: Register,
    out: Path,
) -> tuple[Found, Clock]:
    """Register a center to the atlas; write it and its masks there.

    Returns
    -------
    found : Found
    clock : Clock
        As for a series.

    Raises
    ------
    Rejected
        When the engine gives up.
    """
    clock = Clock()
    with clock.part("read"):
        center = read_scan(*center_files)
        masks = [read_volume(path) for path in mask_files]
    with clock.part("register"):
        found = find(atlas.brain_only, center.brain_only, settings, same_head=False)
    with clock.part("resample"):
        in_atlas = resample(center.volume, atlas.volume, found.transform)
        warped = [resample(mask, atlas.volume, found.transform, order=0) for mask in masks]
    with clock.part("write"):
        write_transform(out / "transform.mat", found.transform)
        write_volume(out / "atlas.nii.gz", in_atlas, atlas.volume.affine)
        for number, mask in enumerate(warped):
            write_volume(out / f"mask{number}.nii.gz", mask, atlas.volume.affine)
    return found, clock
