"""What the `mattes` engine looks at: a scan at several resolutions, the part around the brain."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from mrmill.compiled import compiled
from mrmill.register.metric import interpolate
from mrmill.register.scans import Scan
from mrmill.register.shading import Shading
from mrmill.volumes import Volume

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Levels of an image, and the resolution of the first two in mm; the last is as acquired.
COARSE, FINE, ACQUIRED = range(3)
COARSE_MM, FINE_MM = 4.0, 2.0

#: What is further from the brain than this is not looked at.
REACH_MM = 20.0

#: Edge of the cells in which the brain's surroundings are told, in mm.
CELL_MM = 4.0


@dataclass(frozen=True)
class Image:
    """An image as compiled functions want it.

    Attributes
    ----------
    voxels : (K, J, I) ndarray of float32 or uint16
        C-contiguous: the order of a NIfTI file.
    affine : (4, 4) ndarray
        Voxel indices k, j, i to mm, RAS+.
    """

    voxels: "NDArray"
    affine: "NDArray[np.float64]"

    @cached_property
    def to_voxel(self) -> "NDArray[np.float64]":
        """(3, 4): mm to voxel indices k, j, i."""
        return np.linalg.inv(self.affine)[:3]

    @cached_property
    def spacing_mm(self) -> "NDArray[np.float64]":
        """Edge lengths of a voxel along k, j, i."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def at(self, points_mm: "NDArray[np.float64]") -> "NDArray[np.float32]":
        """Sample linearly at points (n, 3) in mm; 0 outside the field."""
        values = np.empty(len(points_mm), np.float32)
        interpolate(self.voxels, points_mm, self.to_voxel, values)
        return values

    def shrunk(self, to_mm: float) -> "Image":
        """Average blocks of voxels up to about `to_mm`; what is that thick already is kept."""
        factors = np.maximum(1, np.rint(to_mm / self.spacing_mm)).astype(int)
        factors = np.minimum(factors, self.voxels.shape)
        affine = self.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ ((factors - 1) / 2)
        affine[:3, :3] *= factors
        means = np.zeros(np.array(self.voxels.shape) // factors, np.float32)
        _block_means(self.voxels, *factors, means)
        return Image(means, affine)

    def cut(self, first: "NDArray[np.int64]", last: "NDArray[np.int64]") -> "Image":
        """Return the part between two voxels, both included."""
        part = tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))
        affine = self.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ first
        return Image(np.ascontiguousarray(self.voxels[part]), affine)


def image_of(volume: Volume) -> Image:
    """Return a volume as an image, its voxels as they are when they are uint16 or float32."""
    voxels = volume.data.T
    if voxels.dtype not in (np.uint16, np.float32):
        voxels = voxels.astype(np.float32)
    return Image(np.ascontiguousarray(voxels), volume.affine[:, [2, 1, 0, 3]])


@dataclass(frozen=True)
class Region:
    """The brain of a scan and its surroundings, as cells of about `CELL_MM`.

    Attributes
    ----------
    outside_mm : (K, J, I) ndarray of float32
        Distance of each cell from the brain; 0 in it.
    affine : (4, 4) ndarray
        Cell indices k, j, i to mm.
    """

    outside_mm: "NDArray[np.float32]"
    affine: "NDArray[np.float64]"

    def points(self, n: int, margin_mm: float, rng: np.random.Generator) -> "NDArray[np.float64]":
        """Return (n, 3) random points in mm, spread evenly, in the brain or near it.

        They go cell by cell, so that neighbours in the list are neighbours in memory too.
        """
        cells = np.argwhere(self.outside_mm <= margin_mm)
        indices = cells[np.arange(n) * len(cells) // n] + rng.uniform(-0.5, 0.5, (n, 3))
        return indices @ self.affine[:3, :3].T + self.affine[:3, 3]

    @property
    def brain_ml(self) -> float:
        """Volume of the brain."""
        return (self.outside_mm == 0).sum() * abs(np.linalg.det(self.affine[:3, :3])) / 1000

    @cached_property
    def center_mm(self) -> "NDArray[np.float64]":
        """Middle of the brain."""
        middle = np.argwhere(self.outside_mm == 0).mean(axis=0)
        return self.affine[:3, :3] @ middle + self.affine[:3, 3]

    def cut(self, image: Image, margin_mm: float) -> Image:
        """Return the part of an image that holds the brain and its surroundings."""
        cells = np.argwhere(self.outside_mm <= margin_mm)
        corners = np.stack(
            np.meshgrid(*zip(cells.min(0) - 1, cells.max(0) + 1, strict=True), indexing="ij")
        )
        corners = self.affine[:3, :3] @ corners.reshape(3, -1) + self.affine[:3, 3:]
        indices = image.to_voxel[:, :3] @ corners + image.to_voxel[:, 3:]
        last = np.array(image.voxels.shape) - 1
        return image.cut(
            np.clip(np.floor(indices.min(axis=1)).astype(int), 0, last),
            np.clip(np.ceil(indices.max(axis=1)).astype(int), 0, last),
        )


def region_of(scan: Scan) -> Region:
    """Find the cells that are at least half brain, and how far the others are from them."""
    from scipy.ndimage import distance_transform_edt

    share = image_of(Volume(scan.brain, scan.volume.affine)).shrunk(CELL_MM)
    brain = share.voxels >= 0.5
    if not brain.any():  # no mask: the whole field
        brain = np.ones_like(brain)
    outside = distance_transform_edt(~brain, sampling=share.spacing_mm).astype(np.float32)
    return Region(outside, share.affine)


@dataclass(frozen=True)
class Sight:
    """A scan as the engine sees it: coarse, fine and as acquired, the part around the brain."""

    levels: tuple[Image, Image, Image]
    region: Region
    shading: Shading

    @classmethod
    def of(cls, scan: Scan) -> "Sight":
        """Prepare a scan; the same for every pair that it is part of."""
        region = region_of(scan)
        acquired = region.cut(image_of(scan.volume), REACH_MM)
        fine = acquired.shrunk(FINE_MM)
        shading = Shading.of(fine, region, np.random.default_rng(0))
        return cls((fine.shrunk(COARSE_MM), fine, acquired), region, shading)

    def values(self, level: int, points: "NDArray[np.float64]") -> "NDArray[np.float32]":
        """Sample a level at points (n, 3) in mm, without shading."""
        return self.levels[level].at(points) * self.shading.gain(points)

    def reshaded(self, change: "NDArray[np.float64]") -> "Sight":
        """Return the scan with another shading: its coefficients changed by (9,) numbers."""
        return replace(self, shading=self.shading.changed(change))


@compiled
def _block_means(voxels, fk, fj, fi, means):
    """Add up the averages of blocks of fk x fj x fi voxels."""
    share = np.float32(1.0 / (fk * fj * fi))
    for k in range(means.shape[0] * fk):
        for j in range(means.shape[1] * fj):
            row = means[k // fk, j // fj]
            n = 0
            for i in range(means.shape[2]):
                total = np.float32(0)
                for _ in range(fi):
                    total += np.float32(voxels[k, j, n])
                    n += 1
                row[i] += total * share
