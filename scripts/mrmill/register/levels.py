"""What the `mattes` engine looks at: images at several resolutions, without shading, in bins."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from mrmill.compiled import compiled
from mrmill.register.metric import BINS, FIXED, interpolate
from mrmill.register.scans import Scan
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

#: Samples that shading is fitted to, and the natural logarithm of the most it may change.
SHADING_SAMPLES = 10_000
MAX_LOG_GAIN = 1.5

#: Terms of a polynomial of second degree in space; rounds of its fit; what counts in a round, in
#: median deviations from the last one. By trial on phantoms: eight rounds at 3 halve the error
#: that one round leaves.
N_TERMS, SHADING_FITS, MAX_DEVIATIONS = 10, 8, 3.0

#: Distance of the points at which the shading's field is computed; between them it is linear.
FIELD_STEP_MM = 12.0

#: Shares of the values that lie below the first and the last bin.
WINDOW_PERCENT = (0.5, 99.5)


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
    return Image(voxels, volume.affine[:, [2, 1, 0, 3]])


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
        corners = np.stack(np.meshgrid(*zip(cells.min(0) - 1, cells.max(0) + 1), indexing="ij"))
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
class Shading:
    """The slow rise and fall of an image's brightness: a coil's, not the anatomy's.

    Attributes
    ----------
    center_mm : (3,) ndarray
        Where the polynomial's argument is 0.
    logs : (10,) ndarray
        Coefficients of a polynomial of second degree: the logarithm of the shading.
    """

    center_mm: "NDArray[np.float64]"
    logs: "NDArray[np.float64]"

    @classmethod
    def of(cls, image: Image, region: Region, rng: np.random.Generator) -> "Shading":
        """Fit to the logarithm of the brain's values; tissues that stand out do not count.

        Least squares, again and again without the values that lie furthest from the last fit:
        fluid, vessels, lesions, the edge of the mask.
        """
        points = region.points(SHADING_SAMPLES, 0.0, rng)
        values = image.at(points)
        positive = values > 0.1 * np.median(values)
        if positive.sum() < SHADING_SAMPLES / 10:
            return cls(region.center_mm, np.zeros(N_TERMS))
        terms = _polynomial(points[positive] - region.center_mm)
        logs = np.log(values[positive])
        kept = np.ones(len(logs), bool)
        for _ in range(SHADING_FITS):
            some = terms[kept]
            ridge = np.diag([0.0] + [1e-3 * len(some)] * (N_TERMS - 1))
            fit = np.linalg.solve(some.T @ some + ridge, some.T @ logs[kept])
            away = np.abs(logs - terms @ fit)
            kept = away <= MAX_DEVIATIONS * np.median(away)
        return cls(region.center_mm, fit)

    def gain(self, points_mm: "NDArray[np.float64]") -> "NDArray[np.float32]":
        """Return what to multiply values at points (..., 3) with."""
        logs = _polynomial(points_mm - self.center_mm)[..., 1:] @ self.logs[1:]
        return np.exp(-np.clip(logs, -MAX_LOG_GAIN, MAX_LOG_GAIN)).astype(np.float32)

    def binned(self, image: Image, low: float, high: float) -> Image:
        """Return the image without shading, its values from `low` to `high` as places on the bins.

        The places are uint16, `FIXED` to a bin: little memory is fast memory.
        """
        steps = np.maximum(1, np.rint(FIELD_STEP_MM / image.spacing_mm)).astype(int)
        lattice = [np.arange(0, n + s, s) for n, s in zip(image.voxels.shape, steps, strict=True)]
        points = np.stack(np.meshgrid(*lattice, indexing="ij"), axis=-1)
        gain = self.gain(points @ image.affine[:3, :3].T + image.affine[:3, 3])
        places = np.empty(image.voxels.shape, np.uint16)
        scale = (BINS - 1) * FIXED / max(high - low, 1e-12)
        _places(image.voxels, gain * np.float32(scale), *steps, np.float32(low * scale), places)
        return Image(places, image.affine)


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


def window(values: "NDArray[np.float32]") -> tuple[float, float]:
    """Return the values between which the bins lie."""
    low, high = np.percentile(values, WINDOW_PERCENT)
    return float(low), float(high)


def _polynomial(from_center_mm: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """Terms of second degree at points (..., 3), in units of 100 mm."""
    x, y, z = np.moveaxis(from_center_mm / 100, -1, 0)
    return np.stack([np.ones_like(x), x, y, z, x * x, y * y, z * z, x * y, y * z, x * z], axis=-1)


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


@compiled
def _places(voxels, gain, step_k, step_j, step_i, low, places):
    """Fill `places` with voxels times a field, given on every `step`-th voxel, less `low`."""
    most = np.float32((BINS - 1) * FIXED)
    row = np.empty(gain.shape[2], np.float32)
    for k in range(voxels.shape[0]):
        a = k // step_k
        u = np.float32((k - a * step_k) / step_k)
        for j in range(voxels.shape[1]):
            b = j // step_j
            v = np.float32((j - b * step_j) / step_j)
            for c in range(gain.shape[2]):
                near = gain[a, b, c] + (gain[a, b + 1, c] - gain[a, b, c]) * v
                far = gain[a + 1, b, c] + (gain[a + 1, b + 1, c] - gain[a + 1, b, c]) * v
                row[c] = near + (far - near) * u
            for c in range(gain.shape[2] - 1):
                rise = (row[c + 1] - row[c]) / np.float32(step_i)
                first = c * step_i
                for i in range(first, min(first + step_i, voxels.shape[2])):
                    field = row[c] + rise * np.float32(i - first)
                    place = np.float32(voxels[k, j, i]) * field - low
                    places[k, j, i] = np.uint16(min(max(place, np.float32(0)), most))
