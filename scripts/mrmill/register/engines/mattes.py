"""Engine `mattes`: the reference's model, found with few samples from many starts.

The model is that of the `ants` engine: a rigid transform, Mattes' mutual information with 32 bins,
linear interpolation. What differs is what it looks at, samples in and around the brain after the
coil's shading is taken away, and the way to the optimum: a search over poses at 4 mm, then descents
with the analytic derivative at 4 mm, at 2 mm and on the images as they are.

Onto another person's head (an atlas) the optimum of a rigid transform depends on which structures
happen to fit. There the last descent is affine, and the rigid transform nearest to it over the
brain is the one returned.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mrmill.register import metric
from mrmill.register.descent import AFFINE, RIGID, Motion, minimum
from mrmill.register.engines import Found
from mrmill.register.levels import ACQUIRED, COARSE, FINE, Region, Sight
from mrmill.register.scans import Scan
from mrmill.register.shading import agree
from mrmill.register.transforms import RigidTransform

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mrmill.config import Register

#: By level: samples, how far from the brain they reach and the step at which a descent ends, in mm.
SAMPLES = (12_000, 40_000, 200_000)
MARGIN_MM = (20.0, 4.0, 2.0)
TOLERANCE_MM = (0.1, 0.02, 0.01)

#: The search: turns up to `TURN_DEG`, `TURN_STEP_DEG` apart, and shifts along the axes.
TURN_DEG, TURN_STEP_DEG = 45.0, 15.0
SHIFTS_MM = (-25.0, 25.0)

#: A brain smaller than this share of the other is partly out of the field: its middle says little.
PARTIAL = 0.8
PARTIAL_SHIFTS_MM = (-45.0, -30.0, -15.0, 15.0, 30.0, 45.0)

#: Samples that rate a pose at first and, for the best `N_AGAIN`, once more.
SEARCH_SAMPLES, CHOICE_SAMPLES, N_AGAIN = 1_000, 4_000, 80

#: Poses to descend from, at least so far apart.
N_STARTS, APART_MM = 5, 12.0

#: Optima that score this share of the best one are looked at again; are its rivals.
PROMISING, RIVAL = 0.9, 0.97

#: How often the two scans' shadings are made to agree.
SHADING_ROUNDS = 2

#: Points of the brain at which poses are compared.
BRAIN_POINTS = 500


def find(fixed: Scan, moving: Scan, settings: "Register", same_head: bool = True) -> Found:
    """Find the pose of greatest mutual information around the brain.

    The samples come from the image with the thicker slices. Interpolating between thick slices
    blurs by an amount that depends on the pose; their own values, looked up in a finer image,
    do not.
    """
    rng = np.random.default_rng(settings.seed)
    sights = fixed.sight, moving.sight
    if moving.volume.spacing_mm.max() <= fixed.volume.spacing_mm.max():
        return _search(*sights, same_head, rng)
    found = _search(*reversed(sights), same_head, rng)
    return Found(found.transform.inverse(), "mattes", found.start.inverse(), found.spread_mm)


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


def _search(still: Sight, other: Sight, same_head: bool, rng: np.random.Generator) -> Found:
    """Find the pose that takes points of the one scan to those of the other."""
    coarse, fine = (Matching(still, other, level, rng) for level in (COARSE, FINE))
    starts = coarse.best(candidates(still.region, other.region))
    optima = [coarse.descend(pose, n=CHOICE_SAMPLES) for pose in starts]
    promising = coarse.distinct(optima, PROMISING)
    if not same_head:
        rivals = fine.distinct([fine.descend(o.pose, free=AFFINE) for o in promising], RIVAL)
        poses = [rival.pose.nearest_rigid(fine.brain_points) for rival in rivals]
        return Found(poses[0], "mattes", promising[0].pose, fine.spread_mm(poses))
    rivals = fine.distinct([fine.descend(o.pose, o.curvature) for o in promising], RIVAL)
    best, spread_mm = rivals[0], fine.spread_mm([rival.pose for rival in rivals])
    for _ in range(SHADING_ROUNDS):
        still, other = agree(still, other, FINE, best.pose, rng)
        best = Matching(still, other, FINE, rng).descend(best.pose, best.curvature)
    last = Matching(still, other, ACQUIRED, rng).descend(best.pose, best.curvature)
    return Found(last.pose, "mattes", rivals[0].pose, spread_mm)


def candidates(still: Region, other: Region) -> "NDArray[np.float64]":
    """Return (m, 4, 4) poses to rate: turns of the brain, as it lies or in the other's place."""
    from scipy.spatial.transform import Rotation

    turns = Rotation.from_rotvec(_ball(TURN_DEG, TURN_STEP_DEG), degrees=True).as_matrix()
    brains_ml = sorted([still.brain_ml, other.brain_ml])
    partial = brains_ml[0] < PARTIAL * brains_ml[1]
    axes = still.affine[:3, :3] / np.linalg.norm(still.affine[:3, :3], axis=0)
    shifts = [step * axes.T for step in (PARTIAL_SHIFTS_MM if partial else SHIFTS_MM)]
    places = np.vstack([still.center_mm, other.center_mm, *(other.center_mm + s for s in shifts)])
    poses = np.tile(np.eye(4), (len(places), len(turns), 1, 1))
    poses[..., :3, :3] = turns
    poses[..., :3, 3] = places[:, None] - turns @ still.center_mm
    return poses.reshape(-1, 4, 4)


def _ball(radius: float, step: float) -> "NDArray[np.float64]":
    """Points (n, 3) of a body-centered cubic lattice within a ball: an even cover of it."""
    axis = np.arange(-radius, radius + step, step)
    corners = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    lattice = np.vstack([corners, corners + step / 2])
    return lattice[np.linalg.norm(lattice, axis=1) <= radius]


class Matching:
    """Samples of one scan and what they meet in another, at one level.

    Parameters
    ----------
    still, other : Sight
        Where the samples come from, and where poses take them.
    level : int
        COARSE, FINE or ACQUIRED.
    """

    def __init__(self, still: Sight, other: Sight, level: int, rng: np.random.Generator):
        margin_mm = MARGIN_MM[level]
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
            if not near and optimum.score >= share * optima[0].score:
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
    places = (values - low) * (metric.BINS / max(high - low, 1e-12))
    return np.clip(places, 0, metric.BINS - 1).astype(np.uint8)
