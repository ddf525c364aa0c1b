"""One picture of a released study: masks, defacing, co-registration and atlas at a glance.

Everything is read from the release's zips, so it shows what a consumer gets.
"""

import gzip
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mrmill import layout
from mrmill.errors import UserError
from mrmill.layout import ReleaseTree

if TYPE_CHECKING:
    import nibabel as nib
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

#: What each column of the picture shows.
TITLES = {
    "native": "native: brain mask (red),\nremoved (blue)",
    "sagittal": "the same, sagittal",
    "coreg": "on the center's grid, with\nthe center's contours (yellow)",
    "atlas": "atlas space, with the\ncenter's brain (red)",
}


def study_picture(release: ReleaseTree, study_uid: str, path: Path) -> None:
    """Draw every series of a study, a row each.

    Parameters
    ----------
    release : ReleaseTree
        Any of its spaces may be absent; their columns stay empty.
    path : Path
        The PNG; it carries no metadata.

    Raises
    ------
    UserError
        When the release has no such study.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    images = read_study(release, study_uid)
    series = [name for name in images if name.startswith("img/")]
    if not series:
        raise UserError(f"no study {study_uid} in {release.root}")
    ids = [name.removeprefix(f"img/{study_uid}_").removesuffix(".nii.gz") for name in series]
    figure, axes = plt.subplots(
        len(ids), len(TITLES), figsize=(11, 2.6 * len(ids)), squeeze=False, facecolor="black"
    )
    for row, series_id in zip(axes, ids, strict=True):
        for axis in row:
            axis.axis("off")
        row[0].text(-0.02, 0.5, series_id, **LABEL, rotation=90, transform=row[0].transAxes)
        draw_native(row[:2], images, study_uid, series_id)
        draw_coreg(row[2], images, study_uid, series_id)
        draw_atlas(row[3], images, study_uid, series_id)
    for axis, title in zip(axes[0], TITLES.values(), strict=True):
        axis.set_title(title, color="white", fontsize=9)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


LABEL = {"color": "white", "fontsize": 9, "ha": "right", "va": "center"}


def read_study(release: ReleaseTree, study_uid: str) -> dict[str, "nib.Nifti1Image"]:
    """Return every image of a study by its member name below the study folder, in RAS order."""
    import nibabel as nib

    found = {}
    for space in layout.SPACES:
        for archive in release.repository(space).glob(
            f"mri/*/{study_uid}{layout.ZIP_SUFFIX[space]}.zip"
        ):
            with zipfile.ZipFile(archive) as members:
                for name in members.namelist():
                    if name.endswith(".nii.gz"):
                        image = nib.Nifti1Image.from_bytes(gzip.decompress(members.read(name)))
                        found[name.partition("/")[2]] = nib.as_closest_canonical(image)
    return found


def studies_of(release: ReleaseTree) -> Iterator[str]:
    """Yield the studies of a release."""
    for path in sorted(release.repository("native").glob("mri/*/*.zip")):
        yield path.stem


def draw_native(row: "list[Axes]", images: dict, study_uid: str, series_id: str) -> None:
    """Draw a series through the middle of its brain, axial and sagittal."""
    image = images[layout.native_image(study_uid, series_id)]
    brain = voxels(images[layout.native_mask(study_uid, series_id, "brain")])
    kept = voxels(images[layout.native_mask(study_uid, series_id, "defacing")])
    for axes, axis in zip(row, (2, 0), strict=True):
        at = middle(brain, axis)
        show(axes, image, axis, at)
        contour(axes, image, brain, axis, at, "red")
        contour(axes, image, 1 - kept, axis, at, "deepskyblue")


def draw_coreg(axes: "Axes", images: dict, study_uid: str, series_id: str) -> None:
    """Draw a series in the center's space under contours of the center itself."""
    centers = [n for n in images if n.startswith("coreg_img/") and "_coreg_" not in n]
    if not centers:
        return
    center = images[centers[0]]
    center_id = centers[0].removeprefix(f"coreg_img/{study_uid}_").removesuffix(".nii.gz")
    image = images.get(layout.coreg_image(study_uid, series_id))
    image = center if series_id == center_id else image
    if image is None:
        return
    brain = voxels(images[layout.coreg_mask(study_uid, center_id, "brain")]) > 0
    at = middle(brain, 2)
    show(axes, image, 2, at)
    inside = np.where(brain, voxels(center), 0)
    contour(axes, center, inside, 2, at, "yellow", np.percentile(inside[brain], [15, 60]))


def draw_atlas(axes: "Axes", images: dict, study_uid: str, series_id: str) -> None:
    """Draw a series in atlas space with the center's brain mask."""
    image = images.get(layout.atlas_image(study_uid, series_id))
    masks = [n for n in images if n.startswith("atlas_seg/") and n.endswith("_brain-mask.nii.gz")]
    if image is None or not masks:
        return
    brain = voxels(images[masks[0]])
    at = middle(brain, 2)
    show(axes, image, 2, at)
    contour(axes, image, brain, 2, at, "red")


def voxels(image: "nib.Nifti1Image") -> "NDArray[np.float32]":
    """Return the voxels of an image."""
    return np.asarray(image.dataobj, dtype=np.float32)


def middle(mask: "NDArray", axis: int) -> int:
    """Return the slice through the middle of a mask."""
    where = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
    return int(where[len(where) // 2]) if where.size else mask.shape[axis] // 2


def show(axes: "Axes", image: "nib.Nifti1Image", axis: int, at: int) -> None:
    """Draw one slice with square millimetres, the patient's left on the right."""
    data = voxels(image)
    top = np.percentile(data[data > 0], 99.5) if (data > 0).any() else 1
    plane = np.take(data, at, axis).T
    axes.imshow(plane, cmap="gray", vmin=0, vmax=top, origin="lower", aspect=aspect(image, axis))
    if axis == 2:
        axes.invert_xaxis()


def contour(
    axes: "Axes",
    image: "nib.Nifti1Image",
    data: "NDArray",
    axis: int,
    at: int,
    colour: str,
    levels: "NDArray | tuple[float, ...]" = (0.5,),
) -> None:
    """Draw outlines of one slice over it."""
    plane = np.take(data, at, axis).T
    if plane.min() < levels[0] < plane.max():
        axes.contour(plane, levels=levels, colors=colour, linewidths=0.7)


def aspect(image: "nib.Nifti1Image", axis: int) -> float:
    """Return height over width of a voxel as drawn."""
    width, height = (s for a, s in enumerate(image.header.get_zooms()[:3]) if a != axis)
    return float(height / width)
