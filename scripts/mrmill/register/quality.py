"""How well a rigid transform lays one scan over another, measured the same way for every engine.

All measures look at sample points, not at whole grids: they cost about 0.1 s, whatever the images.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from mrmill.register.descent import AFFINE
from mrmill.register.engines import Found
from mrmill.register.scans import Scan
from mrmill.register.transforms import RigidTransform
from mrmill.volumes import Volume

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mrmill.config import CoregLimits

#: Points behind overlap and Dice: the sampling error of Dice is then below 0.003; behind the
#: published metric; behind the similarity of a pose.
SAMPLES, METRIC_SAMPLES, POSES = 50_000, 50_000, 4_000

#: Words for a transform's state, in its JSON.
OK, NEEDS_REVIEW, REG_FAILED = "ok", "needs_review", "reg_failed"

#: Bins that the values of an image fill in ITK: 32 less two on either side.
ITK_BINS = 28

#: How far from the brain that reaches which a head's stretch is seen by. Bones and skin tell heads
#: apart, and hold a thin slab: with 4 mm a third of right slabs of 32 mm look stretched, here none.
STRETCH_MARGIN_MM = 16.0

#: Poses around the found one that it must stand out from, and how far they are turned and shifted.
N_WRONG, WRONG_DEG, WRONG_MM = 96, 30.0, 30.0


@dataclass(frozen=True)
class Problem:
    """A measure outside its limits.

    Attributes
    ----------
    fails : bool
        The transform is wrong; else a person should look.
    found, limit : str
        In words.
    """

    fails: bool
    found: str
    limit: str

    def __str__(self) -> str:
        return f"{self.found}, limit {self.limit}"


def problems(quality: dict[str, float], limits: "CoregLimits") -> list[Problem]:
    """Return what speaks against a transform, the worst first; `quality` is from `measure`."""
    seen = []
    for name, (review, fail) in limits:
        for fails, bound in ((True, fail), (False, review)):
            if bound is not None and not limits.as_good(name, quality[name], bound):
                words = f"{name} {'<=' if name in limits.LESS_IS_BETTER else '>='} {bound:g}"
                seen.append(Problem(fails, f"{name} {quality[name]:.3f}", words))
                break
    return sorted(seen, key=lambda problem: not problem.fails)


def state(seen: list[Problem]) -> str:
    """Return the state of a transform with these problems."""
    if not seen:
        return OK
    return REG_FAILED if seen[0].fails else NEEDS_REVIEW


def measured(found: Found, fixed: Scan, moving: Scan) -> Found:
    """Return what was found with its measures."""
    return found if found.quality else replace(found, quality=measure(found, fixed, moving))


def measure(found: Found, fixed: Scan, moving: Scan) -> dict[str, float]:
    """Measure how well a transform lays a moving scan over a fixed one.

    Returns
    -------
    quality : dict
        `metric_headers`, `metric_start`, `metric`: the published recipe's own metric, Mattes'
        mutual information over the whole fixed field in nats, with the headers alone, where the
        last descent began and with the transform. `metric_gain`: the last less the first.
        `similarity_headers`, `similarity`: share of the information around the brain that the two
        images have in common, 0 to 1.
        `prominence`: by how many standard deviations the similarity stands out from that of wrong
        poses around it. `spread_mm`: `Found.spread_mm`. `stretch`: by what share of its length
        the moving head would have to be stretched or squeezed, along the direction where most,
        to fit best.
        `rotation_degrees`; `translation_mm`: how far the middle of the fixed brain moves.
        `overlap`: share of the moving field inside the fixed field. `brain_dice`: of the two brain
        masks, within the common field.
    """
    from mrmill.register.levels import FINE
    from mrmill.register.matching import Matching

    rng = np.random.default_rng(0)  # measures need no seed of their own: always the same points
    transform, center = found.transform, fixed.sight.region.center_mm
    headers = RigidTransform()
    metrics = published_metric(fixed.volume, moving.volume, [headers, found.start, transform])
    matching = Matching(fixed.sight, moving.sight, FINE, rng)
    similar = matching.scores(
        _matrices([headers, transform, *_wrong(transform, center, rng)]), POSES
    )
    wrong = similar[2:]
    around = Matching(fixed.sight, moving.sight, FINE, rng, STRETCH_MARGIN_MM)
    affine = around.descend(transform, free=AFFINE).pose
    stretched = np.linalg.svd(affine.matrix[:3, :3], compute_uv=False)
    quality = {
        **dict(zip(("metric_headers", "metric_start", "metric"), metrics, strict=True)),
        "metric_gain": metrics[2] - metrics[0],
        "similarity_headers": similar[0],
        "similarity": similar[1],
        "prominence": (similar[1] - wrong.mean()) / max(wrong.std(), 1e-9),
        "spread_mm": found.spread_mm,
        "stretch": np.abs(stretched - 1).max(),
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
    samples are the centers of n voxels of the fixed image, or of all, one at random from each of n
    equal runs of them. Every so many would fall into one and the same slice of some images. The
    moving field ends at the middles of its border voxels, half a voxel before ITK's.
    """
    from mrmill.register import metric
    from mrmill.register.levels import image_of

    image = image_of(moving)
    low, high = _range(image.voxels)
    scale = metric.BINS * metric.FIXED / (high - low)
    places = ((image.voxels - np.float32(low)) * np.float32(scale)).astype(np.uint16)
    n = min(n, fixed.data.size)
    within = np.random.default_rng(0).random(n)
    chosen = ((np.arange(n) + within) * (fixed.data.size / n)).astype(np.int64)
    voxels = np.stack(np.unravel_index(chosen, fixed.data.shape[::-1]), axis=-1)
    values = image_of(fixed).voxels[tuple(voxels.T)]
    low, high = _range(fixed.data)
    bins = ((values - low) * (ITK_BINS / (high - low))).astype(np.uint8)
    points = RigidTransform(fixed.affine)(voxels[:, ::-1])
    rated = np.empty((len(poses), 3))
    matrices = np.stack([image.to_voxel @ pose.matrix for pose in poses])
    scale = ITK_BINS / metric.BINS / metric.FIXED
    metric.many(places, points, np.minimum(bins, ITK_BINS - 1), matrices, scale, rated)
    return rated[:, 0]


