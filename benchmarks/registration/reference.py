"""MR-RATE's registration of one series and of one center, re-stated with antspyx alone.

What the published pipeline does with files on disk, in one process with one thread: read, register
(Rigid, Mattes mutual information, antspyx's defaults), write the transform and the warped image,
warp again into atlas space through the composed transforms, write. Nothing of mrmill is used.
"""

import os

os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"  # ITK reads both at its first use
os.environ["ANTS_RANDOM_SEED"] = "42"

import shutil
from pathlib import Path

import ants

from benchmarks.registration.clock import Clock

#: "default" and "chosen" are the published script's own words for its values.
RECIPE = {
    "type_of_transform": "Rigid",  # chosen
    "aff_metric": "mattes",  # default
    "aff_sampling": 32,  # default: bins
    "aff_random_sampling_rate": 0.2,  # default
}


def register_series(
    center_file: Path,
    moving_file: Path,
    atlas: ants.ANTsImage,
    center_to_atlas: Path,
    out: Path,
) -> Clock:
    """Register a series to its center, and write it in both spaces.

    Parameters
    ----------
    atlas : ANTsImage
        Read once per job, so not counted.
    center_to_atlas : Path
        The center's transform.
    out : Path
        Gets `transform.mat`, `coreg.nii.gz` and `atlas.nii.gz`.

    Returns
    -------
    clock : Clock
        CPU seconds of `read`, `register`, `resample` and `write`. The registration returns the
        warped image, so the resampling into coreg space counts as `register`.
    """
    clock = Clock()
    with clock.part("read"):
        center = ants.image_read(str(center_file))
        moving = ants.image_read(str(moving_file))
    with clock.part("register"):
        found = ants.registration(fixed=center, moving=moving, outprefix=f"{out}/", **RECIPE)
    (moving_to_center,) = found["fwdtransforms"]
    with clock.part("write"):
        shutil.copy(moving_to_center, out / "transform.mat")
        ants.image_write(found["warpedmovout"], str(out / "coreg.nii.gz"))
    with clock.part("resample"):
        in_atlas = ants.apply_transforms(
            fixed=atlas, moving=moving, transformlist=[str(center_to_atlas), moving_to_center]
        )
    with clock.part("write"):
        ants.image_write(in_atlas, str(out / "atlas.nii.gz"))
    return clock


def register_center(
    center_file: Path, mask_files: list[Path], atlas: ants.ANTsImage, out: Path
) -> Clock:
    """Register a center to the atlas; write it and its masks there.

    Returns
    -------
    clock : Clock
        As for a series.
    """
    clock = Clock()
    with clock.part("read"):
        center = ants.image_read(str(center_file))
        masks = [ants.image_read(str(path)) for path in mask_files]
    with clock.part("register"):
        found = ants.registration(fixed=atlas, moving=center, outprefix=f"{out}/", **RECIPE)
    with clock.part("write"):
        shutil.copy(found["fwdtransforms"][0], out / "transform.mat")
        ants.image_write(found["warpedmovout"], str(out / "atlas.nii.gz"))
    for number, mask in enumerate(masks):
        with clock.part("resample"):
            warped = ants.apply_transforms(
                fixed=atlas,
                moving=mask,
                transformlist=found["fwdtransforms"],
                interpolator="nearestNeighbor",
            )
        with clock.part("write"):
            warped = warped.clone("unsigned char")
            ants.image_write(warped, str(out / f"mask{number}.nii.gz"))
    return clock
