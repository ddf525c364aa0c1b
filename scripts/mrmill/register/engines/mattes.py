"""Engine `mattes`: the reference's model, found with few samples from many starts.

The model is that of the `ants` engine: a rigid transform, Mattes' mutual information with 32 bins,
linear interpolation. What differs is what it looks at, samples in and around the brain after the
coil's shading is taken away, and the way to the optimum: a search over poses at 4 mm, then descents
with the analytic derivative at 4 mm, at 2 mm and on the images as they are.

Onto another person's head (an atlas) the optimum of a rigid transform depends on which structures
happen to fit. There the last descent is affine, and the rigid transform nearest to it over the
brain is the one returned.
"""

from typing import TYPE_CHECKING

import numpy as np

from mrmill.register.descent import AFFINE
from mrmill.register.engines import Found
from mrmill.register.levels import ACQUIRED, COARSE, FINE, Region, Sight
from mrmill.register.matching import CHOICE_SAMPLES, Matching
from mrmill.register.scans import Scan
from mrmill.register.shading import agree

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mrmill.config import Register

#: The search: turns up to `TURN_DEG`, `TURN_STEP_DEG` apart, and shifts along the axes.
TURN_DEG, TURN_STEP_DEG = 45.0, 15.0
SHIFTS_MM = (-25.0, 25.0)

#: A brain smaller than this share of the other is partly out of the field: its middle says little.
PARTIAL = 0.8
PARTIAL_SHIFTS_MM = (-45.0, -30.0, -15.0, 15.0, 30.0, 45.0)

#: Optima that score this share of the best one are looked at again, of one head and of another (a
#: head of another shape may score less where it fits than where its outline does); are its rivals.
PROMISING, PROMISING_OTHER, RIVAL = 0.9, 0.7, 0.97

#: How often the two scans' shadings are made to agree.
SHADING_ROUNDS = 2


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


def _search(still: Sight, other: Sight, same_head: bool, rng: np.random.Generator) -> Found:
    """Find the pose that takes points of the one scan to those of the other."""
    coarse, fine = (Matching(still, other, level, rng) for level in (COARSE, FINE))
    starts = coarse.best(candidates(still.region, other.region))
    optima = [coarse.descend(pose, n=CHOICE_SAMPLES) for pose in starts]
    promising = coarse.distinct(optima, PROMISING if same_head else PROMISING_OTHER)
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