def _range(values: "NDArray") -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    return low, high if high > low else low + 1


def _matrices(poses: list[RigidTransform]) -> "NDArray[np.float64]":
    return np.stack([pose.matrix for pose in poses])


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
    """Estimate Dice from the shares of each brain's points that fall into the other's.

    Cells and voxels are not cut at the surface: two equal brains in thick slices have 0.94.
    """
    if not (fixed.brain.any() and moving.brain.any()):
        return 0.0
    there = _shares(transform, fixed, moving, rng)
    back = _shares(transform.inverse(), moving, fixed, rng)
    in_field_ml = there[0] + back[0]
    return 2 * there[1] / in_field_ml if in_field_ml else 0.0


def _shares(
    transform: RigidTransform, scan: Scan, other: Scan, rng: np.random.Generator
) -> tuple[float, float]:
    """Return the volume of a brain that lies in another scan's field and in its brain, in mL."""
    region = scan.sight.region
    voxels = _to_voxel(other.volume, transform(region.points(SAMPLES, 0.0, rng)))
    voxels = np.rint(voxels[_in_field(other.volume, voxels)]).astype(int)
    i, j, k = np.clip(voxels, 0, np.array(other.brain.shape) - 1).T
    return tuple(region.brain_ml * n / SAMPLES for n in (len(voxels), other.brain[i, j, k].sum()))


def _to_mm(volume: Volume, voxels: "NDArray") -> "NDArray[np.float64]":
    return RigidTransform(volume.affine)(voxels)


def _to_voxel(volume: Volume, points_mm: "NDArray") -> "NDArray[np.float64]":
    return RigidTransform(np.linalg.inv(volume.affine))(points_mm)


def _in_field(volume: Volume, voxels: "NDArray") -> "NDArray[np.bool_]":
    return ((voxels >= -0.5) & (voxels <= np.array(volume.data.shape) - 0.5)).all(axis=1)
