"""The slow rise and fall of an image's brightness: a coil's, not the anatomy's.

Left in, it moves the optimum of mutual information: by 0.3 mm between thick series of a phantom
whose brightness changes by a tenth, by 3 mm where it changes threefold.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mrmill.compiled import compiled
from mrmill.register import metric
from mrmill.register.descent import minimum
from mrmill.register.transforms import RigidTransform

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mrmill.register.levels import Image, Region, Sight

#: Terms of a polynomial of second degree in space, and its unit of length.
N_TERMS, UNIT_MM = 10, 100.0

#: Fit to one image: samples, rounds, and what counts in a round, in median deviations from the one
#: before. By trial on phantoms: eight rounds at 3 halve the error that one round leaves.
SAMPLES, ROUNDS, MAX_DEVIATIONS = 10_000, 8, 3.0

#: Natural logarithm of the most a shading may change a value.
MAX_LOG_GAIN = 1.5

#: Fit to two images: samples, the cost in nats of a change of a coefficient by 1/STEPS, squared,
#: and the smallest step, in such units. Without a cost both images may take on one and the same
#: shading, which they then have in common. By trial: at 0.001 that is seen, at 0.01 little changes.
PAIR_SAMPLES, CHANGE_COST, STEPS, TOLERANCE = 20_000, 0.003, 20.0, 0.1

#: Two images that share less of the brain tell nothing about each other's shading.
LEAST_IN_COMMON = 0.01

#: The last place on the axis of bins.
MOST = (metric.BINS - 1) * metric.FIXED

#: Distance of the points at which a field is computed; between them it is linear.
FIELD_STEP_MM = 12.0


@dataclass(frozen=True)
class Shading:
    """A smooth field that an image is multiplied with.

    Attributes
    ----------
    center_mm : (3,) ndarray
        Where the polynomial's argument is 0.
    logs : (9,) ndarray
        Its coefficients, all but the constant: the logarithm of the field.
    """

    center_mm: "NDArray[np.float64]"
    logs: "NDArray[np.float64]"

    @classmethod
    def of(cls, image: "Image", region: "Region", rng: np.random.Generator) -> "Shading":
        """Fit to the logarithm of the brain's values; tissues that stand out do not count.

        Least squares, again and again without the values that lie furthest from the last fit:
        fluid, vessels, lesions, the edge of the mask.
        """
        points = region.points(SAMPLES, 0.0, rng)
        values = image.at(points)
        positive = values > 0.1 * np.median(values)
        if positive.sum() < SAMPLES / 10:
            return cls(region.center_mm, np.zeros(N_TERMS - 1))
        terms = polynomial(points[positive] - region.center_mm)
        terms = np.column_stack([terms, np.ones(len(terms))])
        logs = np.log(values[positive])
        kept = np.ones(len(logs), bool)
        for _ in range(ROUNDS):
            some = terms[kept]
            ridge = np.diag([1e-3 * len(some)] * (N_TERMS - 1) + [0.0])
            fit = np.linalg.solve(some.T @ some + ridge, some.T @ logs[kept])
            away = np.abs(logs - terms @ fit)
            kept = away <= MAX_DEVIATIONS * np.median(away)
        return cls(region.center_mm, fit[:-1])

    def changed(self, change: "NDArray[np.float64]") -> "Shading":
        """Return the shading with other coefficients: (9,) numbers are added."""
        return Shading(self.center_mm, self.logs + change)

    def gain(self, points_mm: "NDArray[np.float64]") -> "NDArray[np.float32]":
        """Return what takes the shading away from values at points (..., 3)."""
        logs = polynomial(points_mm - self.center_mm) @ self.logs
        return np.exp(-np.clip(logs, -MAX_LOG_GAIN, MAX_LOG_GAIN)).astype(np.float32)

    def binned(self, image: "Image", low: float, high: float) -> "NDArray[np.uint16]":
        """Return the voxels without shading, values from `low` to `high` as places on the bins.

        The places are `metric.FIXED` to a bin: little memory is fast memory.
        """
        steps = np.maximum(1, np.rint(FIELD_STEP_MM / image.spacing_mm)).astype(int)
        lattice = [np.arange(0, n + s, s) for n, s in zip(image.voxels.shape, steps, strict=True)]
        points = np.stack(np.meshgrid(*lattice, indexing="ij"), axis=-1)
        gain = self.gain(points @ image.affine[:3, :3].T + image.affine[:3, 3])
        places = np.empty(image.voxels.shape, np.uint16)
        scale = MOST / max(high - low, metric.LEAST_RANGE)
        _places(image.voxels, gain * np.float32(scale), *steps, np.float32(low * scale), places)
        return places


def agree(
    still: "Sight", other: "Sight", level: int, pose: RigidTransform, rng: np.random.Generator
) -> tuple["Sight", "Sight"]:
    """Change two scans' shadings a little, so that they tell most about each other at a pose.

    A fit to one image cannot tell shading from anatomy that rises and falls as slowly (grey matter
    lies outside); the other image, of the same anatomy, can.
    """
    points = still.region.points(PAIR_SAMPLES, 0.0, rng)
    seen = [still.values(level, points), other.values(level, pose(points))]
    inside = (seen[0] > 0) & (seen[1] > 0)
    if inside.mean() < LEAST_IN_COMMON:
        return still, other
    places = [points[inside], pose(points)[inside]]
    terms = np.stack(
        [
            -polynomial(where - sight.shading.center_mm) / STEPS
            for sight, where in zip((still, other), places, strict=True)
        ]
    )
    values = np.stack(seen)[:, inside].astype(float)
    low, high = np.array([metric.window(v) for v in values]).T[..., None]
    scale = (metric.BINS - 1) / np.maximum(high - low, metric.LEAST_RANGE)
    values, low = values * scale, low * scale
    slopes = np.empty_like(values)

    def cost(x: "NDArray[np.float64]") -> tuple[float, "NDArray[np.float64]"]:
        shaded = values * np.exp((terms @ x.reshape(2, -1, 1))[..., 0])
        mutual = metric.mutual_slopes(np.clip(shaded - low, 0, metric.BINS - 1), slopes)
        by_x = ((slopes * shaded)[:, None] @ terms).ravel()
        return CHANGE_COST * (x @ x) - mutual, 2 * CHANGE_COST * x - by_x

    x, _ = minimum(cost, 2 * (N_TERMS - 1), None, TOLERANCE)
    changes = x.reshape(2, -1) / STEPS
    return still.reshaded(changes[0]), other.reshaded(changes[1])


def polynomial(from_center_mm: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """Return the terms (..., 9) of first and second degree at points (..., 3)."""
    x, y, z = np.moveaxis(from_center_mm / UNIT_MM, -1, 0)
    return np.stack([x, y, z, x * x, y * y, z * z, x * y, y * z, x * z], axis=-1)


@compiled
def _places(voxels, gain, step_k, step_j, step_i, low, places):
    """Fill `places` with voxels times a field, given on every `step`-th voxel, less `low`."""
    most = np.float32(MOST)
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
