"""How well a rigid transform lays one scan over another, measured the same way for every engine.

All measures look at sample points, not at whole grids: they cost about 0.1 s, whatever the images.
"""

from typing import TYPE_CHECKING

import numpy as np

from mrmill.register.engines import Found
from mrmill.register.scans import Scan
from mrmill.register.transforms import RigidTransform
from mrmill.volumes import Volume

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Points behind overlap and Dice: the sampling error of Dice is then below 0.003; behind the
#: published metric; behind the similarity of a pose.
SAMPLES, METRIC_SAMPLES, POSE_SAMPLES = 50_000, 50_000, 4_000

#: Bins that the values of an image fill in ITK: 32 less two on either side.
ITK_BINS = 28

#: Poses around the found one that it must stand out from, and how far they are turned and shifted.
N_WRONG, WRONG_DEG, WRONG_MM = 96, 30.0, 30.0


def measure(found: Found, fixed: Scan, moving: Scan) -> dict[str, float]:
    """Measure how well a transform lays a moving scan over a fixed one.

    Returns
    -------
    quality : dict
        `metric_headers`, `metric_start`, `metric`: the published recipe's own metric, Mattes'
        mutual information over the whole fixed field in nats, with the headers alone, where the
        last descent began and with the transform.
        `similarity_headers`, `similarity`: share of the information around the brain that the two
        images have in common, 0 to 1.
        `prominence`: by how many standard deviations the similarity stands out from that of wrong
        poses around it. `spread_mm`: `Found.spread_mm`.
        `rotation_degrees`; `translation_mm`: how far the middle of the fixed brain moves.
        `overlap`: share of the moving field inside the fixed field. `brain_dice`: of the two brain
        masks, within the common field.
    """
    rng = np.random.default_rng(0)  # measures need no seed of their own: always the same points
    transform, center = found.transform, fixed.sight.region.center_mm[None]
    poses = [RigidTransform(), found.start, transform]
    metric = published_metric(fixed.volume, moving.volume, poses)
    similarity = _similarity(fixed, moving, [*poses, *_wrong(transform, center[0], rng)], rng)
    wrong = similarity[len(poses) :]
    quality = {
        "metric_headers": metric[0],
        "metric_start": metric[1],
        "metric": metric[2],
        "similarity_headers": similarity[0],
        "similarity": similarity[2],
        "prominence": (similarity[2] - wrong.mean()) / max(wrong.std(), 1e-9),
        "spread_mm": found.spread_mm,
        "rotation_degrees": transform.rotation_degrees,
        "translation_mm": np.linalg.norm(transform(center) - center),
        "overlap": _overlap(transform, fixed.volume, moving.volume, rng),
        "brain_dice": _brain_dice(transform, fixed, moving, rng),
    }
    return {name: round(float(value), 4) for name, value in quality.items()}


