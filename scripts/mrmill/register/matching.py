"""Two scans held against each other at one resolution: rating poses, descending from one."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mrmill.register import metric
from mrmill.register.descent import RIGID, Motion, minimum
from mrmill.register.levels import Sight
from mrmill.register.transforms import RigidTransform

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: By level: samples, how far from the brain they reach and the step at which a descent ends, in mm.
SAMPLES = (12_000, 40_000, 200_000)
MARGIN_MM = (20.0, 4.0, 2.0)
TOLERANCE_MM = (0.1, 0.02, 0.01)

#: Samples that rate a pose among many at first and, for the best `N_AGAIN`, once more.
SEARCH_SAMPLES, CHOICE_SAMPLES, N_AGAIN = 1_000, 4_000, 80

#: Best poses that are kept, at least so far apart.
N_STARTS, APART_MM = 5, 12.0

#: Points of the brain at which poses are compared.
BRAIN_POINTS = 500


@dataclass(frozen=True)
class Optimum:
    """Where a descent ended.

    Attributes
    ----------
    pose : RigidTransform
        Affine after an affine descent.
    score : float
        See `_score`.
    curvature : (6, 6) ndarray
        Inverse of the cost's second derivative, as the descent came to know it.
    """

    pose: RigidTransform
    score: float
    curvature: "NDArray[np.float64]"


class Matching:
    """Samples of one scan and what they meet in another, at one level.

    Parameters
    ----------
    still, other : Sight
        Where the samples come from, and where poses take them.
    level : int
        COARSE, FINE or ACQUIRED.
    margin_mm : float, optional
        How far from the brain the samples reach; that of the level if not given.
    """

    def __init__(
        self,
        still: Sight,
        other: Sight,
        level: int,
        rng: np.random.Generator,
        margin_mm: float | None = None,
    ):
        margin_mm = MARGIN_MM[level] if margin_mm is None else margin_mm
        self.tolerance_mm = TOLERANCE_MM[level]
        self.brain_points = still.region.points(BRAIN_POINTS, 0.0, rng)
        self.center = still.region.center_mm
        points = still.region.points(SAMPLES[level], margin_mm, rng)
        values = still.values(level, points)
        self.points = points - self.center
        self.bins = _bins(values, *metric.window(values))
        seen = other.values(level, other.region.points(CHOICE_SAMPLES, margin_mm, rng))
        image = other.levels[level]
        self.voxels = other.shading.binned(image, *metric.window(seen))
        self.to_voxel = image.to_voxel

    def best(self, poses: "NDArray[np.float64]") -> list[RigidTransform]:
        """Return the best of many poses (m, 4, 4), no two of them near each other."""
        poses = poses[_falling(self.scores(poses, SEARCH_SAMPLES))[:N_AGAIN]]
        poses = poses[_falling(self.scores(poses, CHOICE_SAMPLES))]
        chosen: list[RigidTransform] = []
        for pose in map(RigidTransform, poses):
            if all(self.apart_mm(pose, other) > APART_MM for other in chosen):
                chosen.append(pose)
        return chosen[:N_STARTS]

    def distinct(self, optima: list[Optimum], share: float) -> list[Optimum]:
        """Return the best optimum and others that score this share of it, best first."""
        optima = sorted(optima, key=lambda o: -o.score)
        kept: list[Optimum] = []
        for optimum in optima:
            near = any(self.apart_mm(optimum.pose, o.pose) < 10 * self.tolerance_mm for o in kept)
            if not kept or (not near and optimum.score >= share * optima[0].score):
                kept.append(optimum)
        return kept

    def apart_mm(self, a: RigidTransform, b: RigidTransform) -> float:
        """Mean distance of two poses over the brain."""
        return float(np.linalg.norm(a(self.brain_points) - b(self.brain_points), axis=1).mean())

    def spread_mm(self, poses: list[RigidTransform]) -> float:
        """Largest distance of a pose from the first."""
        return max(self.apart_mm(poses[0], pose) for pose in poses)

    def scores(self, poses: "NDArray[np.float64]", n: int) -> "NDArray[np.float64]":
        """Rate poses (m, 4, 4) with about n samples and half the bins, which so few can fill."""
        points, bins = self._some(n)
        rated = np.empty((len(poses), 3))
        metric.many(
            self.voxels, points, bins // 2, self._to_voxel(poses), 0.5 / metric.FIXED, rated
        )
        return _score(*rated.T)

    def descend(
        self,
        start: RigidTransform,
        curvature: "NDArray[np.float64] | None" = None,
        free: int = RIGID,
        n: int | None = None,
    ) -> Optimum:
        """Go from a pose to the optimum next to it, with all samples or about n of them."""
        points, bins = self._some(n or len(self.points))
        motion = Motion(start.matrix, self.center)
        information = metric.Information(self.voxels, points, bins)

        def cost(x: "NDArray[np.float64]") -> tuple[float, "NDArray[np.float64]"]:
            mutual, by_voxel = information.at(self._to_voxel(motion.pose(x)))
            return -mutual, -motion.slope(x, self.to_voxel[:, :3].T @ by_voxel)

        x, curvature = minimum(cost, free, curvature, self.tolerance_mm)
        pose = motion.pose(x)
        score = self.scores(pose[None], CHOICE_SAMPLES)[0]
        return Optimum(RigidTransform(pose), float(score), curvature)

    def _some(self, n: int) -> tuple["NDArray[np.float64]", "NDArray[np.uint8]"]:
        step = len(self.points) // n
        return np.ascontiguousarray(self.points[::step]), np.ascontiguousarray(self.bins[::step])

    def _to_voxel(self, poses: "NDArray[np.float64]") -> "NDArray[np.float64]":
        """(..., 3, 4): points about the center to voxels of the other image, by (..., 4, 4)."""
        matrices = self.to_voxel[:, :3] @ poses[..., :3, :]
        matrices[..., 3] += matrices[..., :3] @ self.center + self.to_voxel[:, 3]
        return matrices


def _score(mutual: "NDArray", entropy: "NDArray", inside: "NDArray") -> "NDArray[np.float64]":
    """Share of the joint information that is mutual, less where much of the brain is out."""
    return mutual / np.maximum(entropy, 1e-12) * np.sqrt(inside)


def _falling(scores: "NDArray[np.float64]") -> "NDArray[np.int64]":
    return np.argsort(-scores, kind="stable")


def _bins(values: "NDArray[np.float32]", low: float, high: float) -> "NDArray[np.uint8]":
    places = (values - low) * (metric.BINS / max(high - low, metric.LEAST_RANGE))
    return np.clip(places, 0, metric.BINS - 1).astype(np.uint8)