def published_metric(
    fixed: Volume, moving: Volume, poses: list[RigidTransform], n: int = METRIC_SAMPLES
) -> "NDArray[np.float64]":
    """Return Mattes' mutual information as ITK computes it, in nats, for each pose.

    32 bins, two of them empty on either side, from the least to the greatest value of each image;
    samples are the centers of every so many voxels of the fixed image, about n.
    """
    from mrmill.register import metric
    from mrmill.register.levels import image_of

    image = image_of(moving)
    low, high = _range(image.voxels)
    scale = metric.BINS * metric.FIXED / (high - low)
    places = ((image.voxels - np.float32(low)) * np.float32(scale)).astype(np.uint16)
    step = max(1, fixed.data.size // n)
    chosen = np.arange(0, fixed.data.size, step)
    voxels = np.stack(np.unravel_index(chosen, fixed.data.shape[::-1]), axis=-1)
    values = image_of(fixed).voxels[tuple(voxels.T)]
    low, high = _range(values)
    bins = ((values - low) * (ITK_BINS / (high - low))).astype(np.uint8)
    points = RigidTransform(fixed.affine)(voxels[:, ::-1])
    rated = np.empty((len(poses), 3))
    matrices = np.stack([image.to_voxel @ pose.matrix for pose in poses])
    scale = ITK_BINS / metric.BINS / metric.FIXED
    metric.many(places, points, np.minimum(bins, ITK_BINS - 1), matrices, scale, rated)
    return rated[:, 0]


def _range(values: "NDArray") -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    return low, max(high, low + 1e-6)


def _similarity(
    fixed: Scan, moving: Scan, poses: list[RigidTransform], rng: np.random.Generator
) -> "NDArray[np.float64]":
    from mrmill.register.engines.mattes import Matching
    from mrmill.register.levels import FINE

    matching = Matching(fixed.sight, moving.sight, FINE, rng)
    return matching.scores(np.stack([pose.matrix for pose in poses]), POSE_SAMPLES)


def _wrong(
    right: RigidTransform, center: "NDArray", rng: np.random.Generator
) -> list[RigidTransform]:
    """Return poses turned and shifted away from the right one, about the middle of the brain."""
    from scipy.spatial.transform import Rotation

    turns = _directions(N_WRONG, rng) * np.radians(
        rng.uniform(WRONG_DEG / 2, WRONG_DEG, (N_WRONG, 1))
    )
    shifts = _directions(N_WRONG, rng) * rng.uniform(WRONG_MM / 2, WRONG_MM, (N_WRONG, 1))
    away = np.tile(np.eye(4), (N_WRONG, 1, 1))
    away[:, :3, :3] = Rotation.from_rotvec(turns).as_matrix()
    away[:, :3, 3] = center + shifts - away[:, :3, :3] @ center
    return [RigidTransform(right.matrix @ one) for one in away]


def _directions(n: int, rng: np.random.Generator) -> "NDArray[np.float64]":
    vectors = rng.normal(size=(n, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _overlap(
    transform: RigidTransform, fixed: Volume, moving: Volume, rng: np.random.Generator
) -> float:
    voxels = rng.uniform(-0.5, np.array(moving.data.shape) - 0.5, size=(SAMPLES, 3))
    points = transform.inverse()(_to_mm(moving, voxels))
    return float(_in_field(fixed, _to_voxel(fixed, points)).mean())


def _brain_dice(
    transform: RigidTransform, fixed: Scan, moving: Scan, rng: np.random.Generator
) -> float:
    """Estimate Dice from the shares of each brain's points that fall into the other's."""
    if not (fixed.brain.any() and moving.brain.any()):
        return 0.0
    there = transform(_brain_points(fixed, rng))
    back = transform.inverse()(_brain_points(moving, rng))
    fixed_ml, shared_ml = _brain_ml(fixed, there, moving)
    moving_ml, _ = _brain_ml(moving, back, fixed)
    return 2 * shared_ml / (fixed_ml + moving_ml) if fixed_ml + moving_ml else 0.0


def _brain_points(scan: Scan, rng: np.random.Generator) -> "NDArray[np.float64]":
    """Return random points (n, 3) in mm within the brain, off the grid on purpose."""
    voxels = np.argwhere(scan.brain)
    chosen = voxels[rng.integers(len(voxels), size=SAMPLES)]
    return _to_mm(scan.volume, chosen + rng.uniform(-0.5, 0.5, size=chosen.shape))


def _brain_ml(scan: Scan, mapped: "NDArray", other: Scan) -> tuple[float, float]:
    """Return the volume of a brain inside another scan's field, and inside its brain, in mL."""
    whole_ml = scan.brain.sum() * np.prod(scan.volume.spacing_mm) / 1000
    voxels = _to_voxel(other.volume, mapped)
    voxels = np.rint(voxels[_in_field(other.volume, voxels)]).astype(int)
    i, j, k = np.clip(voxels, 0, np.array(other.brain.shape) - 1).T
    return whole_ml * len(voxels) / len(mapped), whole_ml * other.brain[i, j, k].sum() / len(mapped)


def _to_mm(volume: Volume, voxels: "NDArray") -> "NDArray[np.float64]":
    return RigidTransform(volume.affine)(voxels)


def _to_voxel(volume: Volume, points_mm: "NDArray") -> "NDArray[np.float64]":
    return RigidTransform(np.linalg.inv(volume.affine))(points_mm)


def _in_field(volume: Volume, voxels: "NDArray") -> "NDArray[np.bool_]":
    return ((voxels >= -0.5) & (voxels <= np.array(volume.data.shape) - 0.5)).all(axis=1)
